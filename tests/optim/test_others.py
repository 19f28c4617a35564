import signal

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import vitrail
from vitrail.optim import OPTIMIZERS, Lion, create_optimizer
from vitrail.training import TrainProgress, TrainState


def test_lion_follows_its_algorithm_written_out():
    torch.manual_seed(0)
    layer = nn.Linear(3, 2, bias=False)
    optimizer = Lion(layer.parameters(), lr=0.1, betas=(0.8, 0.9), weight_decay=0.5)
    weight, momentum = layer.weight.detach().clone(), torch.zeros(2, 3)
    for _ in range(5):
        gradient = torch.randn(2, 3)
        layer.weight.grad = gradient.clone()
        optimizer.step()
        weight = weight * (1 - 0.1 * 0.5) - 0.1 * (0.8 * momentum + 0.2 * gradient).sign()
        momentum = 0.9 * momentum + 0.1 * gradient
    torch.testing.assert_close(layer.weight.detach(), weight, rtol=0, atol=1e-6)  # seen: 6e-8


def test_torchs_muon_has_the_matrices_and_adamw_the_rest(make_vit):
    model, other = make_vit(), make_vit()
    ours = create_optimizer(model, "muon", lr=1e-3, weight_decay=0.1)
    mine, theirs = dict(model.named_parameters()), dict(other.named_parameters())
    matrices = {n for n in theirs if n.startswith("blocks.") and n.endswith("weight") and theirs[n].ndim == 2}
    muon = torch.optim.Muon([theirs[n] for n in matrices], lr=1e-3, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    decayed = {"patch_embed.proj.weight", "head.weight"}
    adamw = torch.optim.AdamW(
        [
            {"params": [theirs[name] for name in decayed], "weight_decay": 0.1},
            {"params": [theirs[n] for n in theirs if n not in matrices | decayed], "weight_decay": 0.0},
        ],
        lr=1e-3,
    )
    for _ in range(2):
        for name in mine:
            mine[name].grad = torch.randn_like(mine[name])
            theirs[name].grad = mine[name].grad.clone()
        for optimizer in (ours, muon, adamw):
            optimizer.step()
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)


@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
def test_every_optimizer_lowers_the_loss_with_its_defaults(make_vit, train_steps, name):
    model = make_vit()
    optimizer = create_optimizer(model, name, lr=vitrail.optim.default_lr(name, 8, False), weight_decay=0.01)
    for group in optimizer.param_groups:
        assert len(group["params"]) == len(group["param_names"])
    first, *_ = train_steps(model, optimizer, range(1))
    for _ in range(12):
        last, *_ = train_steps(model, optimizer, range(1))
    assert last < 0.9 * first


@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
def test_every_optimizer_resumes_bit_for_bit(make_vit, train_steps, tmp_path, name):
    whole = make_vit()
    first = TrainState(model=whole, optimizer=create_optimizer(whole, name, lr=1e-3, weight_decay=0.01))
    train_steps(whole, first.optimizer, range(2))
    first.save(tmp_path / "state.safetensors")
    other = make_vit(seed=3)
    second = TrainState(model=other, optimizer=create_optimizer(other, name, lr=5.0, weight_decay=0.0))
    second.load(tmp_path / "state.safetensors")
    assert train_steps(whole, first.optimizer, range(2, 4)) == train_steps(other, second.optimizer, range(2, 4))
    assert all(torch.equal(p, q) for p, q in zip(whole.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
def test_what_is_added_later_is_trained_too(make_vit, train_steps, name):
    model, later = make_vit(), nn.Linear(16, 16)
    optimizer = create_optimizer(model, name, lr=1e-3, weight_decay=0.01)
    optimizer.add_param_group({"params": [later.weight], "param_names": ["later.weight"], "weight_decay": 0.0})
    before = later.weight.detach().clone()
    later.weight.grad = torch.randn(16, 16)
    train_steps(model, optimizer, range(1))
    assert not torch.equal(later.weight, before)


@pytest.mark.slow
def test_a_run_that_is_interrupted_ends_as_one_that_is_not(monkeypatch, tmp_path):
    torch.set_num_threads(1)
    options = {"model": "vit_micro_patch4", "optimizer": "muon8", "epochs": 2, "batch_size": 512, "device": "cpu"}
    options |= {"workers": 1, "quiet": True, "image_size": 8}
    whole = vitrail.train("digits", **options, out=tmp_path / "whole")
    with monkeypatch.context() as patch:
        report = TrainProgress.epoch
        patch.setattr(TrainProgress, "epoch", lambda *given: (report(*given), signal.raise_signal(signal.SIGINT)))
        stopped = vitrail.train("digits", **options, out=tmp_path / "stopped")
    assert stopped.interrupted
    resumed = vitrail.train(stopped.path, resume=True, quiet=True)
    expected = load_file(whole.path / "model.safetensors")
    weights = load_file(resumed.path / "model.safetensors")
    assert expected.keys() == weights.keys()
    assert [name for name in expected if not torch.equal(weights[name], expected[name])] == []
