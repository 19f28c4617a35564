"""What every kind of source gives: records of its pictures, and the pictures of these records."""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np

from vitrail.config import AugmentStrength
from vitrail.data.images import Inspection, decode_bytes, inspect_bytes
from vitrail.data.inspections import FileKey
from vitrail.data.raster import Picture
from vitrail.data.records import Record


class Pictures(Protocol):
    """Gives the picture of a record's path, to several threads at once."""

    def open(self, path: str, min_side: int | None) -> Picture:
        """Return an upright 8-bit RGB picture; see `open_image`. Raises ImageRefusedError."""
        ...

    def stored(self, path: str) -> bytes | np.ndarray:
        """Return what is stored: the bytes of a file, or an array (H, W) or (H, W, C). Raises ImageRefusedError."""
        ...

    def inspect(self, path: str) -> Inspection:
        """Decode the whole picture once. Raises ImageRefusedError, exactly where `open` would."""
        ...

    def key(self, path: str) -> FileKey | None:
        """Return what changes whenever the picture does, or None where it is inspected anew each time."""
        ...


class EncodedPictures(ABC):
    """The `Pictures` of a source that keeps the bytes of picture files, wherever they lie."""

    @abstractmethod
    def stored(self, path: str) -> bytes:
        """Return the bytes of a file. Raises ImageRefusedError."""

    @abstractmethod
    def key(self, path: str) -> FileKey | None:
        """Return what changes whenever the picture does."""

    def open(self, path: str, min_side: int | None) -> Picture:
        """Decode the bytes."""
        return decode_bytes(self.stored(path), path, min_side=min_side)

    def inspect(self, path: str) -> Inspection:
        """Decode the bytes once."""
        return inspect_bytes(self.stored(path), path)


@dataclass(kw_only=True)
class Listing:
    """What a source holds, before any picture is opened."""

    divided: bool
    """Whether the source names the splits."""
    settled: bool = False
    """Whether vitrail divided it before: nothing is dropped then that was not dropped."""
    grouped: bool = False
    """Whether the records have the groups that were asked for."""
    records: list[Record] = field(default_factory=list)
    """Every picture there may be, with a path of its own, sorted by it. Those with a ``reason`` are refused by it."""
    classes: tuple[str, ...] | None = None
    """Names of all classes that the source knows of; None where it tells those alone that its pictures show."""
    ignored: Counter[str] = field(default_factory=Counter)
    """How many files, folders or rows were passed over, by what they are."""


@dataclass(frozen=True, kw_only=True)
class Traits:
    """What is known of a source beyond its pictures."""

    flip: bool = True
    """Whether a mirrored picture still shows its class; False for writing."""
    augment: AugmentStrength = "medium"
    """The policy that "auto" means."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Source:
    """One place that pictures come from."""

    name: str
    """As it is shown, and as the folder of a run may be called."""
    place: str
    """Under which the findings about its pictures are kept: the same for the same source, whatever it was called."""
    pictures: Pictures
    """To be opened by the paths of the records."""
    list: Callable[[str | None], Listing]
    """Find the pictures, in groups by a column of this name where there is one. Raises DataError where that cannot be
    done."""
    traits: Traits = Traits()


def place_of(path: str | Path) -> str:
    """Return the `Source.place` of a file or folder."""
    return str(Path(path).resolve())
