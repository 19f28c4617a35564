import pytest
import torch

from vitrail.errors import ConfigError
from vitrail.tasks import Classification, balanced_weights


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_is_the_cross_entropy_of_the_smoothed_target(smoothing):
    torch.manual_seed(0)
    logits, labels = torch.randn(6, 5, dtype=torch.float64), torch.randint(5, (6,))
    smooth = (1 - smoothing) * torch.eye(5, dtype=torch.float64)[labels] + smoothing / 5
    expected = -(smooth * logits.softmax(1).log()).sum(1).mean()
    task = Classification(5, smoothing)
    # Worst measured: 6e-8; the loss is computed in fp32.
    assert task.loss(logits, labels).item() == pytest.approx(expected.item(), abs=5e-6)
    assert task.loss(logits, torch.eye(5)[labels]).item() == pytest.approx(expected.item(), abs=5e-6)


def test_a_mixed_target_is_the_mixture_of_the_losses():
    torch.manual_seed(1)
    logits, first, second = torch.randn(6, 5), torch.randint(5, (6,)), torch.randint(5, (6,))
    task = Classification(5, 0.1)
    mixed = 0.3 * torch.eye(5)[first] + 0.7 * torch.eye(5)[second]
    expected = 0.3 * task.loss(logits, first) + 0.7 * task.loss(logits, second)
    assert task.loss(logits, mixed).item() == pytest.approx(expected.item(), abs=5e-6)


def test_bf16_logits_and_targets_give_an_fp32_loss():
    logits = torch.randn(4, 3, dtype=torch.bfloat16)
    task = Classification(3)
    assert task.loss(logits, torch.tensor([0, 1, 2, 0])).dtype == torch.float32
    assert task.loss(logits, torch.full((4, 3), 1 / 3, dtype=torch.bfloat16)).dtype == torch.float32


def test_correct_takes_labels_and_mixtures():
    logits = torch.tensor([[2.0, 1.0, 0.0], [0.0, 1.0, 2.0]])
    task = Classification(3)
    assert task.correct(logits, torch.tensor([0, 0])).tolist() == [True, False]
    assert task.correct(logits, torch.tensor([[0.6, 0.4, 0.0], [0.1, 0.5, 0.4]])).tolist() == [True, False]


def test_impossible_tasks_are_refused():
    with pytest.raises(ConfigError, match="at least 2"):
        Classification(1)
    with pytest.raises(ConfigError, match="label_smoothing is 1"):
        Classification(3, 1.0)


def test_class_weights_multiply_the_loss_of_labels_and_of_mixtures_alike():
    logits = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 1, 2, 2, 2, 2])
    weights = balanced_weights(labels.numpy(), 3)
    assert weights == (2.0, 2.0, 0.5)
    task = Classification(3, class_weights=weights)
    by_hand = sum(-weights[y] * row.log_softmax(0)[y] for row, y in zip(logits, labels.tolist(), strict=True)) / 6
    assert torch.allclose(task.loss(logits, labels), by_hand)
    assert torch.allclose(task.loss(logits, torch.eye(3)[labels]), by_hand)
    ones = Classification(3, 0.1, class_weights=(1.0, 1.0, 1.0))
    assert torch.allclose(ones.loss(logits, labels), Classification(3, 0.1).loss(logits, labels))
    with pytest.raises(ConfigError, match="class_weights has 2 numbers for 3 classes"):
        Classification(3, class_weights=(1.0, 1.0))


def test_a_class_without_images_has_no_weight():
    assert balanced_weights(torch.tensor([0, 0, 2, 2]).numpy(), 3) == (1.0, 0.0, 1.0)
