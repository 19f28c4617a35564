"""How a picture becomes the numbers a model sees. Pure data: nothing here imports torch or numpy."""

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal, Self

from vitrail.errors import ConfigError
from vitrail.options import check_choice, check_range

ResizeMode = Literal["crop", "squash", "pad"]
PixelType = Literal["uint8", "uint16", "float32"]
Interpolation = Literal["bicubic", "bilinear", "lanczos", "nearest"]

IMAGE_SIZE_RANGE = (4, 4096)
CHANNELS_RANGE = (1, 512)

_PEAKS: dict[str, float] = {"uint8": 255.0, "uint16": 65535.0, "float32": 1.0}


@dataclass(frozen=True, kw_only=True)
class Preprocess:
    """How a picture becomes the numbers a model sees; travels with every checkpoint, run and bundle.

    A picture is oriented by its EXIF tag, made RGB (or its channels are taken as they are, with ``channels``), resized
    to ``image_size`` and then normalised as ``(value / peak - mean) / std`` per channel.
    """

    image_size: tuple[int, int]
    """Height and width in pixels."""
    resize: ResizeMode = "crop"
    """crop: shorter side to the size, centre cut out. squash: both sides to the size. pad: longer side, black bars."""
    crop_fraction: float = 1.0
    """Share of the resized shorter side that a centre crop keeps, in (0, 1]; only for resize "crop"."""
    interpolation: Interpolation = "bicubic"
    """Filter of the resizing."""
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    """Per channel (red, green, blue), of values divided by `peak`."""
    std: tuple[float, ...] = (0.5, 0.5, 0.5)
    """Per channel, positive."""
    channels: int | None = None
    """None: every picture becomes 8-bit RGB. A number: only pictures of as many channels, taken as they are."""
    pixel_type: PixelType = "uint8"
    """Type of the values that the model is given; other than uint8 only with ``channels``."""

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
        check_choice("pixel_type", self.pixel_type, PixelType)
        check_range("channels", self.channels, *CHANNELS_RANGE)
        if self.channels is None and self.pixel_type != "uint8":
            raise ConfigError(f"pixel_type is {self.pixel_type!r}, and RGB has uint8; give the number of channels.")
        num = self.num_channels
        if len(self.mean) != num or len(self.std) != num:
            raise ConfigError(f"mean and std have {len(self.mean)} and {len(self.std)} numbers for {num} channels.")
        if min(self.std) <= 0:
            raise ConfigError(f"std is {self.std}; it takes numbers above 0, one per channel.")

    @property
    def num_channels(self) -> int:
        """How many channels the model is given."""
        return 3 if self.channels is None else self.channels

    @property
    def peak(self) -> float:
        """The value that becomes 1 before mean and std: the largest integer; floats stay as they are."""
        return _PEAKS[self.pixel_type]

    def to_dict(self) -> dict[str, Any]:
        """Return plain data that JSON can hold; where every picture becomes RGB, it says nothing of channels."""
        values = dataclasses.asdict(self)
        if self.channels is None:
            del values["channels"], values["pixel_type"]
        return values

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """Read what `to_dict` wrote."""
        values: dict[str, Any] = {key: tuple(item) if isinstance(item, list) else item for key, item in data.items()}
        return cls(**values)
