import pytest
import torch
from torch import nn

from vitrail.training import Ema, decay_for


def test_the_average_has_the_closed_form():
    torch.manual_seed(0)
    model = nn.Linear(3, 2).double()
    history = [model.weight.detach().clone()]
    ema = Ema(model, 0.5)
    for _ in range(12):
        with torch.no_grad():
            model.weight.add_(torch.randn_like(model.weight))
        ema.update(model)
        history.append(model.weight.detach().clone())
    decays = [min(0.5, (1 + t) / (10 + t)) for t in range(12)]
    # Expand the recursion: snapshot k weighs (1 - d_k) times every later decay.
    expected = torch.zeros_like(history[0])
    for k, snapshot in enumerate(history):
        weight = 1.0 if k == 0 else 1 - decays[k - 1]
        for later in decays[k:]:
            weight *= later
        expected += weight * snapshot
    torch.testing.assert_close(ema.module.weight, expected, rtol=0, atol=1e-12)  # worst measured: 4e-16


def test_buffers_are_copied_and_the_average_is_frozen_and_in_evaluation_mode():
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)).train()
    ema = Ema(model, 0.9)
    model(torch.randn(8, 4))
    ema.update(model)
    assert torch.equal(ema.module[1].running_mean, model[1].running_mean)
    assert ema.module[1].num_batches_tracked == 1
    assert not ema.module.training
    assert not any(p.requires_grad for p in ema.module.parameters())
    assert model.training
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize(("steps", "decay"), [(None, 0.9999), (10, 0.9), (2000, 0.99), (10**7, 0.9999)])
def test_the_decay_looks_back_over_a_twentieth_of_the_training(steps, decay):
    assert decay_for(steps) == pytest.approx(decay)
