"""Numbers that say how sure they are: 95 % intervals for proportions and for the scores made of them.

Everything here is in closed form, so the same counts always give the same interval. The bootstrap is avoided on
purpose: with no error among the images it answers [1, 1], however few they are (`tests/evaluation/test_intervals.py`
shows it).

Axes: C classes; a confusion matrix has the true class in its rows and the predicted one in its columns.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.special import ndtri

LEVEL = 0.95
"""Share of repeated experiments whose interval holds the true value."""

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

_EXTRA_ERRORS = 2.0


@dataclass(frozen=True)
class Estimate:
    """A measured score in [0, 1] with its 95 % interval; all three are None where the score is undefined."""

    value: float | None
    low: float | None
    high: float | None

    @property
    def defined(self) -> bool:
        """Whether there was anything to measure."""
        return self.value is not None

    def to_dict(self) -> dict[str, float | None]:
        """Return plain data that JSON can hold."""
        return {"value": self.value, "low": self.low, "high": self.high}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "Estimate":
        """Read what `to_dict` wrote."""
        return cls(**data)


Score = Callable[[FloatArray], tuple[FloatArray, FloatArray]]

UNDEFINED = Estimate(None, None, None)


def wilson_bounds(
    successes: npt.ArrayLike, trials: npt.ArrayLike, level: float = LEVEL
) -> tuple[FloatArray, FloatArray]:
    """Return the lower and upper ends of Wilson's score interval, elementwise.

    Keeps its coverage near 0 and 1 and for few trials, where the textbook's normal interval fails.

    Source: Wilson, "Probable inference, the law of succession, and statistical inference", JASA 22 (1927); compared
    with six others in Newcombe, Statistics in Medicine 17 (1998), method 3.

    Args:
        successes: counts from 0 to ``trials``.
        trials: counts; where they are 0 nothing is known, and the interval is [0, 1].
        level: coverage, in (0, 1).
    """
    hits, n = np.broadcast_arrays(np.asarray(successes, np.float64), np.asarray(trials, np.float64))
    z = float(ndtri((1 + level) / 2))
    share = np.divide(hits, n, out=np.full(n.shape, 0.5), where=n > 0)
    centre = (n * share + z**2 / 2) / (n + z**2)
    half = z * np.sqrt(n * share * (1 - share) + z**2 / 4) / (n + z**2)
    # At the ends the formula is exactly 0 or 1; rounding would leave 0.9999999999999999.
    low = np.where((hits == 0) | (n == 0), 0.0, centre - half)
    high = np.where(hits == n, 1.0, centre + half)
    return low, high


def proportion(successes: int, trials: int) -> Estimate:
    """Return ``successes / trials`` with Wilson's interval, or the undefined estimate when there was no trial."""
    if trials == 0:
        return UNDEFINED
    low, high = wilson_bounds(successes, trials)
    return Estimate(successes / trials, float(low), float(high))


def f1_bounds(true_positives: npt.ArrayLike, wrong: npt.ArrayLike) -> tuple[FloatArray, FloatArray]:
    """Return the ends of the interval of ``F1 = 2 TP / (2 TP + FP + FN)``, elementwise.

    Of the images which are of the class or are said to be, the share ``J`` of true positives is a plain proportion,
    and ``F1 = 2 J / (1 + J)`` rises with it: Wilson's interval of ``J``, mapped, is one of F1.

    Args:
        true_positives: counts.
        wrong: counts of false positives and false negatives together.
    """
    low, high = wilson_bounds(true_positives, np.add(true_positives, wrong))
    return 2 * low / (1 + low), 2 * high / (1 + high)


def class_scores(hits: IntArray, support: IntArray, predicted: IntArray) -> list[tuple[Estimate, Estimate, Estimate]]:
    """Return precision, recall and F1 of each class.

    Args:
        hits: true positives (C,).
        support: images of the class (C,); where there is none, recall and F1 are undefined.
        predicted: images said to be of the class (C,); where there is none, the precision is undefined.
    """
    both = support + predicted
    columns = (
        (hits / np.maximum(predicted, 1), *wilson_bounds(hits, predicted), predicted > 0),
        (hits / np.maximum(support, 1), *wilson_bounds(hits, support), support > 0),
        (2 * hits / np.maximum(both, 1), *f1_bounds(hits, both - 2 * hits), support > 0),
    )
    estimates = [
        [
            Estimate(value, low, high) if defined else UNDEFINED
            for value, low, high, defined in zip(*(column.tolist() for column in four), strict=True)
        ]
        for four in columns
    ]
    return list(zip(*estimates, strict=True))


