"""Momentum in 8 bits: whole numbers from -127 to 127 and one scale for every 128 of them.

Axes: K matrices, n elements of each, b = ceil(n / 128) blocks of each.
"""

from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK: Final = 128
"""Neighbouring elements that share a scale: 8 bits and a 16-bit scale are then 1.016 bytes per element."""
_LARGEST: Final = 127
# Gradients reach far below what fp16 can hold, so scales are bf16, which has the range of fp32.
SCALE_DTYPE: Final = torch.bfloat16


def num_blocks(size: int) -> int:
    """Return how many scales ``size`` elements have."""
    return -(-size // BLOCK)


def quantize(values: Tensor) -> tuple[Tensor, Tensor]:
    """Round each block to the nearest of 255 evenly spaced numbers between minus and plus its largest magnitude.

    Even spacing and rounding to nearest were chosen by measurement (`benchmarks/momentum_codes.py`): denser codes
    around zero gain nothing along the gradient, and stochastic rounding loses. Block-wise scales: Dettmers et al.,
    8-bit Optimizers via Block-wise Quantization, arXiv 2110.02861, section 2.1. Momentum of orthogonalised updates in
    8 bits: arXiv 2509.23106.

    Args:
        values: (K, n) in fp32.

    Returns:
        Codes (K, n) in int8 and scales (K, b) in bf16.
    """
    blocks = _in_blocks(values)  # (K, b, 128)
    scales = blocks.abs().amax(dim=-1).div_(_LARGEST).to(SCALE_DTYPE)
    # A block of zeros has the scale 0; any divisor gives its codes.
    divisors = scales.float().clamp_min_(torch.finfo(torch.float32).tiny)
    # The scale was rounded, so the largest element may be a hair beyond 127 of it.
    codes = (blocks / divisors[..., None]).round_().clamp_(-_LARGEST, _LARGEST).to(torch.int8)
    return codes.flatten(1)[:, : values.shape[1]], scales


def dequantize(codes: Tensor, scales: Tensor) -> Tensor:
    """Return the values (K, n) in fp32 of codes (K, n) and scales (K, b)."""
    blocks = _in_blocks(codes.float())
    return blocks.mul_(scales.float()[..., None]).flatten(1)[:, : codes.shape[1]]


def _in_blocks(values: Tensor) -> Tensor:
    """Return (K, n) as (K, b, 128); zeros fill the last block."""
    missing = -values.shape[1] % BLOCK
    padded = F.pad(values, (0, missing)) if missing else values
    return torch.unflatten(padded, 1, (-1, BLOCK))
