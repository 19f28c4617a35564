"""Scores agree with scikit-learn's, which computes them independently, and stay defined where it gives zeros."""

import json

import numpy as np
import pytest
from sklearn.metrics import (
    accuracy_score,
    balanced_accuracy_score,
    confusion_matrix,
    log_loss,
    precision_recall_fscore_support,
    top_k_accuracy_score,
)

from vitrail.errors import DataError
from vitrail.evaluation.calibration import calibrate, probabilities
from vitrail.evaluation.metrics import classification_metrics

NAMES = tuple("abcdefg")


def noisy_answers(num_images=400, num_classes=7, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(num_classes, size=num_images)
    logits = rng.normal(size=(num_images, num_classes))
    logits[np.arange(num_images), labels] += 1.5
    return logits.astype(np.float32), labels


def test_every_score_agrees_with_scikit_learn():
    logits, labels = noisy_answers()
    metrics = classification_metrics(logits, labels, NAMES)
    answers, table = logits.argmax(1), probabilities(logits)
    precision, recall, f1, support = precision_recall_fscore_support(labels, answers)
    assert metrics.num_images == 400
    assert metrics.num_correct == (answers == labels).sum()
    assert metrics.accuracy.value == pytest.approx(accuracy_score(labels, answers))
    assert metrics.balanced_accuracy.value == pytest.approx(balanced_accuracy_score(labels, answers))
    assert metrics.macro_f1.value == pytest.approx(f1.mean())
    assert metrics.top5.value == pytest.approx(top_k_accuracy_score(labels, table, k=5))
    assert metrics.log_loss == pytest.approx(log_loss(labels, table))
    assert metrics.confusion == tuple(map(tuple, confusion_matrix(labels, answers).tolist()))
    assert [each.support for each in metrics.classes] == support.tolist()
    assert [each.precision.value for each in metrics.classes] == pytest.approx(precision)
    assert [each.recall.value for each in metrics.classes] == pytest.approx(recall)
    assert [each.f1.value for each in metrics.classes] == pytest.approx(f1)


def test_calibration_error_agrees_with_a_plain_loop():
    logits, labels = noisy_answers(seed=3)
    table = probabilities(logits)
    expected = 0.0
    for index in range(15):
        inside = [row for row in range(400) if index / 15 < table[row].max() <= (index + 1) / 15]
        if inside:
            right = np.mean([table[row].argmax() == labels[row] for row in inside])
            expected += len(inside) / 400 * abs(right - np.mean([table[row].max() for row in inside]))
    assert classification_metrics(logits, labels, NAMES).calibration_error == pytest.approx(expected)


def test_every_estimate_lies_in_its_interval():
    metrics = classification_metrics(*noisy_answers(60), NAMES)
    estimates = [metrics.accuracy, metrics.balanced_accuracy, metrics.macro_f1, metrics.top5]
    estimates += [each for one in metrics.classes for each in (one.precision, one.recall, one.f1)]
    estimates += [cell.rate for cell in metrics.confusion_cells()]
    assert all(0 <= each.low <= each.value <= each.high <= 1 for each in estimates)


def test_a_class_without_images_has_no_recall_and_counts_in_no_mean():
    logits = np.eye(3)[[0, 0, 1, 2]]
    metrics = classification_metrics(logits, [0, 0, 1, 0], ("a", "b", "never seen"))
    absent = metrics.classes[2]
    assert metrics.absent_classes == ("never seen",)
    assert (absent.support, absent.predicted) == (0, 1)
    assert absent.recall.value is None
    assert absent.f1.value is None
    assert absent.precision.value == 0.0
    assert metrics.balanced_accuracy.value == pytest.approx((2 / 3 + 1) / 2)


def test_a_class_that_is_never_predicted_has_no_precision():
    metrics = classification_metrics(np.eye(2)[[0, 0]], [0, 1], ("a", "b"))
    assert metrics.classes[1].precision.value is None
    assert metrics.classes[1].recall.value == 0.0
    assert metrics.classes[1].f1.value == 0.0


def test_the_dictionary_is_strict_json_even_with_undefined_scores():
    metrics = classification_metrics(np.eye(3)[[0, 1]], [0, 0], ("a", "b", "c"))
    text = json.dumps(metrics.to_dict(), allow_nan=False)
    assert json.loads(text)["classes"][2]["recall"] == {"value": None, "low": None, "high": None}


def test_rates_of_the_confusion_matrix_are_shares_of_the_row():
    metrics = classification_metrics(*noisy_answers(), NAMES)
    for true in range(7):
        row = [cell for cell in metrics.confusion_cells() if cell.true == true]
        assert sum(cell.rate.value for cell in row) == pytest.approx(1)
    worst = metrics.most_confused(3)
    matrix = np.array(metrics.confusion)
    assert worst[0].count == (matrix - np.diag(matrix.diagonal())).max()


def test_top_five_is_left_out_where_it_says_nothing():
    assert classification_metrics(np.eye(5), range(5), NAMES[:5]).top5 is None
    assert classification_metrics(np.eye(6), range(6), NAMES[:6]).top5.value == 1.0


def test_calibration_changes_the_probabilities_and_not_the_answers():
    logits, labels = noisy_answers()
    calibration = calibrate(10 * logits, labels)
    before = classification_metrics(10 * logits, labels, NAMES)
    after = classification_metrics(10 * logits, labels, NAMES, calibration=calibration)
    assert after.accuracy == before.accuracy
    assert after.log_loss < before.log_loss / 2
    assert after.calibration_error < before.calibration_error / 2
    assert after.coverage.value == pytest.approx(calibration.coverage)
    assert after.accepted.value == pytest.approx(calibration.accepted_accuracy.value)


@pytest.mark.parametrize(
    ("logits", "labels", "message"),
    [
        (np.empty((0, 2)), [], "no images"),
        (np.zeros((2, 3)), [0, 1], "shape"),
        (np.zeros((2, 2)), [0, 2], "labels go from 0 to 2"),
        (np.zeros((2, 2)), [-1, 0], "labels go from -1"),
        (np.array([[0, np.nan], [0, 1]]), [0, 1], "1 of 2 images are not finite"),
    ],
)
def test_answers_that_cannot_be_measured_are_refused(logits, labels, message):
    with pytest.raises(DataError, match=message):
        classification_metrics(logits, labels, ("a", "b"))
