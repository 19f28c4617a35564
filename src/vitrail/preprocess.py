"""How a picture becomes the numbers a model sees. Pure data: nothing here imports torch or numpy."""

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal, Self

from vitrail.errors import ConfigError
from vitrail.options import check_choice

ResizeMode = Literal["crop", "squash", "pad"]
Interpolation = Literal["bicubic", "bilinear", "lanczos", "nearest"]

IMAGE_SIZE_RANGE = (4, 4096)


@dataclass(frozen=True, kw_only=True)
class Preprocess:
    """How a picture becomes the numbers a model sees; travels with every checkpoint, run and bundle.

    A picture is oriented by its EXIF tag, made RGB, resized to ``image_size`` and then normalised as
    ``(value / 255 - mean) / std`` per channel.
    """

    image_size: tuple[int, int]
    """Height and width in pixels."""
    resize: ResizeMode = "crop"
    """crop: shorter side to the size, centre cut out. squash: both sides to the size. pad: longer side, black bars."""
    crop_fraction: float = 1.0
    """Share of the resized shorter side that a centre crop keeps, in (0, 1]; only for resize "crop"."""
    interpolation: Interpolation = "bicubic"
    """Filter of the resizing."""
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    """Per channel (red, green, blue), of values in [0, 1]."""
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    """Per channel, positive."""

    def __post_init__(self) -> None:
        """Refuse values that no picture can be prepared with."""
        low, high = IMAGE_SIZE_RANGE
        if not all(low <= side <= high for side in self.image_size):
            raise ConfigError(
                f"image_size is {self.image_size}; it takes height and width from {low} to {high} pixels."
            )
        if not 0 < self.crop_fraction <= 1:
            raise ConfigError(f"crop_fraction is {self.crop_fraction}; it takes a number above 0 and up to 1.")
        check_choice("resize", self.resize, ResizeMode)
        check_choice("interpolation", self.interpolation, Interpolation)
        if min(self.std) <= 0:
            raise ConfigError(f"std is {self.std}; it takes three numbers above 0.")

    def to_dict(self) -> dict[str, Any]:
        """Return plain data that JSON can hold."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """Read what `to_dict` wrote."""
        values: dict[str, Any] = {key: tuple(item) if isinstance(item, list) else item for key, item in data.items()}
        return cls(**values)
