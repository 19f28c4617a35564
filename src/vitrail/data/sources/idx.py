"""The files of MNIST and its kin: train-images-idx3-ubyte, train-labels-idx1-ubyte and so on, plain or as .gz.

Format: two zero bytes, the type of the values, the number of axes, the length of each axis in four bytes, then the
values, all of them with the highest byte first (Y. LeCun, The MNIST database, http://yann.lecun.com/exdb/mnist).
"""

import gzip
import math
import re
import zlib
from collections import defaultdict
from pathlib import Path
from typing import IO, Final

import numpy as np

from vitrail.config import SplitName
from vitrail.data.images import display_name
from vitrail.data.inspections import file_key
from vitrail.data.sources.arrays import Part, check_memory, open_arrays
from vitrail.data.sources.contract import Source, place_of
from vitrail.data.sources.naming import split_called
from vitrail.errors import DataError

_NAME: Final = re.compile(
    r"(?P<set>(?:.+[-_.])?)(?P<split>[A-Za-z0-9]+)[-_.](?P<what>images|labels)[-_.]idx\d[-_.]ubyte(?P<gz>\.gz)?"
)
_TYPES: Final = {8: ">u1", 9: ">i1", 11: ">i2", 12: ">i4", 13: ">f4", 14: ">f8"}
_MOST_AXES: Final = 4


def is_idx(path: Path) -> bool:
    """Return whether a file is one of such a set, or a folder has one, by their names."""
    return bool(_sets(path))


def open_idx(path: Path) -> Source:
    """Return the set of images and labels in a folder, or the set that a file is of.

    Raises:
        DataError: if there are several sets in the folder, labels are missing, or a file is damaged.
    """
    sets = _sets(path)
    if len(sets) > 1:
        names = ", ".join(display_name(name.rstrip("-_.") or "one without a name") for name in sorted(sets))
        raise DataError(f"{display_name(path)} has files of several sets: {names}. Name an image file of one of them.")
    ((name, files),) = sets.items()
    parts = []
    for split, images in sorted(files["images"].items()):
        labels = files["labels"].get(split)
        if labels is None:
            raise DataError(
                f"{display_name(images)} has no labels beside it: a file of its name with labels-idx1 for images-idx3."
            )
        name_of_array, key = images.name.removesuffix(".gz"), file_key(str(images))
        parts.append(Part(name=name_of_array, split=split, images=_read(images), labels=_read(labels), file=key))
    folder = path if path.is_dir() else path.parent
    title = name.rstrip("-_.") or folder.resolve().name
    return open_arrays(display_name(title), f"{place_of(folder)}/{name}", parts)


def _sets(path: Path) -> dict[str, dict[str, dict[SplitName, Path]]]:
    """Return the files by set, by what they hold, and by split; a plain one where there is also one as .gz."""
    folder = path if path.is_dir() else path.parent
    sets: dict[str, dict[str, dict[SplitName, Path]]] = defaultdict(lambda: defaultdict(dict))
    try:
        names = sorted((entry.name for entry in folder.iterdir()), reverse=True)  # .gz before what is plain
    except OSError:
        return {}
    wanted = None
    for name in names:
        match = _NAME.fullmatch(name)
        split = None if match is None else "test" if match["split"] == "t10k" else split_called(match["split"])
        if match is not None and split is not None:
            sets[match["set"]][match["what"]][split] = folder / name
            wanted = match["set"] if name == path.name else wanted
    found = {name: files for name, files in sets.items() if files["images"]}
    if path.is_dir():
        return found
    return {name: files for name, files in found.items() if name == wanted}


def _read(path: Path) -> np.ndarray:
    """Return the array of a file: mapped into memory where it is plain."""
    try:
        if path.suffix == ".gz":
            with gzip.open(path) as file:
                dtype, shape = _header(file, path)
                num_bytes = math.prod(shape) * dtype.itemsize
                check_memory(num_bytes, display_name(path))
                data = file.read(num_bytes + 1)
            if len(data) == num_bytes:
                return np.frombuffer(data, dtype).reshape(shape)
        else:
            with path.open("rb") as file:
                dtype, shape = _header(file, path)
                offset = file.tell()
            num_bytes = math.prod(shape) * dtype.itemsize
            if path.stat().st_size - offset == num_bytes:
                return np.memmap(path, dtype, "r", offset, shape) if num_bytes else np.empty(shape, dtype)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{display_name(path)} cannot be read: {error}.") from error
    raise DataError(f"{display_name(path)} has not the {num_bytes:,} bytes that its header tells. Fetch it again.")


def _header(file: IO[bytes] | gzip.GzipFile, path: Path) -> tuple[np.dtype, tuple[int, ...]]:
    """Return the type and the shape of the values that follow."""
    magic = file.read(4)
    if len(magic) != 4 or magic[:2] != b"\0\0" or magic[2] not in _TYPES or not 1 <= magic[3] <= _MOST_AXES:
        raise DataError(f"{display_name(path)} does not begin as an idx file does. Fetch it again.")
    lengths = file.read(4 * magic[3])
    if len(lengths) != 4 * magic[3]:
        raise DataError(f"{display_name(path)} is cut short in its header. Fetch it again.")
    return np.dtype(_TYPES[magic[2]]), tuple(np.frombuffer(lengths, ">u4").tolist())
