"""Admission: every file is decoded once before any is used, and each that is not whole is left out with its reason."""

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from vitrail.data.images import ImageRefusedError, inspect_image
from vitrail.data.ordered import default_workers, ordered_map
from vitrail.data.records import Record

Progress = Callable[[int, int], None]
"""Is told how many files are done, and of how many."""

_AHEAD = 64


def admit(root: Path, records: Sequence[Record], progress: Progress | None = None) -> list[Record]:
    """Return the records with size and hash, or with the reason why the file is not used; in the same order."""

    def inspect(record: Record) -> Record:
        if record.reason:
            return record
        try:
            found = inspect_image(os.path.join(root, record.path))  # noqa: PTH118  (per image)
        except ImageRefusedError as error:
            return replace(record, reason=error.reason)
        return replace(record, width=found.width, height=found.height, sha256=found.sha256)

    admitted = []
    for record in ordered_map(inspect, records, workers=default_workers(), ahead=_AHEAD):
        admitted.append(record)
        if progress is not None:
            progress(len(admitted), len(records))
    return admitted
