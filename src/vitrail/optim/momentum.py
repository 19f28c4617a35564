"""The running mean of a gradient, kept in 8, 16 or 32 bits.

Axes: K matrices, n elements of each.
"""

from collections.abc import Mapping, Sequence
from typing import Final, Literal

import torch
from torch import Tensor

from vitrail.optim.quantize import SCALE_DTYPE, dequantize, num_blocks, quantize

MomentumDtype = Literal["int8", "bf16", "fp32"]
MOMENTUM_DTYPES: Final[dict[str, torch.dtype]] = {
    "int8": torch.int8,
    "bf16": torch.bfloat16,
    "fp32": torch.float32,
}


def new_momentum(shape: Sequence[int], parts: int, dtype: MomentumDtype, device: torch.device) -> dict[str, Tensor]:
    """Return the state of a parameter whose rows hold ``parts`` matrices, all zero.

    "momentum" has the parameter's shape; in int8, "momentum_scale" (parts, blocks) belongs to it.
    """
    state = {"momentum": torch.zeros(tuple(shape), dtype=MOMENTUM_DTYPES[dtype], device=device)}
    if dtype == "int8":
        blocks = num_blocks(state["momentum"].numel() // parts)
        state["momentum_scale"] = torch.zeros(parts, blocks, dtype=SCALE_DTYPE, device=device)
    return state


def accumulate(states: Sequence[Mapping[str, Tensor]], parts: int, gradients: Tensor, beta: float) -> Tensor:
    """Move every momentum towards its gradient, store it, and return it before it was rounded.

    Args:
        states: of `new_momentum`, changed in place.
        parts: matrices in each of them.
        gradients: (K, n) in fp32, K = parts * number of states.
        beta: share of the old momentum that stays, in [0, 1).

    Returns:
        (K, n) in fp32.
    """
    flat = [state["momentum"].view(parts, -1) for state in states]
    stored = torch.cat(flat)
    if stored.dtype != torch.int8:
        momentum = stored.float().lerp_(gradients, 1 - beta)
        torch._foreach_copy_(flat, torch.split(momentum, parts))
        return momentum
    scales = [state["momentum_scale"] for state in states]
    momentum = dequantize(stored, torch.cat(scales)).lerp_(gradients, 1 - beta)
    new_codes, new_scales = quantize(momentum)
    torch._foreach_copy_(flat, torch.split(new_codes, parts))
    torch._foreach_copy_(scales, torch.split(new_scales, parts))
    return momentum
