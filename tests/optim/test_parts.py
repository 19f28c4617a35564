"""What one parameter holds as several matrices moves as if they were layers apart."""

import pytest
import torch
from torch import nn

from vitrail.optim import Muon8


class Attention(nn.Module):
    """Linear maps from 16 features, by name and number of rows."""

    def __init__(self, heads=2, parts=None, **rows):
        super().__init__()
        self.num_heads, self.parts = heads, parts
        for name, number in rows.items():
            self.add_module(name, nn.Linear(16, number, bias=False))


def weights(model):
    return torch.cat([parameter.detach() for parameter in model.parameters()])


def train(model, **options):
    """Take three steps; start and gradients depend on the total number of rows alone."""
    torch.manual_seed(0)
    sizes = [len(parameter) for parameter in model.parameters()]
    start, *gradients = torch.randn(4, sum(sizes), 16)
    for parameter, value in zip(model.parameters(), start.split(sizes), strict=True):
        parameter.data.copy_(value)
    optimizer = Muon8(model, lr=0.01, **options)
    for gradient in gradients:
        for parameter, value in zip(model.parameters(), gradient.split(sizes), strict=True):
            parameter.grad = value.clone()
        optimizer.step()
    return weights(model)


@pytest.mark.parametrize(
    ("qkv", "layers", "apart"),
    [
        ("fused", {"qkv": 48}, [48]),
        ("split", {"qkv": 48}, [16, 16, 16]),
        ("heads", {"qkv": 48}, [8] * 6),
        ("fused", {"q": 16, "kv": 32}, [16, 32]),
        ("split", {"q": 16, "kv": 32}, [16, 16, 16]),
        ("split", {"q": 16, "k": 16, "v": 16}, [16, 16, 16]),
        ("heads", {"q": 16, "k": 16, "v": 16}, [8] * 6),
        ("heads", {"q": 16, "kv": 32}, [8] * 6),
        ("split", {"qkv": 40, "parts": (8, 8, 24)}, [8, 8, 24]),
        ("heads", {"qkv": 64, "parts": (16, 16, 32)}, [8, 8, 8, 8, 16, 16]),
        ("split", {"qkv_proj": 33}, [1, 16, 16]),  # one score, keys and values: MobileViTv2
        ("split", {"qkv": 32}, [16, 16]),  # keys and values alone
        ("split", {"qkv": 40}, [40]),  # nothing tells where they meet
    ],
)
def test_queries_keys_and_values_are_as_many_matrices_as_asked_for(in_fp32, qkv, layers, apart):
    ours = train(Attention(**layers), qkv=qkv)
    theirs = train(Attention(**{f"layer{number}": rows for number, rows in enumerate(apart)}), roles={"*": "matrix"})
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)  # seen: 0
