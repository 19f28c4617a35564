"""Scores of sets of labels against scikit-learn."""

import json

import numpy as np
import pytest
from scipy.special import expit
from sklearn import metrics as reference

from vitrail.errors import DataError
from vitrail.evaluation.multilabel import multilabel_metrics
from vitrail.evaluation.thresholds import calibrate_labels

NAMES = ("arm", "boat", "cat", "dog", "ear")


def noisy_answers(num=400, seed=0, scale=1.0):
    """Logits that know something of the labels, which are rarer from class to class; some images show none."""
    rng = np.random.default_rng(seed)
    labels = rng.random((num, len(NAMES))) < [0.5, 0.3, 0.2, 0.1, 0.05]
    return scale * (rng.normal(0, 1.5, labels.shape) + np.where(labels, 2, -2)), labels


@pytest.fixture(scope="module")
def measured():
    logits, labels = noisy_answers()
    return multilabel_metrics(logits, labels, NAMES), labels, expit(logits)


def test_every_score_is_that_of_scikit_learn(measured):
    metrics, labels, table = measured
    given = table >= 0.5
    pairs = {
        metrics.mean_average_precision.value: reference.average_precision_score(labels, table, average="macro"),
        metrics.macro_f1.value: reference.f1_score(labels, given, average="macro"),
        metrics.micro_f1.value: reference.f1_score(labels, given, average="micro"),
        metrics.exact_match.value: reference.accuracy_score(labels, given),
        metrics.hamming_loss.value: reference.hamming_loss(labels, given),
        metrics.log_loss: sum(reference.log_loss(labels[:, k], table[:, k]) for k in range(len(NAMES))),
        metrics.labels_per_image: labels.sum() / len(labels),
        metrics.given_per_image: given.sum() / len(labels),
    }
    for ours, theirs in pairs.items():
        assert ours == pytest.approx(theirs, abs=1e-12)
    precision, recall, f1, support = reference.precision_recall_fscore_support(labels, given)
    for k, each in enumerate(metrics.classes):
        assert (each.name, each.support, each.predicted) == (NAMES[k], support[k], given[:, k].sum())
        found = (each.precision.value, each.recall.value, each.f1.value, each.average_precision.value)
        average = reference.average_precision_score(labels[:, k], table[:, k])
        assert found == pytest.approx((precision[k], recall[k], f1[k], average))


def test_every_interval_holds_its_value_and_stays_within_0_and_1(measured):
    metrics, *_ = measured
    names = ("mean_average_precision", "macro_f1", "micro_f1", "exact_match", "hamming_loss")
    estimates = [getattr(metrics, name) for name in names]
    for each in metrics.classes:
        estimates += [each.precision, each.recall, each.f1, each.average_precision]
    assert all(0 <= each.low <= each.value <= each.high <= 1 for each in estimates)


def test_a_class_that_no_image_shows_counts_in_no_mean():
    logits, labels = noisy_answers()
    labels[:, 4] = False
    metrics = multilabel_metrics(logits, labels, NAMES)
    rest = multilabel_metrics(logits[:, :4], labels[:, :4], NAMES[:4])
    absent = metrics.classes[4]
    assert metrics.absent_classes == ("ear",)
    assert absent.recall.value is absent.f1.value is absent.average_precision.value is None
    assert absent.precision.value == 0.0
    assert metrics.mean_average_precision == rest.mean_average_precision
    assert metrics.macro_f1.value == rest.macro_f1.value
    assert metrics.micro_f1.value < rest.micro_f1.value  # what is given wrongly is wrong all the same


def test_images_without_labels_are_right_when_nothing_is_given():
    metrics = multilabel_metrics(np.full((3, 2), -4.0), np.zeros((3, 2)), ("a", "b"))
    assert (metrics.exact_match.value, metrics.hamming_loss.value, metrics.hamming_loss.low) == (1.0, 0.0, 0.0)
    assert metrics.mean_average_precision.value is metrics.macro_f1.value is metrics.micro_f1.value is None
    assert json.loads(json.dumps(metrics.to_dict(), allow_nan=False))["micro_f1"]["value"] is None


def test_calibration_moves_thresholds_and_probabilities_and_not_the_ranking():
    logits, labels = noisy_answers(scale=6)
    calibration = calibrate_labels(logits, labels)
    before = multilabel_metrics(logits, labels, NAMES)
    after = multilabel_metrics(logits, labels, NAMES, calibration=calibration)
    assert after.mean_average_precision == before.mean_average_precision
    assert after.log_loss < before.log_loss / 1.5
    assert after.calibration_error < before.calibration_error
    assert after.macro_f1.value > before.macro_f1.value
    assert tuple(each.threshold for each in after.classes) == calibration.thresholds
    assert after.temperature == calibration.temperature


def test_swaps_are_a_missed_and_a_wrong_label_on_one_image():
    labels = np.array([[1, 0, 0], [1, 0, 0], [0, 1, 0], [1, 1, 0], [1, 0, 0]], bool)
    given = np.array([[0, 1, 0], [0, 1, 1], [0, 0, 1], [1, 1, 1], [0, 0, 0]], bool)
    metrics = multilabel_metrics(np.where(given, 3, -3), labels, ("a", "b", "c"))
    assert [(each.missed, each.given, each.count) for each in metrics.swaps] == [(0, 1, 2), (0, 2, 1), (1, 2, 1)]
    assert metrics.num_correct == 0


def test_the_reliability_is_that_of_every_decision(measured):
    metrics, labels, table = measured
    assert sum(each.count for each in metrics.reliability) == labels.size
    third = metrics.reliability[2]
    inside = (table > third.low) & (table <= third.high)
    assert (third.count, third.accuracy.value) == (inside.sum(), pytest.approx(labels[inside].mean()))
    assert third.confidence == pytest.approx(table[inside].mean())


@pytest.mark.parametrize(
    ("logits", "labels", "message"),
    [
        (np.empty((0, 2)), np.empty((0, 2)), "no images"),
        (np.zeros((2, 3)), np.zeros((2, 2)), "shape"),
        (np.zeros((2, 2)), np.zeros(2), "shape"),
        (np.array([[0, np.nan], [0, 1]]), np.zeros((2, 2)), "1 of 2 images are not finite"),
    ],
)
def test_answers_that_cannot_be_measured_are_refused(logits, labels, message):
    with pytest.raises(DataError, match=message):
        multilabel_metrics(logits, labels, ("a", "b"))
