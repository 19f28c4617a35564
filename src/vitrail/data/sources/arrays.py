"""Sets of pictures as arrays: what shapes, values and labels mean, wherever the arrays are kept.

The rule:

* Pictures are (n, H, W), (n, H, W, C) or, where the last axis is none of 1, 3 and 4 but the second is, (n, C, H, W).
* Bytes are taken as they are, truth values as 0 and 255. 16-bit values without a sign are scaled from 0..65535 to
  0..255. Other whole numbers have to lie in 0..255, floats in 0..1 or, where one in the set is above 1, in 0..255.
* A label is a whole number, a text, or a row with a single 1. Numbers become the names of classes that the set brings,
  or stay numbers. Negative numbers are no label.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from vitrail.config import SplitName
from vitrail.data.images import MAX_PIXELS, display_name
from vitrail.data.inspections import FileKey
from vitrail.data.records import Record
from vitrail.data.sources.contract import Listing, Source
from vitrail.data.sources.pixels import CHANNELS, ArrayPictures, Block, numbered
from vitrail.errors import DataError
from vitrail.runtime.memory import available_memory_bytes

_CHUNK_BYTES: Final = 2**25


@dataclass(frozen=True, kw_only=True, eq=False)
class Part:
    """Pictures with their labels."""

    name: str
    """Of the array, with which the paths of its pictures begin."""
    split: SplitName | None
    images: np.ndarray
    labels: np.ndarray
    offsets: np.ndarray | None = None
    """As `Block` takes it, where the images are encoded."""
    file: FileKey | None = None


def open_arrays(
    name: str, place: str, parts: Sequence[Part], *, classes: Sequence[str] | None = None, num_others: int = 0
) -> Source:
    """Return the source that arrays are.

    Args:
        name: as it is shown.
        place: see `Source`.
        parts: the arrays.
        classes: names of the classes by number.
        num_others: how many arrays were passed over.

    Raises:
        DataError: if the shapes are not those of pictures; the message names the array.
    """
    parts = [part for part in parts if len(part.images)]
    if not parts:
        raise DataError(f"{name} has no pictures: its arrays are empty.")
    plain = {part.name: _channels_last(part) for part in parts if part.offsets is None}
    peak = max((_highest(array) for array in plain.values() if array.dtype.kind == "f"), default=1.0)
    blocks = {
        part.name: Block(plain[part.name], file=part.file, peak=1.0 if peak <= 1 else 255.0)
        if part.offsets is None
        else Block(part.images, _checked(part.offsets, part), part.file)
        for part in parts
    }
    return Source(
        name=name,
        place=place,
        pictures=ArrayPictures(blocks),
        list=lambda group_by: _list(parts, blocks, classes, num_others),
    )


def _list(
    parts: Sequence[Part], blocks: Mapping[str, Block], classes: Sequence[str] | None, num_others: int
) -> Listing:
    """Return a record for each picture. What labels are is asked here: as the root of a table they do not count."""
    divided = any(part.split for part in parts)
    records = []
    for part in parts:
        labels = _label_texts(part, len(blocks[part.name]), classes)
        unused = "it is of no split" if divided and not part.split else ""
        records += [
            Record(path=path, label=label, split=part.split, reason=unused or ("" if label else "it has no label"))
            for path, label in zip(numbered(part.name, len(labels)), labels, strict=True)
        ]
    records.sort(key=lambda record: record.path)
    ignored = Counter({"other arrays": num_others} if num_others else {})
    return Listing(divided=divided, records=records, ignored=ignored)


def check_memory(num_bytes: int, what: str) -> None:
    """Raise a DataError where an array does not fit into the free memory."""
    free = available_memory_bytes()
    if num_bytes > free:
        raise DataError(
            f"{what} takes {num_bytes / 2**30:.1f} GiB of memory, and {free / 2**30:.1f} GiB are free. Keep it "
            "uncompressed, so that it can stay on the disk."
        )


def _channels_last(part: Part) -> np.ndarray:
    images = part.images
    if images.ndim == 4 and images.shape[3] not in CHANNELS and images.shape[1] in CHANNELS:
        images = np.moveaxis(images, 1, 3)
    if images.ndim not in {3, 4} or images.dtype.kind not in "biuf" or not 0 < images[0].size <= 4 * MAX_PIXELS:
        raise DataError(
            f"{display_name(part.name)} has the shape {part.images.shape} and the type {part.images.dtype}; images are "
            "numbers of n x height x width, perhaps with their channels before or after."
        )
    return images


def _highest(images: np.ndarray) -> float:
    """Return the highest value; a NaN is left to the picture that has it."""
    step = max(1, _CHUNK_BYTES // images[0].nbytes)
    parts = (images[start : start + step] for start in range(0, len(images), step))
    return max(float(np.nan_to_num(part, nan=0.0).max()) for part in parts)


def _checked(offsets: np.ndarray, part: Part) -> np.ndarray:
    fits = part.images.dtype == np.uint8 and part.images.ndim == 1
    fits = fits and offsets.dtype.kind in "iu" and offsets.ndim == 1 and len(offsets) > 0
    if not fits or offsets[0] < 0 or offsets[-1] > len(part.images) or np.any(offsets[1:] < offsets[:-1]):
        raise DataError(
            f"The offsets of {display_name(part.name)} do not fit its bytes: they take n + 1 whole numbers that rise"
            " from 0 to the number of bytes, and the bytes are one row of uint8."
        )
    return offsets


def _label_texts(part: Part, num: int, classes: Sequence[str] | None) -> list[str]:
    """Return the name of each picture's class; empty where it has none."""
    labels, name = part.labels, display_name(part.name)
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim == 2 and labels.dtype.kind in "biuf":
        if not (np.isin(labels, (0, 1)).all() and (labels.sum(axis=1) == 1).all()):
            raise DataError(
                f"The labels of {name} are rows with other than a single 1, as of pictures that show several classes. "
                "Write a table with label_columns for that, with the archive as its root."
            )
        labels = labels.argmax(axis=1)
    if labels.ndim != 1 or len(labels) != num or labels.dtype.kind not in "biufUS":
        raise DataError(
            f"{name} has {num} pictures, and its labels the shape {part.labels.shape} and the type {part.labels.dtype};"
            " it takes a number or text for each."
        )
    if labels.dtype.kind == "U":
        return list(map(str.strip, labels.tolist()))
    if labels.dtype.kind == "S":
        return [text.decode("utf-8", "surrogateescape").strip() for text in labels.tolist()]
    if labels.dtype.kind == "f" and not np.all(labels == np.rint(labels)):
        raise DataError(f"The labels of {name} are not whole, such as {labels[labels != np.rint(labels)][0]:g}.")
    return _named(labels.astype(np.int64), classes, name)


def _named(numbers: np.ndarray, classes: Sequence[str] | None, name: str) -> list[str]:
    found = np.unique(numbers).tolist()
    if classes is not None and found[-1] >= len(classes):
        raise DataError(f"{name} has the label {found[-1]}, and there are names for {len(classes)} classes only.")
    names = {each: "" if each < 0 else str(each) if classes is None else classes[each] for each in found}
    return [names[number] for number in numbers.tolist()]
