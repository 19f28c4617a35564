"""Perceptual hashes, and all pairs of them that differ in few bits.

A hash has the signs of the 64 lowest frequencies of a discrete cosine transform, relative to their median. Pictures
that look alike have hashes that differ in few bits, whatever their size, compression and brightness. For copies that
were cut at the edges the transform is also taken of parts of the picture; all of it is one product of matrices, since
cutting, resizing and transforming are linear.

Pairs are found without comparing each with each: of two hashes that differ in at most `RADIUS` bits, one of three bands
differs in at most two. So every hash is looked up in a table by each band, and by each band with one or two bits
changed. The number of look-ups grows linearly with the number of hashes.

Sources:
    Zauner, Implementation and Benchmarking of Perceptual Image Hash Functions, 2010, section 3.2 (the transform);
    Norouzi, Punjani and Fleet, Fast Search in Hamming Space with Multi-Index Hashing, CVPR 2012 (the bands).
"""

from collections.abc import Iterator
from itertools import combinations
from typing import Final

import numpy as np

from vitrail.data.images import THUMB_SIDE

RADIUS: Final = 8
"""Most bits in which two hashes may differ: with three bands, the most of which two changed bits in one find all."""

View = tuple[float, float, float, float]
"""A part of a picture: top, bottom, left, right as shares of its sides."""

WHOLE: Final[View] = (0.0, 1.0, 0.0, 1.0)

CUTS: Final[tuple[View, ...]] = (
    (0.05, 0.95, 0.05, 0.95),
    *((0.0, 0.94, 0.0, 1.0), (0.06, 1.0, 0.0, 1.0), (0.0, 1.0, 0.0, 0.94), (0.0, 1.0, 0.06, 1.0)),
    *((0.0, 0.95, 0.0, 0.95), (0.05, 1.0, 0.05, 1.0), (0.0, 0.95, 0.05, 1.0), (0.05, 1.0, 0.0, 0.95)),
)
"""Parts by which copies are found that were cut by up to a twelfth on each side."""

_FREQUENCIES: Final = 8
_BAND_BITS: Final = (22, 21, 21)
_BAND_SHIFTS: Final = (0, 22, 43)
_CHUNK: Final = 1 << 19
_MOST_CANDIDATES: Final = 1 << 21
_PAIRS, _FOURS, _EIGHTS, _ONES = (
    np.uint64(number) for number in (0x5555555555555555, 0x3333333333333333, 0x0F0F0F0F0F0F0F0F, 0x0101010101010101)
)


