"""Folders on disk with a folder of pictures per class.

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
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from PIL import Image

from vitrail.config import SplitName
from vitrail.data.images import Inspection, display_name, inspect_image, open_image, read_file
from vitrail.data.inspections import FileKey, file_key
from vitrail.data.records import Record
from vitrail.data.sources.contract import Listing, Source, place_of
from vitrail.data.sources.naming import ARRAYS, is_read, split_called, suffix_of, why_not_read
from vitrail.errors import DataError

_NOT_FILES_OF_ANYONE: Final = frozenset({"__MACOSX", "Thumbs.db", "desktop.ini"})


@dataclass(frozen=True)
class FolderPictures:
    """Picture files below a folder."""

    root: Path

    def open(self, path: str, min_side: int | None) -> Image.Image:
        """Decode the file."""
        return open_image(self._join(path), min_side=min_side)

    def stored(self, path: str) -> bytes:
        """Return the file's bytes."""
        return read_file(self._join(path))

    def inspect(self, path: str) -> Inspection:
        """Decode the file once."""
        return inspect_image(self._join(path))

    def key(self, path: str) -> FileKey | None:
        """Return the size, times and inode of the file."""
        return file_key(self._join(path))

    def _join(self, path: str) -> str:
        return os.path.join(self.root, path)  # noqa: PTH118  (per image)


def open_folder(root: Path, *, arrays: bool = False) -> Source:
    """Return the source that a folder is; with ``arrays``, .npy files are pictures too."""
    return Source(
        name=display_name(root.resolve().name),
        place=place_of(root),
        pictures=FolderPictures(root),
        list=lambda group_by: list_folder(root, arrays=arrays),
    )


def list_folder(root: Path, *, arrays: bool = False) -> Listing:
    """Find the pictures of a folder, by their names alone; .npy files only with ``arrays``.

    Raises:
        DataError: if the folder has no class folders, or two folders stand for the same split.
    """
    ignored: Counter[str] = Counter()
    folders = _folders(root, ignored)
    named = {name: split for name in folders if (split := split_called(name)) is not None}
    # Folders of which all are called like splits are no classes, even where train is missing.
    listing = Listing(divided="train" in named.values() or (bool(named) and folders == list(named)), ignored=ignored)
    if listing.divided:
        _check_one_folder_each(root, named)
        if len(folders) > len(named):
            ignored["folders beside train, val and test"] = len(folders) - len(named)
        for folder, split in named.items():
            for label in _folders(root / folder, ignored):
                found = walk_folder(root, f"{folder}/{label}", label, ignored, arrays=arrays)
                listing.records += [replace(record, split=split) for record in found]
    else:
        for label in folders:
            listing.records += walk_folder(root, label, label, ignored, arrays=arrays)
    if not listing.records:
        raise _nothing_in(root, ignored)
    listing.records.sort(key=lambda record: record.path)
    return listing


def _nothing_in(root: Path, ignored: Counter[str]) -> DataError:
    hint = ""
    if ignored[f"{ARRAYS} files"]:
        hint = " Its .npy files are read where --channels says how many channels."
    elif any(root.glob("**/*.parquet")):
        hint = f" Its .parquet files may be a Hugging Face dataset: hf-dataset:{display_name(root)}."
    return DataError(
        f"{display_name(root)} has no pictures in class folders. It takes one folder per class with pictures in it, or "
        f"train, val and test folders of such.{hint}"
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


def _identity(folder: Path) -> tuple[int, int]:
    """Return what a real folder has, by whatever links it is reached."""
    try:
        status = folder.stat()
    except OSError as error:
        raise DataError(f"The folder {display_name(folder)} cannot be read: {error.strerror or error}.") from error
    return status.st_dev, status.st_ino


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


def walk_folder(
    root: Path, prefix: str, label: str, ignored: Counter[str], *, arrays: bool = False
) -> Iterator[Record]:
    """Yield the files below ``root/prefix``.

    Each real folder is entered once, so links in a circle end. What lies around it is never entered: a link to the
    parent would bring in the pictures of other classes, one to the root of the disk everything there is.
    """
    entered = {_identity(parent) for parent in (root / prefix).resolve().parents}
    waiting = [prefix]
    while waiting:
        folder = waiting.pop()
        identity = _identity(root / folder)
        if identity in entered:
            ignored["links to folders around or seen before"] += 1
            continue
        entered.add(identity)
        for entry in _entries(root / folder, ignored):
            path = f"{folder}/{entry.name}"
            if _is_folder(entry):
                waiting.append(path)
                continue
            suffix = suffix_of(entry.name)
            reason = why_not_read(suffix)
            if reason or is_read(suffix, arrays=arrays) or not suffix:
                yield Record(path=path, label=label, reason=reason)
            else:
                ignored[f"{display_name(suffix)} files"] += 1
