"""The exponential moving average of a model's weights, which is evaluated and kept in place of the weights."""

import copy

import torch
from torch import Tensor, nn

# The average looks back over a twentieth of the training: long enough to smooth the steps, short enough to forget
# the weights of a much higher learning rate.
_HORIZON_SHARE = 0.05
_LARGEST_DECAY = 0.9999


class Ema:
    """A second copy of a model that follows it smoothly.

    After step t (from 0) every weight moves by ``1 - d`` of its distance to the model's, with
    ``d = min(decay, (1 + t) / (10 + t))``: the early average forgets the random start quickly. Buffers are
    copied.

    Source: Polyak and Juditsky, Acceleration of stochastic approximation by averaging, 1992; the warm-up of the decay
    is that of TensorFlow's ExponentialMovingAverage.

    Args:
        model: whose weights are followed; it is copied, on its device.
        decay: share of the average that a late step keeps, in [0, 1).
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        assert 0 <= decay < 1, decay
        self.module = copy.deepcopy(model).eval().requires_grad_(False)
        self.decay = decay
        self.num_updates = 0

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Move the average towards ``model``, the model it was made from, after a step of its optimizer."""
        decay = min(self.decay, (1 + self.num_updates) / (10 + self.num_updates))
        self.num_updates += 1
        averaged: list[Tensor] = list(self.module.parameters())
        current: list[Tensor] = list(model.parameters())
        torch._foreach_lerp_(averaged, current, 1 - decay)
        for mine, theirs in zip(self.module.buffers(), model.buffers(), strict=True):
            mine.copy_(theirs)


def decay_for(total_steps: int | None) -> float:
    """Return the decay whose average looks back over a twentieth of ``total_steps`` (at least ten steps).

    Without a known number of steps it is the largest decay, 0.9999; the warm-up in `Ema` then makes the average look
    back over a ninth of the steps so far.
    """
    if total_steps is None:
        return _LARGEST_DECAY
    return min(_LARGEST_DECAY, 1 - 1 / max(10.0, _HORIZON_SHARE * total_steps))
