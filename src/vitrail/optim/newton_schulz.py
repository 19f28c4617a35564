"""The nearest orthogonal matrix, of many matrices at once, with matrix products alone."""

from typing import Final

import torch
from torch import Tensor

from vitrail.runtime.precision import has_native_bf16

# Each step maps a singular value s to a s + b s^3 + c s^5. The numbers are those of the modded-nanogpt project (by
# Jiacheng You). From 0.003 to 1 of the matrix's Frobenius norm, where what is signal lies, five steps end between 0.97
# and 1.15 (a test counts); Jordan's constant numbers end between 0.68 and 1.21 there. Those of Polar Express (arXiv
# 2505.16932) reach further down, to directions that in a momentum are noise.
#
# Fewer or more steps than five are the compositions with the smallest largest deviation from 1 (8 % here) over as wide
# a range as they reach, each step found by linear programming as in Polar Express, section 3, for inputs up to 1 %
# beyond its range, as bf16 makes them: from 0.022 (3 steps), 0.0053 (4) and 0.00031 (6) of the norm. Six also lift what
# bf16 products round: a matrix of one direction then comes out with others of length 1.
COEFFICIENTS: Final[dict[int, tuple[tuple[float, float, float], ...]]] = {
    3: (
        (7.5715, -21.2197, 15.2703),
        (3.1339, -2.3073, 0.4746),
        (2.1813, -1.5596, 0.4071),
    ),
    4: (
        (8.2087, -23.6816, 17.1886),
        (3.8689, -2.8312, 0.5320),
        (3.1339, -2.3073, 0.4746),
        (2.1813, -1.5596, 0.4071),
    ),
    5: (
        (4.0848, -6.8946, 2.9270),
        (3.9505, -6.3029, 2.6377),
        (3.7418, -5.5913, 2.3037),
        (2.8769, -3.1427, 1.2046),
        (2.8366, -3.0525, 1.2012),
    ),
    6: (
        (8.4172, -24.4887, 17.8180),
        (4.1934, -3.0527, 0.5564),
        (4.1258, -3.0070, 0.5514),
        (3.8689, -2.8312, 0.5320),
        (3.1339, -2.3073, 0.4746),
        (2.1813, -1.5596, 0.4071),
    ),
}
"""By number of steps: what each does to a singular value."""


def orthogonalize(matrices: Tensor, steps: int = 5) -> Tensor:
    """Return matrices with the same singular vectors and singular values near 1.

    Products run in bf16 where the hardware multiplies it natively (CPUs with AVX512-BF16 or AMX, GPUs since Ampere),
    else in fp32. Singular values below about 0.003 of the Frobenius norm stay below 1, those of zero stay zero.

    Args:
        matrices: (K, r, c) in fp32.
        steps: one of `COEFFICIENTS`; the fewer, the more of the small singular values stay below 1.

    Returns:
        (K, r, c) in fp32.

    Source: Jordan et al., Muon: An optimizer for hidden layers in neural networks, 2024, section "Newton-Schulz".
    """
    wide = matrices.mT if matrices.shape[1] > matrices.shape[2] else matrices  # the smaller Gram matrix
    norm = torch.linalg.matrix_norm(wide, keepdim=True).clamp_min_(torch.finfo(torch.float32).tiny)
    x = wide / norm
    if has_native_bf16(x.device):
        x = x.bfloat16()
    x = x.contiguous()
    for a, b, c in COEFFICIENTS[steps]:
        gram = x @ x.mT  # (K, r, r)
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    out: Tensor = x.float()
    return out.mT if wide is not matrices else out
