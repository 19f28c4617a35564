"""What stands beside weights in their folder: config.json and preprocessor_config.json of the hub's two layouts."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from vitrail.config import Interpolation, Preprocess, ResizeMode
from vitrail.errors import CheckpointError
from vitrail.models.weights import CONFIG_NAME, PREPROCESSOR_NAME, read_json

_PIL_FILTERS: Final[dict[int, Interpolation]] = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}
_TIMM_CROPS: Final[dict[str, ResizeMode]] = {"center": "crop", "squash": "squash", "border": "pad"}

_ACTIVATIONS: Final = {
    "vit": ("gelu",),
    "mobilevit": ("silu", "swish"),
    "mobilevitv2": ("silu", "swish"),
    "resnet": ("relu",),
}
"""Types of model in transformers that have a counterpart here, and the activation that it computes."""

_MOBILEVITS: Final = ("mobilevit", "mobilevitv2")

# From this side on, ConvNext's processor, which ResNet uses too, squeezes a picture instead of cutting it.
_CONVNEXT_SQUASHED: Final = 384
_CONVNEXT_CROP: Final = 224 / 256


@dataclass(frozen=True, kw_only=True)
class Description:
    """What is known about weights beside their tensors; None where it is not."""

    architecture: str | None = None
    """timm's name of the model."""
    classes: tuple[str, ...] | None = None
    """Names of the outputs of the head, in their order."""
    preprocess: Preprocess | None = None
    """How images were prepared, in the order red, green, blue."""
    image_size: tuple[int, int] | None = None
    """Height and width in pixels that the model was made for."""
    heads: int | None = None
    """Number of attention heads of a ViT, which no tensor's shape tells."""
    takes_bgr: bool | None = None
    """Whether the weights expect blue, green, red."""


def describe(folder: Path) -> Description:
    """Read what config.json and preprocessor_config.json say, in the layout of transformers or of timm on the hub.

    Raises:
        CheckpointError: if a file is damaged, or describes a model or a preparation of images that is not supported.
    """
    config = read_json(folder / CONFIG_NAME)
    try:
        if "architecture" in config:
            return _describe_timm(config)
        if "model_type" in config:
            return _describe_huggingface(config, read_json(folder / PREPROCESSOR_NAME))
    except (AttributeError, ArithmeticError, LookupError, TypeError, ValueError) as error:
        raise CheckpointError(f"What {folder} says in its JSON files cannot be understood: {error}") from error
    return Description()


def describe_for_transformers(folder: Path) -> Description:
    """Read what a folder says of a model, of any type, that transformers itself computes.

    Raises:
        CheckpointError: if a file is damaged, or images are prepared in a way that is not supported.
    """
    config, processor = read_json(folder / CONFIG_NAME), read_json(folder / PREPROCESSOR_NAME)
    try:
        return _describe(config, processor, str(config.get("model_type")))
    except (AttributeError, ArithmeticError, LookupError, TypeError, ValueError) as error:
        raise CheckpointError(f"What {folder} says in its JSON files cannot be understood: {error}") from error


def describe_processor(processor: dict[str, Any], model_type: str) -> Preprocess:
    """Return how transformers' image processor prepares pictures for a type of model.

    Raises:
        CheckpointError: if it does something that `Preprocess` cannot say.
        LookupError: or another error of plain values, where the file is not what transformers writes.
    """
    if not processor.get("do_rescale", True) or abs(255 * processor.get("rescale_factor", 1 / 255) - 1) > 1e-6:
        raise CheckpointError("Its images are not brought from 0..255 to 0..1 before they are normalised.")
    image_size, resize, crop_fraction = _cut(processor, model_type)
    mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    # MobileViT's processor has no normalisation, and some versions write the keys of one all the same.
    if processor.get("do_normalize", model_type not in _MOBILEVITS):
        mean, std = (_three(processor.get(f"image_{name}", [0.5] * 3)) for name in ("mean", "std"))
        if _takes_bgr(processor, model_type):
            mean, std = mean[::-1], std[::-1]
    return Preprocess(
        image_size=image_size,
        resize=resize,
        crop_fraction=crop_fraction,
        interpolation=_PIL_FILTERS[processor.get("resample", 2)],
        mean=mean,
        std=std,
    )


