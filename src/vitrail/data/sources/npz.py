"""Archives of numpy arrays: which array is what, by its name.

A name is made of words, joined by _, - or a dot: one of them says what it holds, and one may say of which split, in any
order and case: x_train, train_images, images, test_labels. What says that are x, image(s), img(s), data or pixels for
pictures, y, label(s), target(s) or class(es) for labels; jpeg, jpg, png, webp, encoded or bytes for the bytes of
picture files, joined to one row, with offsets for where each begins. class_names, label_names and names are the names
of the classes by number.
"""

import re
import struct
import zipfile
import zlib
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, Final, Literal

import numpy as np

from vitrail.config import SplitName
from vitrail.data.images import display_name
from vitrail.data.inspections import FileKey, file_key
from vitrail.data.sources.arrays import Part, check_memory, open_arrays
from vitrail.data.sources.contract import Source, place_of
from vitrail.data.sources.naming import split_called
from vitrail.errors import DataError

Role = Literal["images", "labels", "encoded", "offsets"]

SUFFIX: Final = ".npz"

_ROLES: Final[dict[str, Role]] = {
    **dict.fromkeys(("x", "image", "images", "img", "imgs", "data", "pixels"), "images"),
    **dict.fromkeys(("y", "label", "labels", "target", "targets", "class", "classes"), "labels"),
    **dict.fromkeys(("jpeg", "jpg", "png", "webp", "encoded", "bytes"), "encoded"),
    **dict.fromkeys(("offset", "offsets"), "offsets"),
}
_CLASSES: Final = ("class_names", "label_names", "names")
_LOCAL_HEADER: Final = struct.Struct("<26xHH")
_DAMAGE: Final = (OSError, EOFError, ValueError, RuntimeError, NotImplementedError, zipfile.BadZipFile, zlib.error)
_HINT: Final = "Usual are x_train, y_train, x_test, y_test, or images, labels, or train_images, train_labels and so on"


def open_npz(path: Path) -> Source:
    """Return the set of images and labels in an archive.

    Raises:
        DataError: if it is damaged, holds Python objects, or its names tell no images and labels.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
            roles, others = _roles(path, list(members))
            read = {name: _read(path, archive, members[name]) for held in roles.values() for name in held.values()}
            classes = next((_read(path, archive, members[name]) for name in _CLASSES if name in members), None)
    except _DAMAGE as error:
        raise DataError(f"{display_name(path)} cannot be read: {error}.") from error
    parts = [_part(path, split, held, read) for split, held in roles.items()]
    names = None if classes is None else _class_names(classes, path)
    return open_arrays(display_name(path.stem), place_of(path), parts, classes=names, num_others=len(others))


def _roles(path: Path, names: list[str]) -> tuple[dict[SplitName | None, dict[Role, str]], list[str]]:
    """Return the name of each array by split and role, and the names of all others."""
    roles: dict[SplitName | None, dict[Role, str]] = defaultdict(dict)
    others = []
    for name in names:
        told = _tell(name)
        if told is None:
            others += [name] if name not in _CLASSES else []
            continue
        split, role = told
        if role in roles[split]:
            both = f"{display_name(roles[split][role])} and {display_name(name)}"
            raise DataError(f"{display_name(path)} has the arrays {both}, and one of them alone can be the {role}.")
        roles[split][role] = name
    complete = {s: held for s, held in roles.items() if "labels" in held and ("images" in held or "encoded" in held)}
    others += [name for split, held in roles.items() if split not in complete for name in held.values()]
    if not complete:
        shown = ", ".join(display_name(name) for name in names) or "none"
        raise DataError(f"{display_name(path)} has no arrays of images with their labels. {_HINT}. It has: {shown}.")
    return complete, others


def _tell(name: str) -> tuple[SplitName | None, Role] | None:
    """Return what a name says, or None where it is no name of words that say it."""
    if not re.fullmatch(r"[\w.-]+", name):
        return None
    words = [word for word in re.split(r"[_.-]", name.casefold()) if word]
    roles = [_ROLES[word] for word in words if word in _ROLES]
    splits = [split for word in words if (split := split_called(word)) is not None]
    if len(roles) != 1 or len(splits) > 1 or len(words) != len(roles) + len(splits):
        return None
    return (splits[0] if splits else None), roles[0]


def _part(path: Path, split: SplitName | None, held: Mapping[Role, str], arrays: Mapping[str, np.ndarray]) -> Part:
    key: FileKey | None = file_key(str(path))
    labels = arrays[held["labels"]]
    if "images" in held and "encoded" in held:
        both = f"{display_name(held['images'])} and {display_name(held['encoded'])}"
        raise DataError(f"{display_name(path)} has the arrays {both}, and one of them alone can be the images.")
    if "images" in held:
        return Part(name=held["images"], split=split, images=arrays[held["images"]], labels=labels, file=key)
    if "offsets" not in held:
        raise DataError(
            f"{display_name(path)} has {display_name(held['encoded'])} without offsets, which say where images begin."
        )
    images, offsets = arrays[held["encoded"]], arrays[held["offsets"]]
    return Part(name=held["encoded"], split=split, images=images, labels=labels, offsets=offsets, file=key)


def _class_names(names: np.ndarray, path: Path) -> list[str]:
    if names.ndim != 1 or names.dtype.kind not in "US" or len(np.unique(names)) < len(names):
        raise DataError(f"The names of the classes in {display_name(path)} are no row of different texts.")
    texts = np.char.decode(names, "utf-8", "surrogateescape") if names.dtype.kind == "S" else names
    return [str(text).strip() for text in texts.tolist()]


def _read(path: Path, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> np.ndarray:
    """Return an array; one that is not compressed stays on the disk."""
    with archive.open(info) as file:
        shape, fortran_order, dtype = _header(file)
        start = file.tell()
        num_bytes = dtype.itemsize * int(np.prod(shape, dtype=object))
        if dtype.hasobject:
            raise DataError(
                f"{display_name(info.filename)} of {display_name(path)} holds Python objects, which only a pickle can"
                " keep, and none is loaded. Save it as numbers or text."
            )
        if info.file_size != start + num_bytes:
            raise DataError(
                f"{display_name(info.filename)} of {display_name(path)} has not the size that its header tells."
            )
        if info.compress_type == zipfile.ZIP_STORED and num_bytes:
            begin = _first_byte(path, info) + start
            return np.memmap(path, dtype, "r", begin, shape, "F" if fortran_order else "C")
        check_memory(num_bytes, f"{display_name(info.filename)} of {display_name(path)}")
        values = np.frombuffer(file.read(), dtype)
        return values.reshape(shape, order="F" if fortran_order else "C")


def _header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Return shape, whether in Fortran order, and type. Raises ValueError."""
    version = np.lib.format.read_magic(file)
    if version == (1, 0):
        return np.lib.format.read_array_header_1_0(file)
    return np.lib.format.read_array_header_2_0(file)


def _first_byte(path: Path, info: zipfile.ZipInfo) -> int:
    """Return where the bytes of a member begin in the archive, after its local header, name and extra field."""
    with path.open("rb") as file:
        file.seek(info.header_offset)
        header = file.read(_LOCAL_HEADER.size)
    if len(header) < _LOCAL_HEADER.size:
        raise EOFError("it is cut short")
    return info.header_offset + _LOCAL_HEADER.size + int(sum(_LOCAL_HEADER.unpack(header)))
