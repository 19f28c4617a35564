"""Labels that are probably wrong, by what a model thinks of images that it was not trained on."""

from dataclasses import dataclass

import numpy as np

from vitrail.errors import ConfigError


@dataclass(frozen=True, eq=False)
class LabelIssues:
    """Images whose label is suspicious, the most suspicious first, in columns of the same length."""

    indices: np.ndarray
    """int64 (k,), positions of the images."""
    suggested: np.ndarray
    """int64 (k,), the class that the model is confident of instead."""
    margins: np.ndarray
    """float64 (k,), probability of the label less that of the suggested class, from -1 to 1."""
    joint: np.ndarray
    """int64 (C, C), how many images have the label of the row and are confidently of the class of the column."""


def find_label_issues(labels: np.ndarray, probabilities: np.ndarray) -> LabelIssues:
    """Find suspicious labels by confident learning.

    A model is confident that an image shows a class when it gives the class at least the probability that it gives on
    average to the images of that label; of several such classes the most probable counts. Images whose confident class
    is another than their label are suspicious. Which they are depends little on whether the probabilities are
    calibrated.

    Args:
        labels: int (n,), from 0 to C - 1.
        probabilities: float (n, C), rows that sum to 1, of a model that was not trained on the image of the row, such
            as those of the held-out parts of a cross-validation.

    Raises:
        ConfigError: if the shapes do not fit, a label is none of the classes, or a row is no probabilities.

    Source:
        Northcutt, Jiang and Chuang, Confident Learning: Estimating Uncertainty in Dataset Labels, JAIR 2021, arXiv
        1911.00068, section 3.1 (the confident joint), ranked by the normalised margin of section 3.2.
    """
    labels, probabilities = np.asarray(labels), np.asarray(probabilities, np.float64)
    _check(labels, probabilities)
    num, num_classes = probabilities.shape
    given = probabilities[np.arange(num), labels]
    counts = np.bincount(labels, minlength=num_classes)
    sums = np.bincount(labels, weights=given, minlength=num_classes)
    # A class without images has no average; nothing reaches it.
    thresholds = np.where(counts > 0, sums / np.maximum(counts, 1), np.inf)
    confident = np.where(probabilities >= thresholds, probabilities, -1.0)
    classes = confident.argmax(axis=1)
    sure = confident[np.arange(num), classes] >= 0
    joint = np.zeros((num_classes, num_classes), np.int64)
    np.add.at(joint, (labels[sure], classes[sure]), 1)
    suspicious = np.flatnonzero(sure & (classes != labels))
    margins = given[suspicious] - probabilities[suspicious, classes[suspicious]]
    order = np.argsort(margins, kind="stable")
    return LabelIssues(suspicious[order], classes[suspicious][order], margins[order], joint)


def _check(labels: np.ndarray, probabilities: np.ndarray) -> None:
    if probabilities.ndim != 2 or labels.shape != probabilities.shape[:1]:
        raise ConfigError(
            f"labels have the shape {labels.shape}, probabilities {probabilities.shape}; take n and n, C."
        )
    if not np.issubdtype(labels.dtype, np.integer):
        raise ConfigError(f"labels are {labels.dtype}; they have to be integers, positions in the classes.")
    if len(labels) and not (labels.min() >= 0 and labels.max() < probabilities.shape[1]):
        raise ConfigError(f"labels go from {labels.min()} to {labels.max()} with {probabilities.shape[1]} classes.")
    if not (np.all(probabilities >= 0) and np.allclose(probabilities.sum(axis=1), 1, atol=1e-3)):
        raise ConfigError("probabilities have rows that are not from 0 to 1 with the sum 1. Give softmax outputs.")
