import json

import numpy as np
import pytest

from vitrail.errors import ConfigError, ParityError
from vitrail.shipping.parity import Tolerance, compare
from vitrail.shipping.readout import Readout


def logits(*rows: tuple[float, ...]) -> np.ndarray:
    return np.array(rows, dtype=np.float32)


def test_every_number_is_that_of_a_count_by_hand() -> None:
    reference = logits((2, 0, 0), (0, 3, 1), (1, 0, 4))
    exported = logits((2, 0.5, 0), (0, 3, 4), (1, 0, 4))
    parity = compare(reference, exported, np.array([0, 1, 0]), ["a.jpg", "b.jpg", "c.jpg"])
    assert parity.num_images == 3
    assert parity.agreement == pytest.approx(2 / 3)
    assert parity.max_logit_difference == 3
    assert parity.mean_logit_difference == pytest.approx(3.5 / 9)
    assert parity.reference_accuracy == pytest.approx(2 / 3)
    assert parity.exported_accuracy == pytest.approx(1 / 3)
    (difference,) = parity.differences
    assert (difference.path, difference.reference_labels, difference.exported_labels) == ("b.jpg", (1,), (2,))
    assert (difference.reference_margin, difference.exported_margin) == (2, 1)
    expected = np.exp(4) / (1 + np.exp(3) + np.exp(4)) - np.exp(1) / (1 + np.exp(3) + np.exp(1))
    assert parity.max_probability_difference == pytest.approx(expected)


def test_the_verdict_follows_the_limit_and_says_why() -> None:
    reference = logits((1, 0), (0, 1))
    close = compare(reference, reference + np.float32(9e-4) * logits((1, -1), (0, 0)))
    assert close.verdict(Tolerance()).passed
    assert not compare(reference, reference + np.float32(1.1e-3)).verdict(Tolerance()).passed
    far = compare(reference, logits((1, 0), (1.1, 1)), paths=["a", "b"])
    verdict = far.verdict(Tolerance())
    assert not verdict.passed
    assert verdict.reasons == (
        "The largest logit difference is 1.1; at most 0.001 is allowed.",
        "1 of 2 images get another label.",
    )


def test_the_limit_grows_with_the_spread_of_the_logits_and_never_shrinks() -> None:
    assert Tolerance(logits=1e-3).limit(20.0) == pytest.approx(0.02)
    assert Tolerance(logits=1e-3).limit(0.1) == pytest.approx(1e-3)


def test_within_the_limit_only_a_tie_can_change_the_label() -> None:
    rng = np.random.default_rng(0)
    reference = rng.integers(0, 3, (2000, 5)).astype(np.float32) * np.float32(1e-3)  # full of ties and near ties
    exported = reference + rng.uniform(-9e-4, 9e-4, reference.shape).astype(np.float32)
    parity = compare(reference, exported)
    assert parity.verdict(Tolerance()).passed
    assert len(parity.differences) > 100
    assert all(0 <= item.reference_margin <= 2e-3 for item in parity.differences)


@pytest.mark.parametrize("broken", [np.nan, np.inf])
def test_logits_that_are_not_finite_never_pass(broken) -> None:
    reference = logits((1, 0), (0, 1))
    exported = logits((1, 0), (0, broken))
    assert compare(reference, exported).verdict(Tolerance()).reasons == ("Some logits are not finite.",)
    assert not compare(exported, exported).verdict(Tolerance()).passed


def test_nothing_to_compare_is_an_error() -> None:
    with pytest.raises(ParityError, match="no image"):
        compare(np.zeros((0, 3), np.float32), np.zeros((0, 3), np.float32))
    with pytest.raises(ParityError, match=r"\(2, 3\).*\(2, 4\)"):
        compare(np.zeros((2, 3), np.float32), np.zeros((2, 4), np.float32))


def test_accuracy_is_left_out_where_labels_are_not_known_and_the_rest_is_json() -> None:
    parity = compare(logits((1, 0)), logits((0, 1)))
    data = json.loads(json.dumps(parity.to_dict(), allow_nan=False))
    assert data["reference_accuracy"] is None
    assert data["agreement"] == 0
    assert data["differences"][0]["path"] == "0"


def test_probabilities_hold_for_large_logits() -> None:
    table = Readout().probabilities(logits((1000, 999)))
    np.testing.assert_allclose(table, [[0.7310586, 0.2689414]], rtol=1e-6)
    table = Readout("multilabel", thresholds=(0.5, 0.5)).probabilities(logits((1000, -999)))
    np.testing.assert_array_equal(table, [[1, 0]])


SEVERAL = Readout("multilabel", temperature=2.0, thresholds=(0.5, 0.2, 0.9))
"""In logits: 0, 2 log(1/4) = -2.77 and 2 log(9) = 4.39."""


def test_of_several_labels_whole_sets_are_compared() -> None:
    reference = logits((1, -2, 4), (-1, -3, 5), (-1, -3, 0))
    exported = logits((1, -3, 4), (-1, -3, 5), (-1, -3, 4.5))
    labels = np.array([[True, True, False], [False, False, True], [False, False, False]])
    parity = compare(reference, exported, labels, ["a", "b", "c"], SEVERAL)
    first, third = parity.differences
    assert (first.path, first.reference_labels, first.exported_labels) == ("a", (0, 1), (0,))
    assert (third.path, third.reference_labels, third.exported_labels) == ("c", (), (2,))
    limit = 2 * np.log(1 / 4)
    assert (first.reference_margin, first.exported_margin) == pytest.approx((-2 - limit, 3 + limit))
    assert (parity.reference_accuracy, parity.exported_accuracy) == (1.0, pytest.approx(1 / 3))
    assert parity.max_probability_difference == pytest.approx(1 / (1 + np.exp(-2.25)) - 0.5)
    assert parity.agreement == pytest.approx(1 / 3)


def test_within_the_limit_only_a_logit_at_its_threshold_can_change_a_label() -> None:
    rng = np.random.default_rng(0)
    limits = np.array([0, 2 * np.log(1 / 4), 2 * np.log(9)])
    reference = (limits + rng.integers(-2, 3, (500, 3)) * 1e-3).astype(np.float32)
    exported = reference + rng.uniform(-9e-4, 9e-4, reference.shape).astype(np.float32)
    parity = compare(reference, exported, readout=SEVERAL)
    assert parity.verdict(Tolerance()).passed
    assert len(parity.differences) > 100
    assert all(0 <= item.reference_margin <= 1e-3 for item in parity.differences)


def test_a_readout_that_gives_no_probabilities_is_refused() -> None:
    for temperature in (0.0, -1.0, float("nan")):
        with pytest.raises(ConfigError, match="temperature is"):
            Readout(temperature=temperature)
    with pytest.raises(ConfigError, match="thresholds are"):
        Readout("multilabel", thresholds=(0.5, 1.5))
