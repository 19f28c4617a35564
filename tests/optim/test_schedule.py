import itertools
import math

import pytest
import torch

from vitrail.optim import warmup_cosine


def test_known_points():
    points = {0.0: 0.0, 0.05: 0.5, 0.1: 1.0, 0.55: 0.5, 1.0: 0.0, 1.7: 0.0}
    for progress, expected in points.items():
        assert warmup_cosine(progress, 0.1) == pytest.approx(expected, abs=1e-12)
    assert warmup_cosine(1.0, 0.1, final=0.25) == pytest.approx(0.25)
    assert warmup_cosine(0.0, 0.0) == 1.0


def test_it_agrees_with_torchs_schedulers():
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    warm = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: step / 20)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=80, eta_min=0.1)
    schedule = torch.optim.lr_scheduler.SequentialLR(optimizer, [warm, cosine], milestones=[20])
    for step in range(101):
        # torch's cosine is recursive; worst difference measured: 2e-15.
        assert warmup_cosine(step / 100, 0.2, final=0.1) == pytest.approx(optimizer.param_groups[0]["lr"], abs=1e-9)
        optimizer.step()
        schedule.step()


def test_it_is_continuous_and_within_its_bounds():
    values = [warmup_cosine(n / 1000, 0.3, 0.05) for n in range(1001)]
    assert all(0 <= value <= 1 for value in values)
    assert max(abs(a - b) for a, b in itertools.pairwise(values)) < 1.1 / 300
    assert math.isclose(values[300], 1.0)
