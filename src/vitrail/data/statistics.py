"""Mean and standard deviation of channels that no weights tell about."""

from typing import Final

import numpy as np

from vitrail.config import Preprocess
from vitrail.data.dataset import Split
from vitrail.data.images import prepare, side_needed
from vitrail.data.ordered import default_workers, ordered_map

MOST_SAMPLED: Final = 512
"""Pictures from which mean and standard deviation are estimated."""

_AHEAD: Final = 8
_DIGITS: Final = 6
_LEAST_STD: Final = 1e-6  # of the mean; what is below is rounding


def channel_statistics(split: Split, preprocess: Preprocess) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation of each channel over the pixels of a split, of values divided by the peak.

    At most 512 pictures are looked at, at equal distances in the order of their paths, prepared as for evaluation. The
    numbers have 6 digits. A channel in which nothing varies has the standard deviation 1.

    Raises:
        DataError: if a file is no longer the picture that was admitted.
    """

    def moments(index: int) -> tuple[np.ndarray, np.ndarray]:
        values = prepare(split.decode(index, side_needed(preprocess)), preprocess) / np.float64(preprocess.peak)
        return values.mean(axis=(0, 1)), np.square(values).mean(axis=(0, 1))

    chosen = np.unique(np.linspace(0, len(split) - 1, min(len(split), MOST_SAMPLED)).round().astype(int)).tolist()
    found = list(ordered_map(moments, chosen, workers=default_workers(), ahead=_AHEAD))
    mean, square = (np.mean(part, axis=0) for part in zip(*found, strict=True))
    std = np.sqrt(np.maximum(square - mean**2, 0))
    std = np.where(std > _LEAST_STD * np.abs(mean), std, 1.0)
    return tuple(map(_rounded, mean)), tuple(map(_rounded, std))


def _rounded(value: float) -> float:
    return float(f"{value:.{_DIGITS}g}")
