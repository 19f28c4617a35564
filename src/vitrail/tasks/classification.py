"""Classification: one label per image, its loss, and what counts as correct.

Axes: B images, C classes.
"""

from dataclasses import dataclass
from typing import ClassVar, assert_never

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from vitrail.config import TaskName
from vitrail.errors import ConfigError
from vitrail.tasks.contract import DistillMode


@dataclass(frozen=True)
class Classification:
    """The task of naming the one class of each image."""

    name: ClassVar[TaskName] = "classification"

    num_classes: int
    """At least 2."""
    label_smoothing: float = 0.0
    """Probability mass spread evenly over all classes, in [0, 1).

    Source: Szegedy et al., Rethinking the Inception Architecture, arXiv 1512.00567, section 7.
    """

    class_weights: tuple[float, ...] | None = None
    """By which the loss of each class is multiplied; None: 1 for all."""

    def __post_init__(self) -> None:
        """Refuse a task that cannot be learnt."""
        if self.num_classes < 2:
            raise ConfigError(f"num_classes is {self.num_classes}; a classification needs at least 2 classes.")
        if not 0 <= self.label_smoothing < 1:
            raise ConfigError(f"label_smoothing is {self.label_smoothing}; it takes a number from 0 and below 1.")
        if self.class_weights is not None and len(self.class_weights) != self.num_classes:
            raise ConfigError(f"class_weights has {len(self.class_weights)} numbers for {self.num_classes} classes.")

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the mean cross-entropy as a scalar in fp32, whatever the precision of the logits.

        With weights, those of the targets count; the mean is over the images, whatever their weights, so that targets
        of both kinds have the same scale.

        Args:
            logits: (B, C).
            targets: (B,) class indices, or (B, C) probabilities as mixup and CutMix make them.
        """
        if targets.is_floating_point():
            targets = targets.float()
        if self.class_weights is None:
            return F.cross_entropy(logits.float(), targets, label_smoothing=self.label_smoothing)
        weights = torch.tensor(self.class_weights, device=logits.device)
        losses = F.cross_entropy(
            logits.float(), targets, weights, reduction="none", label_smoothing=self.label_smoothing
        )
        return losses.mean()

    def correct(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return (B,) booleans: whether the largest logit is the label's, or the most probable label's of a mixture.

        Args:
            logits: (B, C).
            targets: (B,) class indices, or (B, C) probabilities.
        """
        labels = targets.argmax(dim=1) if targets.ndim == 2 else targets
        return logits.argmax(dim=1) == labels

    def answers_loss(self, student: Tensor, teacher: Tensor, mode: DistillMode, temperature: float) -> Tensor:
        """Return the mean over the images of the distance to the teacher's answers.

        - soft: ``T^2 KL(softmax(teacher / T) || softmax(student / T))``. Hinton et al., Distilling the Knowledge in a
          Neural Network, arXiv 1503.02531, section 2: the factor keeps the gradient's size when T changes.
        - hard: the cross-entropy with the teacher's most probable class, without label smoothing. Touvron et al.,
          DeiT, arXiv 2012.12877, section 4, equation 3.

        Args:
            student: logits (B, C).
            teacher: logits (B, C).
            mode: one of these.
            temperature: T of the soft answers.
        """
        match mode:
            case "soft":
                ours, theirs = (F.log_softmax(logits / temperature, dim=1) for logits in (student, teacher))
                return temperature**2 * F.kl_div(ours, theirs, reduction="batchmean", log_target=True)
            case "hard":
                return F.cross_entropy(student, teacher.argmax(dim=1))
            case _:
                assert_never(mode)


def balanced_weights(labels: np.ndarray, num_classes: int) -> tuple[float, ...]:
    """Return weights inverse to the number of images of each class, so that their mean over the images is 1.

    Args:
        labels: int (n,), of the training images.
        num_classes: C; a class without images gets the weight 0.

    Of n images and C classes a class with m images gets n / (C m), as with scikit-learn's ``class_weight="balanced"``.
    """
    counts = np.bincount(labels, minlength=num_classes)
    weights = np.where(counts > 0, len(labels) / (np.count_nonzero(counts) * np.maximum(counts, 1)), 0.0)
    return tuple(weights.tolist())
