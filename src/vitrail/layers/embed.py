"""From an image to tokens that know their place: patches, positions of three kinds, patch dropout.

Axes: B batch, C channels, N tokens, P prefix tokens (class token and registers; always first), D width of a token,
d width of a head. A grid is (rows, columns) of patches, and its tokens are in row-major order.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitrail.errors import ConfigError

Grid = tuple[int, int]


def as_pair(name: str, value: int | Sequence[int]) -> tuple[int, int]:
    """Return one side of a square, or height and width, as height and width.

    Args:
        name: of the option, for the message.
        value: pixels, above 0.

    Raises:
        ConfigError: if ``value`` is neither.
    """
    pair = (value, value) if isinstance(value, int) else tuple(value)
    if len(pair) != 2 or min(pair) < 1:
        raise ConfigError(f"{name} is {value}; it takes a number of pixels above 0, or two: height and width.")
    return pair[0], pair[1]


class PatchEmbed(nn.Module):
    """Cuts an image into patches and maps each to a token.

    Source: Dosovitskiy et al., An Image is Worth 16x16 Words, arXiv 2010.11929, equation 1.

    Args:
        in_channels: channels of the image.
        dim: width of a token.
        patch_size: rows and columns of a patch in pixels.
    """

    def __init__(self, in_channels: int, dim: int, patch_size: tuple[int, int]) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.patch_size = patch_size
        self.proj = nn.Conv2d(in_channels, dim, kernel_size=patch_size, stride=patch_size)

    def reset_parameters(self) -> None:
        """Draw the projection from a truncated normal of variance 1 / fan-in (LeCun); bias 0."""
        fan_in = self.in_channels * math.prod(self.patch_size)
        nn.init.trunc_normal_(self.proj.weight, std=fan_in**-0.5)
        assert self.proj.bias is not None
        nn.init.zeros_(self.proj.bias)

    def grid(self, image_size: tuple[int, int]) -> Grid:
        """Return how many rows and columns of patches an image has.

        Raises:
            ConfigError: if the image is not a whole number of patches.
        """
        rows, columns = (side // patch for side, patch in zip(image_size, self.patch_size, strict=True))
        if rows < 1 or columns < 1 or image_size != (rows * self.patch_size[0], columns * self.patch_size[1]):
            raise ConfigError(
                f"An image of {image_size[0]} x {image_size[1]} pixels is not a whole number of patches of "
                f"{self.patch_size[0]} x {self.patch_size[1]}; give height and width that are multiples of them."
            )
        return rows, columns

    def forward(self, images: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, N, D)."""
        patches: Tensor = self.proj(images)  # (B, D, rows, columns)
        return patches.flatten(2).transpose(1, 2)


def place_tokens(patches: Tensor, prefix: Sequence[Tensor], pos: Tensor | None) -> Tensor:
    """Put prefix tokens before the patches of every image and add positions.

    Args:
        patches: (B, N, D).
        prefix: learned tokens, each (1, any number, D), P together.
        pos: positions of all tokens (1, P + N, D), of the patches alone (1, N, D), or None.

    Returns:
        (B, P + N, D).
    """
    num_positioned = 0 if pos is None else pos.shape[1] - patches.shape[1]
    if pos is not None:
        patches = patches + pos[:, num_positioned:]
    if not prefix:
        return patches
    # Positions are added to one copy of the prefix, before it is repeated for every image.
    first = torch.cat(list(prefix), dim=1)
    if pos is not None and num_positioned:
        first = first + pos[:, :num_positioned]
    return torch.cat([first.expand(patches.shape[0], -1, -1), patches], dim=1)


def resample_position_embedding(pos: Tensor, old_grid: Grid, new_grid: Grid, num_prefix: int) -> Tensor:
    """Bring learned positions to another grid: bicubic and antialiased for patches, untouched for prefix tokens.

    Args:
        pos: learned positions, (1, P + N_old, D).
        old_grid: rows and columns that ``pos`` was learned for.
        new_grid: rows and columns that are wanted.
        num_prefix: how many of the first entries belong to prefix tokens.

    Returns:
        (1, P + N_new, D); ``pos`` itself if the grids are equal.

    Raises:
        ConfigError: if ``pos`` does not have one entry for each prefix token and patch of ``old_grid``.
    """
    if pos.shape[1] != num_prefix + math.prod(old_grid):
        raise ConfigError(
            f"Position embeddings have {pos.shape[1]} entries; {num_prefix} prefix tokens and a grid of "
            f"{old_grid[0]} x {old_grid[1]} patches need {num_prefix + math.prod(old_grid)}."
        )
    if old_grid == new_grid:
        return pos
    prefix, patches = pos[:, :num_prefix], pos[:, num_prefix:]
    maps = torch.unflatten(patches.transpose(1, 2), 2, old_grid).float()  # (1, D, rows, columns)
    maps = F.interpolate(maps, size=new_grid, mode="bicubic", antialias=True)
    return torch.cat([prefix, maps.flatten(2).transpose(1, 2).to(pos.dtype)], dim=1)


