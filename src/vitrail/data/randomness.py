"""Random numbers without a state: each is a hash of what it is for.

The order of an epoch and the augmentation of an image are functions of (seed, epoch, image) alone. So they do not
depend on the number of threads or on the batch, and any batch of any epoch can be made again on its own.

Source:
    Salmon et al., Parallel Random Numbers: As Easy as 1, 2, 3, SC 2011 (counter-based generators). The mixing function
    is the finaliser of SplitMix64: Steele et al., Fast Splittable Pseudorandom Number Generators, OOPSLA 2014, fig. 18,
    with the constants of Stafford's variant 13.
"""

from enum import IntEnum
from typing import Final

import numpy as np

_GOLDEN_GAMMA: Final = np.uint64(0x9E3779B97F4A7C15)
_MULTIPLIERS: Final = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))
_SHIFTS: Final = (np.uint64(30), np.uint64(27), np.uint64(31))
_MANTISSA_SHIFT: Final = np.uint64(11)


class Stream(IntEnum):
    """What random numbers are for; each use has numbers of its own. The values are part of what a seed means."""

    ORDER = 0
    CROP = 1
    FLIP = 2
    THREE_AUGMENT = 3
    COLOUR = 4
    ERASE = 5
    MIX = 6
    BALANCE = 7
    PATCHES = 8
    FOLDS = 9


def uniforms(seed: int, epoch: int, stream: Stream, keys: np.ndarray, num: int) -> np.ndarray:
    """Return float64 numbers in [0, 1), shape (len(keys), num).

    Args:
        seed: of the run, at least 0.
        epoch: from 0.
        stream: what the numbers are for.
        keys: integers (n,), such as the indices of images; equal keys give equal rows.
        num: how many numbers each key gets.
    """
    state = np.zeros(1, np.uint64)
    for part in (seed, epoch, int(stream)):
        state = _mix(state + np.uint64(part) + _GOLDEN_GAMMA)
    rows = _mix(state + (keys.astype(np.uint64) + np.uint64(1)) * _GOLDEN_GAMMA)  # (n,)
    columns = np.arange(1, num + 1, dtype=np.uint64) * _GOLDEN_GAMMA
    bits = _mix(rows[:, None] + columns) >> _MANTISSA_SHIFT
    numbers: np.ndarray = bits * 2.0**-53
    return numbers


def shuffled(seed: int, epoch: int, num: int) -> np.ndarray:
    """Return the order of ``num`` images in an epoch: int64 (num,), a permutation."""
    return np.argsort(uniforms(seed, epoch, Stream.ORDER, np.arange(num), 1)[:, 0], kind="stable")


def balanced(seed: int, epoch: int, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return as many images as there are, every class in equal numbers, in the order of an epoch.

    Each class is drawn without replacement until all its images were seen, then again in another order. Where the
    number of images is no multiple of that of the classes, other classes get one more in each epoch.

    Args:
        seed: of the run.
        epoch: from 0.
        labels: int (n,), of each image; every class that is trained has one at least.

    Returns:
        int64 (n,), indices of images, and int64 (n,), how often each came before in this epoch.
    """
    present = np.unique(labels)
    lucky = np.argsort(uniforms(seed, epoch, Stream.BALANCE, -1 - present, 1)[:, 0], kind="stable")
    quotas = np.full(len(present), len(labels) // len(present))
    quotas[lucky[: len(labels) % len(present)]] += 1
    indices, repeats = [], []
    for label, quota in zip(present, quotas.tolist(), strict=True):
        members = np.flatnonzero(labels == label)
        passes = -(-quota // len(members))
        keys = (np.arange(passes)[:, None] * len(labels) + members).ravel()
        numbers = uniforms(seed, epoch, Stream.BALANCE, keys, 1).reshape(passes, -1)
        indices.append(members[np.argsort(numbers, axis=1, kind="stable")].ravel()[:quota])
        repeats.append(np.repeat(np.arange(passes), len(members))[:quota])
    order = shuffled(seed, epoch, len(labels))
    return np.concatenate(indices)[order], np.concatenate(repeats)[order]


def _mix(values: np.ndarray) -> np.ndarray:
    """Scramble 64-bit integers one to one; arithmetic on arrays wraps around without a warning."""
    values = (values ^ (values >> _SHIFTS[0])) * _MULTIPLIERS[0]
    values = (values ^ (values >> _SHIFTS[1])) * _MULTIPLIERS[1]
    values ^= values >> _SHIFTS[2]
    return values
