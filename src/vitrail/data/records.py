"""One line of a manifest per picture: where it is, what it shows, which split it belongs to, whether it is used.

A manifest is a CSV file in UTF-8. Bytes of a file name that are not UTF-8 are written as they are, so that every name
comes back exactly.
"""

import csv
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, get_args

from vitrail.config import SplitName, TaskName
from vitrail.data.images import display_name
from vitrail.errors import DataError
from vitrail.runtime.files import atomic_path

Label = str | tuple[str, ...]
"""The name of a class; or those of all classes that a picture shows, sorted, which may be none."""

COLUMNS: Final = ("path", "label", "split", "sha256", "width", "height", "status", "reason")
SEVERAL_COLUMNS: Final = ("path", "labels", *COLUMNS[2:])
"""Of pictures that may show several classes; the labels are a list in JSON."""
ADDED_COLUMNS: Final = ("phash", "group", "duplicate_of")
"""May be absent: manifests of versions before 0.2 end with the reason."""

_SPLITS: Final = ("", *get_args(SplitName))


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """What is known of one picture."""

    path: str
    """Below the root of the source, with "/" between folders."""
    label: Label
    """Name of its class; or of all that it shows, where pictures may show several."""
    split: SplitName | None = None
    """None where it is not yet decided, or the picture is not used."""
    sha256: str = ""
    """Of the file's bytes, hexadecimal; empty where it could not be read."""
    width: int = 0
    """Pixels, after the orientation is obeyed."""
    height: int = 0
    """Pixels, after the orientation is obeyed."""
    reason: str = ""
    """Why it is not used; empty where it is."""
    phash: str = ""
    """Perceptual hash of 64 bits, hexadecimal; empty where none was made."""
    group: str = ""
    """Of the pictures that were kept in one split because ``group_by`` found the same in their paths."""
    duplicate_of: str = ""
    """Path of the first picture that this one repeats. With a ``reason``, it is left out of val or test for that."""

    @property
    def labels(self) -> tuple[str, ...]:
        """The names of all classes that it shows."""
        if isinstance(self.label, tuple):
            return self.label
        return (self.label,) if self.label else ()

    @property
    def shown_label(self) -> str:
        """What it shows, as text that can be shown anywhere."""
        return ", ".join(display_name(name) for name in self.labels) or "no label"


def task_of(records: Iterable[Record]) -> TaskName:
    """Return what can be learnt of records: one label each, or any number of them."""
    return "multilabel" if any(isinstance(record.label, tuple) for record in records) else "classification"


def write_manifest(path: str | Path, records: Sequence[Record]) -> None:
    """Write a CSV file with `COLUMNS` or `SEVERAL_COLUMNS`, whole or not at all.

    Raises:
        StorageError: if the disk is full or the folder cannot be written.
    """
    with (
        atomic_path(Path(path)) as temporary,
        temporary.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file,
    ):
        writer = csv.writer(file)
        several = task_of(records) == "multilabel"
        writer.writerow((*(SEVERAL_COLUMNS if several else COLUMNS), *ADDED_COLUMNS))
        for record in records:
            status = "refused" if record.reason else "ok"
            size = (record.width, record.height)
            label = json.dumps(record.labels, ensure_ascii=False) if several else record.label
            kept = (record.path, label, record.split, record.sha256, *size, status, record.reason)
            writer.writerow((*kept, record.phash, record.group, record.duplicate_of))


def is_manifest(header: Sequence[str]) -> bool:
    """Return whether a table with these columns is a manifest."""
    return tuple(header) in {(*kept, *added) for kept in (COLUMNS, SEVERAL_COLUMNS) for added in ((), ADDED_COLUMNS)}


def read_manifest(path: str | Path, *, allow_outside: bool = False) -> list[Record]:
    """Read what `write_manifest` wrote.

    Args:
        path: the file.
        allow_outside: take paths too that lead out of the source.

    Raises:
        DataError: if the file is missing or is no such manifest; the message names the line.
    """
    try:
        with Path(path).open(encoding="utf-8", errors="surrogateescape", newline="") as file:
            rows = csv.reader(file)
            header = next(rows, None)
            if header is None or not is_manifest(header):
                raise DataError(
                    f"{display_name(path)} is no manifest: its first line must be {','.join(COLUMNS)}."
                    " `vitrail data SOURCE` writes one."
                )
            shared: dict[Any, Any] = {}
            name = display_name(path)
            return [
                _parse(row, header, (name, number), shared, allow_outside) for number, row in enumerate(rows, start=2)
            ]
    except (OSError, csv.Error) as error:
        raise DataError(f"The manifest {display_name(path)} cannot be read: {error}.") from error


def parse_labels(cell: str, place: str) -> tuple[str, ...]:
    """Return the labels in a cell of a manifest. Raises DataError if it is no list of them."""
    try:
        names = json.loads(cell)
    except (ValueError, RecursionError):
        names = None
    if not isinstance(names, list) or not all(isinstance(name, str) and name for name in names):
        raise DataError(f'{place} has the labels {display_name(cell)!r}; it takes a list in JSON, such as ["a", "b"].')
    return tuple(sorted(set(names)))


def _parse(
    row: list[str], header: Sequence[str], at: tuple[str, int], shared: dict[Any, Any], allow_outside: bool
) -> Record:
    """Return the record of a row; of equal values in different rows one is kept, in ``shared``."""
    place = f"{at[0]}, row {at[1]}"
    if len(row) != len(header):
        raise DataError(f"{place} has {len(row)} values; its first line names {len(header)} columns.")
    path, cell, split, sha256, width, height, status, reason, *added = row
    leaves = path.startswith("/") or ".." in path.split("/")
    if not path or "\0" in path or (leaves and not allow_outside):
        raise DataError(f"{place} has the path {display_name(path)!r}; paths are relative and stay below the source.")
    if split not in _SPLITS or status != ("refused" if reason else "ok") or (status == "ok" and not split):
        raise DataError(f"{place} has split {split!r} and status {status!r}; used pictures are in train, val or test.")
    if not (width.isdecimal() and height.isdecimal()):
        raise DataError(f"{place} has the size {width!r} x {height!r}; it takes whole pixels.")
    label = parse_labels(cell, place) if header[1] == SEVERAL_COLUMNS[1] else cell
    phash, group, duplicate_of = added or ("", "", "")
    return Record(
        path=path,
        label=shared.setdefault(label, label),
        split=shared.setdefault(split, split) or None,
        sha256=sha256,
        width=shared.setdefault(int(width), int(width)),
        height=shared.setdefault(int(height), int(height)),
        reason=reason,
        phash=phash,
        group=shared.setdefault(group, group),
        duplicate_of=duplicate_of,
    )
