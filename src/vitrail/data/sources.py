"""Where pictures come from: folders on disk, or the digits that come with scikit-learn.

A folder is read in one of two layouts. Where it has a folder ``train``, or nothing but folders called like splits, it
is divided already: ``train``, ``val`` (or ``validation``, ``valid``) and ``test`` (or ``testing``), in any case, each
with a folder per class. Otherwise every folder in it is a class. Below a class folder, pictures may lie in any depth of
folders.

Hidden files and folders, ``__MACOSX`` and files that are no pictures by their extension are ignored and counted. Files
with the extension of a picture that is not read here (such as .heic) are refused with that reason. A file without an
extension is tried.
"""

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final, Protocol

import numpy as np
from PIL import Image

from vitrail.config import SplitName
from vitrail.data.images import display_name, open_image
from vitrail.data.records import Record
from vitrail.errors import DataError, did_you_mean

BUILT_IN: Final = ("digits",)
"""Names of sources that need no folder."""

_SPLIT_FOLDERS: Final[dict[str, SplitName]] = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}
_READ: Final = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".webp", ".gif", ".bmp", ".dib", ".tif", ".tiff"}
    | {".ppm", ".pgm", ".pbm", ".pnm", ".pfm", ".avif"}
)
_NOT_READ: Final = frozenset(
    {".heic", ".heif", ".jp2", ".j2k", ".jpx", ".jxl", ".tga", ".dds", ".ico", ".icns", ".pcx", ".psd", ".svg", ".eps"}
    | {".exr", ".hdr", ".raw", ".cr2", ".nef", ".arw", ".dng"}
)
_NOT_FILES_OF_ANYONE: Final = frozenset({"__MACOSX", "Thumbs.db", "desktop.ini"})
_DIGITS_PEAK: Final = 16


class Pictures(Protocol):
    """Gives the picture of a record's path."""

    def open(self, path: str, min_side: int | None) -> Image.Image:
        """Return an upright 8-bit RGB picture; see `open_image`."""
        ...


@dataclass(frozen=True)
class FolderPictures:
    """Picture files below a folder."""

    root: Path

    def open(self, path: str, min_side: int | None) -> Image.Image:
        """Decode the file. Raises ImageRefusedError."""
        return open_image(os.path.join(self.root, path), min_side=min_side)  # noqa: PTH118  (per image)


@dataclass(frozen=True)
class DigitPictures:
    """The 1,797 handwritten digits of scikit-learn, 8 x 8 grey, as RGB."""

    pixels: np.ndarray
    """uint8 (1797, 8, 8)."""

    def open(self, path: str, min_side: int | None) -> Image.Image:
        """Return the digit of a path such as "digits/0042"."""
        return Image.fromarray(self.pixels[int(path.removeprefix("digits/"))]).convert("RGB")


@dataclass
class Listing:
    """What a folder holds, before anything is opened."""

    divided: bool
    """Whether the folder names the splits."""
    records: list[Record] = field(default_factory=list)
    """Every file that may be a picture, sorted by path. Those with a ``reason`` are refused by their name alone."""
    ignored: Counter[str] = field(default_factory=Counter)
    """How many files or folders were passed over, by what they are."""


def list_folder(root: Path) -> Listing:
    """Find the pictures of a folder, by their names alone.

    Raises:
        DataError: if the folder does not exist or has no class folders, or two folders stand for the same split.
    """
    _check_folder(root)
    ignored: Counter[str] = Counter()
    folders = _folders(root, ignored)
    named = {name: _SPLIT_FOLDERS[name.casefold()] for name in folders if name.casefold() in _SPLIT_FOLDERS}
    # Folders of which all are called like splits are no classes, even where train is missing.
    listing = Listing(divided="train" in named.values() or (bool(named) and folders == list(named)), ignored=ignored)
    if listing.divided:
        _check_one_folder_each(root, named)
        if len(folders) > len(named):
            ignored["folders beside train, val and test"] = len(folders) - len(named)
        for folder, split in named.items():
            for label in _folders(root / folder, ignored):
                found = walk_folder(root, f"{folder}/{label}", label, ignored)
                listing.records += [replace(record, split=split) for record in found]
    else:
        for label in folders:
            listing.records += walk_folder(root, label, label, ignored)
    if not listing.records:
        raise DataError(
            f"{display_name(root)} has no pictures in class folders. It takes one folder per class with pictures in it,"
            " or train, val and test folders of such."
        )
    listing.records.sort(key=lambda record: record.path)
    return listing


