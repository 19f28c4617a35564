"""Multiply-adds are those of the formulas, attention's products among them, whatever kernel computes it."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from vitrail.evaluation.cost import build_on_meta, measure_latency, model_cost
from vitrail.models import create_model, list_models


class PlainVit(nn.Module):
    """A ViT-Ti/16 by hand, with the fused attention that PyTorch's counter leaves out on a CPU."""

    def __init__(self, dim=192, depth=12, heads=3, num_classes=1000):
        super().__init__()
        self.heads = heads
        self.embed = nn.Conv2d(3, dim, 16, stride=16)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, 197, dim))
        self.qkv = nn.ModuleList(nn.Linear(dim, 3 * dim) for _ in range(depth))
        self.proj = nn.ModuleList(nn.Linear(dim, dim) for _ in range(depth))
        self.mlp = nn.ModuleList(
            nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Dropout(0.5), nn.Linear(4 * dim, dim))
            for _ in range(depth)
        )
        self.head = nn.Linear(dim, num_classes)
        self.register_buffer("unsaved", torch.zeros(7), persistent=False)

    def forward(self, images):
        x = self.embed(images).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], dim=1) + self.pos_embed + self.unsaved.sum()
        for qkv, proj, mlp in zip(self.qkv, self.proj, self.mlp, strict=True):
            q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in qkv(x).chunk(3, dim=-1))
            x = x + proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
            x = x + mlp(x)
        return self.head(x[:, 0])


def vit_macs(dim=192, depth=12, tokens=197, num_classes=1000):
    linear = tokens * dim * dim * (3 + 1 + 4 + 4)  # qkv, proj, fc1, fc2
    attention = 2 * tokens * tokens * dim  # q k^T and its product with v, over all heads
    return (tokens - 1) * 3 * 16 * 16 * dim + depth * (linear + attention) + dim * num_classes


def test_a_vit_costs_what_the_formula_says_attention_included():
    cost = model_cost(PlainVit(), (224, 224))
    assert cost.macs == vit_macs()
    assert abs(cost.macs / 1.2535e9 - 1) < 1e-3  # 2.507 GFLOP, as measured independently in research/deploy.md


def test_vitrails_own_vit_costs_the_same():
    assert model_cost(create_model("vit_tiny_patch16"), (224, 224)).macs == vit_macs()


def test_parameters_bytes_and_activations_of_a_small_net_are_those_counted_by_hand():
    model = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 5 * 6, 4))
    cost = model_cost(model, (10, 12))
    assert cost.parameters == (3 * 9 * 8 + 8) + (240 * 4 + 4)
    assert cost.macs == 3 * 9 * 8 * 30 + 240 * 4
    assert cost.activations == 8 * 30 + 4
    assert cost.weights_bytes == 4 * cost.parameters


def test_depthwise_convolutions_and_grey_images_are_counted_by_their_groups():
    model = nn.Conv2d(1, 6, 3, padding=1, groups=1)
    assert model_cost(model, (8, 8), in_channels=1).macs == 9 * 6 * 64
    assert model_cost(nn.Conv2d(6, 6, 3, padding=1, groups=6), (8, 8), in_channels=6).macs == 9 * 6 * 64


def test_counting_computes_nothing_and_leaves_the_model_as_it_was():
    model = PlainVit(depth=1).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model_cost(model, (224, 224))
    assert model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert {each.device.type for each in model.parameters()} == {"cpu"}


def test_half_precision_halves_the_bytes_and_not_the_work():
    whole, half = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1).bfloat16()
    assert model_cost(half, (8, 8)).macs == model_cost(whole, (8, 8)).macs
    assert 2 * model_cost(half, (8, 8)).weights_bytes == model_cost(whole, (8, 8)).weights_bytes


def test_latency_counts_its_runs_and_orders_its_percentiles():
    calls = []
    latency = measure_latency(lambda: calls.append(1), num_warmup=3, num_runs=20)
    assert (len(calls), latency.num_runs) == (23, 20)
    assert 0 <= latency.p50_ms <= latency.p90_ms
    assert latency.threads == torch.get_num_threads()


def test_a_slow_model_is_measured_at_least_once():
    assert measure_latency(lambda: None, num_warmup=5, num_runs=50, time_limit_s=0.0, threads=2).num_runs == 1


def counted_by_pytorch(model, image_size):
    """Multiply-adds and outputs with PyTorch's own counter and its own meta kernels."""
    with torch.device("meta"):
        images = torch.empty(1, 3, *image_size)
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        shape = model(images).shape
    return counter.get_total_flops() // 2, shape


@pytest.mark.parametrize("name", list_models())
def test_counting_by_shapes_alone_agrees_with_pytorchs_counter_on_every_model(name):
    model = build_on_meta(lambda: create_model(name)).eval()
    macs, _ = counted_by_pytorch(model, model.image_size)
    assert model_cost(model, model.image_size).macs == macs


def test_a_model_built_on_meta_has_the_shapes_of_a_real_one():
    real, meta = create_model("vit_micro_patch8"), build_on_meta(lambda: create_model("vit_micro_patch8"))
    assert {name: each.shape for name, each in real.state_dict().items()} == {
        name: each.shape for name, each in meta.state_dict().items()
    }
    assert all(each.is_meta for each in meta.state_dict().values())


def test_shapes_of_uncommon_layers_are_right_too():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.down = nn.Conv2d(3, 8, (3, 5), stride=(2, 1), padding=(0, 2), dilation=(2, 1), bias=False)
            self.up = nn.ConvTranspose2d(8, 6, 3, stride=2)
            self.norms = nn.Sequential(nn.BatchNorm2d(6), nn.GroupNorm(2, 6), nn.Hardswish(inplace=True))
            self.mixed = nn.Linear(6, 5, bias=False)

        def forward(self, x):
            x = self.norms(self.up(self.down(x)))
            x = torch.cat([x, x.mean(1, keepdim=True).expand_as(x)], dim=-1)
            x = x * x.mean(dim=(-1, -2), keepdim=True)
            return self.mixed(x.flatten(2).transpose(1, 2)) + (x.sum() > 0)

    model = Odd().eval()
    meta = build_on_meta(Odd).eval()
    macs, shape = counted_by_pytorch(meta, (21, 18))
    assert shape == model(torch.randn(1, 3, 21, 18)).shape
    assert model_cost(model, (21, 18)).macs == macs
