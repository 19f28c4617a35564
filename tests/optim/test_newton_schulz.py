import math

import pytest
import torch

from vitrail.optim import newton_schulz
from vitrail.optim.newton_schulz import COEFFICIENTS, orthogonalize, orthogonalize_all


@pytest.mark.parametrize(
    ("steps", "smallest", "least", "most"),
    [  # seen: 0.914 to 1.080, for five steps 0.978 to 1.145
        (3, 0.022, 0.915, 1.085),
        (4, 0.0053, 0.915, 1.085),
        (5, 0.003, 0.97, 1.15),
        (6, 0.00031, 0.91, 1.085),
    ],
)
def test_the_polynomial_brings_singular_values_near_one(steps, smallest, least, most):
    values = torch.logspace(math.log10(smallest), 0, 2000, dtype=torch.float64)
    for a, b, c in COEFFICIENTS[steps]:
        values = a * values + b * values**3 + c * values**5
    assert values.min() > least
    assert values.max() < most


@pytest.mark.parametrize("steps", sorted(COEFFICIENTS))
def test_a_single_direction_stays_one_of_length_near_one(steps):
    # Its singular value is the whole norm, where rounding to bf16 may leave the range that the numbers are made for.
    torch.manual_seed(0)
    u, v = (torch.nn.functional.normalize(torch.randn(5, 64, 1), dim=1) for _ in range(2))
    result = orthogonalize(u @ v.mT, steps).float()
    assert ((u.mT @ result @ v).flatten() - 1).abs().max() < 0.15  # seen: 0.03, 0.08, 0.02, 0.07


@pytest.mark.parametrize("native", [True, False], ids=["bf16", "fp32"])
@pytest.mark.parametrize("shape", [(3, 24, 24), (2, 16, 40), (2, 40, 16)], ids=["square", "wide", "tall"])
def test_the_result_is_near_the_polar_factor(monkeypatch, native, shape):
    monkeypatch.setattr(newton_schulz, "has_native_bf16", lambda device: native)
    torch.manual_seed(0)
    u, _, v = torch.linalg.svd(torch.randn(shape), full_matrices=False)
    spectrum = torch.linspace(1.0, 0.05, min(shape[1:]))
    result = orthogonalize(7e-12 * u @ torch.diag_embed(spectrum).expand(shape[0], -1, -1) @ v)
    assert result.shape == shape
    result = result.float()
    cosine = torch.nn.functional.cosine_similarity(result.flatten(), (u @ v).flatten(), dim=0)
    assert cosine > 0.999  # seen: 0.9998
    singular = torch.linalg.svdvals(result)
    assert singular.min() > 0.9
    assert singular.max() < 1.15


@pytest.mark.parametrize(("native", "most"), [(True, 0.06), (False, 2e-5)], ids=["bf16", "fp32"])  # seen: 0.030, 3e-6
@pytest.mark.parametrize("shape", [(2, 48, 48), (2, 32, 128), (2, 128, 32), (1, 330, 700)])
@pytest.mark.parametrize("steps", [3, 4, 5])
def test_steps_that_share_a_factor_do_what_each_does_to_a_singular_value(monkeypatch, native, most, shape, steps):
    monkeypatch.setattr(newton_schulz, "has_native_bf16", lambda device: native)
    torch.manual_seed(0)
    u, _, v = torch.linalg.svd(torch.randn(shape, dtype=torch.float64), full_matrices=False)
    values = 1 / torch.arange(1, min(shape[1:]) + 1, dtype=torch.float64)
    result = orthogonalize((u @ torch.diag(values) @ v).float(), steps).double()
    values = values / values.norm()
    for a, b, c in COEFFICIENTS[steps]:
        values = a * values + b * values**3 + c * values**5
    exact = u @ torch.diag(values) @ v
    assert (result - exact).norm() / exact.norm() < most


@pytest.mark.parametrize("steps", sorted(COEFFICIENTS))
def test_only_long_matrices_share_factors_and_no_step_is_left_out(steps):
    square, long = newton_schulz._joined(steps, 1.5), newton_schulz._joined(steps, 4.0)
    assert [len(joined) for joined in square] == [1] * steps
    assert [len(joined) for joined in long] == {3: [1, 2], 4: [2, 2], 5: [1, 2, 2], 6: [1, 1, 2, 2]}[steps]
    assert sum(long, ()) == COEFFICIENTS[steps] == sum(square, ())


def test_a_stack_gives_what_each_matrix_gives_alone():
    torch.manual_seed(0)
    stack = torch.randn(4, 12, 20)
    together = orthogonalize(stack)
    alone = torch.cat([orthogonalize(matrix[None]) for matrix in stack])
    torch.testing.assert_close(together, alone, rtol=0, atol=0.02)  # bf16; seen: 0


def test_stacks_of_several_shapes_give_what_each_gives_alone():
    torch.manual_seed(0)
    shapes = [
        (1, 12, 27),
        (3, 40, 24),
        (2, 24, 40),
        (1, 8, 8),
        (2, 64, 192),
        (4, 192, 64),
        (1, 200, 300),
        (2, 330, 400),
    ]
    stacks = [torch.randn(shape) for shape in shapes]
    for stack, result in zip(stacks, orthogonalize_all(stacks), strict=True):
        assert result.shape == stack.shape
        torch.testing.assert_close(result.float(), orthogonalize(stack).float(), rtol=0, atol=0.02)  # bf16; seen: 0


def test_small_stacks_share_products_and_large_ones_do_not(monkeypatch):
    calls = []
    iterate = newton_schulz._iterate
    monkeypatch.setattr(newton_schulz, "_iterate", lambda x, steps: calls.append(tuple(x.shape)) or iterate(x, steps))
    orthogonalize_all([torch.randn(shape) for shape in ((2, 16, 40), (1, 400, 300), (3, 48, 24), (1, 300, 400))])
    assert sorted(calls) == [(1, 300, 400), (1, 400, 300), (5, 24, 48)]


def test_zeros_stay_zeros():
    assert torch.equal(orthogonalize(torch.zeros(2, 8, 8)), torch.zeros(2, 8, 8))
