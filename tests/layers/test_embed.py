import math

import numpy as np
import pytest
import torch

from vitrail.errors import ConfigError
from vitrail.layers.embed import (
    PatchEmbed,
    apply_rotary,
    as_pair,
    drop_patches,
    place_tokens,
    resample_position_embedding,
    rotary_table,
    sincos_positions,
)


def test_patches_are_cut_row_by_row_and_projected():
    torch.manual_seed(0)
    layer, images = PatchEmbed(3, 16, (4, 2)), torch.randn(2, 3, 12, 10)
    tokens = layer(images)
    assert layer.grid((12, 10)) == (3, 5)
    assert tokens.shape == (2, 15, 16)
    for index in (0, 7, 14):
        row, column = divmod(index, 5)
        patch = images[:, :, 4 * row : 4 * row + 4, 2 * column : 2 * column + 2]
        expected = torch.einsum("bcij,dcij->bd", patch, layer.proj.weight) + layer.proj.bias
        torch.testing.assert_close(tokens[:, index], expected, rtol=0, atol=1e-5)  # measured: 2.4e-7


@pytest.mark.parametrize("size", [(12, 9), (3, 10), (0, 0)])
def test_image_that_is_no_whole_number_of_patches_is_refused(size):
    with pytest.raises(ConfigError, match=f"{size[0]} x {size[1]} pixels is not a whole number of patches of 4 x 2"):
        PatchEmbed(3, 16, (4, 2)).grid(size)


def test_one_number_is_a_square_and_two_are_height_and_width():
    assert as_pair("image_size", 8) == (8, 8)
    assert as_pair("image_size", [8, 4]) == (8, 4)
    for wrong in (0, -3, (1, 2, 3), (4, 0)):
        with pytest.raises(ConfigError, match="image_size"):
            as_pair("image_size", wrong)


@pytest.mark.parametrize("pos_tokens", ["all", "patches", "none"])
def test_prefix_comes_first_and_positions_are_added(pos_tokens):
    patches, cls, registers = torch.randn(2, 6, 4), torch.randn(1, 1, 4), torch.randn(1, 2, 4)
    pos = {"all": torch.randn(1, 9, 4), "patches": torch.randn(1, 6, 4), "none": None}[pos_tokens]
    out = place_tokens(patches, [cls, registers], pos)
    expected = torch.cat([cls.expand(2, -1, -1), registers.expand(2, -1, -1), patches], dim=1)
    if pos is not None:
        expected[:, 9 - pos.shape[1] :] += pos
    torch.testing.assert_close(out, expected, rtol=0, atol=0)


def test_resampling_to_the_same_grid_returns_the_very_same_positions():
    pos = torch.randn(1, 7, 8)
    assert resample_position_embedding(pos, (2, 3), (2, 3), num_prefix=1) is pos


def test_resampling_keeps_the_prefix_and_follows_a_smooth_function():
    rows, columns = torch.meshgrid(torch.linspace(0, 1, 12), torch.linspace(0, 1, 10), indexing="ij")
    pos = torch.cat([torch.tensor([[5.0], [6.0]]), (rows + 2 * columns).reshape(-1, 1)])[None]
    out = resample_position_embedding(pos, (12, 10), (6, 20), num_prefix=2)
    assert out.shape == (1, 2 + 120, 1)
    assert out[0, :2, 0].tolist() == [5.0, 6.0]
    resampled = out[0, 2:, 0].view(6, 20)
    row = (np.arange(6) + 0.5) * 2 - 0.5
    column = (np.arange(20) + 0.5) / 2 - 0.5
    expected = torch.tensor(row[:, None] / 11 + 2 * column[None] / 9, dtype=torch.float32)
    inner = (slice(2, -2), slice(5, -5))  # at the border a cubic filter has no neighbours to follow a slope
    torch.testing.assert_close(resampled[inner], expected[inner], rtol=0, atol=2e-3)  # measured: 2.4e-7


def test_resampling_there_and_back_gives_smooth_positions_again():
    wave = torch.sin(torch.arange(14) / 5)
    pos = (wave[:, None] * wave[None]).reshape(1, -1, 1)
    larger = resample_position_embedding(pos, (14, 14), (28, 21), num_prefix=0)
    back = resample_position_embedding(larger, (28, 21), (14, 14), num_prefix=0)
    torch.testing.assert_close(back, pos, rtol=0, atol=0.05)  # measured: 0.013


def test_positions_of_another_grid_are_refused():
    with pytest.raises(ConfigError, match="have 7 entries; 1 prefix tokens and a grid of 3 x 3 patches need 10"):
        resample_position_embedding(torch.zeros(1, 7, 8), (3, 3), (2, 2), num_prefix=1)


