"""Numbers that are hashes of what they are for."""

import numpy as np
import pytest

from vitrail.data.randomness import Stream, balanced, shuffled, uniforms

MASK = 2**64 - 1
GAMMA = 0x9E3779B97F4A7C15


def mix(value: int) -> int:
    """The finaliser of SplitMix64 in plain integers."""
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & MASK
    return value ^ (value >> 31)


def test_the_mixing_function_is_that_of_splitmix64() -> None:
    # First outputs of the reference implementation with the seed 1234567 (prng.di.unimi.it/splitmix64.c).
    state = 1234567
    assert [mix((state + (i + 1) * GAMMA) & MASK) for i in range(2)] == [6457827717110365317, 3203168211198807973]


def test_numbers_agree_with_the_same_hash_in_plain_integers() -> None:
    state = 0
    for part in (7, 3, Stream.FLIP):
        state = mix((state + part + GAMMA) & MASK)
    for key in (0, 5, 2**40):
        row = mix((state + (key + 1) * GAMMA) & MASK)
        expected = [(mix((row + (column + 1) * GAMMA) & MASK) >> 11) * 2.0**-53 for column in range(3)]
        assert uniforms(7, 3, Stream.FLIP, np.array([key]), 3)[0].tolist() == expected


def test_numbers_are_uniform_and_independent_of_their_neighbours() -> None:
    num = 20_000
    sources = [
        uniforms(seed, epoch, stream, np.arange(num), 1)[:, 0]
        for seed, epoch, stream in ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (2**31 - 1, 10_000, 6))
    ]
    columns = uniforms(0, 0, Stream.CROP, np.arange(num), 3).T
    numbers = np.stack([*sources, *columns[1:], np.roll(sources[0], 1)])
    assert numbers.min() >= 0
    assert numbers.max() < 1
    # Five standard errors: of a mean 1 / sqrt(12 n), of a correlation 1 / sqrt(n).
    assert np.abs(numbers.mean(axis=1) - 0.5).max() < 5 / np.sqrt(12 * num)
    assert np.abs(np.corrcoef(numbers) - np.eye(len(numbers))).max() < 5 / np.sqrt(num)
    counts = np.stack([np.histogram(row, bins=50, range=(0, 1))[0] for row in numbers])
    chi_squared = ((counts - num / 50) ** 2 / (num / 50)).sum(axis=1)
    assert chi_squared.max() < 49 + 5 * np.sqrt(2 * 49)


@pytest.mark.parametrize("num", [1, 2, 1000])
def test_every_epoch_has_an_order_of_its_own(num: int) -> None:
    orders = [shuffled(seed, epoch, num) for seed in (0, 1) for epoch in (0, 1)]
    assert all(sorted(order.tolist()) == list(range(num)) for order in orders)
    if num == 1000:
        assert len({tuple(order.tolist()) for order in orders}) == 4


def test_balanced_epochs_show_every_class_equally_and_every_image_in_time() -> None:
    labels = np.array([0] * 70 + [1] * 5 + [2] * 26)
    seen: set[int] = set()
    for epoch in range(12):
        indices, repeats = balanced(3, epoch, labels)
        counts = np.bincount(labels[indices], minlength=3)
        assert counts.sum() == len(labels)
        assert counts.max() - counts.min() <= 1
        # An image comes again only when all of its class have come; each time under a number of its own.
        assert len({*zip(indices.tolist(), repeats.tolist(), strict=True)}) == len(labels)
        small = np.bincount(indices[labels[indices] == 1], minlength=75)[70:75]
        assert small.max() - small.min() <= 1
        seen |= set(indices.tolist())
        again = balanced(3, epoch, labels)
        assert np.array_equal(indices, again[0])
        assert np.array_equal(repeats, again[1])
    assert seen == set(range(len(labels)))
    assert not np.array_equal(balanced(3, 0, labels)[0], balanced(3, 1, labels)[0])
    assert not np.array_equal(balanced(3, 0, labels)[0], balanced(4, 0, labels)[0])
