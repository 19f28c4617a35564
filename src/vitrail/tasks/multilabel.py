"""Multi-label classification: each class is there or not, whatever the others; its loss, and what counts as correct.

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

_PRESENT = 0.5
"""Share of a mixture from which a label counts as present."""


@dataclass(frozen=True)
class MultiLabel:
    """The task of naming every class that an image shows, which may be none."""

    name: ClassVar[TaskName] = "multilabel"

    num_classes: int
    """At least 1."""
    label_smoothing: float = 0.0
    """Each 0 or 1 is moved by this share towards 1/2, in [0, 1).

    Of several classes each is a choice between two, over which Szegedy et al., Rethinking the Inception Architecture,
    arXiv 1512.00567, section 7, spread the mass.
    """
    class_weights: tuple[tuple[float, float], ...] | None = None
    """By which the loss of each class is multiplied where the class is absent, and where it is present; None: 1."""

    def __post_init__(self) -> None:
        """Refuse a task that cannot be learnt."""
        if self.num_classes < 1:
            raise ConfigError(f"num_classes is {self.num_classes}; a multi-label task needs at least 1 class.")
        if not 0 <= self.label_smoothing < 1:
            raise ConfigError(f"label_smoothing is {self.label_smoothing}; it takes a number from 0 and below 1.")
        if self.class_weights is not None and len(self.class_weights) != self.num_classes:
            raise ConfigError(f"class_weights has {len(self.class_weights)} pairs for {self.num_classes} classes.")

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the mean binary cross-entropy of the images as a scalar in fp32, whatever the precision of the logits.

        That of an image is the sum over its classes: the negative log-likelihood of its labels, in nats. So the
        gradient of each logit has the size that it has with one label per image, and the learning rates hold.

        Args:
            logits: (B, C).
            targets: (B, C), 1 where a class is there and 0 where it is not, or mixtures of such.
        """
        logits, targets = logits.float(), targets.float()
        smooth = torch.lerp(targets, torch.full_like(targets, 0.5), self.label_smoothing)
        if self.class_weights is None:
            return _mean_over_images(F.binary_cross_entropy_with_logits(logits, smooth, reduction="none"))
        absent, present = torch.tensor(self.class_weights, device=logits.device).T
        losses = present * smooth * F.logsigmoid(logits) + absent * (1 - smooth) * F.logsigmoid(-logits)
        return _mean_over_images(-losses)

    def correct(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return (B,) booleans: whether the classes with a probability above a half are the image's, all and no other.

        Args:
            logits: (B, C).
            targets: (B, C); of a mixture the labels count that make up at least half of it.
        """
        wrong = (logits > 0) != (targets >= _PRESENT)
        return ~wrong.any(dim=1)

    def answers_loss(self, student: Tensor, teacher: Tensor, mode: DistillMode, temperature: float) -> Tensor:
        """Return the mean over the images of the distance to the teacher's answers, summed over the classes.

        - soft: ``T^2 KL(sigmoid(teacher / T) || sigmoid(student / T))`` of each class, as for one label per image.
        - hard: the binary cross-entropy with what the teacher finds more probable than not.

        Args:
            student: logits (B, C).
            teacher: logits (B, C).
            mode: one of these.
            temperature: T of the soft answers.
        """
        match mode:
            case "soft":
                ours, theirs = student / temperature, teacher / temperature
                there = theirs.sigmoid() * (F.logsigmoid(theirs) - F.logsigmoid(ours))
                absent = (-theirs).sigmoid() * (F.logsigmoid(-theirs) - F.logsigmoid(-ours))
                return temperature**2 * _mean_over_images(there + absent)
            case "hard":
                answers = (teacher > 0).to(student.dtype)
                return _mean_over_images(F.binary_cross_entropy_with_logits(student, answers, reduction="none"))
            case _:
                assert_never(mode)


def _mean_over_images(losses: Tensor) -> Tensor:
    """Return the mean of the sums over the classes, of (B, C)."""
    return losses.sum(dim=1).mean()


def balanced_pairs(labels: np.ndarray) -> tuple[tuple[float, float], ...]:
    """Return for each class the weights of its absence and of its presence, so that both count alike.

    Args:
        labels: bool (n, C), of the training images.

    Of n images of which m show the class, presence gets n / (2 m) and absence n / (2 (n - m)), as with scikit-learn's
    ``class_weight="balanced"``: their mean over the images is 1. Where one of the two never occurs the other gets 1.
    """
    num, present = len(labels), labels.sum(axis=0)
    counts = np.stack([num - present, present], axis=1)  # (C, 2)
    sides = np.count_nonzero(counts, axis=1)[:, None]
    weights = np.where(counts > 0, num / (sides * np.maximum(counts, 1)), 0.0)
    return tuple((absent, there) for absent, there in weights.tolist())
