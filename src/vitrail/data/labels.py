"""Labels that are probably wrong, by what a model thinks of images that it was not trained on.

The method is confident learning as the library cleanlab has it; here is what leads to it: parts of the images that have
nothing in common, and the answers of a linear classifier to each part that learnt the others.

Axes: n images, C classes, d features.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np

from vitrail.data.randomness import Stream, uniforms
from vitrail.errors import ConfigError, MissingExtraError

_KEPT_DIRECTIONS: Final = 256
_IMAGES_FOR_DIRECTIONS: Final = 10_000
_INVERSE_PENALTY: Final = 0.3
_MOST_STEPS: Final = 100
_CHUNK: Final = 1024


@dataclass(frozen=True, eq=False)
class LabelIssues:
    """Images whose labels are suspicious, the most suspicious first, in columns of the same length."""

    indices: np.ndarray
    """int64 (k,), positions of the images."""
    suggested: np.ndarray
    """What the model says instead: int64 (k,), or bool (k, C), the given labels but for the most doubtful of them."""
    confidence: np.ndarray
    """float64 (k,), the probability of the label that is doubted: that it is there, or is not there, as is said."""


def find_label_issues(labels: np.ndarray, probabilities: np.ndarray) -> LabelIssues:
    """Find suspicious labels by confident learning, and order them by the probability of what was given.

    How many labels of each kind are wrong is estimated from the probabilities; that many are named. Which they are
    depends little on whether the probabilities are calibrated.

    Args:
        labels: int (n,), from 0 to C - 1; or with several labels per image bool (n, C), which of them it shows.
        probabilities: float (n, C) of a model that was not trained on the image of the row, as of `out_of_fold`; rows
            that sum to 1, or with several labels per image a probability each.

    Raises:
        ConfigError: if the shapes do not fit, a label is none of the classes, or a row is no probabilities.
        MissingExtraError: if cleanlab is not installed.

    Source:
        Northcutt, Jiang and Chuang, Confident Learning: Estimating Uncertainty in Dataset Labels, JAIR 2021, arXiv
        1911.00068; Thyagarajan et al., Identifying Incorrect Annotations in Multi-Label Classification Data, arXiv
        2211.13895.
    """
    labels, probabilities = np.asarray(labels), np.asarray(probabilities, np.float64)
    _check(labels, probabilities)
    if not len(labels):
        return LabelIssues(np.empty(0, np.int64), labels, np.empty(0))
    rows = np.arange(len(labels))
    if labels.ndim == 1:
        indices = _cleanlab_single(labels, probabilities)
        suggested, confidence = probabilities.argmax(axis=1), probabilities[rows, labels]
    else:
        indices = _cleanlab_several(labels, probabilities)
        told = np.where(labels, probabilities, 1 - probabilities)
        doubted = told.argmin(axis=1)
        suggested, confidence = labels.copy(), told[rows, doubted]
        suggested[rows, doubted] ^= True
    return LabelIssues(indices, suggested[indices], confidence[indices])


def out_of_fold(
    features: np.ndarray, labels: np.ndarray, folds: np.ndarray, num_classes: int | None = None
) -> np.ndarray:
    """Return what a linear classifier that learnt all other folds says of each image: float64 (n, C).

    Args:
        features: float32 (n, d). Their scale does not matter, and correlated ones count once: the classifier learns
            from their 256 principal directions.
        labels: int (n,), or with several labels per image bool (n, C).
        folds: int (n,), which part each image belongs to.
        num_classes: C; needed for int labels.
    """
    reduced = _principal(features)
    several = labels.ndim == 2
    probabilities = np.zeros(labels.shape if several else (len(labels), num_classes or int(labels.max()) + 1))
    for fold in np.unique(folds):
        asked = folds == fold
        answers, classes = _learn_and_ask(reduced[~asked], labels[~asked], reduced[asked])
        probabilities[np.ix_(asked, classes)] = answers
    return probabilities


def assign_folds(labels: np.ndarray, units: np.ndarray, num_folds: int, *, seed: int) -> np.ndarray:
    """Divide images into parts of about the same size and, with one label per image, the same shares of each class.

    Args:
        labels: int (n,), or bool (n, C).
        units: int (n,); images with the same number get into the same part, such as copies of one another, of which
            each would confirm the wrong label of the others.
        num_folds: at least 2.
        seed: of the order in which units are dealt out.

    Returns:
        int64 (n,), from 0 to ``num_folds`` - 1.
    """
    numbers, first, inverse = np.unique(units, return_index=True, return_inverse=True)
    chance = uniforms(seed, 0, Stream.FOLDS, first, 1)[:, 0]
    order = np.lexsort((chance, labels[first] if labels.ndim == 1 else np.zeros(len(first))))
    of_unit = np.empty(len(numbers), np.int64)
    of_unit[order] = np.arange(len(numbers)) % num_folds
    folds: np.ndarray = of_unit[inverse]
    return folds


def _learn_and_ask(known: np.ndarray, labels: np.ndarray, asked: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the probabilities of the classes that are among ``labels``, and which these are."""
    from sklearn.linear_model import LogisticRegression  # takes a second to import, and few need it

    classifier = LogisticRegression(C=_INVERSE_PENALTY, max_iter=_MOST_STEPS)
    if labels.ndim == 1:
        classes = np.unique(labels)
        if len(classes) == 1:
            return np.ones((len(asked), 1)), classes
        return classifier.fit(known, labels).predict_proba(asked), classes
    columns = [
        classifier.fit(known, column).predict_proba(asked)[:, 1]
        if column.any() and not column.all()
        else np.full(len(asked), float(column.all()))
        for column in labels.T
    ]
    return np.stack(columns, axis=1), np.arange(labels.shape[1])


