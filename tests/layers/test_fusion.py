"""Multi-scale fusion: against independent references, and the properties it is used for."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from vitrail.errors import ConfigError
from vitrail.layers.fusion import MultiScaleFusion, SimpleFeaturePyramid, fuse_literal


def doubling_maps(num_maps: int, coarsest: tuple[int, int] = (2, 3), dim: int = 4) -> list[Tensor]:
    generator = torch.Generator().manual_seed(num_maps)
    height, width = coarsest
    return [torch.randn(2, dim, height << i, width << i, generator=generator) for i in range(num_maps)]


def randomise(module: nn.Module) -> None:
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.5)


@pytest.mark.parametrize("num_maps", [1, 2, 3, 5])
def test_the_literal_form_is_the_mean_of_the_repeated_maps(num_maps: int) -> None:
    maps = doubling_maps(num_maps)
    expected = np.mean(
        [
            np.kron(each.double().numpy(), np.ones((1, 1, *2 * [2 ** (num_maps - 1 - i)])))
            for i, each in enumerate(maps)
        ],
        axis=0,
    )
    fused = fuse_literal(maps)
    assert fused.shape == maps[-1].shape
    # Worst difference measured: 1.8e-7.
    np.testing.assert_allclose(fused.numpy(), expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize(
    "shapes",
    [
        [(2, 4, 2, 3), (2, 4, 6, 9)],  # thrice as fine
        [(2, 4, 4, 6), (2, 4, 2, 3)],  # from fine to coarse
        [(2, 4, 2, 3), (2, 4, 2, 3)],  # equal
        [(2, 4, 2, 3), (2, 4, 4, 7)],  # not quite
        [(2, 4, 2, 3), (2, 5, 4, 6)],  # another width
        [(2, 4, 2, 3), (1, 4, 4, 6)],  # another batch
    ],
)
def test_the_literal_form_refuses_other_ratios_and_names_the_map(shapes: list[tuple[int, ...]]) -> None:
    with pytest.raises(ConfigError, match=r"Map 1 has the shape .* here \(2, 4, "):
        fuse_literal([torch.zeros(shape) for shape in shapes])


def test_the_literal_form_refuses_no_maps_and_other_sizes() -> None:
    with pytest.raises(ConfigError, match="no maps"):
        fuse_literal([])
    module = MultiScaleFusion([4, 4], 4, form="literal")
    assert not list(module.parameters())
    assert torch.equal(module(doubling_maps(2)), fuse_literal(doubling_maps(2)))
    with pytest.raises(ConfigError, match=r"size is \(2, 3\)"):
        module(doubling_maps(2), (2, 3))


def test_fresh_adaptive_fusion_of_doubling_maps_is_the_literal_form() -> None:
    maps = doubling_maps(3)
    # Worst difference measured: 1.2e-7.
    torch.testing.assert_close(MultiScaleFusion([4, 4, 4], 4)(maps), fuse_literal(maps), rtol=0, atol=2e-6)


def test_fresh_weights_are_the_mean_whatever_the_widths() -> None:
    torch.manual_seed(0)
    maps = [torch.randn(2, width, 3, 5) for width in (3, 8, 5)]
    module = MultiScaleFusion([3, 8, 5], 8)
    projected = [projection(each) for projection, each in zip(module.projections, maps, strict=True)]
    # Worst difference measured: 2.4e-7.
    torch.testing.assert_close(module(maps), torch.stack(projected).mean(dim=0), rtol=0, atol=4e-6)


def test_adaptive_fusion_agrees_with_a_reference_position_by_position() -> None:
    torch.manual_seed(0)
    module = MultiScaleFusion([3, 6, 4], 5).double()
    randomise(module)
    shapes = [(3, 2, 2), (6, 8, 8), (4, 4, 4)]
    maps = [torch.randn(1, *shape, dtype=torch.float64) for shape in shapes]
    fused = module(maps, (4, 4))
    for row in range(4):
        for column in range(4):
            seen = [
                maps[0][0, :, row // 2, column // 2],
                maps[1][0, :, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2].mean(dim=(1, 2)),
                maps[2][0, :, row, column],
            ]
            values = [p.weight[:, :, 0, 0] @ x + p.bias for p, x in zip(module.projections, seen, strict=True)]
            scores = [s.weight[0, :, 0, 0] @ v + s.bias[0] for s, v in zip(module.scores, values, strict=True)]
            weights = np.exp([score.item() for score in scores])
            expected = sum(w * v for w, v in zip(weights / weights.sum(), values, strict=True))
            # Worst difference measured: 6.7e-16.
            torch.testing.assert_close(fused[0, :, row, column], expected, rtol=0, atol=1e-13)


def test_a_position_can_choose_another_map_than_its_neighbour() -> None:
    module = MultiScaleFusion([1, 1], 1)
    with torch.no_grad():
        module.scores[0].weight.fill_(1000.0)
    first = torch.tensor([[[[1.0, -1.0]]]])
    second = torch.tensor([[[[7.0, 7.0]]]])
    assert module([first, second]).flatten().tolist() == [1.0, 7.0]


@pytest.mark.parametrize("upsampling", ["nearest", "bilinear"])
@pytest.mark.parametrize("size", [None, (2, 2), (5, 7), (16, 3)])
def test_any_sizes_reach_the_chosen_grid(upsampling: str, size: tuple[int, int] | None) -> None:
    module = MultiScaleFusion([2, 3], 4, upsampling=upsampling)
    maps = [torch.randn(2, 2, 6, 5), torch.randn(2, 3, 3, 9)]
    assert module(maps, size).shape == (2, 4, *(size or (6, 5)))


@pytest.mark.parametrize("upsampling", ["nearest", "bilinear"])
def test_a_constant_map_stays_constant_on_every_grid(upsampling: str) -> None:
    module = MultiScaleFusion([1, 1], 1, upsampling=upsampling)
    fused = module([torch.full((1, 1, 3, 3), 2.0), torch.full((1, 1, 7, 8), 4.0)], (5, 6))
    torch.testing.assert_close(fused, torch.full((1, 1, 5, 6), 3.0))


def test_every_parameter_gets_a_gradient() -> None:
    torch.manual_seed(0)
    pyramid, fusion = SimpleFeaturePyramid(8, 6), MultiScaleFusion([6] * 4, 5)
    fusion(pyramid(torch.randn(2, 8, 4, 4))).square().sum().backward()
    parameters = [*pyramid.parameters(), *fusion.parameters()]
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in parameters)


def test_wrong_maps_and_options_are_refused_with_what_is_allowed() -> None:
    with pytest.raises(ConfigError, match=r"widths \(4,\); this fusion was made for \(4, 4\)"):
        MultiScaleFusion([4, 4], 4)(doubling_maps(1))
    with pytest.raises(ConfigError, match="Did you mean 'literal'"):
        MultiScaleFusion([4], 4, form="litteral")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="'nearest' or 'bilinear'"):
        MultiScaleFusion([4], 4, upsampling="cubic")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="in_dims is empty"):
        MultiScaleFusion([], 4)
    with pytest.raises(ConfigError, match="all 4 wide"):
        MultiScaleFusion([4, 8], 4, form="literal")


@pytest.mark.parametrize("norm", ["layer", "batch"])
def test_the_pyramid_gives_every_scale_and_feeds_the_literal_fusion(norm: str) -> None:
    pyramid = SimpleFeaturePyramid(8, 6, scales=(0.5, 1, 2, 4), norm=norm)
    maps = pyramid(torch.randn(2, 8, 6, 4))
    assert [tuple(each.shape) for each in maps] == [(2, 6, 3, 2), (2, 6, 6, 4), (2, 6, 12, 8), (2, 6, 24, 16)]
    assert fuse_literal(maps).shape == (2, 6, 24, 16)


def test_the_layer_norm_of_the_pyramid_normalises_each_position() -> None:
    torch.manual_seed(0)
    (level,) = SimpleFeaturePyramid(8, 16, scales=(2,))(torch.randn(2, 8, 3, 5))
    torch.testing.assert_close(level.mean(dim=1), torch.zeros(2, 6, 10), rtol=0, atol=1e-6)
    # The norm's epsilon of 1e-6 leaves the variance just below one.
    torch.testing.assert_close(level.var(dim=1, unbiased=False), torch.ones(2, 6, 10), rtol=0, atol=1e-3)


def test_pyramids_that_cannot_be_built_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"it takes one or more of 4, 2, 1 and 0\.5"):
        SimpleFeaturePyramid(8, 6, scales=(3,))
    with pytest.raises(ConfigError, match="multiple of 4"):
        SimpleFeaturePyramid(6, 6)
    with pytest.raises(ConfigError, match="'layer' or 'batch'"):
        SimpleFeaturePyramid(8, 6, norm="group")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="cannot be halved"):
        SimpleFeaturePyramid(8, 6)(torch.randn(1, 8, 1, 4))
