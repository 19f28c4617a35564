"""Probabilities that mean what they say: temperature scaling, the error that is left, and when to answer "unknown".

Everything is fitted on validation images, never on those that the result is reported on.

Axes: B images, C classes.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax

from vitrail.errors import DataError
from vitrail.evaluation.intervals import Estimate, proportion

KEPT_CORRECT = 0.95
"""Share of the correct answers that the reject threshold lets through."""
NUM_BINS = 15
"""Bins of equal width of the confidence, as in Guo et al. (2017)."""

_LOG_TEMPERATURE_RANGE = (-6.0, 6.0)

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class ReliabilityBin:
    """The answers whose confidence lies in (``low``, ``high``]: the largest probability of an image.

    With several labels per image every class of every image is an answer, its confidence the probability that it is
    there, and its accuracy how often it is.
    """

    low: float
    high: float
    count: int
    confidence: float | None
    """Mean of the confidence; None in an empty bin."""
    accuracy: Estimate


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """What turns logits into probabilities that can be believed, and how it was found."""

    temperature: float
    """Logits are divided by it before the softmax; above 1 it makes answers more modest. It changes no answer."""
    reject_threshold: float
    """Below this largest probability (after the temperature) the answer should be "unknown"."""
    coverage: float
    """Share of the validation images at or above the threshold."""
    accepted_accuracy: Estimate
    """Accuracy on those."""
    error_before: float
    """Expected calibration error at temperature 1."""
    error_after: float
    """Expected calibration error at `temperature`, on the same images it was fitted to."""
    num_images: int
    """Validation images it was fitted on."""

    def to_dict(self) -> dict[str, Any]:
        """Return plain data that JSON can hold."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """Read what `to_dict` wrote."""
        return cls(**{**data, "accepted_accuracy": Estimate.from_dict(data["accepted_accuracy"])})


def probabilities(logits: npt.ArrayLike, temperature: float = 1.0) -> FloatArray:
    """Return the softmax of ``logits / temperature`` over the last axis, in float64."""
    table: FloatArray = np.exp(log_softmax(np.asarray(logits, np.float64) / temperature, axis=-1))
    return table


def calibrate(logits: npt.ArrayLike, labels: npt.ArrayLike) -> Calibration:
    """Fit the temperature and the reject threshold on validation answers.

    The threshold is the one that lets `KEPT_CORRECT` of the correct answers through: what it costs is chosen, and what
    it brings (the accuracy of the accepted answers) is measured.

    Args:
        logits: (B, C).
        labels: (B,), indices of classes.

    Raises:
        DataError: if there are no images.
    """
    logits, labels = np.asarray(logits, np.float64), np.asarray(labels, np.int64)
    if not labels.size:
        raise DataError("There are no validation images to calibrate on. Give val_fraction a larger value.")
    temperature = fit_temperature(logits, labels)
    table = probabilities(logits, temperature)
    confidence, correct = table.max(axis=1), table.argmax(axis=1) == labels
    threshold = float(np.quantile(confidence[correct], 1 - KEPT_CORRECT, method="lower")) if correct.any() else 0.0
    accepted = confidence >= threshold
    return Calibration(
        temperature=temperature,
        reject_threshold=threshold,
        coverage=float(accepted.mean()),
        accepted_accuracy=proportion(int((correct & accepted).sum()), int(accepted.sum())),
        error_before=calibration_error(reliability(probabilities(logits), labels)),
        error_after=calibration_error(reliability(table, labels)),
        num_images=int(labels.size),
    )


def fit_temperature(logits: FloatArray, labels: npt.NDArray[np.int64]) -> float:
    """Return the temperature with the smallest negative log-likelihood of the labels.

    Source: Guo et al., "On calibration of modern neural networks", ICML 2017, section 4.2. With few or no errors the
    likelihood alone would call every answer certain. So one image in ``B + 2`` is taken to have a label drawn from all
    classes, as Platt does for two ("Probabilistic outputs for support vector machines", 1999, section 2.2).
    """
    others = 1 / (len(labels) + 2)

    def loss(log_temperature: float) -> float:
        log_probabilities = log_softmax(logits / np.exp(log_temperature), axis=1)
        likelihood = np.take_along_axis(log_probabilities, labels[:, None], axis=1).mean()
        return float(-(1 - others) * likelihood - others * log_probabilities.mean())

    found = minimize_scalar(loss, bounds=_LOG_TEMPERATURE_RANGE, method="bounded", options={"xatol": 1e-6})
    return float(np.exp(found.x))


def reliability(
    table: FloatArray, labels: npt.NDArray[np.int64], num_bins: int = NUM_BINS
) -> tuple[ReliabilityBin, ...]:
    """Return what share of the answers is right at each level of confidence.

    Args:
        table: probabilities (B, C).
        labels: (B,).
        num_bins: bins of equal width.
    """
    return reliability_bins(table.max(axis=1), table.argmax(axis=1) == labels, num_bins)


def reliability_bins(
    confidence: FloatArray, correct: npt.NDArray[np.bool_], num_bins: int = NUM_BINS
) -> tuple[ReliabilityBin, ...]:
    """Return how often what was said with each level of confidence, (n,) in [0, 1], is so; ``correct`` is (n,)."""
    edges = np.linspace(0, 1, num_bins + 1)
    # Bins are open below and closed above, so that a probability of 1 falls into the last one.
    place = np.clip(np.searchsorted(edges, confidence, side="left") - 1, 0, num_bins - 1)
    counts = np.bincount(place, minlength=num_bins)
    hits = np.bincount(place, weights=correct, minlength=num_bins)
    mass = np.bincount(place, weights=confidence, minlength=num_bins)
    return tuple(
        ReliabilityBin(
            low=float(edges[index]),
            high=float(edges[index + 1]),
            count=int(counts[index]),
            confidence=float(mass[index] / counts[index]) if counts[index] else None,
            accuracy=proportion(int(hits[index]), int(counts[index])),
        )
        for index in range(num_bins)
    )


def calibration_error(bins: tuple[ReliabilityBin, ...]) -> float:
    """Return the expected calibration error: the mean distance between confidence and accuracy, in [0, 1].

    Source: Naeini et al., AAAI 2015; Guo et al., ICML 2017, equation 3.
    """
    total = sum(each.count for each in bins)
    gaps = (
        each.count * abs(each.accuracy.value - each.confidence)
        for each in bins
        if each.accuracy.value is not None and each.confidence is not None
    )
    return sum(gaps) / total
