"""What every model of vitrail offers, whatever its family."""

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Self

from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """All that is needed to build a model again: ``create_model(**spec.to_dict())``."""

    name: str
    """A name of `vitrail.list_models`."""
    num_classes: int
    """Outputs of the head; 0 for a model without one."""
    image_size: tuple[int, int]
    """Native height and width in pixels."""
    in_channels: int = 3
    """Channels of the image."""
    options: dict[str, Any] = field(default_factory=dict)
    """Options of the model's family that differ from its defaults; plain values that JSON can hold."""

    def __post_init__(self) -> None:
        """Take the same form whether the values come from Python or from JSON, which has no tuples."""
        plain = {key: list(value) if isinstance(value, tuple) else value for key, value in self.options.items()}
        object.__setattr__(self, "options", plain)
        object.__setattr__(self, "image_size", tuple(self.image_size))

    def to_dict(self) -> dict[str, Any]:
        """Return one flat dictionary that JSON can hold and that `create_model` takes as keyword arguments."""
        native = {name.name: getattr(self, name.name) for name in dataclasses.fields(self) if name.name != "options"}
        return {**native, "image_size": list(self.image_size), **self.options}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """Read what `to_dict` wrote."""
        native = {item.name for item in dataclasses.fields(cls)} - {"options"}
        return cls(
            **{key: value for key, value in data.items() if key in native},
            options={key: value for key, value in data.items() if key not in native},
        )


class Model(nn.Module):
    """An image classifier whose intermediate results have names.

    ``forward(images)`` maps normalised float images (B, C, H, W) to logits (B, num_classes), or to the pooled features
    (B, num_features) if ``num_classes`` is 0.
    """

    num_classes: int
    """Outputs of the head; 0 for a model without one."""
    num_features: int
    """Width of the pooled features."""
    image_size: tuple[int, int]
    """Native height and width in pixels."""
    feature_info: list[dict[str, Any]]
    """For each depth: "name" in `forward_features`, "channels", and "stride" (rows, columns) in pixels."""
    spec: ModelSpec | None = None
    """How `create_model` built it; None for a model that was built by hand."""

    def forward_features(self, images: Tensor) -> dict[str, Tensor]:
        """Map images (B, C, H, W) to every named intermediate, "pooled" (B, num_features) the last."""
        raise NotImplementedError

    def forward_head(self, pooled: Tensor) -> Tensor:
        """Map pooled features (B, num_features) to logits (B, num_classes)."""
        raise NotImplementedError

    def reset_head(self, num_classes: int) -> None:
        """Put a fresh head for another number of classes in place of the present one."""
        raise NotImplementedError

    def no_weight_decay(self) -> set[str]:
        """Return the names of parameters that, besides vectors and biases, are not to be pulled to zero."""
        raise NotImplementedError
