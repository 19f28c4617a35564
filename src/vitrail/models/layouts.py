"""Layouts of ViT checkpoints: the names in timm's and Hugging Face's files, and what stands beside the weights.

Our own files use timm's names, so only Hugging Face's are translated.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import torch
from torch import Tensor

from vitrail.config import Interpolation, Preprocess, ResizeMode
from vitrail.errors import CheckpointError
from vitrail.models.weights import CONFIG_NAME, PREPROCESSOR_NAME, first_few, read_json

Layout = Literal["vitrail", "timm", "huggingface"]

_HF_OUTSIDE: Final = {
    "embeddings.cls_token": "cls_token",
    "embeddings.position_embeddings": "pos_embed",
    "embeddings.patch_embeddings.projection": "patch_embed.proj",
    "layernorm": "norm",
    "classifier": "head",
}
_HF_INSIDE: Final = {
    "layernorm_before": "norm1",
    "layernorm_after": "norm2",
    # transformers 4, and every file on the hub: transformers 5 still writes these names
    "attention.attention.query": "attn.q",
    "attention.attention.key": "attn.k",
    "attention.attention.value": "attn.v",
    "attention.output.dense": "attn.proj",
    "intermediate.dense": "mlp.fc1",
    "output.dense": "mlp.fc2",
    # transformers 5, in memory
    "attention.q_proj": "attn.q",
    "attention.k_proj": "attn.k",
    "attention.v_proj": "attn.v",
    "attention.o_proj": "attn.proj",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}

_PIL_FILTERS: Final[dict[int, Interpolation]] = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}
_TIMM_CROPS: Final[dict[str, ResizeMode]] = {"center": "crop", "squash": "squash", "border": "pad"}


@dataclass(frozen=True, kw_only=True)
class Description:
    """What is known about weights beside their tensors; None where it is not."""

    classes: tuple[str, ...] | None = None
    """Names of the outputs of the head, in their order."""
    preprocess: Preprocess | None = None
    """How images were prepared."""
    image_size: tuple[int, int] | None = None
    """Height and width in pixels that the position embeddings belong to."""
    heads: int | None = None
    """Number of attention heads, which no tensor's shape tells."""


def to_native(tensors: dict[str, Tensor], path: Path) -> tuple[Layout, dict[str, Tensor]]:
    """Recognise the layout of a ViT's tensors and bring them to the native one, timm's.

    Raises:
        CheckpointError: if the tensors are not those of a ViT in a known layout.
    """
    if "patch_embed.proj.weight" in tensors:
        return "timm", dict(tensors)
    names = {name: re.sub(r"^vit\.", "", name) for name in tensors}
    if "embeddings.patch_embeddings.projection.weight" in names.values():
        native = {_native_name(short): tensors[name] for name, short in names.items()}
        return "huggingface", _join_qkv(native, path)
    raise CheckpointError(
        f"{path} holds no vision transformer in the layout of timm or Hugging Face's ViT. "
        f"Its tensors are {first_few(tensors) or 'none'}."
    )


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
        raise CheckpointError(f"What {folder} says in its JSON files does not fit a ViT: {error}") from error
    return Description()


def _native_name(name: str) -> str:
    """Translate one name of Hugging Face's ViT without its prefix; names that have no counterpart stay."""
    stem, dot, leaf = name.rpartition(".")
    inside = re.fullmatch(r"(?:encoder\.layer|layers)\.(\d+)\.(.+)", stem)
    if inside and inside[2] in _HF_INSIDE:
        return f"blocks.{inside[1]}.{_HF_INSIDE[inside[2]]}.{leaf}"
    return _HF_OUTSIDE.get(name) or _HF_OUTSIDE.get(stem, stem) + dot + leaf


def _join_qkv(tensors: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    """Stack queries, keys and values, which the native layout computes in one product."""
    joined = dict(tensors)
    for name in tensors:
        found = re.fullmatch(r"(blocks\.\d+\.attn)\.q\.(weight|bias)", name)
        if not found:
            continue
        parts = [joined.pop(f"{found[1]}.{part}.{found[2]}", None) for part in "qkv"]
        present = [part for part in parts if part is not None]
        if len(present) < 3 or len({part.shape for part in present}) > 1 or present[0].dim() == 0:
            raise CheckpointError(f"{path}: queries, keys and values of {found[1]} are not all there, or do not match.")
        joined[f"{found[1]}.qkv.{found[2]}"] = torch.cat(present)
    return joined


def _describe_timm(config: dict[str, Any]) -> Description:
    pretrained: dict[str, Any] = {**config, **config.get("pretrained_cfg", {})}
    labels = pretrained.get("label_names")
    if "input_size" not in pretrained:
        return Description(classes=tuple(labels) if labels else None)
    _, height, width = pretrained["input_size"]
    preprocess = Preprocess(
        image_size=(height, width),
        resize=_TIMM_CROPS[pretrained.get("crop_mode", "center")],
        crop_fraction=pretrained.get("crop_pct", 1.0),
        interpolation=pretrained.get("interpolation", "bicubic"),
        mean=tuple(pretrained["mean"]),
        std=tuple(pretrained["std"]),
    )
    return Description(
        classes=tuple(labels) if labels else None, preprocess=preprocess, image_size=preprocess.image_size
    )


def _describe_huggingface(config: dict[str, Any], processor: dict[str, Any]) -> Description:
    if config["model_type"] != "vit":
        raise CheckpointError(f"The model is of the type {config['model_type']!r}; only 'vit' is loaded.")
    if config.get("hidden_act", "gelu") != "gelu":
        raise CheckpointError(f"The model computes {config['hidden_act']!r} where this ViT computes 'gelu'.")
    return Description(
        classes=_labels(config.get("id2label", {})),
        preprocess=_preprocess(processor) if processor else None,
        image_size=_pair(config["image_size"]) if "image_size" in config else None,
        heads=config.get("num_attention_heads"),
    )


def _labels(id2label: dict[str, str]) -> tuple[str, ...] | None:
    """Return real names only: transformers fills in LABEL_0, LABEL_1, ... where there are none."""
    names = tuple(id2label[str(index)] for index in range(len(id2label)))
    return None if all(name == f"LABEL_{index}" for index, name in enumerate(names)) else names


def _preprocess(processor: dict[str, Any]) -> Preprocess:
    if not processor.get("do_rescale", True) or abs(255 * processor.get("rescale_factor", 1 / 255) - 1) > 1e-6:
        raise CheckpointError("Its images are not brought from 0..255 to 0..1 before they are normalised.")
    size = processor["size"]
    shorter = size.get("shortest_edge") if isinstance(size, dict) else None
    is_cropped = processor.get("do_center_crop", False)
    image_size = _pair(processor["crop_size"] if is_cropped else shorter or size)
    is_normalised = processor.get("do_normalize", True)
    return Preprocess(
        image_size=image_size,
        resize="crop" if is_cropped or shorter else "squash",
        crop_fraction=min(image_size) / shorter if is_cropped and shorter else 1.0,
        interpolation=_PIL_FILTERS[processor.get("resample", 2)],
        mean=tuple(processor["image_mean"]) if is_normalised else (0.0, 0.0, 0.0),
        std=tuple(processor["image_std"]) if is_normalised else (1.0, 1.0, 1.0),
    )


def _pair(size: Any) -> tuple[int, int]:
    """Return height and width from a side, a pair, or {"height": ..., "width": ...}."""
    if isinstance(size, dict):
        return int(size["height"]), int(size["width"])
    height, width = (size, size) if isinstance(size, int) else size
    return int(height), int(width)
