"""Make torchvision's Python half, and so timm, importable beside a CPU build of torch.

torchvision's wheel is linked to CUDA. Without its compiled operators the import stops at registering the fakes of
three of them; declaring those three is enough for its transforms, models and data sets. For measuring only.
"""

import torch

_OPERATORS = (
    "nms(Tensor boxes, Tensor scores, float threshold) -> Tensor",
    "qnms(Tensor boxes, Tensor scores, float threshold) -> Tensor",
    "roi_align(Tensor input, Tensor boxes, float scale, SymInt height, SymInt width, int ratio, bool align) -> Tensor",
)
_library: torch.library.Library | None = None  # the declarations live as long as this object


def make_torchvision_importable() -> None:
    """Declare the operators once; does nothing where torchvision imports by itself."""
    global _library
    if _library is not None or torch.version.cuda is not None:
        return
    _library = torch.library.Library("torchvision", "DEF")
    for schema in _OPERATORS:
        _library.define(schema)
