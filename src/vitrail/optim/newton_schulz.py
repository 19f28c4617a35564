"""The nearest orthogonal matrix, of many matrices at once, with matrix products alone."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Final

import torch
from torch import Tensor

from vitrail.runtime.precision import has_native_bf16

Step = tuple[float, float, float]

# Each step maps a singular value s to a s + b s^3 + c s^5. The numbers are those of the modded-nanogpt project (by
# Jiacheng You). From 0.003 to 1 of the matrix's Frobenius norm, where what is signal lies, five steps end between 0.97
# and 1.15 (a test counts); Jordan's constant numbers end between 0.68 and 1.21 there. Those of Polar Express (arXiv
# 2505.16932) reach further down, to directions that in a momentum are noise.
#
# Fewer or more steps than five are the compositions with the smallest largest deviation from 1 (8 % here) over as wide
# a range as they reach, each step found by linear programming as in Polar Express, section 3, for inputs up to 1 %
# beyond its range, as bf16 makes them: from 0.022 (3 steps), 0.0053 (4) and 0.00031 (6) of the norm. Six also lift what
# bf16 products round: a matrix of one direction then comes out with others of length 1.
COEFFICIENTS: Final[dict[int, tuple[Step, ...]]] = {
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


# What it costs to begin the products of a step, and to copy an element there and back, in multiplications and additions
# that a CPU does meanwhile: measured on one core of a Zen 4, in bf16 through oneDNN.
_BEGIN: Final = 12e6
_COPY: Final = 80.0
# From this ratio of the sides on, steps are joined: see `_joined`.
_LONG: Final = 1.75
# From this smaller side on, a CPU is faster with one matrix at a time.
_ALONE: Final = 320


def orthogonalize(matrices: Tensor, steps: int = 5) -> Tensor:
    """Return matrices with the same singular vectors and singular values near 1.

    Products run in bf16 where the hardware multiplies it natively (CPUs with AVX512-BF16 or AMX, GPUs since Ampere),
    else in fp32. Singular values below about 0.003 of the Frobenius norm stay below 1, those of zero stay zero.

    Args:
        matrices: (K, r, c) in fp32.
        steps: one of `COEFFICIENTS`; the fewer, the more of the small singular values stay below 1.

    Returns:
        (K, r, c) in the dtype of the products.

    Source: Jordan et al., Muon: An optimizer for hidden layers in neural networks, 2024, section "Newton-Schulz".
    """
    return _iterate(_normalize(matrices), steps)


def orthogonalize_all(stacks: Sequence[Tensor], steps: int = 5) -> list[Tensor]:
    """Do the same for stacks of several shapes, with few products: small ones share them, filled up with zeros.

    Rows and columns of zeros stay zero and change nothing else, and a matrix that lies on its side is turned.
    """
    results: list[Tensor] = list(stacks)
    for members in _groups(tuple(tuple(stack.shape) for stack in stacks)):
        if len(members) == 1:
            results[members[0]] = orthogonalize(stacks[members[0]], steps)
            continue
        wide = [stack.mT if stack.shape[1] > stack.shape[2] else stack for stack in (stacks[i] for i in members)]
        counts = [len(stack) for stack in wide]
        rows, columns = (max(stack.shape[axis] for stack in wide) for axis in (1, 2))
        dtype = _product_dtype(wide[0].device)
        together = torch.zeros(sum(counts), rows, columns, dtype=dtype, device=wide[0].device)
        for stack, place in zip(wide, torch.split(together, counts), strict=True):
            place[:, : stack.shape[1], : stack.shape[2]].copy_(_normalize(stack))
        for index, stack, own in zip(members, wide, torch.split(_iterate(together, steps), counts), strict=True):
            own = own[:, : stack.shape[1], : stack.shape[2]]
            results[index] = own if own.shape == stacks[index].shape else own.mT
    return results


@lru_cache(maxsize=256)
def _groups(shapes: tuple[tuple[int, ...], ...]) -> list[list[int]]:
    """Return which stacks share products: neighbours by size, as long as that saves more than the zeros cost."""

    def sides(index: int) -> tuple[int, int]:
        return min(shapes[index][1:]), max(shapes[index][1:])

    def cost(members: list[int]) -> float:
        count = sum(shapes[index][0] for index in members)
        rows, columns = (max(sides(index)[side] for index in members) for side in (0, 1))
        copied = 0.0 if len(members) == 1 else _COPY * rows * columns
        return _BEGIN + count * (4 * rows * rows * columns + 2 * rows**3 + copied)

    groups: list[list[int]] = []
    for index in sorted(range(len(shapes)), key=sides):
        if groups and cost([*groups[-1], index]) < cost(groups[-1]) + cost([index]):
            groups[-1].append(index)
        else:
            groups.append([index])
    return groups


def _normalize(matrices: Tensor) -> Tensor:
    """Divide each matrix by its Frobenius norm, and give it the products' dtype."""
    norm = torch.linalg.vector_norm(matrices, dim=(1, 2), keepdim=True)
    x: Tensor = matrices * norm.clamp_min_(torch.finfo(torch.float32).tiny).reciprocal_()
    return x.to(_product_dtype(x.device))


