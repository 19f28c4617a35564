"""Every model by name: `create_model`, `list_models`."""

import fnmatch
import re
from typing import Any, Final

from vitrail.errors import lookup
from vitrail.models import vit
from vitrail.models.contract import Model, ModelEntry, ModelSpec

__all__ = ["MODELS", "Model", "ModelEntry", "ModelSpec", "create_model", "list_models"]

MODELS: Final[dict[str, ModelEntry]] = {**vit.MODELS}
"""Every model by name, family by family."""


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
        image_size: side of a square or (height, width) in pixels. Default: the size in the name, else
            that of the published model.
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
    entry = lookup(MODELS, name, "model")
    model = entry.build(
        num_classes=num_classes, image_size=image_size or entry.image_size, in_channels=in_channels, **options
    )
    model.spec = ModelSpec(
        name=name, num_classes=num_classes, image_size=model.image_size, in_channels=in_channels, options=options
    )
    return model


def list_models(pattern: str = "*") -> list[str]:
    """Return the names that match a shell pattern such as ``vit_*_patch16``, from small to large."""
    return fnmatch.filter(MODELS, pattern)
