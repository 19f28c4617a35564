"""Thresholds against trying them all, temperatures against those that were put in."""

import json

import numpy as np
import pytest
from scipy.special import expit
from sklearn.metrics import f1_score

from vitrail.errors import DataError
from vitrail.evaluation.thresholds import (
    LabelCalibration,
    best_threshold,
    calibrate_labels,
    fit_label_temperature,
    given_labels,
    label_probabilities,
)


def sincere_answers(num=3000, num_classes=4, seed=0):
    """Logits and labels drawn from their own probabilities: they need no temperature."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(-1, 2, (num, num_classes))
    return logits, rng.random(logits.shape) < expit(logits)


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("digits", [1, 6])
def test_no_other_threshold_has_a_higher_f1(seed, digits):
    rng = np.random.default_rng(seed)
    present = rng.random(60) < 0.3
    table = np.round(expit(rng.normal(size=60) + present), digits)
    found = best_threshold(table, present)
    reached = f1_score(present, table >= found)
    others = [f1_score(present, table >= each) for each in np.append(np.unique(table), 0.5)]
    assert reached == pytest.approx(max(others), abs=1e-12)
    assert not np.isclose(table, found, atol=1e-9).any() or digits == 1


def test_a_threshold_lies_halfway_between_what_it_separates():
    assert best_threshold(np.array([0.9, 0.2, 0.6]), np.array([True, False, True])) == pytest.approx(0.4)
    assert best_threshold(np.array([0.9, 0.8]), np.array([True, True])) == pytest.approx(0.4)
    assert best_threshold(np.array([0.9, 0.8]), np.array([False, False])) == 0.5


@pytest.mark.parametrize("temperature", [0.3, 1.0, 5.0])
def test_a_temperature_that_was_put_in_is_found(temperature):
    logits, labels = sincere_answers()
    # Seen: within 2.5 % with 12,000 decisions.
    assert fit_label_temperature(logits * temperature, labels) == pytest.approx(temperature, rel=0.06)


def test_without_an_error_nothing_is_called_certain():
    labels = np.random.default_rng(0).random((50, 3)) < 0.4
    calibration = calibrate_labels(np.where(labels, 9.0, -9.0), labels)
    # The likelihood of one image in 52 with tossed labels: no probability beyond 1 - 1 / 104. Seen: 0.9904.
    assert label_probabilities([[9.0, 9.0, 9.0]], calibration) == pytest.approx(1 - 1 / 104, abs=1e-3)
    assert (given_labels(np.where(labels, 9.0, -9.0), calibration) == labels).all()


def test_a_class_of_twenty_images_has_its_own_threshold_and_a_rarer_one_the_common():
    rng = np.random.default_rng(1)
    labels = np.zeros((200, 3), bool)
    labels[:19, 0] = labels[20:40, 1] = labels[50:150, 2] = True
    logits = rng.normal(0, 1, labels.shape) + np.where(labels, 2, -1)
    found = calibrate_labels(logits, labels)
    table = label_probabilities(logits, found)
    assert found.thresholds[0] == found.common_threshold == best_threshold(table.ravel(), labels.ravel())
    assert [found.thresholds[k] for k in (1, 2)] == [best_threshold(table[:, k], labels[:, k]) for k in (1, 2)]
    assert found.thresholds[1] != found.common_threshold


def test_probabilities_of_sincere_answers_stay_what_they_are():
    found = calibrate_labels(*sincere_answers())
    assert found.temperature == pytest.approx(1, abs=0.05)
    assert max(found.error_before, found.error_after) < 0.02  # Seen: 0.009 and 0.009
    assert found.num_images == 3000


def test_without_a_calibration_labels_are_given_from_a_half():
    assert given_labels([[0.0, -1e-9, 1e-9]]).tolist() == [[True, False, True]]


def test_what_is_written_is_read_again():
    found = calibrate_labels(*sincere_answers(100))
    assert LabelCalibration.from_dict(json.loads(json.dumps(found.to_dict()))) == found


def test_nothing_is_fitted_without_images():
    with pytest.raises(DataError, match="no validation images"):
        calibrate_labels(np.empty((0, 3)), np.empty((0, 3)))
