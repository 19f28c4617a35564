"""A source whose pictures keep their channels as they are, rather than becoming RGB."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from vitrail.config import PixelType, Preprocess, SourceConfig
from vitrail.data.images import INSPECTED_SIDE, Inspection, inspect_picture
from vitrail.data.inspections import FileKey
from vitrail.data.planes import PIXEL_TYPES, Planes, decode_planes, fit
from vitrail.data.raster import shown
from vitrail.data.sources import Pictures, Source, open_source


@dataclass(frozen=True, eq=False)
class ChannelPictures:
    """The pictures of a source as (H, W, channels); what has other channels is refused."""

    pictures: Pictures
    channels: int
    pixel_type: PixelType | None = None
    """To which narrower types are widened; None while it is not decided, and each keeps its own."""

    def open(self, path: str, min_side: int | None) -> np.ndarray:
        """Return the channels; see `vitrail.data.planes`. Raises ImageRefusedError."""
        planes = decode_planes(self.pictures.stored(path), path, min_side=min_side)
        return fit(planes, path, self.channels, self.pixel_type)

    def stored(self, path: str) -> bytes | np.ndarray:
        """Return what is stored."""
        return self.pictures.stored(path)

    def inspect(self, path: str) -> Inspection:
        """Decode the picture once. Its mode is its kind and its type, such as "RGBA uint8" or "5 channels uint16"."""
        stored = self.pictures.stored(path)
        planes = decode_planes(stored, path, min_side=INSPECTED_SIDE)
        fit(planes, path, self.channels, self.pixel_type)
        found = inspect_picture(
            shown(planes.values),
            size=(planes.width, planes.height),
            sha256=hashlib.sha256(stored if isinstance(stored, bytes) else stored.tobytes()).hexdigest(),
            format=planes.format,
            mode=f"{planes.kind} {planes.values.dtype}",
            animated=planes.animated,
        )
        return replace(found, pixels=_hash(planes))

    def key(self, path: str) -> FileKey | None:
        """Return the key of the picture in its source."""
        return self.pictures.key(path)


def open_with_channels(
    source: str | Path, config: SourceConfig | None, channels: int | None, pixel_type: PixelType | None = None
) -> Source:
    """Return the source that a name means, its pictures with their channels as they are.

    Args:
        source: its name.
        config: how it is read.
        channels: how many are asked for; None for pictures that become RGB.
        pixel_type: what the model takes, where that is decided.

    Raises:
        DataError: if there is no such source.
        ConfigError: if an option is for another kind of source.
    """
    if channels is None:
        return open_source(source, config)
    opened = open_source(source, config, arrays=True)
    # What is found depends on what is asked, so it is kept for itself.
    place = f"{opened.place}?channels={channels}&type={pixel_type}"
    return replace(opened, place=place, pictures=ChannelPictures(opened.pictures, channels, pixel_type))


def open_for(source: str | Path, config: SourceConfig | None, preprocess: Preprocess | None) -> Source:
    """Return the source with the channels that a model takes, as `open_with_channels` does."""
    if preprocess is None:
        return open_source(source, config)
    return open_with_channels(source, config, preprocess.channels, preprocess.pixel_type)


def widened(source: Source, inspections: Iterable[Inspection]) -> Source:
    """Return the source with its channels in the narrowest type that holds those of all pictures."""
    if not isinstance(source.pictures, ChannelPictures):
        return source
    own = {inspection.mode.rpartition(" ")[2] for inspection in inspections}
    widest = max((each for each in PIXEL_TYPES if each in own), key=PIXEL_TYPES.index, default=PIXEL_TYPES[0])
    return replace(source, pictures=replace(source.pictures, pixel_type=widest))


def format_of(pictures: Pictures) -> tuple[int | None, PixelType]:
    """Return the number of channels, None where each picture becomes RGB, and the type of all values."""
    if not isinstance(pictures, ChannelPictures):
        return None, "uint8"
    return pictures.channels, pictures.pixel_type or "uint8"


def _hash(planes: Planes) -> bytes:
    """Return 16 bytes of hash over type, shape and values."""
    key = f"{planes.width} x {planes.height} {planes.values.dtype}{planes.values.shape[2]}".encode()
    return hashlib.blake2b(planes.values.tobytes(), digest_size=16, key=key).digest()
