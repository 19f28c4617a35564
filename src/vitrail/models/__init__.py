"""Every model by name: `create_model`, `list_models`."""

import fnmatch
import re
from collections.abc import Callable
from functools import partial
from typing import Any, Final

from vitrail.errors import lookup
from vitrail.models import vit
from vitrail.models.contract import Model, ModelSpec

__all__ = ["MODELS", "Model", "ModelSpec", "create_model", "list_models"]

MODELS: Final[dict[str, Callable[..., Model]]] = {
    "vit_micro_patch4": partial(vit.build, "micro", patch_size=4),
    "vit_micro_patch8": partial(vit.build, "micro", patch_size=8),
    "vit_micro_patch16": partial(vit.build, "micro", patch_size=16),
    "vit_micro_patch32": partial(vit.build, "micro", patch_size=32),
    "vit_tiny_patch4": partial(vit.build, "tiny", patch_size=4),
    "vit_tiny_patch8": partial(vit.build, "tiny", patch_size=8),
    "vit_tiny_patch16": partial(vit.build, "tiny", patch_size=16),
    "vit_tiny_patch32": partial(vit.build, "tiny", patch_size=32),
    "vit_small_patch4": partial(vit.build, "small", patch_size=4),
    "vit_small_patch8": partial(vit.build, "small", patch_size=8),
    "vit_small_patch16": partial(vit.build, "small", patch_size=16),
    "vit_small_patch32": partial(vit.build, "small", patch_size=32),
    "vit_base_patch4": partial(vit.build, "base", patch_size=4),
    "vit_base_patch8": partial(vit.build, "base", patch_size=8),
    "vit_base_patch16": partial(vit.build, "base", patch_size=16),
    "vit_base_patch32": partial(vit.build, "base", patch_size=32),
    "vit_large_patch4": partial(vit.build, "large", patch_size=4),
    "vit_large_patch8": partial(vit.build, "large", patch_size=8),
    "vit_large_patch14": partial(vit.build, "large", patch_size=14),
    "vit_large_patch16": partial(vit.build, "large", patch_size=16),
    "vit_large_patch32": partial(vit.build, "large", patch_size=32),
}
"""Builders by name. Each takes num_classes, image_size, in_channels and the options of its family."""

DEFAULT_IMAGE_SIZE: Final = 224


def create_model(
    name: str,
    *,
    num_classes: int = 1000,
    image_size: int | tuple[int, int] | None = None,
    in_channels: int = 3,
    **options: Any,
) -> Model:
    """Build a model with fresh weights.

    Args:
        name: one of `list_models`; a size at its end, as timm writes it (``vit_tiny_patch16_224``), is the image size.
        num_classes: outputs of the head; 0 for pooled features instead of logits.
        image_size: side of a square or (height, width) in pixels. Default: the size in the name, else 224.
        in_channels: channels of the image.
        options: what the model's family offers, for a ViT the fields of `vitrail.models.vit.VitOptions`.

    Raises:
        UnknownNameError: for a name that is not in the table.
        ConfigError: for an option that the family does not have, or a value that it does not take.
    """
    sized = re.fullmatch(r"(.+)_(\d+)", name)
    if sized and name not in MODELS:
        name = sized[1]
        image_size = image_size or int(sized[2])
    builder = lookup(MODELS, name, "model")
    model = builder(
        num_classes=num_classes, image_size=image_size or DEFAULT_IMAGE_SIZE, in_channels=in_channels, **options
    )
    model.spec = ModelSpec(
        name=name, num_classes=num_classes, image_size=model.image_size, in_channels=in_channels, options=options
    )
    return model


def list_models(pattern: str = "*") -> list[str]:
    """Return the names that match a shell pattern such as ``vit_*_patch16``, from small to large."""
    return fnmatch.filter(MODELS, pattern)