def mean_recall(confusion: IntArray) -> Estimate:
    """Return the balanced accuracy: the mean recall over the classes that have images."""
    present = confusion.sum(axis=1) > 0
    if not present.any():
        return UNDEFINED
    recall, _ = _recall(confusion.astype(np.float64))
    return _mean_score(float(recall[present].mean()), confusion, _recall)


def mean_f1(confusion: IntArray) -> Estimate:
    """Return the macro F1: the mean F1 over the classes that have images."""
    present = confusion.sum(axis=1) > 0
    if not present.any():
        return UNDEFINED
    f1, _ = _f1(confusion.astype(np.float64))
    return _mean_score(float(f1[present].mean()), confusion, _f1)


def mean_ratio(parts: npt.ArrayLike, wholes: npt.ArrayLike, support: npt.ArrayLike) -> Estimate:
    """Return the mean over classes of ``sum of parts / sum of wholes``, both over images that several classes share.

    F1 is such a ratio, of ``2 TP`` and ``2 TP + FP + FN``; so is the share of right decisions.

    Args:
        parts: counts (n, C), of each image and class.
        wholes: counts (n, C), each at least that of ``parts``.
        support: counts (C,); a class with 0 counts in no mean, and of two errors more each class takes its share.

    The interval is that of `mean_recall`, with the variance of images: what is wrong on one image in several classes
    at once is one surprise, not several.
    """
    support = np.asarray(support, np.float64)
    present = support > 0
    if not present.any():
        return UNDEFINED
    part, whole = (np.asarray(values, np.float64)[:, present] for values in (parts, wholes))
    extra = _EXTRA_ERRORS * support[present] / support.sum()
    totals = whole.sum(axis=0) + extra
    possible = part.sum(axis=0) / totals
    influence = ((part - possible * whole) / totals).sum(axis=1)
    variance = float((influence**2).sum() + (extra * (possible / totals) ** 2).sum()) / len(possible) ** 2
    value = float((part.sum(axis=0) / whole.sum(axis=0)).mean())
    return worth(value, float(possible.mean()), variance, most=len(part))


def worth(value: float, mean: float, variance: float, most: float) -> Estimate:
    """Return Wilson's interval of a score, with as many trials as its variance is worth.

    A proportion ``p`` of ``n`` trials has the variance ``p (1 - p) / n``; a score ``s`` with the variance ``v`` is
    therefore worth ``s (1 - s) / v`` trials.

    Args:
        value: of the score, which is the middle of the interval.
        mean: ``s``, the score that the variance belongs to.
        variance: ``v``.
        most: trials where the variance is 0.
    """
    trials = mean * (1 - mean) / variance if variance > 0 else most
    low, high = wilson_bounds(value * trials, trials)
    return Estimate(value, float(low), float(high))


def _recall(confusion: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return each class's recall (C,), and how much one image of each cell moves their sum (C, C), in first order."""
    support = np.maximum(confusion.sum(axis=1), 1e-12)
    recall = confusion.diagonal() / support
    return recall, (np.eye(len(confusion)) - recall[:, None]) / support[:, None]


def _f1(confusion: FloatArray) -> tuple[FloatArray, FloatArray]:
    """As `_recall`, for F1; an error moves two of them at once. Classes without images count in neither."""
    support = confusion.sum(axis=1)
    total = np.maximum(support + confusion.sum(axis=0), 1e-12)
    f1 = 2 * confusion.diagonal() / total
    loss = np.where(support > 0, f1 / total, 0.0)
    return f1, 2 * np.diag(1 / total) - (loss[:, None] + loss[None, :])


def _mean_score(value: float, confusion: IntArray, score: Score) -> Estimate:
    """Return the interval of a mean over classes; see `worth`.

    Its variance is that of the delta method, over the images. As Wilson's interval looks at the proportions that could
    have been, not at the one that was seen, score and variance are taken where two errors more are spread over the
    classes: without an error the variance would be 0 and the interval empty.
    """
    num_classes, support = len(confusion), confusion.sum(axis=1)
    present = support > 0
    extra = _EXTRA_ERRORS / max(num_classes - 1, 1) * support / support.sum()
    possible = confusion + extra[:, None] * (1 - np.eye(num_classes))
    scores, influence = score(possible)
    mean = float(scores[present].mean())
    variance = float((possible * influence**2).sum()) / int(present.sum()) ** 2
    return worth(value, mean, variance, most=float(support.sum()))
