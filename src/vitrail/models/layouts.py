"""The families whose published weights load: who translates their names, and who knows a model by its tensors.

Native names are timm's. To add a family, give it a line in `FAMILIES`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from torch import Tensor

from vitrail.errors import CheckpointError
from vitrail.models import (
    ghostnet,
    mobilenetv3,
    mocovit,
    repvit,
    resnet,
    translate_mobilevit,
    translate_resnet,
    translate_vit,
)
from vitrail.models.weights import first_few

Size = tuple[int, int]
Tensors = dict[str, Tensor]


def _no_options(tensors: Tensors, image_size: Size | None) -> dict[str, Any]:
    return {}


def _takes_rgb(layout: str, name: str) -> bool:
    return False


def _mobilevit_takes_bgr(layout: str, name: str) -> bool:
    # The authors' second version reads pictures with another library, and Hugging Face's processor reverses both.
    return layout == "huggingface" or (layout == "cvnets" and name.startswith("mobilevit_"))


def _repvit_to_native(tensors: Tensors) -> tuple[str, Tensors] | None:
    if repvit.recognise(tensors) is None:
        return None
    try:
        return "timm", repvit.merge_heads(tensors)
    except (LookupError, RuntimeError) as error:
        raise CheckpointError(f"Its two heads are not whole: {error}.") from error


@dataclass(frozen=True, kw_only=True)
class Family:
    """What is known of the weights of a family of models."""

    title: str
    """What people call it."""
    recognise: Callable[[Tensors], str | None]
    """From native tensors to the name in the table of models; None for those of another family."""
    to_native: Callable[[Tensors], tuple[str, dict[str, Tensor]] | None] | None = None
    """From the tensors of a file to the name of their layout and the native tensors; None where only the native one
    is published."""
    options: Callable[[Tensors, Size | None], dict[str, Any]] = _no_options
    """From native tensors and the image size, where known, to options of the family, and "image_size" if it tells."""
    ignored: tuple[str, ...] = ()
    """Beginnings of native names that take no part in the logits."""
    causes: Mapping[str, str] = field(default_factory=dict)
    """Parts of names, and the option that decides whether a model has them."""
    takes_bgr: Callable[[str, str], bool] = _takes_rgb
    """Whether files in a layout, of the model of a name, expect blue, green, red where nothing says so."""


FAMILIES: Final[tuple[Family, ...]] = (
    Family(
        title="ViT",
        to_native=translate_vit.to_native,
        recognise=translate_vit.recognise,
        options=translate_vit.options,
        ignored=translate_vit.IGNORED,
        causes=translate_vit.CAUSES,
    ),
    Family(
        title="MobileViT",
        to_native=translate_mobilevit.to_native,
        recognise=translate_mobilevit.recognise,
        takes_bgr=_mobilevit_takes_bgr,
    ),
    Family(title="ResNet", to_native=translate_resnet.to_native, recognise=resnet.recognise),
    Family(title="MobileNetV3", recognise=mobilenetv3.recognise),
    Family(title="RepViT", to_native=_repvit_to_native, recognise=repvit.recognise),
    Family(title="MoCoViT", recognise=mocovit.recognise),
    Family(title="GhostNet", recognise=ghostnet.recognise),
)
"""In the order in which they are asked."""


def to_native(tensors: Tensors) -> tuple[str, dict[str, Tensor], Family | None]:
    """Find whose tensors these are, and bring them to native names.

    Returns:
        The name of the layout, the native tensors, and the family; without a family the tensors as they are, which may
        still fit a model whose own names they have.

    Raises:
        CheckpointError: if they are a family's and do not belong together.
    """
    for family in FAMILIES:
        if family.to_native is not None:
            translated = family.to_native(tensors)
            if translated is not None:
                return *translated, family
        elif family.recognise(tensors) is not None:
            return "timm", dict(tensors), family
    return "timm", dict(tensors), None


def family_of(tensors: Tensors) -> Family | None:
    """Return the family of native tensors, or None if it has no line here."""
    return next((family for family in FAMILIES if family.recognise(tensors) is not None), None)


def recognise(tensors: Tensors, family: Family | None) -> str:
    """Return the name in the table of models of native tensors.

    Raises:
        CheckpointError: if no model of the table has them; with the tensors seen and the families known.
    """
    name = None if family is None else family.recognise(tensors)
    if name is not None:
        return name
    what = "no model of a known family" if family is None else f"a {family.title} of a size that is not in the table"
    raise CheckpointError(
        f"It holds {what}. Its tensors are {first_few(tensors) or 'none'}; known are "
        f"{', '.join(each.title for each in FAMILIES)}, in the layouts of timm and of Hugging Face."
    )
