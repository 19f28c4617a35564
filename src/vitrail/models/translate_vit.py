"""The plain ViT's weights: Hugging Face's names brought to the native ones (timm's), and what the tensors tell."""

import math
import re
from collections.abc import Mapping
from typing import Any, Final

import torch
from torch import Tensor

from vitrail.errors import CheckpointError
from vitrail.layers.embed import Grid, resample_position_embedding
from vitrail.models.vit import MODELS, SHAPES, VisionTransformer

IGNORED: Final = ("pooler.", "head_dist.", "embeddings.mask_token", "mask_token", "decoder.")
"""Beginnings of names in others' files that take no part in the logits."""

CAUSES: Final = {
    ".local.": "local",
    "fusion.": "fusion",
    "cls_token": "class_token",
    "reg_token": "num_registers",
    "pos_embed": "position",
    "attn_pool.": "pool",
    "fc_norm.": "pool",
    ".q_norm.": "qk_norm",
    ".k_norm.": "qk_norm",
    ".ls1.": "layer_scale",
    ".ls2.": "layer_scale",
    "qkv.bias": "qkv_bias",
}
"""Parts of names, and the option of a ViT that decides whether it has them."""

_STEM: Final = "patch_embed.proj.weight"
_LAYER_SCALE_START: Final = 1e-5  # any number: the values are loaded

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


def to_native(tensors: Mapping[str, Tensor]) -> tuple[str, dict[str, Tensor]] | None:
    """Return the layout of a ViT's tensors and the tensors under native names, or None for another model's.

    Raises:
        CheckpointError: if queries, keys and values do not belong together.
    """
    if _STEM in tensors and any(name.startswith("blocks.0.") for name in tensors):
        return "timm", dict(tensors)
    names = {name: re.sub(r"^vit\.", "", name) for name in tensors}
    if "embeddings.patch_embeddings.projection.weight" not in names.values():
        return None
    return "huggingface", _join_qkv({_native_name(short): tensors[name] for name, short in names.items()})


def recognise(tensors: Mapping[str, Tensor]) -> str | None:
    """Return the name of the ViT whose width, depth, perceptron and patch the native tensors have."""
    stem, hidden = tensors.get(_STEM), tensors.get("blocks.0.mlp.fc1.weight")
    if stem is None or hidden is None or stem.dim() != 4 or hidden.dim() != 2:
        return None
    depth = len({name.split(".")[1] for name in tensors if name.startswith("blocks.")})
    for size, shape in SHAPES.items():
        if (shape.dim, shape.depth, int(shape.dim * shape.mlp_ratio)) == (len(stem), depth, len(hidden)):
            name = f"vit_{size}_patch{stem.shape[-1]}"
            return name if name in MODELS else f"vit_{size}_patch16"
    return None


def options(tensors: Mapping[str, Tensor], image_size: tuple[int, int] | None) -> dict[str, Any]:
    """Return `VitOptions` that differ from the defaults, and ``image_size``, as the native tensors tell.

    Args:
        tensors: of a ViT that `recognise` knows.
        image_size: height and width in pixels that the positions belong to, where known; else they form a square.

    Raises:
        CheckpointError: if there are no positions, of which kind the tensors cannot tell, or they form no grid.
    """
    stem, positions = tensors[_STEM], tensors.get("pos_embed")
    patch = (int(stem.shape[2]), int(stem.shape[3]))
    if positions is None or positions.dim() != 3:
        raise CheckpointError(
            "It has no learned positions, and no tensor tells which it has instead. Name the model and its options, "
            "such as --options position=rotary."
        )
    class_token = "cls_token" in tensors
    registers = tensors["reg_token"].shape[1] if "reg_token" in tensors else 0
    found: dict[str, Any] = {
        "class_token": class_token,
        "num_registers": registers,
        "pool": _pool(tensors),
        "qkv_bias": "blocks.0.attn.qkv.bias" in tensors,
        "qk_norm": "blocks.0.attn.q_norm.weight" in tensors,
    }
    if "blocks.0.ls1.gamma" in tensors:
        found["layer_scale"] = _LAYER_SCALE_START
    if patch != (MODELS[recognise(tensors) or ""].multiple,) * 2:
        found["patch_size"] = patch if patch[0] != patch[1] else patch[0]
    num_prefix = class_token + registers
    grid, found["prefix_position"] = _grid_and_prefix(positions.shape[1], num_prefix, patch, image_size)
    found["image_size"] = (grid[0] * patch[0], grid[1] * patch[1])
    return found


