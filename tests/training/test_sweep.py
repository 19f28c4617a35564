"""The learning-rate range test."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from vitrail.errors import TrainingError
from vitrail.optim import OPTIMIZERS, create_optimizer
from vitrail.tasks import Classification, MultiLabel
from vitrail.training import Supervised, TrainState
from vitrail.training.sweep import SPAN, SweepPlan, _suggestion, smoothed, sweep_rates

TASK = Supervised(Classification(3))


@pytest.fixture
def sweep(batches, fp32):
    def run(state, task=TASK, data=None, **options):
        return sweep_rates(state, task, data or batches(), SweepPlan(**options), fp32)

    return run


class Bowl:
    """Distance to the origin, whose gradient descent diverges from a known rate on."""

    def network(self, model):
        return model

    def loss(self, outputs, batch):
        return 10 * outputs.square().mean(), outputs

    def correct(self, logits, targets):
        return torch.zeros(len(targets), dtype=torch.bool)


def test_rates_rise_evenly_and_end_where_the_loss_leaves_its_bounds(sweep, batches):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 3, bias=False))
    state = TrainState(model=model, optimizer=torch.optim.SGD(model.parameters(), lr=10.0))
    seen = sweep(state, Bowl(), batches((64,) * 4), grad_clip=0.0)
    ratios = np.diff(np.log(seen.rates))
    np.testing.assert_allclose(ratios, math.log(SPAN) / 100, rtol=1e-6)
    assert seen.rates[0] == pytest.approx(10 / SPAN * SPAN**0.005)
    # The curvature is 20 / 3 times the eigenvalues, near 1, of the images' covariance: descent ends at 2 / curvature.
    assert 0.2 < seen.rates[-1] < 3
    bound = 1.5 * np.mean(seen.losses[:5])
    assert seen.losses[-1] > bound >= max(seen.losses[:-1])
    borne = [rate for rate, loss in zip(seen.rates, seen.smooth, strict=True) if loss <= 1.05 * seen.smooth[0]]
    assert seen.suggestion == pytest.approx(borne[-1] / 15, rel=0.05)
    assert 0.1 / 15 < seen.suggestion < 1 / 15


def test_the_smooth_loss_is_a_mean_without_delay():
    peak = smoothed([0.0] * 10 + [1.0] + [0.0] * 10)
    np.testing.assert_allclose(peak, peak[::-1])
    assert peak.argmax() == 10
    assert peak.max() < 0.2
    np.testing.assert_allclose(smoothed([2.0] * 7), 2.0)


def test_the_noise_of_batches_hardly_moves_the_suggestion():
    # As digits in batches of 32 are: the loss falls by a twelfth, lies between, and rises.
    rates = np.logspace(-5, -1, 100)
    mean = np.interp(np.log10(rates), [-5, -4.2, -3, -2.2, -1.5, -1], [2.34, 2.32, 2.15, 2.28, 2.3, 2.6])
    found = []
    for seed in range(20):
        noise = np.random.default_rng(seed).normal(0, 0.09, 100) * np.linspace(0.3, 1.2, 100)
        found.append(_suggestion(rates, smoothed(mean + noise)))
    assert max(found) / min(found) < 3  # seen: 2.3
    assert 10**-1.5 / 15 < np.median(found) < 0.1 / 15


def test_a_loss_that_does_not_fall_gives_no_rate(sweep, make_state):
    class Flat(Bowl):
        def loss(self, outputs, batch):
            return 1 + 0 * outputs.sum(), outputs

    seen = sweep(make_state(), Flat())
    assert len(seen.rates) == 100
    assert seen.suggestion is None


def test_a_loss_that_is_never_finite_is_told(sweep, make_state):
    state = make_state()
    nn.init.constant_(state.model.head.weight, math.inf)
    with pytest.raises(TrainingError, match="at step 1"):
        sweep(state)


def test_a_slow_machine_does_fewer_steps(sweep, make_state, monkeypatch):
    clock = iter(range(10**6))
    monkeypatch.setattr("vitrail.training.window.time.perf_counter", lambda: float(next(clock)))
    seen = sweep(make_state())
    assert 5 < len(seen.rates) < 40
    assert seen.rates[-1] / seen.rates[0] > SPAN / 20


@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
@pytest.mark.parametrize("task", [TASK, Supervised(MultiLabel(3))], ids=["classes", "labels"])
def test_every_optimizer_and_task_has_a_range(sweep, make_state, batches, name, task):
    state = make_state()
    state.optimizer = create_optimizer(state.model, name, lr=OPTIMIZERS[name].lr * 100, weight_decay=0.0)

    class Labels(type(batches())):
        def epoch(self, n, start_batch=0):
            for batch in super().epoch(0, start_batch):
                if task is not TASK:
                    batch.targets = nn.functional.one_hot(batch.targets, 3).float()
                yield batch

    seen = sweep(state, task, Labels())
    assert len(seen.rates) >= 40
    assert OPTIMIZERS[name].lr / 30 < seen.suggestion < OPTIMIZERS[name].lr * 35
