"""Wrong labels: found by what others of their kind look like, whatever the images are called and however they come."""

import sys

import numpy as np
import pytest

from vitrail.data.labels import assign_folds, find_label_issues, out_of_fold
from vitrail.data.patches import SIDE, PatchFeatures
from vitrail.errors import ConfigError, MissingExtraError


def probabilities_of(true: np.ndarray, num_classes: int, rng: np.random.Generator) -> np.ndarray:
    logits = rng.normal(0, 1, (len(true), num_classes)) + 6 * np.eye(num_classes)[true]
    table: np.ndarray = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    return table


def test_swapped_labels_are_found_and_put_right() -> None:
    rng = np.random.default_rng(0)
    true = rng.integers(0, 4, 1000)
    labels = true.copy()
    swapped = rng.choice(1000, 60, replace=False)
    labels[swapped] = (labels[swapped] + rng.integers(1, 4, 60)) % 4
    table = probabilities_of(true, 4, rng)
    issues = find_label_issues(labels, table)
    # Seen: all 60 found, and none else.
    assert len(set(issues.indices.tolist()) & set(swapped.tolist())) > 50
    assert np.isin(issues.indices[:50], swapped).all()
    assert np.array_equal(issues.confidence, table[issues.indices, labels[issues.indices]])
    assert np.all(np.diff(issues.confidence) >= 0)
    right = np.isin(issues.indices, swapped)
    assert (issues.suggested[right] == true[issues.indices[right]]).mean() > 0.95


def test_of_several_labels_the_one_that_is_missing_or_too_many_is_named() -> None:
    rng = np.random.default_rng(0)
    true = rng.random((600, 3)) < 0.4
    labels = true.copy()
    changed = rng.choice(600, 30, replace=False)
    columns = rng.integers(0, 3, 30)
    labels[changed, columns] ^= True
    probabilities = np.clip(np.where(true, 0.9, 0.1) + rng.normal(0, 0.05, true.shape), 0.01, 0.99)
    issues = find_label_issues(labels, probabilities)
    assert set(issues.indices.tolist()) <= set(changed.tolist())
    assert len(issues.indices) > 15  # seen: 23
    assert np.array_equal(issues.suggested, true[issues.indices])
    assert issues.confidence.max() < 0.5