def test_sincos_agrees_with_its_formula_written_for_one_patch():
    table = sincos_positions((3, 5), 16, native_grid=(3, 5))
    assert table.shape == (1, 15, 16)
    row, column = 2, 3
    omega = [1 / 10_000 ** (i / 3) for i in range(4)]
    expected = [wave(place * w) for place in (column, row) for wave in (math.sin, math.cos) for w in omega]
    torch.testing.assert_close(
        table[0, row * 5 + column], torch.tensor(expected), rtol=0, atol=1e-6
    )  # measured: 1.5e-8


def test_sincos_of_a_finer_grid_has_the_same_span():
    coarse, fine = sincos_positions((2, 2), 32, (2, 2)), sincos_positions((6, 6), 32, (2, 2))
    middle_of_first, middle_of_last = 1 * 6 + 1, 4 * 6 + 4  # the fine patches in the middle of the coarse ones
    torch.testing.assert_close(fine[0, [middle_of_first, middle_of_last]], coarse[0, [0, 3]], rtol=0, atol=1e-6)


def test_rotated_products_depend_on_the_difference_of_places_only():
    torch.manual_seed(0)
    rows, columns, dim = 5, 7, 16
    q, k = torch.randn(2, 1, 1, 1, dim, dtype=torch.float64).expand(-1, -1, -1, rows * columns, -1)
    table = rotary_table((rows, columns), dim, num_prefix=0).double()
    scores = (apply_rotary(q, table) @ apply_rotary(k, table).transpose(-2, -1)).view(rows, columns, rows, columns)
    torch.testing.assert_close(scores[0, 0, 2, 3], scores[2, 3, 4, 6], rtol=0, atol=1e-5)  # measured: 1.4e-6
    torch.testing.assert_close(scores[1, 5, 0, 2], scores[4, 4, 3, 1], rtol=0, atol=1e-5)
    assert (scores[0, 0, 2, 3] - scores[0, 0, 3, 2]).abs() > 1e-3  # rows and columns are told apart
    assert (scores[0, 0, 2, 3] - scores[2, 3, 0, 0]).abs() > 1e-3  # and so is the direction


def test_rotation_keeps_lengths_and_leaves_prefix_tokens_alone():
    x = torch.randn(2, 3, 2 + 12, 8)
    turned = apply_rotary(x, rotary_table((3, 4), 8, num_prefix=2))
    torch.testing.assert_close(turned.norm(dim=-1), x.norm(dim=-1))
    torch.testing.assert_close(turned[:, :, :2], x[:, :, :2], rtol=0, atol=0)
    assert (turned[:, :, 2:] - x[:, :, 2:]).abs().amax(dim=(0, 1, 3)).min() > 1e-3


def test_rotary_places_of_a_finer_grid_lie_between_those_of_the_coarse_one():
    coarse, fine = rotary_table((2, 2), 8, 0), rotary_table((6, 6), 8, 0)
    torch.testing.assert_close(fine[0, 0, [7, 28]], coarse[0, 0, [0, 3]], rtol=0, atol=1e-5)


def test_widths_that_positions_cannot_serve_are_refused():
    with pytest.raises(ConfigError, match="multiple of 4"):
        sincos_positions((2, 2), 18, (2, 2))
    with pytest.raises(ConfigError, match="multiple of 4, not 6"):
        rotary_table((2, 2), 6, 0)


def test_patch_dropout_keeps_the_prefix_and_the_right_number_of_different_patches():
    torch.manual_seed(0)
    x = torch.arange(2 * 12.0).view(2, 12, 1).expand(-1, -1, 4)
    kept_tokens, kept = drop_patches(x, 0.3, num_prefix=2)
    assert kept_tokens.shape == (2, 2 + 7, 4)
    torch.testing.assert_close(kept_tokens[:, :2], x[:, :2], rtol=0, atol=0)
    for image in range(2):
        assert len(set(kept[image].tolist())) == 9
        torch.testing.assert_close(kept_tokens[image], x[image, kept[image]], rtol=0, atol=0)
    assert kept[0].tolist() != kept[1].tolist()


def test_patch_dropout_leaves_at_least_one_patch_and_every_patch_has_its_turn():
    torch.manual_seed(0)
    x = torch.zeros(300, 5, 1)
    kept_tokens, kept = drop_patches(x, 0.95, num_prefix=1)
    assert kept_tokens.shape == (300, 2, 1)
    assert set(kept[:, 1].tolist()) == {1, 2, 3, 4}