def load_digits() -> tuple[list[Record], DigitPictures]:
    """Return scikit-learn's handwritten digits; grey levels 0..16 become 0..255."""
    from sklearn.datasets import load_digits as load  # takes a second to import, and only this source needs it

    digits = load()
    pixels = np.rint(digits.images * (255 / _DIGITS_PEAK)).astype(np.uint8)
    records = [
        Record(path=f"digits/{number:04d}", label=str(label), width=8, height=8)
        for number, label in enumerate(digits.target)
    ]
    return records, DigitPictures(pixels)


def _check_folder(root: Path) -> None:
    if root.is_dir():
        return
    if root.exists():
        raise DataError(f"{display_name(root)} is a file; a source is a folder with one folder of pictures per class.")
    names = [entry.name for entry in root.parent.iterdir() if entry.is_dir()] if root.parent.is_dir() else []
    hint = did_you_mean(root.name, [*names, *BUILT_IN])
    raise DataError(
        f"There is no folder {display_name(root)}.{hint} A source is a folder with one folder of pictures per class, "
        'or "digits".'
    )


def _check_one_folder_each(root: Path, named: dict[str, SplitName]) -> None:
    for split in named.values():
        same = sorted(name for name, other in named.items() if other == split)
        if len(same) > 1:
            raise DataError(
                f"{display_name(root)} has {' and '.join(same)}, which both mean {split}. Keep one of them."
            )


def _entries(folder: Path, ignored: Counter[str]) -> list[os.DirEntry[str]]:
    """Return what lies in a folder, sorted by name, without what is hidden."""
    try:
        with os.scandir(folder) as scan:
            entries = sorted(scan, key=lambda entry: entry.name)
    except OSError as error:
        raise DataError(f"The folder {display_name(folder)} cannot be read: {error.strerror or error}.") from error
    seen = [e for e in entries if not e.name.startswith(".") and e.name not in _NOT_FILES_OF_ANYONE]
    if len(seen) < len(entries):
        ignored["hidden"] += len(entries) - len(seen)
    return seen


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself; opening it gives the reason
        return False


def _folders(parent: Path, ignored: Counter[str]) -> list[str]:
    """Return the names of the folders in a folder; count its files."""
    entries = _entries(parent, ignored)
    names = [entry.name for entry in entries if _is_folder(entry)]
    if len(names) < len(entries):
        ignored["files outside class folders"] += len(entries) - len(names)
    return names


def walk_folder(root: Path, prefix: str, label: str, ignored: Counter[str]) -> Iterator[Record]:
    """Yield the files below ``root/prefix``. Each real folder is entered once, so links in a circle end."""
    entered: set[tuple[int, int]] = set()
    waiting = [prefix]
    while waiting:
        folder = waiting.pop()
        status = (root / folder).stat()
        if (status.st_dev, status.st_ino) in entered:
            ignored["links to folders seen before"] += 1
            continue
        entered.add((status.st_dev, status.st_ino))
        for entry in _entries(root / folder, ignored):
            path = f"{folder}/{entry.name}"
            if _is_folder(entry):
                waiting.append(path)
                continue
            suffix = os.path.splitext(entry.name)[1].lower()  # noqa: PTH122  (per file)
            if suffix in _NOT_READ:
                yield Record(path=path, label=label, reason=f"{suffix} files are not read; convert it to JPEG or PNG")
            elif suffix in _READ or not suffix:
                yield Record(path=path, label=label)
            else:
                ignored[f"{display_name(suffix)} files"] += 1
