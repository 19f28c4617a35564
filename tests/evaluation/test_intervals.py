"""The intervals cover, agree with published numbers, and stay honest where the bootstrap does not."""

import numpy as np
import pytest
from scipy.stats import binomtest
from sklearn.metrics import balanced_accuracy_score, f1_score

from vitrail.evaluation.intervals import (
    UNDEFINED,
    f1_bounds,
    mean_f1,
    mean_ratio,
    mean_recall,
    proportion,
    wilson_bounds,
)


def random_confusions(truth, num_images, repeats, seed=0):
    """Draw confusion matrices (repeats, C, C) from the joint distribution ``truth`` (C, C)."""
    draws = np.random.default_rng(seed).multinomial(num_images, truth.ravel(), size=repeats)
    return draws.reshape(repeats, *truth.shape)


def joint_distribution(shares, recall):
    """Joint distribution (C, C) of a classifier whose errors fall evenly on the other classes."""
    shares = np.asarray(shares) / np.sum(shares)
    num_classes = len(shares)
    rows = np.full((num_classes, num_classes), (1 - recall) / (num_classes - 1))
    np.fill_diagonal(rows, recall)
    return shares[:, None] * rows


def expand(confusion):
    """Turn a confusion matrix back into labels and answers."""
    cells = [(true, answer) for true, row in enumerate(confusion) for answer, n in enumerate(row) for _ in range(n)]
    return map(np.array, zip(*cells, strict=True))


def bootstrap_intervals(confusion, resamples):
    """Return the percentile bootstrap's 95 % intervals, over images, of balanced accuracy and macro F1."""
    labels, answers = expand(confusion)
    rng = np.random.default_rng(0)
    scores = np.empty((resamples, 2))
    for row in scores:
        chosen = rng.integers(len(labels), size=len(labels))
        row[:] = (
            balanced_accuracy_score(labels[chosen], answers[chosen]),
            f1_score(labels[chosen], answers[chosen], average="macro"),
        )
    return [(low, high) for low, high in np.quantile(scores, [0.025, 0.975], axis=0).T]


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    # Newcombe, Statistics in Medicine 17 (1998), table I, method 3.
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0000, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_gives_newcombes_published_table(successes, trials, low, high):
    estimate = proportion(successes, trials)
    assert (round(estimate.low, 4), round(estimate.high, 4)) == (low, high)


def test_wilson_agrees_with_scipy_for_every_count_of_37():
    for successes in range(38):
        expected = binomtest(successes, 37).proportion_ci(method="wilson")
        estimate = proportion(successes, 37)
        assert estimate.low == pytest.approx(expected.low, abs=1e-12)  # measured worst: 1.1e-16
        assert estimate.high == pytest.approx(expected.high, abs=1e-12)


def test_the_ends_are_exact_and_the_value_lies_between_them():
    assert proportion(0, 9).low == 0.0
    assert proportion(9, 9).high == 1.0
    for successes in range(10):
        estimate = proportion(successes, 9)
        assert 0 <= estimate.low <= estimate.value <= estimate.high <= 1


def test_nothing_is_known_without_trials():
    assert proportion(0, 0) == UNDEFINED
    low, high = wilson_bounds([0, 1], [0, 1])
    assert (low[0], high[0]) == (0, 1)


@pytest.mark.parametrize("true_share", [0.02, 0.1, 0.5, 0.9, 0.99])
def test_wilson_covers_the_true_proportion(true_share):
    hits = np.random.default_rng(1).binomial(80, true_share, size=20_000)
    low, high = wilson_bounds(hits, 80)
    coverage = ((low <= true_share) & (true_share <= high)).mean()
    assert 0.92 < coverage < 0.98  # measured: 0.945 to 0.978; a discrete count cannot give 0.95 everywhere


def test_f1_interval_covers_the_true_f1():
    truth = joint_distribution([3, 2, 1], 0.85)
    hit, wrong = truth[2, 2], truth[2].sum() + truth[:, 2].sum() - 2 * truth[2, 2]
    matrices = random_confusions(truth, 150, 5_000)
    hits = matrices[:, 2, 2]
    low, high = f1_bounds(hits, matrices[:, 2].sum(1) + matrices[:, :, 2].sum(1) - 2 * hits)
    true_f1 = 2 * hit / (2 * hit + wrong)
    assert 0.93 < ((low <= true_f1) & (true_f1 <= high)).mean() < 0.97  # measured: 0.952


@pytest.mark.parametrize(
    ("shares", "recall", "num_images"),
    [
        ([1] * 10, 0.986, 360),
        ([1] * 10, 0.97, 100),
        (range(1, 11), 0.97, 200),
        ([1] * 3, 0.5, 1000),
        ([1] * 5, 0.75, 500),
        ([1, 2], 0.9, 40),
    ],
)
def test_intervals_of_the_means_cover_the_true_means(shares, recall, num_images):
    truth = joint_distribution(list(shares), recall)
    true_f1 = (2 * truth.diagonal() / (truth.sum(0) + truth.sum(1))).mean()
    covered = np.zeros(2)
    matrices = random_confusions(truth, num_images, 1_000)
    for matrix in matrices:
        for place, (estimate, target) in enumerate([(mean_recall(matrix), recall), (mean_f1(matrix), true_f1)]):
            covered[place] += estimate.low <= target <= estimate.high
    # Measured: 0.934 to 0.966 over these cases.
    assert (covered / len(matrices) > 0.92).all()
    assert (covered / len(matrices) < 0.985).all()