def sincos_positions(grid: Grid, dim: int, native_grid: Grid, device: torch.device | None = None) -> Tensor:
    """Return fixed positions: sines and cosines of the column, then of the row, at dim / 4 wavelengths each.

    A grid of another size covers the same span of coordinates as the native grid, so positions resample themselves.

    Args:
        grid: rows and columns of patches.
        dim: width of a token, a multiple of 4 and at least 8.
        native_grid: the grid whose patches lie at the whole-numbered coordinates 0, 1, 2, ...
        device: where the result lies.

    Returns:
        (1, N, D), float32.

    Source: Beyer et al., Better plain ViT baselines for ImageNet-1k, arXiv 2205.01580, section 2 ("sincos2d").

    Raises:
        ConfigError: if ``dim`` is not such a multiple.
    """
    if dim % 4 or dim < 8:
        raise ConfigError(f"Sin-cos positions need a width that is a multiple of 4 and at least 8, not {dim}.")
    exponents = torch.arange(dim // 4, device=device, dtype=torch.float32) / (dim // 4 - 1)
    frequencies = 10_000.0**-exponents
    row, column = (
        (torch.arange(size, device=device) + 0.5) * (native / size) - 0.5
        for size, native in zip(grid, native_grid, strict=True)
    )
    row_angles = (row[:, None] * frequencies)[:, None].expand(*grid, -1)
    column_angles = (column[:, None] * frequencies)[None].expand(*grid, -1)
    waves = [column_angles.sin(), column_angles.cos(), row_angles.sin(), row_angles.cos()]
    return torch.cat(waves, dim=-1).flatten(0, 1)[None]


def rotary_table(grid: Grid, head_dim: int, num_prefix: int, device: torch.device | None = None) -> Tensor:
    """Return the cosines and sines of 2-D axial rotary positions; prefix tokens have angle 0 and stay unrotated.

    Half of the angles turn with the row, half with the column. Coordinates are normalised to [-1, 1] on each axis, so
    a grid of another size needs nothing further.

    Args:
        grid: rows and columns of patches.
        head_dim: width d of a head, a multiple of 4.
        num_prefix: number P of prefix tokens.
        device: where the result lies.

    Returns:
        (1, 1, P + N, 2 d), float32: the cosines, then the sines, for `apply_rotary`.

    Source: Siméoni et al., DINOv3, arXiv 2508.10104, section 3.2 (base 100, without its random jitter of coordinates);
    Su et al., RoFormer, arXiv 2104.09864, equation 34.

    Raises:
        ConfigError: if ``head_dim`` is not a multiple of 4.
    """
    if head_dim % 4:
        raise ConfigError(f"2-D rotary positions need heads whose width is a multiple of 4, not {head_dim}.")
    exponents = torch.arange(head_dim // 4, device=device, dtype=torch.float32) / (head_dim // 4)
    frequencies = 2 * math.pi * 100.0**-exponents
    row, column = ((torch.arange(size, device=device) + 0.5) * (2 / size) - 1 for size in grid)
    row_angles = (row[:, None] * frequencies)[:, None].expand(*grid, -1)
    column_angles = (column[:, None] * frequencies)[None].expand(*grid, -1)
    angles = torch.cat([row_angles, column_angles], dim=-1).flatten(0, 1)  # (N, d / 2)
    angles = F.pad(angles, (0, 0, num_prefix, 0))
    # Each angle serves two entries of a head, d / 2 apart: they are turned together as a point in the plane.
    cos, sin = angles.cos(), angles.sin()
    return torch.cat([cos, cos, sin, sin], dim=-1)[None, None]


def apply_rotary(x: Tensor, table: Tensor) -> Tensor:
    """Turn queries or keys (B, H, N, d) by the angles of `rotary_table`, (1 or B, 1, N, 2 d)."""
    cos, sin = table.to(x.dtype).chunk(2, dim=-1)
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-second, first], dim=-1) * sin


def drop_patches(x: Tensor, rate: float, num_prefix: int) -> tuple[Tensor, Tensor]:
    """Keep every prefix token and, of each image by itself, a random part of the patches.

    Args:
        x: tokens, (B, P + N, D).
        rate: share of the patches to drop, in [0, 1); at least one patch stays.
        num_prefix: number P of prefix tokens.

    Returns:
        The kept tokens, (B, P + K, D), and which tokens they were, (B, P + K).

    Source: Li et al., Scaling Language-Image Pre-training via Masking, arXiv 2212.00794, section 3.
    """
    batch, num_tokens, dim = x.shape
    num_patches = num_tokens - num_prefix
    num_kept = max(1, round(num_patches * (1 - rate)))
    patches = torch.rand(batch, num_patches, device=x.device).argsort(dim=1)[:, :num_kept] + num_prefix
    prefix = torch.arange(num_prefix, device=x.device).expand(batch, -1)
    kept = torch.cat([prefix, patches], dim=1)
    return x.gather(1, kept[:, :, None].expand(-1, -1, dim)), kept
