"""Names of MobileViT's tensors in timm, in Hugging Face's transformers and in Apple's own code, v1 and v2.

The weights of Hugging Face and of Apple's code expect the channels of an image as blue, green, red; timm's expect red,
green, blue. Nothing here is flipped: whoever loads the first two has to turn the input channels of "stem.conv.weight".
"""

import re
from typing import Final, Literal

import torch
from torch import Tensor

from vitrail.models import mobilevit, mobilevitv2
from vitrail.models.mobilevit import MobileVitShape

Layout = Literal["timm", "huggingface", "cvnets"]
Rules = tuple[tuple[str, str], ...]

_MARKS: Final[dict[Layout, tuple[str, str]]] = {
    "timm": ("stem.conv.weight", "stages.2.1.conv_kxk.conv.weight"),
    "huggingface": ("conv_stem.convolution.weight", "encoder.layer.2.downsampling_layer.expand_1x1.convolution.weight"),
    "cvnets": ("conv_1.block.conv.weight", "layer_3.0.block.exp_1x1.block.conv.weight"),
}
"""Two tensors that, without the prefix, every file of a layout holds."""

_PREFIXES: Final[dict[Layout, str]] = {
    "timm": "",
    "huggingface": r"mobilevit(v2)?\.",
    "cvnets": r"encoder\.",  # when it is the backbone of Apple's segmentation or detection
}

_HUGGINGFACE: Final[Rules] = (
    (r"^conv_stem\.", "stem."),
    (r"^conv_1x1_exp\.", "final_conv."),
    (r"^classifier\.", "head.fc."),
    (r"^encoder\.layer\.([01])\.layer\.", r"stages.\1."),
    (r"^encoder\.layer\.([2-4])\.downsampling_layer\.", r"stages.\1.0."),
    (r"^encoder\.layer\.([2-4])\.", r"stages.\1.1."),
    (r"\.expand_1x1\.", ".conv1_1x1."),
    (r"\.conv_3x3\.", ".conv2_kxk."),
    (r"\.reduce_1x1\.", ".conv3_1x1."),
    (r"\.1\.conv_1x1\.convolution\.", ".1.conv_1x1."),
    (r"\.1\.layernorm\.", ".1.norm."),
    (r"\.1\.conv_projection\.", ".1.conv_proj."),
    (r"\.1\.fusion\.", ".1.conv_fusion."),
    (r"\.transformer\.layer\.", ".transformer."),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
    (r"\.attention\.attention\.qkv\.", ".attn.qkv."),  # joined before the rules are applied
    (r"\.attention\.output\.dense\.", ".attn.proj."),
    (r"\.intermediate\.dense\.", ".mlp.fc1."),
    (r"\.output\.dense\.", ".mlp.fc2."),
    (r"\.attention\.(qkv_proj|out_proj)\.convolution\.", r".attn.\1."),
    (r"\.ffn\.conv([12])\.convolution\.", r".mlp.fc\1."),
    (r"\.convolution\.", ".conv."),
    (r"\.normalization\.", ".bn."),
)

_CVNETS: Final[Rules] = (
    (r"\.block\.norm\.", ".block.bn."),
    (r"^conv_1\.block\.", "stem."),
    (r"^conv_1x1_exp\.block\.", "final_conv."),
    (r"^classifier\.(fc|1)\.", "head.fc."),
    *((rf"^layer_{number}\.", f"stages.{number - 1}.") for number in range(1, 6)),
    (r"\.block\.exp_1x1\.block\.", ".conv1_1x1."),
    (r"\.block\.conv_3x3\.block\.", ".conv2_kxk."),
    (r"\.block\.red_1x1\.block\.", ".conv3_1x1."),
    (r"\.local_rep\.(conv_3x3|0)\.block\.", ".conv_kxk."),
    (r"\.local_rep\.(conv_1x1|1)\.block\.conv\.", ".conv_1x1."),
    (r"\.conv_proj\.block\.", ".conv_proj."),
    (r"\.fusion\.block\.", ".conv_fusion."),
    (r"\.global_rep\.\d+\.(weight|bias)$", r".norm.\1"),
    (r"\.global_rep\.(\d+)\.", r".transformer.\1."),
    (r"\.pre_norm_(mha|attn)\.0\.", ".norm1."),
    (r"\.pre_norm_ffn\.0\.", ".norm2."),
    (r"\.pre_norm_mha\.1\.qkv_proj\.", ".attn.qkv."),
    (r"\.pre_norm_mha\.1\.out_proj\.", ".attn.proj."),
    (r"\.pre_norm_attn\.1\.(qkv_proj|out_proj)\.block\.conv\.", r".attn.\1."),
    (r"\.pre_norm_ffn\.1\.(block\.conv\.)?", ".mlp.fc1."),
    (r"\.pre_norm_ffn\.(4\.|3\.block\.conv\.)", ".mlp.fc2."),
)