def _describe_timm(config: dict[str, Any]) -> Description:
    pretrained: dict[str, Any] = {**config, **config.get("pretrained_cfg", {})}
    architecture, labels = str(config["architecture"]), pretrained.get("label_names")
    classes = tuple(labels) if labels else None
    if "input_size" not in pretrained:
        return Description(architecture=architecture, classes=classes)
    _, height, width = pretrained["input_size"]
    preprocess = Preprocess(
        image_size=(height, width),
        resize=_TIMM_CROPS[pretrained.get("crop_mode", "center")],
        crop_fraction=pretrained.get("crop_pct", 1.0),
        interpolation=pretrained.get("interpolation", "bicubic"),
        mean=_three(pretrained["mean"]),
        std=_three(pretrained["std"]),
    )
    return Description(
        architecture=architecture, classes=classes, preprocess=preprocess, image_size=preprocess.image_size
    )


def _describe_huggingface(config: dict[str, Any], processor: dict[str, Any]) -> Description:
    kind = config["model_type"]
    if kind not in _ACTIVATIONS:
        known = ", ".join(map(repr, _ACTIVATIONS))
        raise CheckpointError(
            f"The model is of the type {kind!r}; of transformers' types {known} are loaded into models of vitrail. "
            "Others run as they are: --model transformers:NAME."
        )
    if config.get("hidden_act", _ACTIVATIONS[kind][0]) not in _ACTIVATIONS[kind]:
        raise CheckpointError(
            f"The model computes {config['hidden_act']!r} where this {kind} computes {_ACTIVATIONS[kind][0]!r}."
        )
    # Strides that no tensor's shape tells.
    for switch in ("downsample_in_bottleneck", "downsample_in_first_stage"):
        if config.get(switch):
            raise CheckpointError(f"The model has {switch} switched on, which this {kind} does not have.")
    return _describe(config, processor, kind)


def _describe(config: dict[str, Any], processor: dict[str, Any], kind: str) -> Description:
    preprocess = describe_processor(processor, kind) if processor else None
    size = _pair(config["image_size"]) if "image_size" in config else None
    return Description(
        classes=_labels(config.get("id2label", {})),
        preprocess=preprocess,
        image_size=size or (preprocess.image_size if preprocess else None),
        heads=config.get("num_attention_heads") if kind == "vit" else None,
        takes_bgr=_takes_bgr(processor, kind),
    )


def _takes_bgr(processor: dict[str, Any], model_type: str) -> bool:
    """Return whether the processor reverses the colours; MobileViT's does unless it is told not to."""
    return bool(processor.get("do_flip_channel_order", model_type in _MOBILEVITS))


def _cut(processor: dict[str, Any], model_type: str) -> tuple[tuple[int, int], ResizeMode, float]:
    """Return the image size, how pictures come to it, and the share of them that a centre crop keeps."""
    size = processor["size"]
    shorter = size.get("shortest_edge") if isinstance(size, dict) else None
    if model_type == "resnet" or "crop_pct" in processor:
        side = int(shorter or _pair(size)[0])
        if side >= _CONVNEXT_SQUASHED:
            return (side, side), "squash", 1.0
        return (side, side), "crop", processor.get("crop_pct") or _CONVNEXT_CROP
    if processor.get("do_center_crop", model_type in _MOBILEVITS):
        image_size = _pair(processor["crop_size"])
        shorter = shorter or min(_pair(size))
        return image_size, "crop", min(1.0, min(image_size) / shorter)
    return _pair(shorter or size), "crop" if shorter else "squash", 1.0


def _labels(id2label: dict[str, str]) -> tuple[str, ...] | None:
    """Return real names only: transformers fills in LABEL_0, LABEL_1, ... where there are none."""
    names = tuple(id2label[str(index)] for index in range(len(id2label)))
    return None if all(name == f"LABEL_{index}" for index, name in enumerate(names)) else names


def _three(values: Any) -> tuple[float, float, float]:
    red, green, blue = (float(value) for value in values)
    return red, green, blue


def _pair(size: Any) -> tuple[int, int]:
    """Return height and width from a side, a pair, or {"height": ..., "width": ...}."""
    if isinstance(size, dict):
        return int(size["height"]), int(size["width"])
    height, width = (size, size) if isinstance(size, int) else size
    return int(height), int(width)
