"""How good the answers are where an image may show several classes or none, each score with a 95 % interval.

A class that no image shows has no recall, no F1 and no average precision (None, never 0), and counts in no mean.

Axes: B images, C classes; a decision is one class of one image.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from scipy.special import log_expit

from vitrail.errors import DataError
from vitrail.evaluation.calibration import ReliabilityBin, calibration_error, reliability_bins
from vitrail.evaluation.intervals import Estimate, FloatArray, class_scores, mean_ratio, proportion
from vitrail.evaluation.ranking import BoolArray, Ranking, mean_average_precision, rank
from vitrail.evaluation.thresholds import UNFITTED_THRESHOLD, LabelCalibration, given_labels, label_probabilities

_MOST_SWAPS: Final = 50


@dataclass(frozen=True)
class LabelMetrics:
    """The scores of one class."""

    name: str
    support: int
    """Images that show it."""
    predicted: int
    """Images that are said to show it."""
    threshold: float
    """Probability from which they are."""
    precision: Estimate
    """Share of `predicted` that is right; undefined when nothing was."""
    recall: Estimate
    """Share of `support` that was found; undefined when there is none."""
    f1: Estimate
    """Harmonic mean of both; undefined without `support`."""
    average_precision: Estimate
    """Mean precision at the scores of the images that show it, whatever the threshold; undefined without `support`."""


@dataclass(frozen=True)
class LabelSwap:
    """How many images show the class ``missed``, which was not given, and not the class ``given``, which was."""

    missed: int
    given: int
    count: int


@dataclass(frozen=True, kw_only=True)
class MultiLabelMetrics:
    """Everything that is known about the answers on one set of images."""

    num_images: int
    mean_average_precision: Estimate
    """Mean of the average precision over the classes that have images: mAP. It needs no threshold."""
    macro_f1: Estimate
    """Mean F1 over the classes that have images."""
    micro_f1: Estimate
    """F1 of all decisions together."""
    exact_match: Estimate
    """Share of the images whose labels are all right, none missing and none too many."""
    hamming_loss: Estimate
    """Share of the decisions that are wrong."""
    labels_per_image: float
    """Mean number of labels."""
    given_per_image: float
    """Mean number of labels that are given."""
    log_loss: float
    """Mean negative log-likelihood of an image's labels in nats, summed over the classes, after the temperature."""
    calibration_error: float
    """Expected calibration error over all decisions in [0, 1], 15 bins, after the temperature if there is one."""
    temperature: float
    """What the logits were divided by; 1 without a calibration."""
    classes: tuple[LabelMetrics, ...]
    swaps: tuple[LabelSwap, ...]
    """The commonest, at most 50, the most frequent first."""
    reliability: tuple[ReliabilityBin, ...]
    """Of all decisions."""

    @property
    def num_correct(self) -> int:
        """Images whose labels are all right."""
        assert self.exact_match.value is not None, "there are images"
        return round(self.exact_match.value * self.num_images)

    @property
    def absent_classes(self) -> tuple[str, ...]:
        """Classes that no image shows, which so have no part in the means."""
        return tuple(each.name for each in self.classes if each.support == 0)

    def to_dict(self) -> dict[str, Any]:
        """Return plain data that JSON can hold: no NaN, None where a score is undefined."""
        return {**dataclasses.asdict(self), "absent_classes": list(self.absent_classes)}


