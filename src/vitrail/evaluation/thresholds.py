"""From logits to sets of labels: one temperature for all sigmoids, and the probability from which a label is given.

Everything is fitted on validation images, never on those that the result is reported on.

Axes: B images, C classes.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any, Final, Self

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize_scalar
from scipy.special import expit, log_expit

from vitrail.errors import DataError
from vitrail.evaluation.calibration import calibration_error, reliability_bins
from vitrail.evaluation.intervals import FloatArray
from vitrail.evaluation.ranking import BoolArray

UNFITTED_THRESHOLD: Final = 0.5
FEWEST_FOR_OWN_THRESHOLD: Final = 20
"""Validation images of a class from which it has a threshold of its own (benchmarks/multilabel_thresholds.py)."""

_LOG_TEMPERATURE_RANGE: Final = (-6.0, 6.0)


@dataclass(frozen=True, kw_only=True)
class LabelCalibration:
    """What turns logits into probabilities and sets of labels, and how it was found."""

    temperature: float
    """Logits of all classes are divided by it before the sigmoid."""
    thresholds: tuple[float, ...]
    """Of each class: the probability, after the temperature, from which the label is given."""
    common_threshold: float
    """Of the classes with fewer than 20 validation images: the one that is best for all decisions together."""
    error_before: float
    """Expected calibration error over all decisions at temperature 1."""
    error_after: float
    """The same at `temperature`, on the same images it was fitted to."""
    num_images: int
    """Validation images it was fitted on."""

    def to_dict(self) -> dict[str, Any]:
        """Return plain data that JSON can hold."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """Read what `to_dict` wrote."""
        return cls(**{**data, "thresholds": tuple(data["thresholds"])})


def label_probabilities(logits: npt.ArrayLike, calibration: LabelCalibration | None = None) -> FloatArray:
    """Return the sigmoid of the logits divided by the temperature, in float64."""
    table: FloatArray = expit(np.asarray(logits, np.float64) / (calibration.temperature if calibration else 1.0))
    return table


def given_labels(logits: npt.ArrayLike, calibration: LabelCalibration | None = None) -> BoolArray:
    """Return which labels are given, bool of the shape of the logits (B, C); from 0.5 without a calibration."""
    table = label_probabilities(logits, calibration)
    return table >= (np.array(calibration.thresholds) if calibration else UNFITTED_THRESHOLD)


def calibrate_labels(logits: npt.ArrayLike, labels: npt.ArrayLike) -> LabelCalibration:
    """Fit the temperature and the thresholds on validation answers.

    A class that at least 20 of the images show gets the threshold with the highest F1 of its own. For rarer classes
    that would be chance; they get the threshold with the highest micro F1 of all classes.

    Args:
        logits: (B, C).
        labels: bool (B, C).

    Raises:
        DataError: if there are no images.
    """
    logits, labels = np.asarray(logits, np.float64), np.asarray(labels, bool)
    if not len(labels):
        raise DataError("There are no validation images to calibrate on. Give val_fraction a larger value.")
    temperature = fit_label_temperature(logits, labels)
    before, after = expit(logits), expit(logits / temperature)
    common = best_threshold(after.ravel(), labels.ravel())
    enough = labels.sum(axis=0) >= FEWEST_FOR_OWN_THRESHOLD
    own = (best_threshold(after[:, k], labels[:, k]) if each else common for k, each in enumerate(enough))
    return LabelCalibration(
        temperature=temperature,
        thresholds=tuple(own),
        common_threshold=common,
        error_before=calibration_error(reliability_bins(before.ravel(), labels.ravel())),
        error_after=calibration_error(reliability_bins(after.ravel(), labels.ravel())),
        num_images=len(labels),
    )


def fit_label_temperature(logits: FloatArray, labels: BoolArray) -> float:
    """Return the temperature of all classes with the smallest negative log-likelihood of the labels (B, C).

    As `vitrail.evaluation.calibration.fit_temperature`: one image in ``B + 2`` is taken to have labels that a coin was
    tossed for, so that no error does not mean certainty.
    """
    tossed = 1 / (len(labels) + 2)
    targets = (1 - tossed) * labels + tossed / 2

    def loss(log_temperature: float) -> float:
        scaled = logits / np.exp(log_temperature)
        return float(-(targets * log_expit(scaled) + (1 - targets) * log_expit(-scaled)).mean())

    found = minimize_scalar(loss, bounds=_LOG_TEMPERATURE_RANGE, method="bounded", options={"xatol": 1e-6})
    return float(np.exp(found.x))


def best_threshold(table: FloatArray, present: BoolArray) -> float:
    """Return the threshold with the highest F1, the highest of several: halfway between two probabilities.

    Args:
        table: probabilities (n,).
        present: bool (n,); where nothing is present there is nothing to choose by, and the threshold is 0.5.
    """
    if not present.any():
        return UNFITTED_THRESHOLD
    order = np.argsort(-table, kind="stable")
    descending = np.append(table[order], 0.0)
    given = np.arange(1, len(table) + 1)
    f1 = 2 * np.cumsum(present[order]) / (given + present.sum())
    f1[descending[:-1] == descending[1:]] = -1  # no threshold lies between equal probabilities
    best = int(f1.argmax())
    return float((descending[best] + descending[best + 1]) / 2)
