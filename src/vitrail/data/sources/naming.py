"""What names tell of folders and files: which split they mean, and whether a file may be a picture that is read."""

import os
from typing import Final

from vitrail.config import SplitName

ARRAYS: Final = ".npy"
"""Extension of pictures that have no red, green and blue, so that a number of channels has to be asked for."""

_SPLITS: Final[dict[str, SplitName]] = {
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


def split_called(name: str) -> SplitName | None:
    """Return the split that a name means, in any case, such as "Validation"; None where it means none."""
    return _SPLITS.get(name.casefold())


def suffix_of(name: str) -> str:
    """Return a file's extension in lower case, with its dot; empty where it has none."""
    return os.path.splitext(name)[1].lower()  # noqa: PTH122  (per file)


def is_read(suffix: str, *, arrays: bool = False) -> bool:
    """Return whether files with this extension are pictures that are read; .npy with ``arrays`` alone."""
    return suffix in _READ or (arrays and suffix == ARRAYS)


def why_not_read(suffix: str) -> str:
    """Return why pictures with this extension are refused unopened; empty where they are not."""
    return f"{suffix} files are not read; convert it to JPEG or PNG" if suffix in _NOT_READ else ""
