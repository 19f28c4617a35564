"""The loss against formulas by hand and PyTorch, weights against scikit-learn, answers of a teacher against SciPy."""

import numpy as np
import pytest
import torch
from scipy.special import expit, rel_entr
from sklearn.utils.class_weight import compute_class_weight
from torch.nn import functional as F

from vitrail.errors import ConfigError
from vitrail.tasks import Classification, MultiLabel, balanced_pairs


def some(seed=0, num=6, num_classes=5):
    """Return logits and targets (B, C)."""
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(num, num_classes, dtype=torch.float64, generator=generator)
    return logits, (torch.rand(num, num_classes, generator=generator) < 0.3).double()


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_the_loss_of_an_image_is_the_sum_of_its_binary_cross_entropies(smoothing):
    logits, targets = some()
    smooth = np.where(targets.numpy() == 1, 1 - smoothing / 2, smoothing / 2)
    p = expit(logits.numpy())
    expected = -(smooth * np.log(p) + (1 - smooth) * np.log1p(-p)).sum(axis=1).mean()
    # Seen: 4e-8 relative; the loss is computed in fp32.
    assert MultiLabel(5, smoothing).loss(logits, targets).item() == pytest.approx(expected, rel=1e-6)


def test_a_gradient_has_the_size_that_it_has_with_one_label_per_image():
    """Probability less target, over the number of images, in both tasks: so the learning rates hold."""
    logits, targets = (values.float() for values in some())
    logits.requires_grad_()
    (gradient,) = torch.autograd.grad(MultiLabel(5).loss(logits, targets), logits)
    torch.testing.assert_close(gradient, (logits.sigmoid() - targets) / 6)
    (gradient,) = torch.autograd.grad(Classification(5).loss(logits, torch.arange(6) % 5), logits)
    torch.testing.assert_close(gradient, (logits.softmax(1) - torch.eye(5)[torch.arange(6) % 5]) / 6)


@pytest.mark.parametrize("weights", [None, ((0.5, 2.0),) * 5])
def test_a_mixed_target_is_the_mixture_of_the_losses(weights):
    logits, first = some()
    second = some(1)[1]
    task = MultiLabel(5, 0.1, weights)
    expected = 0.3 * task.loss(logits, first) + 0.7 * task.loss(logits, second)
    torch.testing.assert_close(task.loss(logits, 0.3 * first + 0.7 * second), expected)


def test_balanced_weights_are_those_of_scikit_learn_for_each_class():
    labels = np.random.default_rng(0).random((50, 4)) < np.array([0.05, 0.3, 0.5, 0.9])
    for pair, column in zip(balanced_pairs(labels), labels.T, strict=True):
        assert pair == pytest.approx(compute_class_weight("balanced", classes=np.array([False, True]), y=column))
        assert np.where(column, pair[1], pair[0]).mean() == pytest.approx(1)
    assert balanced_pairs(np.array([[True, False], [True, False]])) == ((0.0, 1.0), (1.0, 0.0))


def test_class_weights_multiply_the_loss_of_presence_and_absence():
    logits, targets = (values.float() for values in some())
    weights = balanced_pairs(np.array([[1, 0, 0, 1, 0], [0, 0, 0, 1, 0], [0, 1, 0, 0, 1], [0, 0, 1, 1, 0]], bool))
    absent, present = torch.tensor(weights).T
    # PyTorch weighs presence against absence (pos_weight) and the whole (weight).
    expected = F.binary_cross_entropy_with_logits(
        logits, targets, weight=absent, pos_weight=present / absent, reduction="sum"
    )
    torch.testing.assert_close(MultiLabel(5, class_weights=weights).loss(logits, targets), expected / 6)
    ones = MultiLabel(5, 0.1, ((1.0, 1.0),) * 5)
    torch.testing.assert_close(ones.loss(logits, targets), MultiLabel(5, 0.1).loss(logits, targets))


def test_an_image_is_right_when_its_whole_set_of_labels_is():
    logits = torch.tensor([[2.0, -1.0, 1.0], [2.0, -1.0, 1.0], [-1.0, -1.0, -1.0]])
    targets = torch.tensor([[1.0, 0.0, 1.0], [1.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    task = MultiLabel(3)
    assert task.correct(logits, targets).tolist() == [True, False, True]
    mixed = torch.tensor([[0.7, 0.3, 1.0], [0.4, 0.0, 1.0], [0.3, 0.3, 0.3]])
    assert task.correct(logits, mixed).tolist() == [True, False, True]


def test_bf16_logits_and_integer_targets_give_an_fp32_loss():
    logits = torch.randn(4, 3).bfloat16()
    targets = torch.ones(4, 3, dtype=torch.uint8)
    for weights in (None, ((1.0, 2.0),) * 3):
        assert MultiLabel(3, class_weights=weights).loss(logits, targets).dtype == torch.float32


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_soft_answers_are_compared_by_the_divergence_of_each_class(temperature):
    student, teacher = some(0)[0], some(1)[0]
    p, q = expit(teacher.numpy() / temperature), expit(student.numpy() / temperature)
    expected = temperature**2 * (rel_entr(p, q) + rel_entr(1 - p, 1 - q)).sum(axis=1).mean()
    task = MultiLabel(5)
    assert task.answers_loss(student, teacher, "soft", temperature).item() == pytest.approx(expected, rel=1e-9)
    assert task.answers_loss(teacher, teacher, "soft", temperature).item() == pytest.approx(0, abs=1e-12)


def test_hard_answers_are_what_the_teacher_finds_more_probable_than_not():
    student, teacher = (values.float() for values in (some(0)[0], some(1)[0]))
    hard = MultiLabel(5).answers_loss(student, teacher, "hard", 3.0)
    torch.testing.assert_close(hard, MultiLabel(5).loss(student, (teacher > 0).float()))
    # Smoothing is for labels, not for answers.
    torch.testing.assert_close(hard, MultiLabel(5, 0.3).answers_loss(student, teacher, "hard", 3.0))


def test_impossible_tasks_are_refused():
    with pytest.raises(ConfigError, match="at least 1 class"):
        MultiLabel(0)
    with pytest.raises(ConfigError, match="label_smoothing is 1"):
        MultiLabel(3, 1.0)
    with pytest.raises(ConfigError, match="class_weights has 1 pairs for 3 classes"):
        MultiLabel(3, class_weights=((1.0, 1.0),))
