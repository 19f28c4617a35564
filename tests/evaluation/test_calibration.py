"""The temperature is found again where it is known, and the threshold keeps what it promises."""

import json

import numpy as np
import pytest
import torch

from vitrail.errors import DataError
from vitrail.evaluation.calibration import Calibration, calibrate, calibration_error, probabilities, reliability


def drawn_labels(logits, seed=0):
    """Draw each label from the softmax of its logits: a perfectly calibrated model."""
    cumulative = probabilities(logits).cumsum(axis=1)
    return (cumulative < np.random.default_rng(seed).random((len(logits), 1))).sum(axis=1)


@pytest.fixture(scope="module")
def calibrated():
    logits = 2 * np.random.default_rng(5).normal(size=(20_000, 8))
    return logits, drawn_labels(logits)


@pytest.mark.parametrize("temperature", [0.4, 1.0, 2.5])
def test_a_known_temperature_is_found_again(calibrated, temperature):
    logits, labels = calibrated
    found = calibrate(logits * temperature, labels).temperature
    # Measured: 0.2 %. Over 30 seeds of the labels the standard deviation is 0.7 %.
    assert found == pytest.approx(temperature, rel=0.03)


def test_the_temperature_is_the_optimum_that_torch_finds():
    rng = np.random.default_rng(2)
    logits, labels = 3 * rng.normal(size=(300, 4)), rng.integers(4, size=300)
    logits[np.arange(300), labels] += 2
    log_temperature = torch.zeros((), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([log_temperature], max_iter=100, line_search_fn="strong_wolfe")
    # torch's smoothing spreads s over all classes: the weight 1 / (B + 2) on a label drawn from all.
    loss_function = torch.nn.CrossEntropyLoss(label_smoothing=1 / 302)

    def closure():
        optimizer.zero_grad()
        loss = loss_function(torch.from_numpy(logits) / log_temperature.exp(), torch.from_numpy(labels))
        loss.backward()
        return loss

    optimizer.step(closure)
    assert calibrate(logits, labels).temperature == pytest.approx(float(log_temperature.exp().detach()), rel=1e-4)


def test_without_an_error_the_temperature_stays_finite_and_sure_answers_stay_below_one():
    logits = 8.0 * np.eye(5)[np.arange(100) % 5]
    found = calibrate(logits, np.arange(100) % 5)
    assert 0.3 < found.temperature < 3
    assert probabilities(logits, found.temperature).max() < 1 - 1e-4


def test_scaling_the_logits_scales_the_temperature(calibrated):
    logits, labels = calibrated[0][:500], calibrated[1][:500]
    assert calibrate(7 * logits, labels).temperature == pytest.approx(
        7 * calibrate(logits, labels).temperature, rel=1e-4
    )


def test_a_calibrated_model_has_a_small_calibration_error(calibrated):
    logits, labels = calibrated
    assert calibration_error(reliability(probabilities(logits), labels)) < 0.018  # nine seeds: 0.006 to 0.014
    assert calibration_error(reliability(probabilities(4 * logits), labels)) > 0.1


def test_the_threshold_keeps_95_percent_of_the_correct_answers(calibrated):
    logits, labels = calibrated
    found = calibrate(logits, labels)
    confidence = probabilities(logits, found.temperature).max(axis=1)
    correct = logits.argmax(axis=1) == labels
    kept = confidence[correct] >= found.reject_threshold
    assert 0.95 <= kept.mean() < 0.951
    assert found.coverage == pytest.approx((confidence >= found.reject_threshold).mean())
    assert found.accepted_accuracy.value > correct.mean()


def test_bins_hold_every_image_once_and_certainty_is_in_the_last():
    table = np.array([[1.0, 0.0], [0.5, 0.5], [0.75, 0.25], [0.76, 0.24]])
    bins = reliability(table, np.array([0, 0, 1, 0]), num_bins=4)
    assert [each.count for each in bins] == [0, 1, 1, 2]  # 0.5 | 0.75 | 0.76 and 1.0: closed above
    assert bins[0].confidence is None
    assert bins[3].accuracy.value == 1.0


def test_it_comes_back_from_json_unchanged(calibrated):
    found = calibrate(calibrated[0][:200], calibrated[1][:200])
    assert Calibration.from_dict(json.loads(json.dumps(found.to_dict(), allow_nan=False))) == found


def test_a_model_that_is_never_right_rejects_nothing_by_accident():
    found = calibrate(np.eye(2)[[0, 0, 1]], [1, 1, 0])
    assert found.reject_threshold == 0.0
    assert found.coverage == 1.0


def test_no_images_are_refused():
    with pytest.raises(DataError, match="val_fraction"):
        calibrate(np.empty((0, 3)), [])
