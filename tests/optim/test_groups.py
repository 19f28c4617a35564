import pytest
import torch
from torch import nn

from vitrail.errors import ConfigError, UnknownNameError
from vitrail.optim import OPTIMIZERS, create_optimizer, default_lr, default_weight_decay, parameter_groups


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, 4))
        self.pos_embed = nn.Parameter(torch.zeros(1, 5, 4))
        self.table = nn.Embedding(3, 4)
        self.grid_norm = nn.LayerNorm((2, 4))
        self.conv = nn.Conv2d(3, 4, 2)
        self.linear = nn.Linear(4, 4)
        self.scale = nn.Parameter(torch.ones(4))
        self.tied = self.linear
        self.frozen = nn.Linear(2, 2).requires_grad_(False)

    def no_weight_decay(self):
        return {"cls_token", "pos_embed", "reg_token"}


def test_only_matrices_and_kernels_are_decayed():
    decayed, plain = parameter_groups(Model(), 0.3)
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.3, 0.0)
    assert set(decayed["param_names"]) == {"conv.weight", "linear.weight"}
    assert set(plain["param_names"]) == {
        "cls_token", "pos_embed", "table.weight", "grid_norm.weight", "grid_norm.bias", "conv.bias", "linear.bias",
        "scale",
    }  # fmt: skip


def test_every_trainable_parameter_is_in_exactly_one_group():
    model = Model()
    groups = parameter_groups(model, 0.3)
    ids = [id(p) for group in groups for p in group["params"]]
    assert sorted(ids) == sorted(id(p) for p in model.parameters() if p.requires_grad)
    named = dict(model.named_parameters())
    assert all(named[n] is p for group in groups for n, p in zip(group["param_names"], group["params"], strict=True))


def test_a_model_without_matrices_has_no_empty_group():
    assert len(parameter_groups(nn.LayerNorm(4), 0.1)) == 1


@pytest.mark.parametrize(
    ("name", "reference"),
    [
        ("adamw", lambda groups: torch.optim.AdamW(groups, lr=0.01)),
        ("sgd", lambda groups: torch.optim.SGD(groups, lr=0.01, momentum=0.9, nesterov=True)),
    ],
)
def test_updates_agree_with_torch_where_the_groups_are_written_by_hand(name, reference):
    torch.manual_seed(0)
    mine, theirs = nn.Linear(4, 3), nn.Linear(4, 3)
    theirs.load_state_dict(mine.state_dict())
    ours = create_optimizer(mine, name, lr=0.01, weight_decay=0.1)
    plain = reference(
        [{"params": [theirs.weight], "weight_decay": 0.1}, {"params": [theirs.bias], "weight_decay": 0.0}]
    )
    for _ in range(20):
        images = torch.randn(6, 4)
        for model, optimizer in ((mine, ours), (theirs, plain)):
            optimizer.zero_grad()
            model(images).square().mean().backward()
            optimizer.step()
    for a, b in zip(mine.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6)  # worst measured: 3e-8 (fused against not)


def test_updates_run_in_a_fused_kernel_unless_told_otherwise():
    assert create_optimizer(Model(), lr=0.1, weight_decay=0.1).defaults["fused"] is True
    assert create_optimizer(Model(), lr=0.1, weight_decay=0.1, fused=False).defaults["fused"] is False


def test_options_reach_the_optimizer():
    optimizer = create_optimizer(Model(), "adamw", lr=0.1, weight_decay=0.1, betas=(0.8, 0.95))
    assert optimizer.param_groups[1]["betas"] == (0.8, 0.95)


def test_misspelt_names_and_options_get_a_hint():
    with pytest.raises(UnknownNameError, match="Did you mean 'adamw'"):
        create_optimizer(Model(), "adamm", lr=0.1, weight_decay=0.1)
    with pytest.raises(ConfigError, match=r"no option 'beta'.* Did you mean 'betas'"):
        create_optimizer(Model(), "adamw", lr=0.1, weight_decay=0.1, beta=(0.8, 0.95))


def test_a_model_that_is_all_frozen_is_refused():
    with pytest.raises(ConfigError, match="no trainable parameters"):
        create_optimizer(nn.Linear(2, 2).requires_grad_(False), lr=0.1, weight_decay=0.1)


def test_default_rates_scale_with_the_batch_and_shrink_for_pretrained_weights():
    assert default_lr("adamw", 128, False) == pytest.approx(1e-3)
    assert default_lr("adamw", 512, False) == pytest.approx(2e-3)
    assert default_lr("sgd", 64, False) == pytest.approx(0.025)
    assert default_lr("sgd", 64, False, width=384) == pytest.approx(0.025)
    for name in OPTIMIZERS:
        assert default_lr(name, 64, True) == pytest.approx(default_lr(name, 64, False) / 10)
        assert default_lr(name, 10**6, False) == default_lr(name, 4096, False)
    # Updates of orthogonal matrices have singular values of rate * 0.2 * sqrt(width): the same at every width.
    largest = [default_lr("muon8", 128, False, width) * 0.2 * width**0.5 for width in (64, 192, 768)]
    assert largest == pytest.approx([largest[0]] * 3)
    assert (default_weight_decay("adamw"), default_weight_decay("sgd")) == (0.05, 1e-4)


class Layered(nn.Module):
    """Three depths, one of them inside another's beginning."""

    def __init__(self):
        super().__init__()
        self.stem, self.blocks = nn.Linear(2, 2), nn.ModuleList(nn.Linear(2, 2) for _ in range(11))
        self.head = nn.Linear(2, 2)

    def layer_groups(self):
        return [("stem.", "blocks.1."), ("blocks.",), ("blocks.10.", "head.")]


def test_the_rate_falls_from_the_head_by_the_longest_beginning_of_a_name():
    optimizer = create_optimizer(Layered(), "sgd", lr=0.8, weight_decay=0.1, layer_decay=0.5)
    rates = {name: group["lr"] for group in optimizer.param_groups for name in group["param_names"]}
    assert len(rates) == 26
    expected = {
        "head.weight": 0.8,
        "blocks.10.bias": 0.8,
        "blocks.3.weight": 0.4,
        "blocks.1.bias": 0.2,
        "stem.bias": 0.2,
    }
    assert {name: rates[name] for name in expected} == pytest.approx(expected)
    decays = {name: group["weight_decay"] for group in optimizer.param_groups for name in group["param_names"]}
    assert all(decay == (0.1 if name.endswith("weight") else 0.0) for name, decay in decays.items())


def test_a_layer_decay_of_one_leaves_two_groups_and_one_below_needs_layers():
    assert len(parameter_groups(Layered(), 0.1)) == 2
    with pytest.raises(ConfigError, match="layer_decay needs a model that tells its layers"):
        parameter_groups(nn.Linear(2, 2), 0.1, layer_decay=0.5)
