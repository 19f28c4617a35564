"""What follows from pictures that are the same or belong together: leaks are dropped, groups stay in one split."""

import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal

import numpy as np
from PIL import Image

from vitrail.config import DataConfig, SplitName
from vitrail.data.duplicates import LIMITS, Duplicate, DuplicateKind, find_duplicates, group_numbers
from vitrail.data.hashes import perceptual_hashes
from vitrail.data.images import THUMB_SIDE, Inspection, display_name
from vitrail.data.inspections import PairCache
from vitrail.data.raster import Picture, shown
from vitrail.data.records import Record
from vitrail.errors import DataError

Decode = Callable[[str, int | None], Picture]
"""Returns the picture of a path; see `open_image`."""

LeakKind = DuplicateKind | Literal["group"]

_SENIOR: Final[dict[SplitName, tuple[SplitName, ...]]] = {"train": (), "test": ("train",), "val": ("train", "test")}
"""Which splits keep a picture that another split has too."""

_KINDS: Final[tuple[DuplicateKind, ...]] = ("exact", "near", "mirrored")
_WORDS: Final = {"exact": "the same picture as", "near": "nearly the same picture as", "mirrored": "the mirror of"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """Two pictures that are the same."""

    first: str
    """Its path."""
    second: str
    """Its path."""
    kind: DuplicateKind
    similarity: float
    """Correlation of the grey values, up to 1."""
    labels: tuple[str, str]
    """Of the two."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Leak:
    """A picture of val or test that another split knows already."""

    path: str
    split: SplitName
    of: str
    """Path of the picture that it repeats, or that is of its group."""
    of_split: SplitName
    kind: LeakKind
    dropped: bool
    """Whether it was left out for that."""


@dataclass(frozen=True)
class Curated:
    """Pictures with what was found among them."""

    records: list[Record]
    """In the order they were given; those that were dropped have a reason, and no split."""
    pairs: list[Pair]
    leaks: list[Leak]
    units: dict[str, int]
    """By path, of pictures that belong to others: those with the same number have to stay in one split."""


def curate(
    records: Sequence[Record], inspections: Mapping[str, Inspection], decode: Decode, config: DataConfig
) -> Curated:
    """Find duplicates and groups among usable records, and drop what leaks from train into val or test.

    Args:
        records: with the split that each has already, if it has one.
        inspections: by path; where one is missing no duplicate of it is found.
        decode: reads a picture again.
        config: what counts as the same, and whether leaks are dropped.

    Raises:
        DataError: if ``group_by`` is not found in a path, or nothing of a split would be left.
    """
    records = _with_groups(records, config.group_by)
    seen = [place for place, record in enumerate(records) if record.path in inspections]
    known = [inspections[records[place].path] for place in seen]
    found = _find_duplicates(known, lambda row, side: shown(decode(records[seen[row]].path, side)), config)
    duplicates = [replace(pair, first=seen[pair.first], second=seen[pair.second]) for pair in found]
    records = _with_hashes(records, seen, known)
    for members in _classes(len(records), duplicates).values():
        for place in members[1:]:
            records[place] = replace(records[place], duplicate_of=records[members[0]].path)
    leaks = _find_leaks(records, duplicates, dropped=not config.keep_leaks)
    units = _units(records, [] if config.keep_leaks else duplicates)
    if not config.keep_leaks:
        records = _drop(records, leaks)
    return Curated(records, [_pair(records, pair) for pair in duplicates], leaks, units)


def _find_duplicates(
    known: Sequence[Inspection], decode: Callable[[int, int | None], Image.Image], config: DataConfig
) -> list[Duplicate]:
    """Return the duplicates, those of the last time where the pictures are the same."""
    if config.duplicates == "off" or not known:
        return []
    kept_channels = "" if config.channels is None else f" {config.channels}"
    cache = PairCache(known, f"{config.duplicates} {config.mirrored} {LIMITS}{kept_channels}")
    kept = cache.read()
    if kept is not None:
        return [Duplicate(int(row[0]), int(row[1]), _KINDS[int(row[2])], row[3]) for row in kept.tolist()]
    found = find_duplicates(known, decode, near=config.duplicates == "near", mirrored=config.mirrored)
    cache.write(np.array([(p.first, p.second, _KINDS.index(p.kind), p.similarity) for p in found]).reshape(-1, 4))
    return found


def _with_groups(records: Sequence[Record], pattern: str | None) -> list[Record]:
    """Return the records with what the pattern finds in their paths."""
    if pattern is None:
        return list(records)
    expression = re.compile(pattern)
    result, without = [], []
    for record in records:
        match = expression.search(record.path)
        if match is None:
            without.append(record.path)
            continue
        name: str | int = "group" if "group" in expression.groupindex else min(1, expression.groups)
        result.append(replace(record, group=match[name] or ""))
    if without:
        raise DataError(
            f"group_by {pattern!r} is not found in {len(without)} of {len(records)} paths, such as "
            f"{display_name(without[0])}. It has to be found in each, so that no group is a guess."
        )
    return result


def _with_hashes(records: list[Record], seen: Sequence[int], known: Sequence[Inspection]) -> list[Record]:
    result = list(records)
    thumbs = np.frombuffer(b"".join(each.thumb for each in known), np.uint8).reshape(-1, THUMB_SIDE, THUMB_SIDE)
    for place, phash in zip(seen, perceptual_hashes(thumbs).tolist(), strict=True):
        result[place] = replace(result[place], phash=f"{phash:016x}")
    return result


def _classes(num: int, duplicates: Sequence[Duplicate]) -> dict[int, list[int]]:
    """Return the positions that pairs connect, by a number; single ones too."""
    members: dict[int, list[int]] = defaultdict(list)
    for place, number in enumerate(group_numbers(num, ((pair.first, pair.second) for pair in duplicates)).tolist()):
        members[number].append(place)
    return members


def _units(records: Sequence[Record], duplicates: Sequence[Duplicate]) -> dict[str, int]:
    """Return by path a number for what has to stay together: duplicates, and the members of a group."""
    links = [(pair.first, pair.second) for pair in duplicates]
    first_of: dict[str, int] = {}
    for place, record in enumerate(records):
        if record.group:
            links.append((first_of.setdefault(record.group, place), place))
    numbers = group_numbers(len(records), links)
    together = np.flatnonzero(np.bincount(numbers)[numbers] > 1).tolist()
    return {records[place].path: int(numbers[place]) for place in together}


def _find_leaks(records: Sequence[Record], duplicates: Sequence[Duplicate], *, dropped: bool) -> list[Leak]:
    """Return for each picture of val and test the first that a senior split has of it, if there is one.

    Only pictures that were compared count, not whole chains of them: of three frames of a slow film the outer two may
    differ.
    """
    same = _same_pictures(len(records), duplicates)
    by_group: dict[tuple[str, SplitName | None], int] = {}
    for place, record in enumerate(records):
        if record.group:
            by_group.setdefault((record.group, record.split), place)
    leaks = []
    for place, record in enumerate(records):
        if record.split is None:
            continue
        related: list[tuple[int, LeakKind]] = [*same[place]]
        for senior in _SENIOR[record.split]:
            if record.group and (record.group, senior) in by_group:
                related.append((by_group[record.group, senior], "group"))
            of = next(((at, kind) for at, kind in related if records[at].split == senior), None)
            if of is not None:
                path = records[of[0]].path
                leak = Leak(path=record.path, split=record.split, of=path, of_split=senior, kind=of[1], dropped=dropped)
                leaks.append(leak)
                break
    return leaks


def _same_pictures(num: int, duplicates: Sequence[Duplicate]) -> list[list[tuple[int, LeakKind]]]:
    """Return for each position those that show the same: its exact copies, then what they were found to be near to."""
    copies = group_numbers(num, ((pair.first, pair.second) for pair in duplicates if pair.kind == "exact")).tolist()
    own: dict[int, list[int]] = defaultdict(list)
    for place, number in enumerate(copies):
        own[number].append(place)
    near: dict[int, list[tuple[int, LeakKind]]] = defaultdict(list)
    for pair in duplicates:
        if pair.kind != "exact":
            one, other = copies[pair.first], copies[pair.second]
            near[one] += [(place, pair.kind) for place in own[other]]
            near[other] += [(place, pair.kind) for place in own[one]]
    return [[*((copy, "exact") for copy in own[number]), *near[number]] for number in copies]


def _drop(records: Sequence[Record], leaks: Sequence[Leak]) -> list[Record]:
    """Return the records, those of leaks with a reason and no split."""
    by_path = {leak.path: leak for leak in leaks}
    before = {record.split for record in records}
    result = [
        replace(record, split=None, reason=_reason(by_path[record.path]), duplicate_of=by_path[record.path].of)
        if record.path in by_path
        else record
        for record in records
    ]
    for split in sorted(filter(None, before - {record.split for record in result if not record.reason})):
        raise DataError(
            f"Every picture of {split} is in another split too, such as {display_name(leaks[0].path)} and "
            f"{display_name(leaks[0].of)}. Divide the pictures anew, or give keep_leaks."
        )
    return result


def _reason(leak: Leak) -> str:
    what = "of the same group as" if leak.kind == "group" else _WORDS[leak.kind]
    return f"it is {what} {display_name(leak.of)}, which is in {leak.of_split}"


def _pair(records: Sequence[Record], pair: Duplicate) -> Pair:
    one, other = records[pair.first], records[pair.second]
    return Pair(
        first=one.path,
        second=other.path,
        kind=pair.kind,
        similarity=pair.similarity,
        labels=(one.shown_label, other.shown_label),
    )
