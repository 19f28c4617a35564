import pytest
import torch

from vitrail.optim.momentum import accumulate, new_momentum
from vitrail.optim.quantize import BLOCK, dequantize, num_blocks, quantize


@pytest.mark.parametrize("size", [1, 127, 128, 129, 1000])
def test_no_value_moves_by_more_than_half_a_step_of_its_block(size):
    torch.manual_seed(0)
    values = torch.randn(3, size) * torch.logspace(-8, 2, size)
    codes, scales = quantize(values)
    assert (codes.dtype, codes.shape) == (torch.int8, (3, size))
    assert (scales.dtype, scales.shape) == (torch.bfloat16, (3, num_blocks(size)))
    steps = scales.float().repeat_interleave(BLOCK, dim=1)[:, :size]
    # The largest of a block may lie beyond 127 steps by the rounding of the scale to 8 bits: half a step more.
    assert ((dequantize(codes, scales) - values).abs() <= 0.5 * steps + 127 * steps * 2**-8).all()
    assert ((dequantize(codes, scales) - values).abs() <= 0.5001 * steps)[codes.abs() < 127].all()


def test_a_second_rounding_changes_nothing():
    torch.manual_seed(0)
    once = dequantize(*quantize(torch.randn(2, 300)))
    assert torch.equal(dequantize(*quantize(once)), once)


def test_blocks_of_zeros_and_tiny_numbers_are_kept():
    values = torch.zeros(1, 2 * BLOCK)
    values[0, BLOCK:] = 1e-30
    result = dequantize(*quantize(values))
    assert torch.equal(result[:, :BLOCK], values[:, :BLOCK])
    torch.testing.assert_close(result[:, BLOCK:], values[:, BLOCK:], rtol=5e-3, atol=0)


@pytest.mark.parametrize(("dtype", "tolerance"), [("fp32", 1e-6), ("bf16", 2e-2), ("int8", 3e-2)])
def test_the_running_mean_stays_near_the_exact_one(dtype, tolerance):
    torch.manual_seed(0)
    states = [new_momentum((6, 50), 3, dtype, torch.device("cpu")) for _ in range(2)]
    exact = torch.zeros(6, 100)
    for _ in range(60):
        gradients = torch.randn(6, 100) + 0.3
        exact.lerp_(gradients, 0.05)
        accumulate(states, 3, gradients, 0.95)
    if dtype == "int8":
        stored = torch.cat([dequantize(s["momentum"].view(3, -1), s["momentum_scale"]) for s in states])
    else:
        stored = torch.cat([s["momentum"].view(3, -1) for s in states]).float()
    assert (stored - exact).norm() / exact.norm() < tolerance  # seen: 0, 5e-3, 1.4e-2
