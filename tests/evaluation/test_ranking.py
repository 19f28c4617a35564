"""Average precision against scikit-learn, what it is without an image against doing it, intervals that cover."""

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from vitrail.evaluation.intervals import UNDEFINED, proportion
from vitrail.evaluation.ranking import mean_average_precision, rank


def some(num=60, seed=0, digits=1):
    """Return scores with many ties, and which images show the class."""
    rng = np.random.default_rng(seed)
    present = rng.random(num) < 0.3
    return np.round(rng.normal(size=num) + present, digits), present


def draw(rng, num, num_classes, share, distance, hardness):
    """Scores of images that are hard or easy for all classes at once."""
    present = rng.random((num, num_classes)) < share
    hard = hardness * rng.normal(size=(num, 1))
    return rng.normal(size=(num, num_classes)) + np.where(present, distance + hard, -hard), present


def mean_of(scores, present):
    return mean_average_precision([rank(*column) for column in zip(scores.T, present.T, strict=True)])


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("digits", [0, 1, 9])
def test_average_precision_is_that_of_scikit_learn_whatever_the_ties(seed, digits):
    scores, present = some(seed=seed, digits=digits)
    assert rank(scores, present).value == pytest.approx(average_precision_score(present, scores), abs=1e-12)


def test_without_an_image_it_is_what_the_others_give():
    scores, present = some(40)
    without = rank(scores, present).without
    for left_out in range(40):
        kept = np.arange(40) != left_out
        assert without[left_out] == pytest.approx(average_precision_score(present[kept], scores[kept]), abs=1e-12)


def test_a_class_of_one_image_and_a_class_of_none():
    scores, present = np.array([3.0, 2.0, 1.0]), np.array([False, True, False])
    alone = rank(scores, present)
    assert (alone.value, alone.bias) == (0.5, 0.0)
    assert rank(scores, np.zeros(3, bool)) is None
    assert mean_average_precision([None, None]) == UNDEFINED
    assert mean_average_precision([alone, None]).value == 0.5


def test_without_an_error_a_class_is_as_sure_as_a_proportion_of_its_images():
    scores = np.arange(30.0)
    found = mean_average_precision([rank(scores, scores > 19.5)])
    assert (found.value, found.high) == (1.0, 1.0)
    assert found.low == pytest.approx(proportion(10, 10).low)


def test_few_images_of_a_class_see_themselves_ranked_too_well_by_the_estimated_bias():
    rng = np.random.default_rng(0)
    rankings = [rank(rng.normal(size=100), np.arange(100) < 5) for _ in range(400)]
    # Chance alone has the average precision 0.05 among many images; among a hundred, five make it 0.09.
    assert np.mean([each.value for each in rankings]) - 0.05 == pytest.approx(0.039, abs=0.005)
    assert np.mean([each.value - each.bias for each in rankings]) == pytest.approx(0.05, abs=0.013)  # Seen: 0.059


@pytest.mark.parametrize(
    ("num", "num_classes", "share", "distance", "hardness"),
    [(60, 1, 0.2, 1.5, 0), (100, 1, 0.5, 3, 0), (60, 5, 0.2, 2, 1), (200, 10, 0.1, 4, 1), (300, 20, 0.05, 1, 0)],
)
def test_intervals_cover_the_average_precision_of_very_many_images(num, num_classes, share, distance, hardness):
    rng = np.random.default_rng(1)
    truth = rank(*(values[:, 0] for values in draw(rng, 200_000, 1, share, distance, hardness))).value
    covered = 0
    for _ in range(200):
        estimate = mean_of(*draw(rng, num, num_classes, share, distance, hardness))
        covered += estimate.low <= truth <= estimate.high
        assert estimate.low <= estimate.value <= estimate.high
    # Seen over 500 repetitions: 0.91 to 0.99.
    assert covered / 200 >= 0.88


def test_classes_that_fail_on_the_same_images_make_the_mean_less_sure():
    rng = np.random.default_rng(2)
    shared = mean_of(*draw(rng, 400, 10, 0.2, 2.5, 1))
    apart = mean_of(*draw(rng, 400, 10, 0.2, 1.9, 0))
    assert shared.value == pytest.approx(apart.value, abs=0.1)
    assert shared.high - shared.low > 1.5 * (apart.high - apart.low)
