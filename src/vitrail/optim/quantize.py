"""Momentum in 8 bits: whole numbers from -127 to 127 and one scale for every block of them.

Axes: B blocks of 128 elements.
"""

from typing import Final

import torch
from torch import Tensor

_LARGEST: Final = 127
# Gradients reach far below what fp16 can hold, so scales are bf16, which has the range of fp32.
SCALE_DTYPE: Final = torch.bfloat16


def quantize(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """Round each block to the nearest of 255 evenly spaced numbers between minus and plus its largest magnitude.

    Even spacing and rounding to nearest were chosen by measurement (`benchmarks/momentum_codes.py`): denser codes
    around zero gain nothing along the gradient, and stochastic rounding loses. Block-wise scales: Dettmers et al.,
    8-bit Optimizers via Block-wise Quantization, arXiv 2110.02861, section 2.1. Momentum of orthogonalised updates in
    8 bits: arXiv 2509.23106.

    Args:
        blocks: (B, 128) in fp32.

    Returns:
        Codes (B, 128) in int8 and scales (B,) in bf16.
    """
    scales = blocks.abs().amax(dim=-1).div_(_LARGEST).to(SCALE_DTYPE)
    # A block of zeros has the scale 0; any factor gives its codes.
    factors = scales.float().clamp_min_(torch.finfo(torch.float32).tiny).reciprocal_()
    # The scale was rounded, so the largest element may be a hair beyond 127 of it.
    codes = (blocks * factors[:, None]).round_().clamp_(-_LARGEST, _LARGEST).to(torch.int8)
    return codes, scales


def dequantize(codes: Tensor, scales: Tensor) -> Tensor:
    """Return the values (B, 128) in fp32 of codes (B, 128) and scales (B,)."""
    return codes.float().mul_(scales.float()[:, None])
