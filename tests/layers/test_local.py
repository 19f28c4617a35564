"""Adaptive local enhancement: against independent references, and the properties it is used for."""

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from vitrail.errors import ConfigError
from vitrail.layers.local import LocalEnhancement

GRIDS = [(4, 4), (3, 5), (1, 6), (7, 2)]


def randomised(dim: int, form: str) -> LocalEnhancement:
    module = LocalEnhancement(dim, form=form).double()
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.5)
    return module


def neighbours(patches: Tensor, grid: tuple[int, int]) -> Tensor:
    """(B, H * W, D) to (B, H * W, 3, 3, D), zeros beyond the border; plain loops over offsets, no convolution."""
    height, width = grid
    around = torch.zeros(patches.shape[0], height * width, 3, 3, patches.shape[2], dtype=patches.dtype)
    for row in range(height):
        for column in range(width):
            for down in (-1, 0, 1):
                for right in (-1, 0, 1):
                    if 0 <= row + down < height and 0 <= column + right < width:
                        source = patches[:, (row + down) * width + column + right]
                        around[:, row * width + column, down + 1, right + 1] = source
    return around


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("num_prefix", [0, 1, 5])
def test_the_literal_form_is_relu_of_a_full_convolution_on_the_grid(grid: tuple[int, int], num_prefix: int) -> None:
    torch.manual_seed(0)
    module = randomised(6, "literal")
    tokens = torch.randn(2, num_prefix + grid[0] * grid[1], 6, dtype=torch.float64)
    around = neighbours(tokens[:, num_prefix:], grid)
    expected = torch.einsum("bnijc,dcij->bnd", around, module.conv.weight) + module.conv.bias
    enhanced = module(tokens, grid, num_prefix)
    # Worst difference measured over all cases: 7.1e-15.
    torch.testing.assert_close(enhanced[:, num_prefix:], expected.clamp(min=0), rtol=0, atol=1e-13)
    assert torch.equal(enhanced[:, :num_prefix], tokens[:, :num_prefix])


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("num_prefix", [0, 1, 5])
def test_the_adaptive_form_adds_gated_depthwise_detail(grid: tuple[int, int], num_prefix: int) -> None:
    torch.manual_seed(0)
    module = randomised(6, "adaptive")
    tokens = torch.randn(2, num_prefix + grid[0] * grid[1], 6, dtype=torch.float64)
    patches = tokens[:, num_prefix:]
    detail = torch.einsum("bnijd,dij->bnd", neighbours(patches, grid), module.conv.weight[:, 0]) + module.conv.bias
    gate = 1 / (1 + torch.exp(-(patches @ module.gate.weight[0] + module.gate.bias)))
    expected = patches + gate[..., None] * module.scale * detail.clamp(min=0)
    enhanced = module(tokens, grid, num_prefix)
    # Worst difference measured over all cases: 4.4e-16.
    torch.testing.assert_close(enhanced[:, num_prefix:], expected, rtol=0, atol=1e-13)
    assert torch.equal(enhanced[:, :num_prefix], tokens[:, :num_prefix])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_fresh_adaptive_module_is_the_identity_bit_for_bit(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    tokens = (100 * torch.randn(2, 16, 8)).to(dtype)
    assert torch.equal(LocalEnhancement(8).to(dtype)(tokens, (3, 5), 1), tokens)


def test_the_detail_filter_starts_as_the_difference_from_the_neighbourhood() -> None:
    module = LocalEnhancement(4)
    nn.init.ones_(module.scale)
    flat = module(torch.ones(1, 25, 4), (5, 5), 0).reshape(5, 5, 4)
    # Nothing to add inside a flat area; a token that stands out gets half (the open gate) of 1 - 1/9.
    torch.testing.assert_close(flat[1:4, 1:4], torch.ones(3, 3, 4), rtol=0, atol=1e-6)
    spot = torch.zeros(1, 25, 4)
    spot[:, 12] = 1
    torch.testing.assert_close(module(spot, (5, 5), 0)[0, 12], torch.full((4,), 1 + 4 / 9))


def test_the_gate_switches_detail_off_token_by_token() -> None:
    torch.manual_seed(0)
    module = LocalEnhancement(2)
    nn.init.ones_(module.scale)
    with torch.no_grad():
        module.gate.weight.copy_(torch.tensor([[0.0, 1000.0]]))
    tokens = torch.rand(1, 16, 2)
    tokens[0, :, 1] = torch.where(torch.arange(16) == 5, 1.0, -1.0)
    changed = (module(tokens, (4, 4), 0) != tokens).any(dim=-1)[0]
    assert changed.nonzero().flatten().tolist() == [5]


def test_every_parameter_learns_although_the_scale_starts_at_zero() -> None:
    torch.manual_seed(0)
    module = LocalEnhancement(4)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    tokens, target = torch.randn(8, 17, 4), torch.randn(8, 17, 4)
    before = [parameter.detach().clone() for parameter in module.parameters()]
    for _ in range(2):
        optimizer.zero_grad()
        (module(tokens, (4, 4), 1) - target).square().mean().backward()
        optimizer.step()
    assert all(not torch.equal(old, new) for old, new in zip(before, module.parameters(), strict=True))


def test_rows_and_columns_of_a_rectangular_grid_are_not_mixed_up() -> None:
    torch.manual_seed(0)
    module = randomised(3, "adaptive")
    with torch.no_grad():
        module.conv.weight.add_(module.conv.weight.mT.clone())  # a filter that does not tell rows from columns
    tokens = torch.randn(1, 15, 3, dtype=torch.float64)
    turned = tokens.reshape(1, 3, 5, 3).transpose(1, 2).reshape(1, 15, 3)
    there = module(tokens, (3, 5), 0).reshape(1, 3, 5, 3)
    torch.testing.assert_close(module(turned, (5, 3), 0).reshape(1, 5, 3, 3), there.transpose(1, 2))


@pytest.mark.parametrize(("form", "parameters"), [("adaptive", 12 * 16 + 1), ("literal", 9 * 16 * 16 + 16)])
def test_the_cost_is_what_a_counter_finds(form: str, parameters: int) -> None:
    module = LocalEnhancement(16, form=form)
    assert sum(parameter.numel() for parameter in module.parameters()) == parameters
    with FlopCounterMode(display=False) as counter:
        module(torch.randn(1, 36, 16), (5, 7), 1)
    assert module.macs((5, 7)) == counter.get_total_flops() // 2


def test_the_adaptive_form_costs_a_phone_less_than_one_percent_of_its_block() -> None:
    dim, num_patches = 192, 196
    block_parameters = 12 * dim**2 + 13 * dim  # attention, MLP of ratio 4, two norms
    block_macs = num_patches * 12 * dim**2 + 2 * num_patches**2 * dim
    module = LocalEnhancement(dim)
    assert sum(parameter.numel() for parameter in module.parameters()) / block_parameters < 0.0052  # 0.518 %
    assert module.macs((14, 14)) / block_macs < 0.0038  # 0.373 %


def test_tokens_that_do_not_fill_the_grid_are_refused() -> None:
    with pytest.raises(ConfigError, match="There are 16 tokens; a grid of 4 x 4 after 1 prefix tokens takes 17"):
        LocalEnhancement(4)(torch.randn(1, 16, 4), (4, 4), 1)


def test_a_misspelt_form_gets_a_suggestion() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'adaptive'"):
        LocalEnhancement(4, form="adaptiv")  # type: ignore[arg-type]