_RULES: Final[dict[Layout, Rules]] = {"timm": (), "huggingface": _HUGGINGFACE, "cvnets": _CVNETS}

_NATIVE: Final = re.compile(
    r"(stem|final_conv)\.(conv|bn)\.\w+"
    r"|head\.fc\.\w+"
    r"|stages\.\d\.\d\.(conv1_1x1|conv2_kxk|conv3_1x1|conv_kxk|conv_proj|conv_fusion)\.(conv|bn)\.\w+"
    r"|stages\.\d\.1\.(conv_1x1|norm)\.\w+"
    r"|stages\.\d\.1\.transformer\.\d+\.(norm1|norm2|attn\.(qkv|proj|qkv_proj|out_proj)|mlp\.(fc1|fc2))\.\w+"
)


def to_native(tensors: dict[str, Tensor]) -> tuple[str, dict[str, Tensor]] | None:
    """Recognise the layout of a MobileViT's tensors, v1 or v2, and bring them to the native one, timm's.

    The channels of the stem stay in the order they have, which for "huggingface" and "cvnets" is blue, green, red.

    Args:
        tensors: weights and statistics by name, with or without the prefix that a larger model gives them.

    Returns:
        "timm", "huggingface" or "cvnets", and the tensors under native names; a name without a counterpart stays as it
        is. None if the tensors are not those of a MobileViT.
    """
    for layout, prefix in _PREFIXES.items():
        short = {re.sub(f"^{prefix}", "", name): name for name in tensors}
        if all(mark in short for mark in _MARKS[layout]):
            break
    else:
        return None
    if layout == "timm":
        return layout, dict(tensors)
    if layout == "huggingface":
        tensors = _join_qkv(tensors)
    native: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        translated = re.sub(f"^{_PREFIXES[layout]}", "", name)
        for pattern, replacement in _RULES[layout]:
            translated = re.sub(pattern, replacement, translated)
        native[translated if _NATIVE.fullmatch(translated) else name] = tensor
    return layout, native


def recognise(tensors: dict[str, Tensor]) -> str | None:
    """Return the name in the table of models whose shape tensors with native names have, such as "mobilevit_xs".

    None if none has. Classes and channels of the image are free.
    """
    found = _shape(tensors)
    is_v2 = "stages.2.1.transformer.0.attn.qkv_proj.weight" in tensors
    family, shapes = ("mobilevitv2", mobilevitv2.SHAPES) if is_v2 else ("mobilevit", mobilevit.SHAPES)
    return next((f"{family}_{size}" for size, shape in shapes.items() if shape == found), None)


def _shape(tensors: dict[str, Tensor]) -> MobileVitShape | None:
    """Read the shape that the tensors have; None if one that it is read from is missing."""
    out = {name.removesuffix(".weight"): len(tensor) for name, tensor in tensors.items() if tensor.dim() in (2, 4)}
    try:
        first, second, third, fourth, fifth = (out[f"stages.{number}.0.conv3_1x1.conv"] for number in range(5))
        expansion, rest = divmod(out["stages.0.0.conv1_1x1.conv"], out["stem.conv"])
        num_residuals = [sum(f"stages.{stage}.{index}.conv3_1x1.conv" in out for index in range(9)) for stage in (0, 1)]
        return (
            None
            if rest
            else MobileVitShape(
                stem=out["stem.conv"],
                widths=(first, second, third, fourth, fifth),
                dims=(out["stages.2.1.conv_1x1"], out["stages.3.1.conv_1x1"], out["stages.4.1.conv_1x1"]),
                num_residuals=(num_residuals[0], num_residuals[1]),
                expansion=expansion,
                features=out.get("final_conv.conv", 0),
            )
        )
    except KeyError:
        return None


def _join_qkv(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Stack queries, keys and values where all three are there and match, as the native layout has them."""
    joined = dict(tensors)
    for name in tensors:
        found = re.fullmatch(r"(.+\.attention\.attention)\.query\.(weight|bias)", name)
        if not found:
            continue
        names = [f"{found[1]}.{part}.{found[2]}" for part in ("query", "key", "value")]
        parts = [tensors[each] for each in names if each in tensors]
        if len(parts) == 3 and len({part.shape for part in parts}) == 1 and parts[0].dim():
            joined[f"{found[1]}.qkv.{found[2]}"] = torch.cat(parts)
            for each in names:
                del joined[each]
    return joined
