"""What a training step minimises: the labels' loss by itself, or with a teacher's answers beside it.

Axes: B images, C classes.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn

from vitrail.tasks import Task


class TrainBatch(Protocol):
    """What a step learns from, on the model's device."""

    @property
    def images(self) -> Tensor:
        """(B, 3, H, W) floats, normalised."""

    @property
    def targets(self) -> Tensor:
        """As the task has them; see `vitrail.tasks`."""


class TrainBatches(Protocol):
    """Where batches come from; each is a function of the epoch and of its place in it."""

    def __len__(self) -> int:
        """Return the number of batches of an epoch."""

    def epoch(self, epoch: int, start_batch: int = 0) -> Iterator[TrainBatch]:
        """Return the batches of an epoch (from 0), beginning with ``start_batch``."""


class Objective(Protocol):
    """What the training loop asks for: what to compute from the images, and how good that is."""

    def network(self, model: nn.Module) -> nn.Module:
        """Return what maps images to what `loss` takes; it may be compiled, and shares the weights of ``model``."""

    def loss(self, outputs: Any, batch: TrainBatch) -> tuple[Tensor, Tensor]:
        """Return the mean loss over the images, a scalar in fp32, and the model's logits (B, C).

        Args:
            outputs: what the `network` made of the batch's images.
            batch: the images and what they show.
        """

    def correct(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return (B,) booleans: whether the model is right."""


@dataclass(frozen=True)
class Supervised:
    """Learning from the labels alone."""

    task: Task

    def network(self, model: nn.Module) -> nn.Module:
        """Return the model as it is: it maps images to logits."""
        return model

    def loss(self, outputs: Tensor, batch: TrainBatch) -> tuple[Tensor, Tensor]:
        """Return the task's mean loss, and the logits (B, C), which are ``outputs``."""
        return self.task.loss(outputs, batch.targets), outputs

    def correct(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return (B,) booleans, as the task does."""
        return self.task.correct(logits, targets)
