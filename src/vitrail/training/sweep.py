"""A learning-rate range test: one short training at rates that rise, and up to which of them its loss stays low."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from vitrail.errors import TrainingError
from vitrail.runtime.precision import Precision
from vitrail.training.loop import TrainPlan, steps
from vitrail.training.objective import Objective, TrainBatches
from vitrail.training.state import TrainState

SPAN: Final = 1e4
"""The highest rate of a sweep over its lowest."""
_STEPS: Final = 100
_LONGEST_S: Final = 60.0
# A loss that was this many times that of the first steps does not come back at rates that go on rising.
_DIVERGED: Final = 1.5
_FIRST_STEPS: Final = 5
# Steps over which the losses of the sweep are averaged, before and after each: batches differ by more than steps do.
_SMOOTHED_STEPS: Final = 5.0
# At the highest rate that leaves the loss about where it began, rates begin to be too high even for a few steps; a
# whole training bears a small share of it. Where the loss is smallest or falls fastest, or how much of its fall is
# kept, says less: it may hardly fall, or change little over a decade of rates, and then the noise of the batches
# decides. The numbers were fitted to ViTs with AdamW and Muon8: suggestions then lie within a factor of four of the
# best rate of a search (benchmarks/optimizer_rates.py).
_BORNE: Final = 1.05
_SHARE: Final = 1 / 15
# Of the first loss: a smaller fall may be chance.
_SMALLEST_FALL: Final = 0.01


@dataclass(frozen=True, kw_only=True)
class SweepPlan(TrainPlan):
    """A hundred steps, or a minute of them: the rate rises from a ten-thousandth of that of the groups to the whole."""

    time_budget_s: float | None = _LONGEST_S
    reads_every_step: bool = True

    def multiplier(self, progress: float) -> float:
        """Return the factor of the highest rate, evenly spaced on a logarithmic scale."""
        return float(SPAN ** (progress - 1))

    def total_steps(self, num_batches: int) -> int:
        """Return the steps of the sweep."""
        return _STEPS

    def is_over(self, state: TrainState) -> bool:
        """Return whether the highest rate was reached."""
        return state.step >= _STEPS or super().is_over(state)


@dataclass(frozen=True)
class Sweep:
    """What a range test saw."""

    rates: tuple[float, ...]
    """Of each step, rising."""
    losses: tuple[float, ...]
    """Of each step's batch, before its update."""
    smooth: tuple[float, ...]
    """Averaged over the neighbouring steps."""
    suggestion: float | None
    """A fifteenth of the highest rate at which the smooth loss is at most 5 % above its start; None where it does not
    fall."""


def sweep_rates(
    state: TrainState, objective: Objective, loader: TrainBatches, plan: SweepPlan, precision: Precision
) -> Sweep:
    """Train at rising rates until the loss leaves its bounds; return what was seen.

    Args:
        state: of copies that nobody needs afterwards; its optimizer's groups have the highest rates.
        objective: gives the loss.
        loader: gives the batches.
        plan: the sweep.
        precision: of the forward pass.

    Raises:
        TrainingError: if even the first loss is not finite.

    Source: Smith, Cyclical Learning Rates for Training Neural Networks, arXiv 1506.01186, section 3.3.
    """
    rates: list[float] = []
    losses: list[float] = []
    try:
        for report in steps(state, objective, loader, plan, precision):
            rates.append(report.lr)
            losses.append(report.loss)
            first = losses[:_FIRST_STEPS]
            if report.loss > _DIVERGED * sum(first) / len(first):
                break
    except TrainingError:
        if not rates:  # it is not the rate's fault
            raise
    smooth = smoothed(losses)
    return Sweep(tuple(rates), tuple(losses), tuple(smooth.tolist()), _suggestion(rates, smooth))


def smoothed(losses: Sequence[float]) -> NDArray[np.float64]:
    """Return the losses averaged over their neighbours, with a Gaussian five steps wide."""
    places = np.arange(len(losses))
    weights = np.exp(-0.5 * ((places[:, None] - places) / _SMOOTHED_STEPS) ** 2)
    mean: NDArray[np.float64] = weights @ np.asarray(losses, dtype=np.float64) / weights.sum(axis=1)
    return mean


def _suggestion(rates: Sequence[float], smooth: NDArray[np.float64]) -> float | None:
    """Return the rate that a training may be tried with."""
    if len(smooth) == 0:
        return None
    fall = smooth[0] - smooth.min()
    if fall < _SMALLEST_FALL * smooth[0]:
        return None
    borne = np.flatnonzero(smooth <= _BORNE * smooth[0])
    return float(f"{_SHARE * rates[int(borne[-1])]:.2g}")
