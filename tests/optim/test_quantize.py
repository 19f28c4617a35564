import pytest
import torch

from vitrail.optim.blocks import BLOCK, Layout
from vitrail.optim.momentum import accumulate, new_momentum
from vitrail.optim.quantize import dequantize, quantize


def test_no_value_moves_by_more_than_half_a_step_of_its_block():
    torch.manual_seed(0)
    values = torch.randn(3 * 8, BLOCK) * torch.logspace(-8, 2, 3 * 8)[:, None]
    codes, scales = quantize(values)
    assert (codes.dtype, codes.shape) == (torch.int8, (24, BLOCK))
    assert (scales.dtype, scales.shape) == (torch.bfloat16, (24,))
    steps = scales.float()[:, None]
    # The largest of a block may lie beyond 127 steps by the rounding of the scale to 8 bits: half a step more.
    assert ((dequantize(codes, scales) - values).abs() <= 0.5 * steps + 127 * steps * 2**-8).all()
    assert ((dequantize(codes, scales) - values).abs() <= 0.5001 * steps)[codes.abs() < 127].all()


def test_a_second_rounding_changes_nothing():
    torch.manual_seed(0)
    once = dequantize(*quantize(torch.randn(6, BLOCK)))
    assert torch.equal(dequantize(*quantize(once)), once)


def test_blocks_of_zeros_and_tiny_numbers_are_kept():
    values = torch.zeros(2, BLOCK)
    values[1] = 1e-30
    result = dequantize(*quantize(values))
    assert torch.equal(result[0], values[0])
    torch.testing.assert_close(result[1], values[1], rtol=5e-3, atol=0)


def test_tensors_of_any_shape_and_stride_lie_side_by_side():
    torch.manual_seed(0)
    tensors = [torch.randn(3, 50), torch.randn(1), torch.randn(4, 2, 4, 4).to(memory_format=torch.channels_last)]
    tensors.append(torch.randn(8, 32)[:, ::2])  # 128 elements: a whole block
    layout = Layout([tensor.numel() for tensor in tensors])
    buffer = layout.gather(tensors)
    assert layout.blocks == [2, 1, 1, 1]
    assert buffer.shape == (5, BLOCK)
    assert [part.data_ptr() for part in layout.parts(buffer)] == [buffer[row].data_ptr() for row in (0, 2, 3, 4)]
    assert buffer[1, 22:].count_nonzero() == buffer[2, 1:].count_nonzero() == 0, "what is between them is zero"
    copies = [torch.empty_like(tensor) for tensor in tensors]
    layout.scatter(buffer, copies)
    assert all(torch.equal(copy, tensor) for copy, tensor in zip(copies, tensors, strict=True))


@pytest.mark.parametrize(("dtype", "tolerance"), [("fp32", 1e-6), ("bf16", 2e-2), ("int8", 3e-2)])
def test_the_running_mean_stays_near_the_exact_one(dtype, tolerance):
    torch.manual_seed(0)
    shapes = [(6, 50), (16, 16)]
    layout = Layout([300, 256])
    states = [new_momentum(shape, [shape[0] * shape[1]], dtype, torch.device("cpu")) for shape in shapes]
    stored = [state["momentum"] for state in states]
    scales = [state["momentum_scale"] for state in states] if dtype == "int8" else []
    exact = [torch.zeros(shape) for shape in shapes]
    for _ in range(60):
        gradients = [torch.randn(shape) + 0.3 for shape in shapes]
        for mean, gradient in zip(exact, gradients, strict=True):
            mean.lerp_(gradient, 0.05)
        accumulate(layout, stored, scales, layout.gather(gradients), 0.95)
    found = (
        layout.gather(stored) if dtype != "int8" else dequantize(layout.gather(stored, torch.int8), torch.cat(scales))
    )
    for mean, each in zip(exact, layout.parts(found), strict=True):
        assert (each.view_as(mean) - mean).norm() / mean.norm() < tolerance  # seen: 0, 5e-3, 1.4e-2