def multilabel_metrics(
    logits: npt.ArrayLike,
    labels: npt.ArrayLike,
    classes: tuple[str, ...],
    *,
    calibration: LabelCalibration | None = None,
) -> MultiLabelMetrics:
    """Measure the answers to images with any number of labels.

    Args:
        logits: (B, C), before sigmoid and temperature.
        labels: bool (B, C).
        classes: names, in the order of the logits.
        calibration: has temperature and thresholds. Default: 1 and 0.5.

    Raises:
        DataError: if there is no image, the sizes do not fit together, or a logit is not finite.
    """
    logits, labels = np.asarray(logits, np.float64), np.asarray(labels, bool)
    _check_answers(logits, labels, len(classes))
    table, given = label_probabilities(logits, calibration), given_labels(logits, calibration)
    thresholds = calibration.thresholds if calibration else (UNFITTED_THRESHOLD,) * len(classes)
    temperature = calibration.temperature if calibration else 1.0
    rankings = [rank(scores, present) for scores, present in zip(logits.T, labels.T, strict=True)]
    hits, support = 2 * (labels & given), labels.sum(axis=0)
    either = labels.astype(np.int64) + given  # 2 TP + FP + FN
    right = labels == given
    decisions = mean_ratio(right.sum(axis=1, keepdims=True), np.full((len(labels), 1), len(classes)), [1])
    bins = reliability_bins(table.ravel(), labels.ravel())
    scaled = logits / temperature
    return MultiLabelMetrics(
        num_images=len(labels),
        mean_average_precision=mean_average_precision(rankings),
        macro_f1=mean_ratio(hits, either, support),
        micro_f1=mean_ratio(hits.sum(axis=1, keepdims=True), either.sum(axis=1, keepdims=True), [support.sum()]),
        exact_match=proportion(int(right.all(axis=1).sum()), len(labels)),
        hamming_loss=_complement(decisions),
        labels_per_image=float(labels.sum(axis=1).mean()),
        given_per_image=float(given.sum(axis=1).mean()),
        log_loss=-float(np.where(labels, log_expit(scaled), log_expit(-scaled)).sum(axis=1).mean()),
        calibration_error=calibration_error(bins),
        temperature=temperature,
        classes=_label_metrics(labels, given, classes, thresholds, rankings),
        swaps=_swaps(labels, given),
        reliability=bins,
    )


def _check_answers(logits: FloatArray, labels: BoolArray, num_classes: int) -> None:
    if not len(labels):
        raise DataError("There are no images to evaluate. Name a split or a table that has some.")
    if logits.shape != (len(labels), num_classes) or labels.shape != logits.shape:
        raise DataError(
            f"The answers have the shape {logits.shape} and the labels {labels.shape}; {len(labels)} images and "
            f"{num_classes} classes need ({len(labels)}, {num_classes}). Evaluate with the classes that the model was "
            "trained on."
        )
    if not np.isfinite(logits).all():
        broken = int((~np.isfinite(logits).all(axis=1)).sum())
        raise DataError(
            f"The model's answers to {broken} of {len(labels)} images are not finite. Evaluate in fp32, or train again "
            "with a lower learning rate."
        )


def _complement(estimate: Estimate) -> Estimate:
    assert estimate.value is not None, "there are images"
    assert estimate.low is not None, "there are images"
    assert estimate.high is not None, "there are images"
    return Estimate(1 - estimate.value, 1 - estimate.high, 1 - estimate.low)


def _swaps(labels: BoolArray, given: BoolArray) -> tuple[LabelSwap, ...]:
    missed, invented = (labels & ~given).astype(np.float32), (given & ~labels).astype(np.float32)
    counts = (missed.T @ invented).astype(np.int64)  # (C, C); floats because whole numbers have no fast product
    order = np.argsort(-counts, axis=None, kind="stable")[:_MOST_SWAPS]
    places = zip(*np.unravel_index(order, counts.shape), strict=True)
    return tuple(
        LabelSwap(int(one), int(other), int(counts[one, other])) for one, other in places if counts[one, other]
    )


def _label_metrics(
    labels: BoolArray,
    given: BoolArray,
    classes: tuple[str, ...],
    thresholds: tuple[float, ...],
    rankings: list[Ranking | None],
) -> tuple[LabelMetrics, ...]:
    support, predicted = labels.sum(axis=0), given.sum(axis=0)
    scores = class_scores((labels & given).sum(axis=0), support, predicted)
    precisions = [mean_average_precision([ranking]) for ranking in rankings]
    rows = zip(classes, support.tolist(), predicted.tolist(), thresholds, scores, precisions, strict=True)
    return tuple(
        LabelMetrics(name, images, answers, threshold, precision, recall, f1, average_precision)
        for name, images, answers, threshold, (precision, recall, f1), average_precision in rows
    )
