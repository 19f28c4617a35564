import json

import numpy as np
import pytest

from vitrail.errors import ParityError
from vitrail.shipping.parity import Tolerance, compare, softmax


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
    assert (difference.path, difference.reference_label, difference.exported_label) == ("b.jpg", 1, 2)
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


def test_softmax_holds_for_large_logits() -> None:
    np.testing.assert_allclose(softmax(logits((1000, 999))), [[0.7310586, 0.2689414]], rtol=1e-6)
