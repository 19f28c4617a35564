"""Admission: every file is decoded once before any is used, and each that is not whole is left out with its reason."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from vitrail.data.images import ImageRefusedError, Inspection
from vitrail.data.inspections import InspectionCache
from vitrail.data.ordered import default_workers, ordered_map
from vitrail.data.records import Record
from vitrail.data.sources import Source

Progress = Callable[[int, int], None]
"""Is told how many files are done, and of how many."""

_AHEAD = 64


@dataclass(frozen=True)
class Admitted:
    """Records with their size and hash, or with the reason why the file is not used."""

    records: list[Record]
    inspections: dict[str, Inspection]
    """By path, of every picture that is whole."""
    note: str
    """Why the findings could not be kept for the next time; empty where they were."""


def admit(source: Source, records: Sequence[Record], progress: Progress | None = None) -> Admitted:
    """Inspect every picture of a source, or take what is known of it since it was last changed; in the same order.

    What was found is kept even when somebody interrupts, so that the next time goes on from there.
    """
    pictures = source.pictures
    cache = InspectionCache(source.place)
    keys = {record.path: pictures.key(record.path) for record in records if not record.reason}
    inspections = {path: known for path, key in keys.items() if (known := cache.get(path, key)) is not None}
    num_known = len(records) - (len(keys) - len(inspections))
    if progress is not None:
        for done in range(num_known):
            progress(done + 1, len(records))
    reasons: dict[str, str] = {}

    def inspect(path: str) -> tuple[str, Inspection | ImageRefusedError]:
        try:
            return path, pictures.inspect(path)
        except ImageRefusedError as refusal:
            return path, refusal

    unknown = [path for path in keys if path not in inspections]
    try:
        inspected = ordered_map(inspect, unknown, workers=default_workers(), ahead=_AHEAD)
        for num_done, (path, found) in enumerate(inspected, start=num_known + 1):
            key = keys[path]
            if isinstance(found, ImageRefusedError):
                reasons[path] = found.reason
            else:
                inspections[path] = found
                if key is not None:
                    cache.put(path, key, found)
            if progress is not None:
                progress(num_done, len(records))
    finally:
        note = cache.save(keys)
    return Admitted([_told(record, inspections, reasons) for record in records], inspections, note)


def _told(record: Record, inspections: Mapping[str, Inspection], reasons: Mapping[str, str]) -> Record:
    found = inspections.get(record.path)
    if found is None:
        return replace(record, reason=record.reason or reasons[record.path])
    return replace(record, width=found.width, height=found.height, sha256=found.sha256)
