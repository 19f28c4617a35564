"""What the last steps measured, read from the device seldom enough not to slow it down, and checked when read."""

import math
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TypedDict, TypeVar

import torch
from torch import Tensor

from vitrail.errors import TrainingError
from vitrail.training.state import TrainState

Item = TypeVar("Item")

# Reading a number from a GPU waits until it has done everything before; so its numbers are read this seldom.
STEPS_PER_READ_ON_GPU = 20


class Means(TypedDict):
    """The measured part of a report on a step; see `vitrail.training.loop.StepReport`."""

    loss: float
    accuracy: float
    grad_norm: float
    epoch_loss: float
    epoch_accuracy: float
    images_per_s: float
    wait_share: float


@dataclass(frozen=True)
class _Step:
    number: int
    lr: float
    num_images: int
    on_device: Tensor
    """(3,): sum of the losses over the images, number of correct images, gradient norm."""


class Window:
    """The steps since the last reading, and the clock of a training.

    All time is charged to ``state.elapsed_s``; only what is not the caller's counts for the speed.

    Args:
        state: of the training that is watched.
        steps_per_read: how many steps to note before `is_full` says that it is time to read.
    """

    def __init__(self, state: TrainState, steps_per_read: int) -> None:
        self._state = state
        self._steps_per_read = steps_per_read
        self._means: Means | None = None
        self._steps: list[_Step] = []
        self._training_s = 0.0
        self._waiting_s = 0.0
        self._epoch = state.epoch
        self._epoch_training_s = 0.0
        self._epoch_waiting_s = 0.0
        self._ticked_at = time.perf_counter()

    def end_step(self) -> None:
        """Stop the clock of the training: what follows is the caller's time."""
        self._training_s += self._tick()

    def begin_step(self) -> None:
        """Go on with the clock of the training."""
        self._tick()

    def timed(self, items: Iterable[Item]) -> Iterator[Item]:
        """Pass ``items`` on and note how long each was waited for."""
        iterator = iter(items)
        while True:
            asked_at = time.perf_counter()
            item = next(iterator, None)
            self._waiting_s += time.perf_counter() - asked_at
            if item is None:
                return
            yield item

    def add(self, lr: float, num_images: int, on_device: Tensor) -> None:
        """Note a step that is computed but perhaps not yet done by the device."""
        self._steps.append(_Step(self._state.step + 1, lr, num_images, on_device))

    def is_full(self) -> bool:
        """Return whether it is time to read; the very first step is read at once, to have something to show."""
        return len(self._steps) >= self._steps_per_read or self._means is None

    def read(self) -> None:
        """Read the numbers of all noted steps, add them to the epoch's and take their means.

        Raises:
            TrainingError: for the first step whose loss or gradient is not finite.
        """
        if not self._steps:
            return
        self._training_s += self._tick()
        rows: list[list[float]] = torch.stack([step.on_device for step in self._steps]).tolist()
        for step, (loss_sum, _, grad_norm) in zip(self._steps, rows, strict=True):
            self._require_finite(step, loss_sum / step.num_images, grad_norm)
        num_images = sum(step.num_images for step in self._steps)
        loss_sum, correct, norms = (math.fsum(column) for column in zip(*rows, strict=True))
        self._state.epoch_images += num_images
        self._state.epoch_loss_sum += loss_sum
        self._state.epoch_correct += correct
        training_s = max(self._training_s, 1e-9)
        if self._epoch != self._state.epoch:
            self._epoch, self._epoch_training_s, self._epoch_waiting_s = self._state.epoch, 0.0, 0.0
        self._epoch_training_s += training_s
        self._epoch_waiting_s += self._waiting_s
        self._means = Means(
            loss=loss_sum / num_images,
            accuracy=correct / num_images,
            grad_norm=norms / len(rows),
            epoch_loss=self._state.epoch_loss_sum / self._state.epoch_images,
            epoch_accuracy=self._state.epoch_correct / self._state.epoch_images,
            images_per_s=num_images / training_s,
            wait_share=min(1.0, self._epoch_waiting_s / self._epoch_training_s),
        )
        self._steps, self._training_s, self._waiting_s = [], 0.0, 0.0

    def means(self) -> Means:
        """Return the means over the steps of the last reading, and over the epoch so far."""
        assert self._means is not None, "nothing was read"
        return self._means

    def _require_finite(self, step: _Step, loss: float, grad_norm: float) -> None:
        if math.isfinite(loss) and math.isfinite(grad_norm):
            return
        what = (
            f"loss is {loss}" if not math.isfinite(loss) else f"loss is {loss:.4g} but the gradient's norm {grad_norm}"
        )
        raise TrainingError(
            f"Training stopped at step {step.number}, in epoch {self._state.epoch + 1}: the {what}, "
            f"at a learning rate of {step.lr:.3g}. Try a tenth of that rate (--lr), a longer --warmup, "
            "or --precision fp32. What was saved before is untouched."
        )

    def _tick(self) -> float:
        now = time.perf_counter()
        passed = now - self._ticked_at
        self._ticked_at = now
        self._state.elapsed_s += passed
        return passed
