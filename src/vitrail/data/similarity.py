"""How alike two pictures are once one is laid over the other: what decides after the hashes have proposed.

A picture is taken as a part of the other, enlarged, and brighter or darker. The part's four edges are found by
Gauss-Newton steps (Lucas and Kanade, An Iterative Image Registration Technique, IJCAI 1981); the brightness is fitted
along. The similarity is the correlation of the grey values that remains.

Axes: P pairs, S side of the squashed pictures.
"""

from typing import Final

import numpy as np

_STEPS: Final = 6
_MOST_CUT: Final = 0.16
_BEYOND: Final = 0.02
_STIFFNESS: Final = 0.01
_TINY: Final = 1e-6
_RIDGE: Final = 1e-4
_DARKEST: Final = 0.3
_BRIGHTEST: Final = 3.0

_LOW: Final = np.array([-_BEYOND, 1 - _MOST_CUT, -_BEYOND, 1 - _MOST_CUT], np.float32)
_HIGH: Final = np.array([_MOST_CUT, 1 + _BEYOND, _MOST_CUT, 1 + _BEYOND], np.float32)


def similarity(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return the correlation of each pair, the better of taking one as a part of the other or the other way round.

    Args:
        first: uint8 or float32 (P, S, S), grey.
        second: the same.

    Returns:
        float32 (P,), from -1 to 1; 0 where a picture has one grey value only.
    """
    one, other = _standardised(first), _standardised(second)
    best: np.ndarray = np.maximum(_fit(one, other), _fit(other, one))
    return best


def _fit(whole: np.ndarray, part: np.ndarray) -> np.ndarray:
    """Return the best correlation of ``part`` with a part of ``whole``."""
    num, side, _ = whole.shape
    edges = np.tile(np.array([0.0, 1.0, 0.0, 1.0], np.float32), (num, 1))
    best = correlation(whole, part)
    down = ((np.arange(side, dtype=np.float32) + 0.5) / side)[None, :, None]
    across = down.transpose(0, 2, 1)
    target = part.reshape(num, -1, 1)
    for _ in range(_STEPS):
        seen = _cut_out(whole, edges)
        by_row, by_column = (np.gradient(seen, axis=axis) * side for axis in (1, 2))
        slopes = (by_row * (1 - down), by_row * down, by_column * (1 - across), by_column * across)
        columns = np.stack([*slopes, seen, np.ones_like(seen)], axis=-1).reshape(num, side * side, 6)
        normal = columns.transpose(0, 2, 1) @ columns
        # Edges that the picture says little about stay where they are.
        energy = np.einsum("nii->n", normal[:, :4, :4])
        ridge = _RIDGE * side * side
        normal[:, range(4), range(4)] += _STIFFNESS * energy[:, None] + ridge
        normal[:, range(4, 6), range(4, 6)] += ridge
        solved = np.linalg.solve(normal, columns.transpose(0, 2, 1) @ target)[..., 0]
        contrast = np.clip(solved[:, 4:5], _DARKEST, _BRIGHTEST)
        edges = np.clip(edges + solved[:, :4] / contrast, _LOW, _HIGH).astype(np.float32)
        best = np.maximum(best, correlation(_cut_out(whole, edges), part))
    return best


def _standardised(pictures: np.ndarray) -> np.ndarray:
    """Return float32 pictures of mean 0 and standard deviation 1, or 0 everywhere, for the steps' own precision."""
    values = pictures.astype(np.float32)
    values -= values.mean(axis=(1, 2), keepdims=True)
    spread = values.std(axis=(1, 2), keepdims=True)
    scaled: np.ndarray = values / np.where(spread > _TINY, spread, 1)
    return scaled


def _cut_out(pictures: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Return the part of each picture (P, S, S) between its edges (P, 4), at the same size, bilinear."""
    side = pictures.shape[1]
    rows, columns = _sampling(edges[:, :2], side), _sampling(edges[:, 2:], side)
    part: np.ndarray = rows @ pictures @ columns.transpose(0, 2, 1)
    return part


def _sampling(edges: np.ndarray, side: int) -> np.ndarray:
    """Return the matrices (P, S, S) that interpolate one axis between two edges."""
    centres = (np.arange(side, dtype=np.float32) + 0.5) / side
    places = (edges[:, :1] + (edges[:, 1:] - edges[:, :1]) * centres) * side - 0.5
    places = np.clip(places, 0, side - 1)
    weights: np.ndarray = np.maximum(0, 1 - np.abs(places[:, :, None] - np.arange(side, dtype=np.float32)))
    return weights


def correlation(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return the correlation of pictures as they are: (P, S, S) twice to float32 (P,)."""
    one, other = (values.reshape(len(values), -1).astype(np.float32) for values in (first, second))
    one, other = one - one.mean(axis=1, keepdims=True), other - other.mean(axis=1, keepdims=True)
    scale = np.sqrt((one * one).sum(axis=1) * (other * other).sum(axis=1))
    result: np.ndarray = (one * other).sum(axis=1) / np.maximum(scale, _TINY)
    return result
