"""The training loop: one generator that does a step of the optimizer and tells about it.

The caller evaluates, saves and draws between two steps; the state is whole whenever the generator has yielded.

Axes: B images, C classes.
"""

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from vitrail.errors import ConfigError
from vitrail.optim import warmup_cosine
from vitrail.runtime.precision import Precision
from vitrail.training.freeze import set_training
from vitrail.training.objective import Objective, TrainBatch, TrainBatches
from vitrail.training.state import TrainState
from vitrail.training.window import STEPS_PER_READ_ON_GPU, Window


@dataclass(frozen=True, kw_only=True)
class TrainPlan:
    """How long to train and how to step. With epochs and a time budget, whichever is over first ends the training."""

    epochs: int | None = None
    time_budget_s: float | None = None
    """Counts `TrainState.elapsed_s`, so evaluation and saving between the steps too."""
    warmup: float = 0.1
    """Share of the training in which the learning rate rises from 0, in [0, 1)."""
    final_lr: float = 0.0
    """Share of the highest learning rate at the end, in [0, 1]; 1 for an optimizer that averages its steps."""
    accumulate: int = 1
    """Batches per step of the optimizer; the last step of an epoch takes those that are left."""
    grad_clip: float = 1.0
    """Largest L2 norm of all gradients together; 0 switches clipping off."""
    head_first: int = 0
    """Epochs at the start in which only the head learns."""
    reads_every_step: bool = False
    """Whether a report has the numbers of its own step on a GPU too, which then waits for each."""

    def __post_init__(self) -> None:
        """Refuse a training without an end."""
        if self.epochs is None and self.time_budget_s is None:
            raise ConfigError("A training needs an end: give epochs, time_budget or both.")

    def progress(self, state: TrainState, num_batches: int, ahead_steps: float = 0.0) -> float:
        """Return the share of the training, in [0, 1], that is done once ``ahead_steps`` more steps are."""
        by_time = 0.0 if self.time_budget_s is None else state.elapsed_s / self.time_budget_s
        total_steps = self.total_steps(num_batches)
        by_steps = 0.0 if total_steps is None else (state.step + ahead_steps) / total_steps
        return min(1.0, max(by_time, by_steps))

    def multiplier(self, progress: float) -> float:
        """Return the share of the highest learning rate at a point of the training."""
        return warmup_cosine(progress, self.warmup, self.final_lr)

    def total_steps(self, num_batches: int) -> int | None:
        """Return the steps of all epochs of ``num_batches`` batches each, or None when time alone ends the training."""
        return None if self.epochs is None else self.epochs * math.ceil(num_batches / self.accumulate)

    def is_over(self, state: TrainState) -> bool:
        """Return whether no step is left to do."""
        out_of_time = self.time_budget_s is not None and state.elapsed_s >= self.time_budget_s
        return out_of_time or (self.epochs is not None and state.epoch >= self.epochs)


@dataclass(frozen=True, kw_only=True)
class StepReport:
    """What is known after a step. On a GPU the measured numbers are those of the last 20 steps that were read."""

    step: int
    """Steps done so far, this one included."""
    epoch: int
    """The epoch it belongs to, from 0."""
    epoch_end: bool
    """Whether it was the last of its epoch."""
    last: bool
    """Whether no other step will follow: the training is over, out of time, or was asked to stop."""
    progress: float
    """Share of the training that is done, in [0, 1]."""
    lr: float
    """The learning rate of its first group."""
    loss: float
    accuracy: float
    """Share of the images as augmented that were right, in [0, 1]; of a mixture, its larger part counts. With several
    labels per image, the share whose labels are all right."""
    grad_norm: float
    """L2 norm of all gradients together, before clipping."""
    epoch_loss: float
    """Mean over the images of the epoch so far."""
    epoch_accuracy: float
    images_per_s: float
    """While training, without the time that the caller takes between the steps."""
    wait_share: float
    """Share of that time in which the model waited for images, in [0, 1], over the epoch so far, as far as this session
    has trained it."""


