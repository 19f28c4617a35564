"""Pictures to predict: named as files, folders or globs, and loaded side by side."""

import glob
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from vitrail.config import Preprocess
from vitrail.data.images import ImageRefusedError, display_name
from vitrail.data.ordered import default_workers, ordered_map
from vitrail.data.planes import load_pixels
from vitrail.data.sources import holds_no_files, walk_folder
from vitrail.errors import DataError, did_you_mean

_AHEAD = 16


def find_pictures(names: Sequence[str], *, arrays: bool = False) -> list[str]:
    """Return the files that ``names`` mean, in the order of the names and sorted within each.

    A folder is searched through by the rules of a data source: hidden files and files that are no pictures by their
    extension are passed over. A file that is named itself is always taken. A glob (``*``, ``?``, ``[...]``, ``**``) may
    find both. No file is returned twice, however it is named. With ``arrays``, .npy files count as pictures.

    Raises:
        DataError: if a name is nothing that exists, or none of them leads to a picture.
    """
    found = [path for name in names for path in _find(name, arrays)]
    if not found:
        shown = ", ".join(display_name(name) for name in names)
        raise DataError(f"There are no pictures in {shown}. Name picture files, or folders that have some.")
    first: dict[str, str] = {}
    for path in found:
        first.setdefault(os.path.abspath(path), path)  # noqa: PTH100 - links stay what they are
    return list(first.values())


def load_pictures(paths: Sequence[str], preprocess: Preprocess) -> list[np.ndarray | ImageRefusedError]:
    """Return each picture as `load_pixels` does, or why it is refused; in the same order."""

    def load(path: str) -> np.ndarray | ImageRefusedError:
        try:
            return load_pixels(path, preprocess)
        except ImageRefusedError as refusal:
            return refusal

    return list(ordered_map(load, paths, workers=default_workers(), ahead=_AHEAD))


def _find(name: str, arrays: bool) -> list[str]:
    if not name:  # for Python the present folder, for a person a variable that was not set
        raise DataError("An empty name was given for a picture. Name a file or folder.")
    found = sorted(_search(name, arrays)) if Path(name).is_dir() else []
    if not found and holds_no_files(name):
        raise DataError(
            f"{display_name(name)} holds labelled images, but no picture files, which are named here. `vitrail "
            "evaluate` tells with --data how well a model does on it."
        )
    if Path(name).is_dir():
        return found
    if Path(name).exists():
        return [name]
    matches = sorted(glob.glob(name, recursive=True)) if glob.has_magic(name) else []  # noqa: PTH207 - keeps the form
    if matches:
        return [path for match in matches for path in (_search(match, arrays) if Path(match).is_dir() else [match])]
    if glob.has_magic(name):
        raise DataError(f"Nothing matches {display_name(name)}.")
    folder = Path(name).parent
    hint = did_you_mean(Path(name).name, (entry.name for entry in folder.iterdir())) if folder.is_dir() else ""
    raise DataError(f"There is no file or folder {display_name(name)}.{hint}")


def _search(folder: str, arrays: bool) -> list[str]:
    records = walk_folder(Path(folder), ".", "", Counter(), arrays=arrays)
    return sorted(os.path.normpath(f"{folder}/{record.path}") for record in records)
