"""How well scores put the images of a class before the others: average precision, with 95 % intervals.

Axes: n images, C classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from vitrail.evaluation.intervals import UNDEFINED, Estimate, FloatArray, wilson_bounds

BoolArray = npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Ranking:
    """The average precision of one class, and what it would be without each of the images."""

    value: float
    """Mean over the images of the class of the precision at their score; equal scores are answered alike."""
    without: FloatArray
    """(n,)."""
    support: int
    """Images of the class, at least 1."""

    @property
    def bias(self) -> float:
        """By how much the value is too high on average: few images of a class see themselves ranked too well.

        Source: the jackknife of Quenouille, Notes on bias in estimation, Biometrika 43 (1956).
        """
        return float((len(self.without) - 1) * (self.without.mean() - self.value))


def rank(scores: npt.ArrayLike, present: npt.ArrayLike) -> Ranking | None:
    """Return the average precision of one class, or None where no image shows it.

    ``AP = sum of (R_k - R_(k-1)) P_k`` over the thresholds k, without interpolation, as in scikit-learn's
    ``average_precision_score``.

    Args:
        scores: (n,), the higher the surer.
        present: bool (n,), whether the image shows the class.
    """
    scores, present = np.asarray(scores, np.float64), np.asarray(present, bool)
    num, support = len(scores), int(present.sum())
    if not support:
        return None
    order = np.argsort(-scores, kind="stable")
    descending, hits = scores[order], present[order].astype(np.float64)
    last = np.flatnonzero(np.append(descending[1:] != descending[:-1], True))
    group = np.searchsorted(last, np.arange(num))  # of equal scores
    first, last = np.append(0, last[:-1] + 1)[group], last[group]
    found, answered = np.cumsum(hits)[last], last + 1.0
    terms = hits * found / answered
    value = float(terms.sum() / support)
    if support == 1:  # without it there is nothing to measure
        return Ranking(value, np.full(num, value), support)
    # Without one image, those above it keep their precision; at and below it one answer less was given.
    above = np.append(0.0, np.cumsum(terms))[first]
    fewer = np.maximum(answered - 1, 1)
    also_found = _from(hits * (found - 1) / fewer, first) - (found - 1) / fewer
    still_found = _from(hits * found / fewer, first)
    without = np.empty(num)
    without[order] = np.where(hits > 0, (above + also_found) / (support - 1), (above + still_found) / support)
    return Ranking(value, without, support)


def mean_average_precision(rankings: Sequence[Ranking | None]) -> Estimate:
    """Return the mean average precision over the classes that have images, measured on the same images.

    The interval is Wilson's with as many trials as there are labels (of one class, its images, as the binomial interval
    of Boyd, Eng and Page, Area under the Precision-Recall Curve, ECML PKDD 2013, section 3), or with fewer where the
    jackknife over the images, on which all classes are measured at once, finds a larger variance (Efron and Stein, The
    Jackknife Estimate of Variance, Annals of Statistics 9, 1981). Its middle is the value less the bias.
    """
    found = [ranking for ranking in rankings if ranking is not None]
    if not found:
        return UNDEFINED
    value = float(np.mean([ranking.value for ranking in found]))
    middle = min(1.0, max(0.0, value - float(np.mean([ranking.bias for ranking in found]))))
    deviation = np.sum([ranking.without - ranking.without.mean() for ranking in found], axis=0) / len(found)
    variance = float((deviation**2).sum()) * (1 - 1 / len(deviation))
    trials = float(sum(ranking.support for ranking in found))
    if variance > 0:
        trials = min(trials, value * (1 - value) / variance)
    low, high = wilson_bounds(middle * trials, trials)
    return Estimate(value, min(float(low), value), max(float(high), value))


def _from(values: FloatArray, places: npt.NDArray[np.int64]) -> FloatArray:
    """Return the sum of ``values`` from each of ``places`` to the end."""
    sums: FloatArray = np.cumsum(values[::-1])[::-1][places]
    return sums