def _iterate(x: Tensor, steps: int) -> Tensor:
    """Take the steps with a stack of matrices (K, r, c), or with one (r, c)."""
    if x.ndim == 3 and x.device.type == "cpu" and min(x.shape[1:]) >= _ALONE:
        return torch.stack([_iterate(matrix, steps) for matrix in x.unbind()])
    is_tall = x.shape[-2] > x.shape[-1]
    for joined in _joined(steps, max(x.shape[-2:]) / min(x.shape[-2:])):
        # The smaller Gram matrix. Products read a transposed matrix as fast as it is; copying one would take longer.
        factor = _factor(x.mT @ x if is_tall else x @ x.mT, joined)
        x = x @ factor if is_tall else factor @ x
    return x


@lru_cache(maxsize=256)
def _joined(steps: int, aspect: float) -> list[tuple[Step, ...]]:
    """Return the steps; on a long matrix the last four two by two, as those that share a factor.

    With a factor each, two steps take 8 r^2 c + 4 r^3 multiplications and additions, with one for both they take
    4 r^2 c + 10 r^3. What rounding does to small eigenvalues of the Gram matrix grows with the square of each shared
    step's ``a``, so in bf16 no more than two can share one: then a result is at most 0.02 further off than it is anyway
    (relative, up to five steps, spectra falling like n^-0.5 to n^-2); with three 0.1, and with four it is useless.
    """
    single = COEFFICIENTS[steps]
    num_joined = 0 if aspect < _LONG else min(4, steps // 2 * 2)
    num_alone = steps - num_joined
    pairs = [single[place : place + 2] for place in range(num_alone, steps, 2)]
    return [(step,) for step in single[:num_alone]] + pairs


def _factor(gram: Tensor, joined: Sequence[Step]) -> Tensor:
    """Return what the steps multiply a matrix by, from its Gram matrix (K, r, r) or (r, r) alone.

    A step multiplies it by P = a + b G + c G^2, after which its Gram matrix is P G P.
    """
    multiply = torch.addmm if gram.ndim == 2 else torch.baddbmm
    whole: Tensor | None = None
    for a, b, c in joined:
        if whole is not None:
            gram = whole @ gram @ whole
        factor = multiply(gram, gram, gram, beta=b, alpha=c)
        factor.diagonal(dim1=-2, dim2=-1).add_(a)
        whole = factor if whole is None else factor @ whole
    assert whole is not None
    return whole


def _product_dtype(device: torch.device) -> torch.dtype:
    return torch.bfloat16 if has_native_bf16(device) else torch.float32