@pytest.mark.parametrize(
    ("labels", "table", "message"),
    [
        (np.array([0, 1]), np.full((3, 2), 0.5), "shape"),
        (np.array([0.0, 1.0]), np.full((2, 2), 0.5), "integers"),
        (np.array([0, 2]), np.full((2, 2), 0.5), "from 0 to 2 with 2 classes"),
        (np.array([0, 1]), np.full((2, 2), 0.7), "sum 1"),
        (np.array([[0, 1], [1, 1]]), np.full((2, 2), 0.5), "true and false"),
        (np.array([[True, False]]), np.array([[1.2, 0.1]]), "from 0 to 1"),
    ],
)
def test_what_is_no_prediction_is_refused(labels: np.ndarray, table: np.ndarray, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        find_label_issues(labels, table)


def test_without_cleanlab_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cleanlab", None)
    monkeypatch.setitem(sys.modules, "cleanlab.filter", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'vitrail\[labels\]'"):
        find_label_issues(np.array([0, 1]), np.full((2, 2), 0.5))


def test_folds_are_even_in_every_class_and_keep_units_whole() -> None:
    labels = np.repeat([0, 1, 2], [50, 30, 3])
    units = np.arange(len(labels))
    units[:4] = 0
    folds = assign_folds(labels, units, 5, seed=1)
    assert len(set(folds[:4].tolist())) == 1
    for label, num in ((1, 30), (2, 3)):
        counts = np.bincount(folds[labels == label], minlength=5)
        assert counts.sum() == num
        assert counts.max() - counts.min() <= 1
    assert np.array_equal(folds, assign_folds(labels, units, 5, seed=1))
    assert not np.array_equal(folds, assign_folds(labels, units, 5, seed=2))


def test_answers_out_of_fold_come_from_the_other_folds_alone() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 300)
    features = (rng.normal(0, 1, (300, 20)) + 3 * np.eye(20)[labels]).astype(np.float32)
    folds = np.arange(300) % 4
    table = out_of_fold(features, labels, folds, 5)
    assert table.shape == (300, 5)
    assert np.allclose(table.sum(axis=1), 1)
    assert (table.argmax(axis=1) == labels).mean() > 0.9
    other = labels.copy()
    other[folds == 2] = (other[folds == 2] + 1) % 3
    changed = out_of_fold(features, other, folds, 5)
    assert np.array_equal(changed[folds == 2], table[folds == 2])
    assert not np.allclose(changed[folds == 1], table[folds == 1])


def test_answers_about_several_labels_are_one_probability_each() -> None:
    rng = np.random.default_rng(0)
    labels = rng.random((200, 3)) < 0.5
    labels[:, 2] = False  # a class that nothing shows
    features = np.concatenate([labels + rng.normal(0, 0.2, (200, 3)), rng.normal(0, 1, (200, 5))], axis=1)
    table = out_of_fold(features.astype(np.float32), labels, np.arange(200) % 2)
    assert ((table > 0.5) == labels).mean() > 0.95
    assert (table[:, 2] == 0).all()


def stripes(num: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return pictures of horizontal or vertical stripes at random places, in random colours, under noise."""
    labels = rng.integers(0, 2, num)
    waves = np.sin((np.arange(SIDE) + 10 * rng.random((num, 1))) * rng.uniform(0.8, 1.2, (num, 1)))
    pictures = np.where(labels[:, None, None] == 1, waves[:, None, :], waves[:, :, None]) * np.ones((1, SIDE, SIDE))
    colours = rng.uniform(-60, 60, (num, 1, 1, 3))
    return np.clip(128 + pictures[..., None] * colours + rng.normal(0, 10, (num, SIDE, SIDE, 3)), 0, 255).astype(
        np.uint8
    ), labels


def test_features_of_patches_tell_textures_apart_that_colours_do_not() -> None:
    pictures, labels = stripes(200, np.random.default_rng(0))
    describe = PatchFeatures(pictures, seed=0)
    features = describe(pictures)
    assert features.shape == (200, describe.num_features)
    assert np.array_equal(features, PatchFeatures(pictures, seed=0)(pictures))
    assert np.allclose(describe(pictures[150:]), features[150:], atol=1e-4)  # seen: 0
    table = out_of_fold(features, labels, np.arange(200) % 4)
    assert (table.argmax(axis=1) == labels).mean() > 0.95  # seen: 1.0


@pytest.mark.parametrize("dtype", [np.uint16, np.float32])
def test_features_of_patches_look_at_every_channel_whatever_its_numbers_mean(dtype: type) -> None:
    pictures, labels = stripes(200, np.random.default_rng(0))
    noise = np.random.default_rng(1).normal(128, 40, (*pictures.shape[:3], 4))
    channels = np.concatenate([noise, pictures[..., :1]], axis=3)  # the fifth alone tells the classes apart
    values = (channels * [1, 2, 3, 4, 50] + 1000).clip(0, 65535).astype(dtype)
    describe = PatchFeatures(values, seed=0)
    table = out_of_fold(describe(values), labels, np.arange(200) % 4)
    # Seen: 0.805; the channel alone gives 0.95, and the others are as loud. Without it there is nothing to learn.
    assert (table.argmax(axis=1) == labels).mean() > 0.7
    many = np.repeat(values, 8, axis=3)
    assert PatchFeatures(many, seed=0)(many).shape == (200, describe.num_features)


def test_features_of_patches_do_not_change_with_the_brightness() -> None:
    pictures, _ = stripes(50, np.random.default_rng(0))
    darker = (pictures // 2 + 20).astype(np.uint8)
    describe = PatchFeatures(pictures, seed=0)
    plain, dark = describe(pictures), describe(darker)
    distance = np.linalg.norm(plain - dark, axis=1) / np.linalg.norm(plain - np.roll(plain, 1, axis=0), axis=1)
    assert np.median(distance) < 0.5
