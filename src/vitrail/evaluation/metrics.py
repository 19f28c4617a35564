"""How good the answers are: accuracy and its relatives, per class and together, each with a 95 % interval.

A class without images among the labels has no recall and no F1 (None, never 0), and counts in no mean.

Axes: B images, C classes; the confusion matrix has the true class in its rows and the predicted one in its columns.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.special import log_softmax

from vitrail.errors import DataError
from vitrail.evaluation.calibration import Calibration, ReliabilityBin, calibration_error, probabilities, reliability
from vitrail.evaluation.intervals import Estimate, IntArray, class_scores, mean_f1, mean_recall, proportion

TOP_K = 5


@dataclass(frozen=True)
class ClassMetrics:
    """The scores of one class."""

    name: str
    support: int
    """Images of this class."""
    predicted: int
    """Images said to be of this class."""
    precision: Estimate
    """Share of `predicted` that is right; undefined when nothing was."""
    recall: Estimate
    """Share of `support` that was found; undefined when there is none."""
    f1: Estimate
    """Harmonic mean of both; undefined without `support`."""


@dataclass(frozen=True)
class ConfusionCell:
    """How many images of the class ``true`` were taken for the class ``predicted``."""

    true: int
    predicted: int
    count: int
    rate: Estimate
    """Share of the images of the class ``true``."""


@dataclass(frozen=True, kw_only=True)
class Metrics:
    """Everything that is known about a classifier's answers on one set of images."""

    num_images: int
    accuracy: Estimate
    balanced_accuracy: Estimate
    """Mean recall over the classes that have images."""
    macro_f1: Estimate
    """Mean F1 over the classes that have images."""
    top5: Estimate | None
    """Share of the images whose label is among the five best answers; None with five classes or fewer."""
    log_loss: float
    """Mean negative log-likelihood in nats, after the temperature if there is one."""
    calibration_error: float
    """Expected calibration error in [0, 1], 15 bins, after the temperature if there is one."""
    temperature: float
    """What the logits were divided by; 1 without a calibration."""
    accepted: Estimate | None
    """Accuracy on the answers above the reject threshold; None without a calibration."""
    coverage: Estimate | None
    """Share of the answers above the reject threshold; None without a calibration."""
    classes: tuple[ClassMetrics, ...]
    confusion: tuple[tuple[int, ...], ...]
    """Counts (C, C)."""
    reliability: tuple[ReliabilityBin, ...]

    @property
    def num_correct(self) -> int:
        """Images with the right answer."""
        return sum(self.confusion[index][index] for index in range(len(self.classes)))

    @property
    def absent_classes(self) -> tuple[str, ...]:
        """Classes that have no image here, and so no part in the means."""
        return tuple(each.name for each in self.classes if each.support == 0)

    def confusion_cells(self) -> list[ConfusionCell]:
        """Return the cells of the confusion matrix that are not empty, each with its share of the row."""
        return [
            ConfusionCell(true, predicted, count, proportion(count, self.classes[true].support))
            for true, row in enumerate(self.confusion)
            for predicted, count in enumerate(row)
            if count
        ]

    def most_confused(self, limit: int) -> list[ConfusionCell]:
        """Return the commonest errors, the most frequent first."""
        errors = [cell for cell in self.confusion_cells() if cell.true != cell.predicted]
        return sorted(errors, key=lambda cell: (-cell.count, -(cell.rate.value or 0), cell.true))[:limit]

    def to_dict(self) -> dict[str, Any]:
        """Return plain data that JSON can hold: no NaN, None where a score is undefined."""
        return {
            **dataclasses.asdict(self),
            "absent_classes": list(self.absent_classes),
            "confusion_rates": [dataclasses.asdict(cell) for cell in self.confusion_cells()],
        }


def classification_metrics(
    logits: npt.ArrayLike,
    labels: npt.ArrayLike,
    classes: tuple[str, ...],
    *,
    calibration: Calibration | None = None,
) -> Metrics:
    """Measure a classifier's answers.

    Args:
        logits: (B, C), before softmax and temperature.
        labels: (B,), indices into ``classes``.
        classes: names, in the order of the logits.
        calibration: its temperature goes into the probabilities; it changes no answer.

    Raises:
        DataError: if there is no image, the sizes do not fit together, or a logit is not finite.
    """
    logits, labels = np.asarray(logits, np.float64), np.asarray(labels, np.int64)
    _check_answers(logits, labels, len(classes))
    temperature = calibration.temperature if calibration else 1.0
    table = probabilities(logits, temperature)
    answers, num_classes, num_images = logits.argmax(axis=1), len(classes), len(labels)
    counts = np.bincount(labels * num_classes + answers, minlength=num_classes**2)
    confusion = counts.reshape(num_classes, num_classes).astype(np.int64)
    bins = reliability(table, labels)
    correct = answers == labels
    accepted = coverage = None
    if calibration:
        sure = table.max(axis=1) >= calibration.reject_threshold
        accepted, coverage = (
            proportion(int(correct[sure].sum()), int(sure.sum())),
            proportion(int(sure.sum()), num_images),
        )
    log_likelihood = np.take_along_axis(log_softmax(logits / temperature, axis=1), labels[:, None], axis=1)
    return Metrics(
        num_images=num_images,
        accuracy=proportion(int(correct.sum()), num_images),
        balanced_accuracy=mean_recall(confusion),
        macro_f1=mean_f1(confusion),
        top5=_top_k(logits, labels) if num_classes > TOP_K else None,
        log_loss=-float(log_likelihood.mean()),
        calibration_error=calibration_error(bins),
        temperature=temperature,
        accepted=accepted,
        coverage=coverage,
        classes=_class_metrics(confusion, classes),
        confusion=tuple(tuple(row) for row in confusion.tolist()),
        reliability=bins,
    )


def _check_answers(logits: npt.NDArray[np.float64], labels: IntArray, num_classes: int) -> None:
    if not labels.size:
        raise DataError("There are no images to evaluate. Name a split or a folder that has some.")
    if logits.shape != (len(labels), num_classes):
        raise DataError(
            f"The answers have the shape {logits.shape}; {len(labels)} labels and {num_classes} classes need "
            f"({len(labels)}, {num_classes}). Evaluate with the classes that the model was trained on."
        )
    if labels.min() < 0 or labels.max() >= num_classes:
        raise DataError(f"The labels go from {labels.min()} to {labels.max()}; there are {num_classes} classes.")
    if not np.isfinite(logits).all():
        broken = int((~np.isfinite(logits).all(axis=1)).sum())
        raise DataError(
            f"The model's answers to {broken} of {len(labels)} images are not finite. Evaluate in fp32, or train again "
            "with a lower learning rate."
        )


def _top_k(logits: npt.NDArray[np.float64], labels: IntArray) -> Estimate:
    best = np.argpartition(-logits, TOP_K - 1, axis=1)[:, :TOP_K]
    return proportion(int((best == labels[:, None]).any(axis=1).sum()), len(labels))


def _class_metrics(confusion: IntArray, classes: tuple[str, ...]) -> tuple[ClassMetrics, ...]:
    support, predicted = confusion.sum(axis=1), confusion.sum(axis=0)
    scores = class_scores(confusion.diagonal(), support, predicted)
    rows = zip(classes, support.tolist(), predicted.tolist(), scores, strict=True)
    return tuple(ClassMetrics(name, images, answers, *estimates) for name, images, answers, estimates in rows)
