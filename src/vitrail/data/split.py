"""Seeded, stratified division of pictures into train, val and test.

A picture's place is decided by a hash of the seed and its path. It is the same on every machine and in whatever order
files are found, and new files hardly move the others.
"""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Sequence
from heapq import heapify, heappop, heappush
from typing import Final, TypeVar

import numpy as np

from vitrail.config import SplitName
from vitrail.data.images import display_name
from vitrail.errors import DataError

Key = TypeVar("Key", bound=Hashable)
Left = dict[SplitName, Counter[str]]
"""How many pictures of each class every split still wants."""

_ANY: Final = ""
"""No name of a class: what every picture shows."""

SMALLEST_CLASS = 2
"""Pictures that a class needs to be divided: one to train on and one to validate on."""


def stratified_split(
    paths: Sequence[str],
    labels: Sequence[str],
    *,
    seed: int,
    val_fraction: float,
    test_fraction: float,
    groups: Sequence[int] | None = None,
) -> list[SplitName]:
    """Return the split of each picture, with the same shares of every class, as nearly as whole groups allow.

    Of n pictures of a class, round(n * fraction) go to val and to test, at least one to val, at least one to test where
    n is 3 or more and ``test_fraction`` is not 0, and at least one to train. Groups of several pictures are placed
    first, the largest before the others and otherwise in the order of a hash, each where it leaves least beyond these
    numbers and most of them are still wanted; the single pictures fill up the rest.

    Args:
        paths: of the pictures; what is hashed.
        labels: of the pictures.
        seed: of the hash.
        val_fraction: share that goes to val.
        test_fraction: share that goes to test.
        groups: pictures with the same number stay together. Default: each for itself.

    Raises:
        DataError: if a class has fewer than two pictures, or is found in fewer than two groups; it names them all.
    """
    members = _members(labels)
    units = _Units(paths, groups, seed)
    _check_divisible(members, groups)
    left = _wanted({label: len(positions) for label, positions in members.items()}, val_fraction, test_fraction)
    result: list[SplitName] = ["train"] * len(paths)
    set_of = {label: (label,) for label in members}
    sets = [set_of[label] for label in labels]
    _place_groups(result, sets, units, left)
    for label, positions in members.items():
        single = units.in_order(positions)
        num_test = max(0, left["test"][label])
        num_val = max(0, left["val"][label])
        for place, position in enumerate(single):
            result[position] = "test" if place < num_test else "val" if place < num_test + num_val else "train"
    if groups is not None:
        _fill_empty(result, sets, units)
    return result


def iterative_split(
    paths: Sequence[str],
    labels: Sequence[Sequence[str]],
    *,
    seed: int,
    val_fraction: float,
    test_fraction: float,
    groups: Sequence[int] | None = None,
) -> list[SplitName]:
    """Return the split of each picture, with about the same shares of every class where pictures show several.

    Wanted are the numbers of `stratified_split`, and groups of several pictures are placed first, as there. Then the
    class of which the fewest pictures are left comes first, because later nothing could be balanced by its few; each of
    its pictures, in the order of a hash, goes where most of that class are still wanted, and between equals where most
    pictures are. Pictures without any label come last.

    Source: Sechidis, Tsoumakas and Vlahavas, On the Stratification of Multi-Label Data, ECML PKDD 2011, algorithm 1.

    Args:
        paths: of the pictures; what is hashed.
        labels: of each picture, any number of them.
        seed: of the hash.
        val_fraction: share that goes to val.
        test_fraction: share that goes to test.
        groups: pictures with the same number stay together. Default: each for itself.

    Raises:
        DataError: if a class has fewer than two pictures, or is found in fewer than two groups; it names them all.
    """
    members: dict[str, list[int]] = defaultdict(list)
    for position, names in enumerate(labels):
        for name in names:
            members[name].append(position)
    units = _Units(paths, groups, seed)
    _check_divisible(members, groups)
    # Every picture counts for what all have in common too, which so is shared out as a class is.
    sets = [(*names, _ANY) for names in labels]
    counts = {label: len(positions) for label, positions in members.items()}
    left = _wanted({**counts, _ANY: len(paths)}, val_fraction, test_fraction)
    result: list[SplitName] = ["train"] * len(paths)
    _place_groups(result, sets, units, left)
    _place_rarest_first(result, sets, units.in_order(range(len(paths))), left)
    _fill_empty(result, labels, units)
    return result


class _Units:
    """Which pictures stay together. Of a million pictures most are alone, so nothing is kept for each of these.

    Args:
        paths: of the pictures.
        groups: pictures with the same number stay together; None: each for itself.
        seed: of the hash that orders them.
    """

    def __init__(self, paths: Sequence[str], groups: Sequence[int] | None, seed: int) -> None:
        self._paths, self._seed = paths, seed
        together: dict[int, list[int]] = defaultdict(list)
        if groups is not None:
            _, numbers, counts = np.unique(np.asarray(groups), return_inverse=True, return_counts=True)
            for position in np.flatnonzero(counts[numbers] > 1).tolist():
                together[groups[position]].append(position)
        self.several = list(together.values())
        """The positions of each group of several pictures."""
        self._of = {position: unit for unit in self.several for position in unit}

    def of(self, position: int) -> list[int]:
        """Return the positions of the group that a picture belongs to."""
        return self._of.get(position) or [position]

    def in_order(self, positions: Iterable[int]) -> list[int]:
        """Return those of the positions that are alone, in the order of their hashes."""
        single = [position for position in positions if position not in self._of]
        return sorted(single, key=lambda position: _rank(self._paths[position], self._seed))

    def rank(self, unit: Sequence[int]) -> tuple[bytes, str]:
        """Return what a group is ordered by: the first of its hashes."""
        return min(_rank(self._paths[position], self._seed) for position in unit)