def resize_positions(
    tensors: dict[str, Tensor], model: VisionTransformer, image_size: tuple[int, int] | None
) -> list[str]:
    """Resample learned positions in ``tensors`` to the model's grid; return the names of what was changed.

    Raises:
        CheckpointError: if nobody knows what grid they were learned for.
    """
    stem, positions = tensors[_STEM], tensors.get("pos_embed")
    if stem.dim() != 4 or positions is None or model.pos_embed is None or positions.dim() != 3:
        return []  # of another architecture: the check of names and shapes says so
    num_prefix = model.num_prefix if model.options.prefix_position else 0
    patch = (int(stem.shape[2]), int(stem.shape[3]))
    grid = _grid(positions.shape[1] - num_prefix, patch, image_size)
    if grid is None:
        raise CheckpointError(
            f"It has positions for {positions.shape[1] - num_prefix} patches, which are no square, and does not say of "
            "what grid. Its number of prefix tokens may differ from this model's (options class_token, num_registers, "
            "prefix_position)."
        )
    if grid == model.grid:
        return []
    tensors["pos_embed"] = resample_position_embedding(positions, grid, model.grid, num_prefix)
    return ["pos_embed"]


def _pool(tensors: Mapping[str, Tensor]) -> str:
    if "attn_pool.latent" in tensors:
        return "attention"
    return "mean" if "fc_norm.weight" in tensors else "token"


def _grid_and_prefix(
    num_positions: int, num_prefix: int, patch: tuple[int, int], image_size: tuple[int, int] | None
) -> tuple[Grid, bool]:
    """Return the grid of the positions, and whether there are some for the prefix tokens too."""
    for with_prefix in (True, False):
        grid = _grid(num_positions - num_prefix * with_prefix, patch, image_size)
        if grid is not None:
            return grid, with_prefix
    raise CheckpointError(f"Its {num_positions} positions form no square, and it does not say of what grid they are.")


def _grid(num_patches: int, patch: tuple[int, int], image_size: tuple[int, int] | None) -> Grid | None:
    """Return the grid that positions were learned for: what the description says, else a square."""
    if image_size is not None:
        rows, columns = image_size[0] // patch[0], image_size[1] // patch[1]
        if rows * columns == num_patches:
            return rows, columns
    side = math.isqrt(max(0, num_patches))
    return (side, side) if side and side * side == num_patches else None


def _native_name(name: str) -> str:
    """Translate one name of Hugging Face's ViT without its prefix; names that have no counterpart stay."""
    stem, dot, leaf = name.rpartition(".")
    inside = re.fullmatch(r"(?:encoder\.layer|layers)\.(\d+)\.(.+)", stem)
    if inside and inside[2] in _HF_INSIDE:
        return f"blocks.{inside[1]}.{_HF_INSIDE[inside[2]]}.{leaf}"
    return _HF_OUTSIDE.get(name) or _HF_OUTSIDE.get(stem, stem) + dot + leaf


def _join_qkv(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Stack queries, keys and values, which the native layout computes in one product."""
    joined = dict(tensors)
    for name in tensors:
        found = re.fullmatch(r"(blocks\.\d+\.attn)\.q\.(weight|bias)", name)
        if not found:
            continue
        parts = [joined.pop(f"{found[1]}.{part}.{found[2]}", None) for part in "qkv"]
        present = [part for part in parts if part is not None]
        if len(present) < 3 or len({part.shape for part in present}) > 1 or present[0].dim() == 0:
            raise CheckpointError(f"Queries, keys and values of {found[1]} are not all there, or do not match.")
        joined[f"{found[1]}.qkv.{found[2]}"] = torch.cat(present)
    return joined
