"""ResNet's tensors in the files of others, brought to the native names."""

import re
from typing import Final

from torch import Tensor

_HF_OUTSIDE: Final = {
    "embedder.embedder.convolution": "conv1",
    "embedder.embedder.normalization": "bn1",
    "classifier.1": "fc",
}
_HF_KINDS: Final = {"convolution": ("conv", "0"), "normalization": ("bn", "1")}
_HF_INSIDE: Final = re.compile(
    r"encoder\.stages\.(\d+)\.layers\.(\d+)\.(?:layer\.(\d+)|shortcut)\.(convolution|normalization)"
)


def to_native(tensors: dict[str, Tensor]) -> tuple[str, dict[str, Tensor]] | None:
    """Recognise the layout of a ResNet's tensors and bring them to the native one, timm's and torchvision's.

    Args:
        tensors: by name.

    Returns:
        The layout, "timm" or "huggingface" (transformers' ResNetModel and ResNetForImageClassification), and the
        tensors under native names; names that have no counterpart stay. None if the tensors are not a ResNet's.
    """
    if "conv1.weight" in tensors and "layer1.0.conv1.weight" in tensors:
        return "timm", dict(tensors)
    names = {name: name.removeprefix("resnet.") for name in tensors}
    stem = next((name for name, short in names.items() if short == "embedder.embedder.convolution.weight"), None)
    # RegNet has the same names without its prefix, but a 3x3 stem.
    if stem is None or tensors[stem].shape[2:] != (7, 7):
        return None
    return "huggingface", {_native_name(short): tensors[name] for name, short in names.items()}


def _native_name(name: str) -> str:
    """Translate one name of Hugging Face's ResNet without its prefix."""
    stem, dot, leaf = name.rpartition(".")
    inside = _HF_INSIDE.fullmatch(stem)
    if not inside:
        return _HF_OUTSIDE.get(stem, stem) + dot + leaf
    stage, block, layer, kind = inside.groups()
    numbered, in_shortcut = _HF_KINDS[kind]
    part = f"downsample.{in_shortcut}" if layer is None else f"{numbered}{int(layer) + 1}"
    return f"layer{int(stage) + 1}.{block}.{part}.{leaf}"