def _principal(features: np.ndarray) -> np.ndarray:
    """Return the directions in which standardised features vary most: float32 (n, at most 256), the first of std 1."""
    from sklearn.decomposition import PCA

    some = features[:: max(1, len(features) // _IMAGES_FOR_DIRECTIONS)]
    mean, scale = some.mean(axis=0), some.std(axis=0) + 1e-2 * some.std() + 1e-12
    kept = min(_KEPT_DIRECTIONS, *some.shape)
    directions = PCA(kept, svd_solver="randomized", random_state=0).fit((some - mean) / scale)
    matrix = directions.components_.T / np.sqrt(max(directions.explained_variance_[0], 1e-12))
    parts = range(0, len(features), _CHUNK)
    return np.concatenate([((features[at : at + _CHUNK] - mean) / scale @ matrix).astype(np.float32) for at in parts])


def _cleanlab_single(labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    try:
        from cleanlab.filter import find_label_issues as find
    except ImportError as error:
        raise _missing(error) from error
    found: np.ndarray = find(labels, probabilities, return_indices_ranked_by="self_confidence", n_jobs=1)
    return found.astype(np.int64)


def _cleanlab_several(labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    try:
        from cleanlab.multilabel_classification.filter import find_label_issues as find
    except ImportError as error:
        raise _missing(error) from error
    shown = [np.flatnonzero(row).tolist() for row in labels]
    found = find(shown, probabilities, return_indices_ranked_by="self_confidence", n_jobs=1)
    return np.asarray(found, np.int64)


def _missing(error: ImportError) -> MissingExtraError:
    return MissingExtraError(
        f"Looking for wrong labels takes the library cleanlab, which does not import here ({error}). Install it with "
        "`pip install 'vitrail[labels]'`."
    )


def _check(labels: np.ndarray, probabilities: np.ndarray) -> None:
    several = labels.ndim == 2
    if probabilities.ndim != 2 or labels.shape != probabilities.shape[: labels.ndim] or labels.ndim not in {1, 2}:
        raise ConfigError(
            f"labels have the shape {labels.shape}, probabilities {probabilities.shape}; take n and n, C, or n, C both."
        )
    if not np.issubdtype(labels.dtype, np.bool_ if several else np.integer):
        raise ConfigError(
            f"labels are {labels.dtype}; take integers, positions in the classes, or a table of true and false."
        )
    if not several and len(labels) and not (labels.min() >= 0 and labels.max() < probabilities.shape[1]):
        raise ConfigError(f"labels go from {labels.min()} to {labels.max()} with {probabilities.shape[1]} classes.")
    sums = 1.0 if several else probabilities.sum(axis=1)
    if not (np.all((probabilities >= 0) & (probabilities <= 1 + 1e-6)) and np.allclose(sums, 1, atol=1e-3)):
        raise ConfigError("probabilities have rows that are not from 0 to 1 with the sum 1. Give softmax outputs.")
