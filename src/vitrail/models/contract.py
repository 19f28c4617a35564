"""What every model of vitrail offers, whatever its family."""

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

import torch
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


@dataclass(frozen=True, kw_only=True)
class Published:
    """What the literature says of a model with 1000 classes of ImageNet-1k."""

    top1: float | None = None
    """Accuracy on the validation images in percent, trained on ImageNet-1k alone, without a teacher."""
    params_m: float | None = None
    """Parameters in millions, as printed."""
    macs_m: float | None = None
    """Multiply-adds in millions, as printed, at ``image_size``."""
    image_size: int = 224
    """Side in pixels that accuracy and multiply-adds belong to."""
    source: str = ""
    """Where it is printed."""


@dataclass(frozen=True, kw_only=True)
class ModelEntry:
    """A line of the table of models."""

    build: Callable[..., "Model"]
    """Takes num_classes, image_size, in_channels and the options of its family."""
    image_size: int = 224
    """Side in pixels of the published model."""
    multiple: int = 32
    """Sides are best whole multiples of it: the patch of a ViT, the last stride of a model with stages."""
    published: Published = Published()
    """Accuracy and cost in the literature."""
    lr_scale: float = 1.0
    """Factor on the learning rate that suits a ViT, where another was found to suit better."""


class Model(nn.Module):
    """An image classifier whose intermediate results have names.

    ``forward(images)`` maps normalised float images (B, C, H, W) to logits (B, num_classes), or to the pooled features
    (B, num_features) if ``num_classes`` is 0. A family gives the attributes, `intermediates`, `layer_groups` and, where
    it needs to, the names in the class variables.
    """

    stem_name: ClassVar[str]
    """The first convolution's name, such as "patch_embed.proj"; it alone knows the channels of the image."""
    head_name: ClassVar[str] = "head"
    """The last linear layer's name, which `reset_head` replaces."""
    channels_last: ClassVar[bool] = False
    """Whether it computes faster with images and weights in channels-last memory."""

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

    def intermediates(self, images: Tensor) -> Iterator[tuple[str, Tensor]]:
        """Yield every intermediate of images (B, C, H, W) with its name, "pooled" (B, num_features) the last."""
        raise NotImplementedError

    def layer_groups(self) -> list[tuple[str, ...]]:
        """Return beginnings of the parameters' names by depth, from the image to the head.

        Layer-wise rates decay along it. Every parameter belongs to one group: that of the longest beginning it has.
        """
        raise NotImplementedError

    def no_weight_decay(self) -> set[str]:
        """Return the names of parameters that, besides vectors and biases, are not to be pulled to zero."""
        return set()

    def forward(self, images: Tensor) -> Tensor:
        """Map images (B, C, H, W) to logits (B, num_classes)."""
        for _, features in self.intermediates(images):
            pooled = features  # the last one; none of the others is kept
        return self.forward_head(pooled)

    def forward_features(self, images: Tensor) -> dict[str, Tensor]:
        """Map images (B, C, H, W) to every named intermediate, "pooled" (B, num_features) the last."""
        return dict(self.intermediates(images))

    def forward_head(self, pooled: Tensor) -> Tensor:
        """Map pooled features (B, num_features) to logits (B, num_classes)."""
        logits: Tensor = self.get_submodule(self.head_name)(pooled)
        return logits

    def place(self, device: torch.device | str) -> Self:
        """Move to a device, in channels-last memory where the model computes faster so; return the model.

        The first convolution brings images of any memory format into that of its weights.
        """
        # Apple's GPU takes channels-last weights and gains nothing.
        if self.channels_last and torch.device(device).type in {"cpu", "cuda"}:
            return self.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]
        return self.to(device)

    def reset_head(self, num_classes: int) -> None:
        """Put a fresh head for ``num_classes`` in place of the present one; 0 leaves it out."""
        self.num_classes = num_classes
        head: nn.Module = nn.Identity()
        if num_classes:
            head = make_head(self.num_features, num_classes).to(next(self.parameters()))
        self.set_submodule(self.head_name, head)
        if self.spec is not None:
            self.spec = dataclasses.replace(self.spec, num_classes=num_classes)


def make_head(num_features: int, num_classes: int) -> nn.Module:
    """Return a linear layer from features (B, num_features) to logits; an identity for no classes."""
    if not num_classes:
        return nn.Identity()
    head = nn.Linear(num_features, num_classes)
    reset_linear(head)
    return head


def reset_linear(layer: nn.Linear) -> None:
    """Draw the weights from a truncated normal distribution of std 0.02; the bias is 0."""
    nn.init.trunc_normal_(layer.weight, std=0.02)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
