"""What every task offers to the training: its loss, what counts as right, and what it learns of a teacher.

Axes: B images, C classes.
"""

from typing import Literal, Protocol

from torch import Tensor

from vitrail.config import TaskName

DistillMode = Literal["soft", "hard"]


class Task(Protocol):
    """What a model is trained to do."""

    @property
    def name(self) -> TaskName:
        """How it is called in files and options."""

    @property
    def num_classes(self) -> int:
        """Logits of one image."""

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the mean loss over the images as a scalar in fp32, whatever the precision of the logits.

        Args:
            logits: (B, C).
            targets: as the task's data have them, or as mixup and CutMix mix them.
        """

    def correct(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return (B,) booleans: whether the whole answer to an image is right."""

    def answers_loss(self, student: Tensor, teacher: Tensor, mode: DistillMode, temperature: float) -> Tensor:
        """Return the mean distance of the student's answers to the teacher's over the images, a scalar.

        Args:
            student: logits (B, C).
            teacher: logits (B, C).
            mode: soft for the teacher's probabilities, hard for its answers.
            temperature: T, by which both are divided where the answers are soft.
        """