def perceptual_hashes(thumbs: np.ndarray, view: View = WHOLE) -> np.ndarray:
    """Return a hash of a part of each picture.

    Args:
        thumbs: uint8 (n, THUMB_SIDE, THUMB_SIDE), grey.
        view: which part.

    Returns:
        uint64 (n,).
    """
    rows = _cosines() @ _cut(*view[:2])
    columns = _cosines() @ _cut(*view[2:])
    # Neighbouring frequencies fail together, so they go into different bands.
    order = [bit for band in range(3) for bit in range(band, _FREQUENCIES**2, 3)]
    weights = np.left_shift(np.uint64(1), np.arange(_FREQUENCIES**2, dtype=np.uint64))
    hashes = np.empty(len(thumbs), np.uint64)
    for start in range(0, len(thumbs), _CHUNK // 16):
        part = slice(start, start + _CHUNK // 16)
        spectrum = (rows @ thumbs[part].astype(np.float32) @ columns.T).reshape(-1, _FREQUENCIES**2)
        bits = spectrum > np.median(spectrum[:, 1:], axis=1, keepdims=True)
        hashes[part] = (bits[:, order] * weights).sum(axis=1, dtype=np.uint64)
    return hashes


def num_different_bits(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return in how many bits hashes differ: uint64 (n,) twice to uint64 (n,)."""
    # Sums of the bits in pairs, in fours, in bytes; the product adds up the bytes. NumPy counts bits only from 2.0 on.
    bits = first ^ second
    bits -= (bits >> np.uint64(1)) & _PAIRS
    bits = (bits & _FOURS) + ((bits >> np.uint64(2)) & _FOURS)
    bits = (bits + (bits >> np.uint64(4))) & _EIGHTS
    count: np.ndarray = (bits * _ONES) >> np.uint64(56)
    return count


def near_pairs(queries: np.ndarray, hashes: np.ndarray, radius: int = RADIUS) -> np.ndarray:
    """Return all (query, hash) that differ in at most ``radius`` bits.

    Args:
        queries: uint64 (m,).
        hashes: uint64 (n,), without repetitions: equal ones would be compared again and again.
        radius: 0 to `RADIUS`.

    Returns:
        int64 (p, 2): positions in ``queries`` and in ``hashes``, sorted, each pair once.
    """
    assert 0 <= radius <= RADIUS, radius
    found = [np.empty(0, np.int64)]
    if len(hashes):
        for shift, num_bits in zip(_BAND_SHIFTS, _BAND_BITS, strict=True):
            found += _near_in_band(queries, hashes, radius, shift, num_bits)
    codes = np.unique(np.concatenate(found))  # a pair may be near in several bands
    return np.stack(np.divmod(codes, max(1, len(hashes))), axis=1)


def _near_in_band(
    queries: np.ndarray, hashes: np.ndarray, radius: int, shift: int, num_bits: int
) -> Iterator[np.ndarray]:
    """Yield codes ``query * len(hashes) + hash`` of pairs of which one band differs in at most two bits."""
    keys = _band(hashes, shift, num_bits)
    order = np.argsort(keys, kind="stable")
    sorted_hashes = hashes[order]
    counts = np.bincount(keys, minlength=1 << num_bits)
    starts = (np.cumsum(counts) - counts).astype(np.int32)
    filled = counts > 0
    query_keys = _band(queries, shift, num_bits)
    query_order = np.argsort(query_keys, kind="stable")  # neighbours in the table are looked up one after another
    for begin in range(0, len(queries), _CHUNK):
        chosen = query_order[begin : begin + _CHUNK]
        chunk_keys, chunk = query_keys[chosen], queries[chosen]
        for flip in _flips(num_bits, radius):
            asked = chunk_keys ^ flip
            hit = np.flatnonzero(filled.take(asked))
            asked = asked[hit]
            for rows, places in _expand(hit, starts[asked], counts[asked]):
                near = num_different_bits(chunk[rows], sorted_hashes[places]) <= radius
                if near.any():
                    yield chosen[rows[near]] * len(hashes) + order[places[near]]


def _expand(rows: np.ndarray, first: np.ndarray, count: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield each row with each place from ``first`` to ``first + count``, a bounded number at a time."""
    totals = np.cumsum(count, dtype=np.int64)
    begin = 0
    while begin < len(rows):
        done = totals[begin - 1] if begin else 0
        end = max(begin + 1, int(np.searchsorted(totals, done + _MOST_CANDIDATES, side="right")))
        part = slice(begin, end)
        repeated = np.repeat(rows[part], count[part])
        offset = np.arange(len(repeated)) - np.repeat(totals[part] - count[part] - done, count[part])
        yield repeated, np.repeat(first[part], count[part]) + offset
        begin = end


def _flips(num_bits: int, radius: int) -> list[int]:
    """Return all numbers of ``num_bits`` bits with at most a third of ``radius`` bits set, none first."""
    return [
        sum(1 << bit for bit in bits) for num in range(radius // 3 + 1) for bits in combinations(range(num_bits), num)
    ]


def _band(hashes: np.ndarray, shift: int, num_bits: int) -> np.ndarray:
    return (hashes >> np.uint64(shift) & np.uint64((1 << num_bits) - 1)).astype(np.intp)


def _cosines() -> np.ndarray:
    """Return the rows of the discrete cosine transform: float32 (frequencies, THUMB_SIDE)."""
    places = np.arange(THUMB_SIDE) + 0.5
    return np.cos(np.pi / THUMB_SIDE * np.outer(np.arange(_FREQUENCIES), places)).astype(np.float32)


def _cut(low: float, high: float) -> np.ndarray:
    """Return the matrix that enlarges the part from ``low`` to ``high`` of an axis to its whole length, by areas."""
    edges = np.linspace(low, high, THUMB_SIDE + 1) * THUMB_SIDE
    cells = np.arange(THUMB_SIDE)
    upper = np.minimum(edges[1:, None], cells + 1)
    shares = np.maximum(0, upper - np.maximum(edges[:-1, None], cells))
    weights: np.ndarray = shares / shares.sum(axis=1, keepdims=True)
    return weights.astype(np.float32)
