"""Seeded, stratified division of pictures into train, val and test.

A picture's place is decided by a hash of the seed and its path. It is the same on every machine and in whatever order
files are found, and new files hardly move the others.
"""

import hashlib
from collections import defaultdict
from collections.abc import Sequence

from vitrail.config import SplitName
from vitrail.data.images import display_name
from vitrail.errors import DataError

SMALLEST_CLASS = 2
"""Pictures that a class needs to be divided: one to train on and one to validate on."""


def stratified_split(
    paths: Sequence[str], labels: Sequence[str], *, seed: int, val_fraction: float, test_fraction: float
) -> list[SplitName]:
    """Return the split of each picture, with the same shares of every class, as nearly as whole pictures allow.

    Of n pictures of a class, round(n * fraction) go to val and to test, at least one to val, at least one to test where
    n is 3 or more and ``test_fraction`` is not 0, and at least one to train.

    Raises:
        DataError: if a class has fewer than two pictures; it names them all.
    """
    members: dict[str, list[int]] = defaultdict(list)
    for position, label in enumerate(labels):
        members[label].append(position)
    too_small = sorted(label for label, positions in members.items() if len(positions) < SMALLEST_CLASS)
    if too_small:
        names = ", ".join(display_name(label) for label in too_small)
        raise DataError(
            f"Too few pictures to divide into train and val in: {names}. Each class needs at least {SMALLEST_CLASS} "
            "usable ones. Add pictures or remove the class."
        )
    result: list[SplitName] = ["train"] * len(paths)
    for positions in members.values():
        positions.sort(key=lambda position: _rank(paths[position], seed))
        num_val, num_test = _shares(len(positions), val_fraction, test_fraction)
        for position in positions[:num_test]:
            result[position] = "test"
        for position in positions[num_test : num_test + num_val]:
            result[position] = "val"
    return result


def _shares(num: int, val_fraction: float, test_fraction: float) -> tuple[int, int]:
    """Return how many of ``num`` pictures go to val and to test."""
    num_val = min(max(1, round(num * val_fraction)), num - 1)
    num_test = max(1, round(num * test_fraction)) if test_fraction > 0 else 0
    return num_val, min(num_test, num - 1 - num_val)


def _rank(path: str, seed: int) -> tuple[bytes, str]:
    """Return what pictures are ordered by; the path only decides between equal hashes."""
    name = path.encode("utf-8", "surrogateescape")
    return hashlib.blake2b(name, digest_size=16, key=seed.to_bytes(8, "little")).digest(), path