def _place_rarest_first(
    result: list[SplitName], sets: Sequence[Sequence[str]], positions: Sequence[int], left: Left
) -> None:
    """Place single pictures by the rarest of their classes, and take them from ``left``; both in place."""
    waiting: dict[str, dict[int, None]] = defaultdict(dict)  # by class, in the order of the positions
    for position in positions:
        for label in sets[position]:
            waiting[label][position] = None
    queue = [(len(those), label) for label, those in waiting.items()]
    heapify(queue)
    while queue:
        num, label = heappop(queue)
        if num != len(waiting[label]):  # some were placed by a rarer class meanwhile
            heappush(queue, (len(waiting[label]), label))
            continue
        for position in list(waiting[label]):
            split = max(left, key=lambda name: (left[name][label], left[name][_ANY]))
            result[position] = split
            left[split].subtract(sets[position])
            for each in sets[position]:
                del waiting[each][position]


def _wanted(counts: dict[str, int], val_fraction: float, test_fraction: float) -> Left:
    shares = {label: _shares(num, val_fraction, test_fraction) for label, num in counts.items()}
    return {
        "test": Counter({label: num_test for label, (_, num_test) in shares.items()}),
        "val": Counter({label: num_val for label, (num_val, _) in shares.items()}),
        "train": Counter({label: counts[label] - sum(both) for label, both in shares.items()}),
    }


def _place_groups(
    result: list[SplitName],
    sets: Sequence[Sequence[str]],
    units: _Units,
    left: Left,
) -> None:
    """Place the groups of several pictures, and take from ``left`` what they fill; both in place."""
    total = {split: Counter(need) for split, need in left.items()}
    for unit in sorted(units.several, key=lambda unit: (-len(unit).bit_length(), units.rank(unit))):
        counts = Counter(label for position in unit for label in sets[position])
        split = _best_split(counts, left, total)
        left[split].subtract(counts)
        for position in unit:
            result[position] = split


def _members(keys: Iterable[Key]) -> dict[Key, list[int]]:
    members: dict[Key, list[int]] = defaultdict(list)
    for position, key in enumerate(keys):
        members[key].append(position)
    return members


def _check_divisible(members: dict[str, list[int]], groups: Sequence[int] | None) -> None:
    too_small = sorted(label for label, positions in members.items() if len(positions) < SMALLEST_CLASS)
    if too_small:
        names = ", ".join(display_name(label) for label in too_small)
        raise DataError(
            f"Too few pictures to divide into train and val in: {names}. Each class needs at least {SMALLEST_CLASS} "
            "usable ones. Add pictures or remove the class."
        )
    if groups is None:
        return
    of_one = sorted(label for label, positions in members.items() if len({groups[at] for at in positions}) < 2)
    if of_one:
        names = ", ".join(display_name(label) for label in of_one)
        raise DataError(
            f"All pictures belong together (they are copies of one another, or one group) in: {names}. So they cannot "
            "be divided into train and val. Add others, remove the class, or give keep_leaks or another group_by."
        )


def _best_split(counts: Counter[str], left: Left, total: Left) -> SplitName:
    """Return where a group goes: least beyond what is wanted, then where the largest share is still wanted."""

    def cost(split: SplitName) -> tuple[int, float]:
        beyond = sum(max(0, num - max(0, left[split][label])) for label, num in counts.items())
        wanted = sum(num * left[split][label] / max(1, total[split][label]) for label, num in counts.items())
        return beyond, -wanted

    return min(left, key=cost)


def _fill_empty(result: list[SplitName], sets: Sequence[Sequence[str]], units: _Units) -> None:
    """Give each class that train or val lacks the smallest group that another split can spare, in place.

    A group is spared if its split keeps pictures of all the group's classes. Where there is none, val stays without the
    class; train gets the smallest group that has it all the same, because what it lacks cannot be learnt.
    """
    held = Counter((split, label) for split, labels in zip(result, sets, strict=True) for label in labels)
    targets: tuple[SplitName, SplitName] = ("train", "val")
    for label in sorted({label for labels in sets for label in labels}):
        for target in targets:
            if held[target, label]:
                continue
            positions = [position for position, labels in enumerate(sets) if label in labels]
            having = {min(unit): unit for unit in map(units.of, positions)}.values()
            ordered = sorted(having, key=lambda unit: (len(unit), units.rank(unit)))
            counts = [Counter(each for at in unit for each in sets[at]) for unit in ordered]
            spared = (
                place
                for place, unit in enumerate(ordered)
                if all(held[result[unit[0]], each] > num for each, num in counts[place].items())
            )
            chosen = next(spared, 0 if target == "train" else None)
            if chosen is None:
                continue
            source = result[ordered[chosen][0]]
            for position in ordered[chosen]:
                result[position] = target
            for each, num in counts[chosen].items():
                held[source, each] -= num
                held[target, each] += num


def _shares(num: int, val_fraction: float, test_fraction: float) -> tuple[int, int]:
    """Return how many of ``num`` pictures go to val and to test."""
    num_val = min(max(1, round(num * val_fraction)), num - 1)
    num_test = max(1, round(num * test_fraction)) if test_fraction > 0 else 0
    return num_val, min(num_test, num - 1 - num_val)


def _rank(path: str, seed: int) -> tuple[bytes, str]:
    """Return what pictures are ordered by; the path only decides between equal hashes."""
    name = path.encode("utf-8", "surrogateescape")
    return hashlib.blake2b(name, digest_size=16, key=seed.to_bytes(8, "little")).digest(), path
