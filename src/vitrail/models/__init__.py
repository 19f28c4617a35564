"""Every model by name: `create_model`, `list_models`."""

import fnmatch
import re
from dataclasses import replace
from functools import partial
from typing import Any, Final

from vitrail.errors import lookup
from vitrail.layers.embed import as_pair
from vitrail.models import ghostnet, lucarne, mobilenetv3, mobilevit, mobilevitv2, mocovit, repvit, resnet, vit
from vitrail.models.contract import Model, ModelEntry, ModelSpec
from vitrail.models.guests import GUEST_IMAGE_SIZE, build_guest, is_guest

__all__ = ["MODELS", "Model", "ModelEntry", "ModelSpec", "create_model", "list_models"]

MODELS: Final[dict[str, ModelEntry]] = {
    **vit.MODELS,
    **lucarne.MODELS,
    **mobilevit.MODELS,
    **mobilevitv2.MODELS,
    **mocovit.MODELS,
    **ghostnet.MODELS,
    **mobilenetv3.MODELS,
    **repvit.MODELS,
    **resnet.MODELS,
}
"""Every model by name, family by family."""


def create_model(
    name: str,
    *,
    num_classes: int | None = None,
    image_size: int | tuple[int, int] | None = None,
    in_channels: int | None = None,
    **options: Any,
) -> Model:
    """Build a model: by a name of the table with fresh weights, or by a checkpoint with its weights.

    Args:
        name: one of `list_models`; a size at its end, as timm writes it (``vit_tiny_patch16_224``), is the image size.
            Or a checkpoint of one of these models: ``hf-hub:org/name``, timm's name with its tag
            (``resnet18.a1_in1k``, which is ``hf-hub:timm/resnet18.a1_in1k``), a .safetensors file, or a folder. Or a
            model of an installed library: ``timm:NAME`` (fresh) or ``transformers:NAME`` (a folder or a name on the
            hub, with its weights).
        num_classes: outputs of the head; 0 for pooled features instead of logits. Default: those of the checkpoint,
            else 1000. The head is fresh where the checkpoint has another number.
        image_size: side of a square or (height, width) in pixels. Default: the size in the name or of the checkpoint,
            else that of the published model.
        in_channels: channels of the image. Default: those of the checkpoint, else 3.
        options: what the model's family offers, for a ViT the fields of `vitrail.models.vit.VitOptions`.

    Raises:
        UnknownNameError: for a name that is not in the table.
        ConfigError: for an option that the family does not have, or a value that it does not take.
        CheckpointError: if the weights are missing, damaged, or of no model of the table.
        MissingExtraError: if the library of the model does not import.
    """
    from vitrail.models.pretrained import checkpoint_source, from_pretrained  # it builds models itself

    if (source := checkpoint_source(name, options)) is not None:
        given = {"num_classes": num_classes, "image_size": image_size, "in_channels": in_channels}
        return from_pretrained(source, **{key: value for key, value in given.items() if value is not None}, **options)
    table_name, side = split_size(name if is_guest(name) else name.partition(".")[0])
    return build(
        ModelSpec(
            name=table_name,
            num_classes=1000 if num_classes is None else num_classes,
            image_size=as_pair("image_size", image_size or side or native_image_size(table_name)),
            in_channels=3 if in_channels is None else in_channels,
            options=options,
        )
    )


def build(spec: ModelSpec) -> Model:
    """Build the model of a specification, with fresh weights, whatever its name; no file is read.

    Raises:
        UnknownNameError: for a name that is not in the table.
        ConfigError: for an option that the family does not have, or a value that it does not take.
        MissingExtraError: if the library of the model does not import.
    """
    make = partial(build_guest, spec.name) if is_guest(spec.name) else lookup(MODELS, spec.name, "model").build
    model = make(num_classes=spec.num_classes, image_size=spec.image_size, in_channels=spec.in_channels, **spec.options)
    model.spec = replace(spec, image_size=model.image_size)
    return model


def split_size(name: str) -> tuple[str, int | None]:
    """Return the name in the table, and the image size in pixels if there is one at the end of ``name``."""
    sized = re.fullmatch(r"(.+)_(\d+)", name)
    return (sized[1], int(sized[2])) if sized and name not in MODELS else (name, None)


def native_image_size(name: str) -> int:
    """Return the side in pixels of a published model.

    Raises:
        UnknownNameError: for a name that is not in the table.
    """
    return GUEST_IMAGE_SIZE if is_guest(name) else lookup(MODELS, name, "model").image_size


def list_models(pattern: str = "*") -> list[str]:
    """Return the names that match a shell pattern such as ``vit_*_patch16``, from small to large."""
    return fnmatch.filter(MODELS, pattern)
