"""From all tokens to one vector for the head.

Axes: B batch, N tokens, D width of a token. Prefix tokens (class token, registers) come first.
"""

import torch
from torch import Tensor, nn

from vitrail.errors import ConfigError
from vitrail.layers.attention import NORM_EPS, attend, merge_heads, split_heads
from vitrail.layers.block import Mlp
from vitrail.layers.embed import Grid
from vitrail.layers.fusion import MultiScaleFusion, SimpleFeaturePyramid

_PYRAMID_SCALES = (2, 1, 0.5)


def pool_token(x: Tensor) -> Tensor:
    """Return the class token: (B, N, D) to (B, D)."""
    return x[:, 0]


def pool_mean(x: Tensor, num_prefix: int) -> Tensor:
    """Return the mean of the patch tokens, prefix tokens left out: (B, N, D) to (B, D)."""
    return x[:, num_prefix:].mean(dim=1)


class AttentionPool(nn.Module):
    """One learned query attends to all tokens, prefix tokens too; a perceptron refines what it found.

    Source: Zhai et al., Scaling Vision Transformers, arXiv 2106.04560, section 2.1 ("MAP head").

    Args:
        dim: width of a token, a multiple of ``heads``.
        heads: number of attention heads.
        mlp_ratio: width of the perceptron's hidden layer, in multiples of ``dim``.

    Raises:
        ConfigError: if ``dim`` is not a multiple of ``heads``.
    """

    def __init__(self, dim: int, heads: int, mlp_ratio: float = 4.0) -> None:
        super().__init__()
        if heads < 1 or dim % heads:
            raise ConfigError(f"A width of {dim} cannot be divided among {heads} heads; take a divisor of {dim}.")
        self.heads = heads
        self.latent = nn.Parameter(torch.zeros(1, 1, dim))
        self.q = nn.Linear(dim, dim)
        self.kv = nn.Linear(dim, 2 * dim)
        self.proj = nn.Linear(dim, dim)
        self.norm = nn.LayerNorm(dim, eps=NORM_EPS)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))

    def reset_parameters(self) -> None:
        """Draw the query; the layers are set with all others of the model."""
        nn.init.trunc_normal_(self.latent, std=self.latent.shape[-1] ** -0.5)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, N, D) to (B, D)."""
        query = self.q(self.latent).expand(x.shape[0], -1, -1)
        q, k, v = (split_heads(part, self.heads) for part in (query, *self.kv(x).chunk(2, dim=-1)))
        found: Tensor = self.proj(merge_heads(attend(q, k, v)))[:, 0]
        refined: Tensor = found + self.mlp(self.norm(found))
        return refined


class DepthFusion(nn.Module):
    """Tells the head what several depths of a ViT know, beside the last one.

    The patch tokens of each depth are normalised, laid out as maps and joined by `MultiScaleFusion`; the mean of the
    fused map, projected, is added to the pooled features. The projection starts at zero, so a pretrained ViT with this
    module added computes exactly what it did before.

    With ``pyramid`` the last depth comes in several resolutions too: a `SimpleFeaturePyramid` of a quarter of the width
    adds it at twice, once and half the grid, and the fused map has twice the grid. It serves dense prediction; for one
    label per image it costs about as much as a block of the ViT.

    Args:
        dim: width of a token; with ``pyramid`` a multiple of 4.
        num_levels: number of depths.
        pyramid: whether the last depth comes in several resolutions.
    """

    def __init__(self, dim: int, num_levels: int, *, pyramid: bool = False) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(dim, eps=NORM_EPS) for _ in range(num_levels))
        self.pyramid = SimpleFeaturePyramid(dim, dim // 4, scales=_PYRAMID_SCALES) if pyramid else None
        narrow = [dim // 4] * len(_PYRAMID_SCALES) if pyramid else []
        self.fuse = MultiScaleFusion([dim] * num_levels + narrow, dim)
        self.proj = nn.Linear(dim, dim)

    def reset_parameters(self) -> None:
        """Make the fused map the mean of the normalised levels, and its part in the features nothing."""
        self.fuse.reset_parameters()
        if self.pyramid is not None:
            self.pyramid.reset_parameters()
        nn.init.zeros_(self.proj.weight)
        nn.init.zeros_(self.proj.bias)

    def forward(self, levels: list[Tensor], grid: Grid, num_prefix: int) -> tuple[Tensor, Tensor]:
        """Map tokens (B, N, D) of each depth to the fused map (B, D, rows, columns) and what is added, (B, D).

        With a pyramid, rows and columns of the fused map are twice those of the grid.
        """
        maps = [
            torch.unflatten(norm(tokens[:, num_prefix:]).transpose(1, 2), 2, grid)
            for norm, tokens in zip(self.norms, levels, strict=True)
        ]
        size = grid
        if self.pyramid is not None:
            maps += self.pyramid(maps[-1])
            size = (2 * grid[0], 2 * grid[1])
        fused = self.fuse(maps, size)
        return fused, self.proj(fused.flatten(2).mean(dim=2))
