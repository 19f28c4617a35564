"""The running mean of a gradient, kept in 8, 16 or 32 bits."""

from collections.abc import Sequence
from typing import Final, Literal

import torch
from torch import Tensor

from vitrail.optim.blocks import Layout, num_blocks
from vitrail.optim.quantize import SCALE_DTYPE, dequantize, quantize

MomentumDtype = Literal["int8", "bf16", "fp32"]
MOMENTUM_DTYPES: Final[dict[str, torch.dtype]] = {
    "int8": torch.int8,
    "bf16": torch.bfloat16,
    "fp32": torch.float32,
}


def new_momentum(
    shape: Sequence[int], sizes: Sequence[int], dtype: MomentumDtype, device: torch.device
) -> dict[str, Tensor]:
    """Return the state of a parameter whose rows hold matrices of ``sizes`` elements, all zero.

    "momentum" has the parameter's shape; in int8, "momentum_scale" (blocks of all matrices,) belongs to it.
    """
    state = {"momentum": torch.zeros(tuple(shape), dtype=MOMENTUM_DTYPES[dtype], device=device)}
    if dtype == "int8":
        blocks = sum(num_blocks(size) for size in sizes)
        state["momentum_scale"] = torch.zeros(blocks, dtype=SCALE_DTYPE, device=device)
    return state


def accumulate(
    layout: Layout, stored: Sequence[Tensor], scales: Sequence[Tensor], gradients: Tensor, beta: float
) -> Tensor:
    """Move every momentum towards its gradient, store it, and return it before it was rounded.

    Args:
        layout: where each of them lies in a buffer.
        stored: momenta, changed in place.
        scales: those of each in int8, changed in place; of other dtypes none.
        gradients: buffer (B, 128) in fp32.
        beta: share of the old momentum that stays, in [0, 1).

    Returns:
        Buffer (B, 128) in fp32.
    """
    if stored[0].dtype != torch.int8:
        momentum = layout.gather(stored).lerp_(gradients, 1 - beta)
        layout.scatter(momentum, stored)
        return momentum
    momentum = dequantize(layout.gather(stored, torch.int8), torch.cat(list(scales))).lerp_(gradients, 1 - beta)
    new_codes, new_scales = quantize(momentum)
    layout.scatter(new_codes, stored)
    torch._foreach_copy_(list(scales), list(torch.split(new_scales, layout.blocks)))
    return momentum