def test_with_many_errors_the_intervals_are_those_of_the_bootstrap_over_images():
    confusion = np.array([[120, 30, 10], [25, 90, 25], [5, 40, 155]])
    resampled = bootstrap_intervals(confusion, resamples=400)
    for estimate, interval in zip((mean_recall(confusion), mean_f1(confusion)), resampled, strict=True):
        # Measured worst: 0.0033, of a width of 0.079; the noise of 400 resamples is part of it.
        assert (estimate.low, estimate.high) == pytest.approx(interval, abs=0.008)


def test_without_an_error_the_intervals_are_not_empty_as_the_bootstraps_are():
    confusion = np.diag([36] * 10)
    assert bootstrap_intervals(confusion, resamples=20) == [(1.0, 1.0), (1.0, 1.0)]
    for estimate in (mean_recall(confusion), mean_f1(confusion)):
        assert (estimate.value, estimate.high) == (1.0, 1.0)
        assert estimate.low == pytest.approx(proportion(360, 360).low, abs=0.002)  # measured: 0.9895 and 0.9894


def test_balanced_accuracy_of_equal_classes_is_as_sure_as_accuracy():
    confusion = np.array([[45, 5], [10, 40]])
    accuracy, balanced = proportion(85, 100), mean_recall(confusion)
    assert balanced.value == pytest.approx(accuracy.value)
    assert balanced.low == pytest.approx(accuracy.low, abs=0.003)
    assert balanced.high == pytest.approx(accuracy.high, abs=0.003)


def test_a_rare_class_makes_balanced_accuracy_less_sure():
    common = mean_recall(np.array([[90, 10], [10, 90]]))
    rare = mean_recall(np.array([[171, 19], [1, 9]]))
    assert rare.value == pytest.approx(common.value)
    assert rare.high - rare.low > 1.5 * (common.high - common.low)


def test_means_are_over_the_classes_that_have_images():
    confusion = np.array([[8, 1, 1], [2, 7, 1], [0, 0, 0]])
    labels, answers = expand(confusion)
    assert mean_recall(confusion).value == pytest.approx((0.8 + 0.7) / 2)
    assert mean_f1(confusion).value == pytest.approx(f1_score(labels, answers, labels=[0, 1], average="macro"))
    assert mean_recall(np.zeros((2, 2), int)) == UNDEFINED
    assert mean_f1(np.zeros((2, 2), int)) == UNDEFINED


def test_a_single_class_is_a_plain_proportion():
    assert mean_recall(np.array([[7]])).low == pytest.approx(proportion(7, 7).low)


def label_decisions(rng, num_images, shares, hardness):
    """Draw labels and answers (n, C) whose errors fall on the same images, the more the larger ``hardness`` is."""
    labels = rng.random((num_images, len(shares))) < shares
    rates = 0.15 * np.exp(hardness * rng.normal(size=(num_images, 1)) - hardness**2 / 2)
    return labels, labels ^ (rng.random(labels.shape) < np.minimum(rates, 0.9) * np.where(labels, 1, 0.2))


def f1_parts(labels, answers):
    return 2 * (labels & answers), labels.astype(int) + answers


@pytest.mark.parametrize("hardness", [0.0, 1.0])
@pytest.mark.parametrize("shares", [[0.3] * 4, [0.1] * 10])
def test_intervals_of_ratios_over_images_cover_the_true_macro_f1_micro_f1_and_share_of_right_decisions(
    shares, hardness
):
    rng = np.random.default_rng(0)

    def scores(num_images):
        labels, answers = label_decisions(rng, num_images, np.array(shares), hardness)
        parts, wholes = f1_parts(labels, answers)
        right = (labels == answers).sum(axis=1, keepdims=True)
        return [
            mean_ratio(parts, wholes, labels.sum(axis=0)),
            mean_ratio(parts.sum(axis=1, keepdims=True), wholes.sum(axis=1, keepdims=True), [labels.sum()]),
            mean_ratio(right, np.full_like(right, len(shares)), [1]),
        ]

    truths = [each.value for each in scores(200_000)]
    covered = np.zeros(3)
    for _ in range(300):
        covered += [each.low <= truth <= each.high for each, truth in zip(scores(150), truths, strict=True)]
    # Seen over 2000 repetitions: 0.92 to 0.96. Where a class has three images or fewer, macro F1 is less covered: 0.75
    # to 0.9, because of what such a class does with its few images nothing is known.
    assert (covered / 300 >= 0.9).all()


def test_errors_that_gather_on_few_images_make_a_share_of_decisions_less_sure():
    scattered, gathered = np.full((100, 1), 9), np.full((100, 1), 10)
    gathered[:10] = 0
    whole = np.full((100, 1), 10)
    assert mean_ratio(scattered, whole, [1]).value == mean_ratio(gathered, whole, [1]).value == 0.9
    widths = [found.high - found.low for found in (mean_ratio(parts, whole, [1]) for parts in (scattered, gathered))]
    assert widths[1] > 2 * widths[0]
    # Images that are all right or all wrong are what Wilson's interval is made for, but for the two errors more.
    assert mean_ratio(gathered, whole, [1]).low == pytest.approx(proportion(90, 100).low, abs=0.005)


def test_a_class_without_support_counts_in_no_ratio():
    labels, answers = label_decisions(np.random.default_rng(0), 80, np.array([0.3, 0.0, 0.4]), 0.0)
    parts, wholes = f1_parts(labels, answers)
    expected = f1_score(labels[:, [0, 2]], answers[:, [0, 2]], average="macro")
    assert mean_ratio(parts, wholes, labels.sum(axis=0)).value == pytest.approx(expected)
    assert mean_ratio(parts, wholes, [0, 0, 0]) == UNDEFINED