def steps(
    state: TrainState,
    objective: Objective,
    loader: TrainBatches,
    plan: TrainPlan,
    precision: Precision,
    *,
    forward: Callable[[Tensor], Any] | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> Iterator[StepReport]:
    """Train, one step of the optimizer at a time, from where ``state`` is.

    The numbers of a step are looked at before its update on the CPU; on a GPU only every 20 steps, and always before a
    report that ends an epoch or is the last, so that a state worth saving there is a checked one.

    Args:
        state: is changed in place; whole whenever a report is yielded.
        objective: gives the loss.
        loader: gives the batches.
        plan: how long and how.
        precision: of the forward pass.
        forward: called in place of the objective's network, for example its compiled form.
        stop: asked once per step; when true, that step is the last.

    Raises:
        TrainingError: at the first loss or gradient that is not finite; says at which step. On the CPU the weights
            are those of before that step. On a GPU they are not to be used.
    """
    parameters = state.parameters()
    forward = forward or objective.network(state.model)
    at_once = plan.reads_every_step or parameters[0].device.type == "cpu"
    window = Window(state, steps_per_read=1 if at_once else STEPS_PER_READ_ON_GPU)
    while not plan.is_over(state):
        batches = window.timed(loader.epoch(state.epoch, start_batch=state.batch))
        epoch_end = False
        while not epoch_end and not plan.is_over(state):
            num_batches = min(plan.accumulate, len(loader) - state.batch)
            epoch, epoch_end = state.epoch, state.batch + num_batches >= len(loader)
            lr = _set_lr(state, plan, len(loader))
            set_training(state, head_only=epoch < plan.head_first)
            group = itertools.islice(batches, num_batches)
            num_images, sums = _accumulate_gradients(parameters, forward, objective, group, precision)
            grad_norm = _clip_gradients(parameters, plan.grad_clip)
            window.add(lr, num_images, torch.cat([sums, grad_norm.view(1)]))
            stopping = stop()
            if epoch_end or stopping or window.is_full():
                window.read()
            _update(state, num_batches, epoch_end)
            window.end_step()
            last = stopping or plan.is_over(state)
            if last:
                window.read()
            progress = plan.progress(state, len(loader))
            yield StepReport(
                step=state.step, epoch=epoch, epoch_end=epoch_end, last=last, lr=lr, progress=progress, **window.means()
            )
            window.begin_step()
            if stopping:
                return


def _set_lr(state: TrainState, plan: TrainPlan, num_batches: int) -> float:
    """Set the learning rate of the next step in every group; return the first group's."""
    # That of the step's middle, because a rate of exactly zero would waste the first step or the last.
    multiplier = plan.multiplier(plan.progress(state, num_batches, ahead_steps=0.5))
    for group in state.optimizer.param_groups:
        group["lr"] = group.setdefault("initial_lr", group["lr"]) * multiplier
    return float(state.optimizer.param_groups[0]["lr"])


def _accumulate_gradients(
    parameters: Sequence[Tensor],
    forward: Callable[[Tensor], Any],
    objective: Objective,
    batches: Iterable[TrainBatch],
    precision: Precision,
) -> tuple[int, Tensor]:
    """Leave the gradient of the mean loss over the images of all ``batches`` in the parameters.

    Returns:
        The number of images; and on the device, (2,): the sum of their losses and how many of them were right.
    """
    total, first = 0, 0
    sums = []
    for batch in batches:
        with precision.autocast():
            outputs = forward(batch.images)
        loss, logits = objective.loss(outputs, batch)
        size = len(batch.images)
        total, first = total + size, first or size
        # A mean over all images, whatever the sizes of the batches: each counts by its size relative to the first's,
        # and the factor that all have in common follows after the last.
        (loss * (size / first)).backward()  # type: ignore[no-untyped-call]
        right = objective.correct(logits.detach(), batch.targets).sum()
        sums.append(torch.stack([loss.detach() * size, right.to(loss.dtype)]))
    assert sums, "the loader gave fewer batches than its length"
    if total != first:
        torch._foreach_mul_(_gradients(parameters), first / total)
    return total, torch.stack(sums).sum(dim=0)


def _clip_gradients(parameters: Sequence[Tensor], largest_norm: float) -> Tensor:
    """Scale all gradients down to ``largest_norm`` unless it is 0; return their norm before, a scalar tensor."""
    norm = get_total_norm(_gradients(parameters))
    if largest_norm > 0:
        clip_grads_with_norm_(parameters, largest_norm, norm)
    return norm


def _gradients(parameters: Sequence[Tensor]) -> list[Tensor]:
    return [parameter.grad for parameter in parameters if parameter.grad is not None]


def _update(state: TrainState, num_batches: int, epoch_end: bool) -> None:
    """Take the optimizer's step and move the state to the next one."""
    state.optimizer.step()
    state.optimizer.zero_grad(set_to_none=True)
    if state.ema is not None:
        state.ema.update(state.model)
    state.step += 1
    state.batch += num_batches
    if epoch_end:
        state.epoch, state.batch = state.epoch + 1, 0
        state.epoch_images, state.epoch_loss_sum, state.epoch_correct = 0, 0.0, 0.0
