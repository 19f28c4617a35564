"""Multi-scale fusion: feature maps of several depths or resolutions, brought to one grid and joined.

Axes: B batch, C_i width of map i, L number of maps, D common width, H W a grid.
"""

import itertools
import math
from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vitrail.errors import ConfigError, did_you_mean

FusionForm = Literal["adaptive", "literal"]
Upsampling = Literal["nearest", "bilinear"]


def fuse_literal(maps: Sequence[Tensor]) -> Tensor:
    """Return ``mean_i upsample_nearest(F_i, 2^(L-1-i))`` on the grid of the finest map.

    Args:
        maps: F_0 (coarsest) to F_(L-1) (finest), each (B, D, H_i, W_i) with twice the sides of the one before.

    Returns:
        (B, D, H_(L-1), W_(L-1)).

    Raises:
        ConfigError: if there is no map, a map is not twice as fine as the one before, or B or D differ.
    """
    if not maps:
        raise ConfigError("There are no maps to fuse; give at least one.")
    for index, (coarse, fine) in enumerate(itertools.pairwise(maps), start=1):
        expected = (*coarse.shape[:2], 2 * coarse.shape[2], 2 * coarse.shape[3])
        if tuple(fine.shape) != expected:
            raise ConfigError(
                f"Map {index} has the shape {tuple(fine.shape)}; the literal fusion takes maps from coarse to fine, "
                f"each with twice the sides of the one before, here {expected}. Use the form 'adaptive' for others."
            )
    total = maps[0]
    for fine in maps[1:]:
        # Doubling the running sum once per level gives every map its full factor 2^(L-1-i).
        total = F.interpolate(total, scale_factor=2.0, mode="nearest") + fine
    return total / len(maps)


class MultiScaleFusion(nn.Module):
    """Join L maps of any sizes and widths into one map (B, D, H, W).

    ``adaptive``: each map is projected to D by a 1x1 convolution P_i and brought to the chosen grid (averaged down,
    upsampled up); then, at every position p, ``sum_i w_i(p) * P_i F_i(p)``, where the weights are the softmax over the
    maps of one learned score per map and position. So the image decides where its fine and where its coarse maps count:
    an object's outline and its background need not share one choice. A weight per map alone would add nothing that the
    projections cannot learn. The scores start at zero, hence the weights as the mean; a projection between equal
    widths starts as the identity, so on maps that suit it the start is exactly the literal form.

    ``literal``: `fuse_literal`; no parameters, all widths are D.

    Source: weights per position and map follow Liu et al., Learning Spatial Fusion for Single-Shot Object Detection
    (ASFF), arXiv 1911.09516, section 3.2. Differs: any number of maps, scores without a hidden layer.

    Args:
        in_dims: C_i of each map, in the order of the maps.
        dim: D.
        form: "adaptive" or "literal".
        upsampling: how a coarser map of the adaptive form reaches the grid, "nearest" or "bilinear".

    Raises:
        ConfigError: for no map, another form or upsampling, or widths other than D in the literal form.
    """

    def __init__(
        self, in_dims: Sequence[int], dim: int, *, form: FusionForm = "adaptive", upsampling: Upsampling = "nearest"
    ) -> None:
        super().__init__()
        _check_choice("form", form, get_args(FusionForm))
        _check_choice("upsampling", upsampling, get_args(Upsampling))
        if not in_dims:
            raise ConfigError("in_dims is empty; give the width of each map that is fused.")
        if form == "literal" and any(in_dim != dim for in_dim in in_dims):
            raise ConfigError(f"in_dims is {tuple(in_dims)}; the literal fusion takes maps that are all {dim} wide.")
        self.in_dims = tuple(in_dims)
        self.dim = dim
        self.form = form
        self.upsampling = upsampling
        if form == "adaptive":
            self.projections = nn.ModuleList(nn.Conv2d(in_dim, dim, kernel_size=1) for in_dim in in_dims)
            self.scores = nn.ModuleList(nn.Conv2d(dim, 1, kernel_size=1) for _ in in_dims)
            self.reset_parameters()

    def reset_parameters(self) -> None:
        """Start as the mean of the maps: scores at zero, projections as the identity where widths are equal."""
        for parameter in self.parameters():
            nn.init.zeros_(parameter)
        for in_dim, projection in zip(self.in_dims, self.projections, strict=True):
            weight = projection.get_parameter("weight")
            if in_dim == self.dim:
                nn.init.dirac_(weight)
            else:
                nn.init.kaiming_normal_(weight, nonlinearity="linear")

    def forward(self, maps: Sequence[Tensor], size: tuple[int, int] | None = None) -> Tensor:
        """Fuse maps, each (B, C_i, H_i, W_i), on the grid ``size`` (H, W); None: the finest grid among the maps.

        Raises:
            ConfigError: if the number of maps or a width is not what the module was made for, or if the literal form
                gets other ratios than two or another size than the finest map's.
        """
        given = tuple(each.shape[1] for each in maps)
        if given != self.in_dims:
            raise ConfigError(f"The maps have the widths {given}; this fusion was made for {self.in_dims}.")
        height, width = size or max(((each.shape[2], each.shape[3]) for each in maps), key=math.prod)
        if self.form == "literal":
            fused = fuse_literal(maps)
            if fused.shape[2:] != (height, width):
                raise ConfigError(
                    f"size is {size}; the literal fusion gives {tuple(fused.shape[2:])}, the finest map's."
                )
            return fused
        values, scores = [], []
        for source, projection, score in zip(maps, self.projections, self.scores, strict=True):
            pooled = _average_down(source, height, width)
            # Projected and scored on the smaller of the two grids: both commute with nearest upsampling.
            projected = projection(pooled)
            values.append(self._upsample(projected, height, width))
            scores.append(self._upsample(score(projected), height, width))
        weights = torch.cat(scores, dim=1).softmax(dim=1)  # (B, L, H, W)
        fused = values[0] * weights[:, :1]
        for index, value in enumerate(values[1:], start=1):
            fused = fused + value * weights[:, index : index + 1]
        return fused

    def _upsample(self, source: Tensor, height: int, width: int) -> Tensor:
        if source.shape[2:] == (height, width):
            return source
        align_corners = False if self.upsampling == "bilinear" else None
        return F.interpolate(source, size=(height, width), mode=self.upsampling, align_corners=align_corners)


class SimpleFeaturePyramid(nn.Module):
    """Maps of several resolutions from the one map of a plain ViT, without going back to earlier blocks.

    Each scale: 4 = two stride-2 transposed convolutions with a norm and GELU between, 2 = one, 1 = nothing, 0.5 = 2x2
    max pooling; then a 1x1 and a 3x3 convolution to ``out_dim``, each followed by a norm.

    Source: Li et al., Exploring Plain Vision Transformer Backbones for Object Detection (ViTDet), arXiv 2203.16527,
    section 3 and appendix A.2. No known difference with norm "layer".

    Args:
        dim: width of the ViT's map, a multiple of 4.
        out_dim: width of every map that comes out (256 in the paper).
        scales: of the sides, each 4, 2, 1 or 0.5; the maps come out in this order.
        norm: "layer" normalises each position over its channels, as the paper does; "batch" normalises with statistics
            that fold into the convolutions on a phone, and wants batches of about 16 images or more.

    Raises:
        ConfigError: for another scale or norm, or a width that is not a multiple of 4.
    """

    def __init__(
        self,
        dim: int,
        out_dim: int,
        *,
        scales: Sequence[float] = (4, 2, 1, 0.5),
        norm: Literal["layer", "batch"] = "layer",
    ) -> None:
        super().__init__()
        _check_choice("norm", norm, ("layer", "batch"))
        if dim % 4:
            raise ConfigError(f"dim is {dim}; the pyramid halves it twice, so it takes a multiple of 4.")
        if not scales or any(scale not in {4, 2, 1, 0.5} for scale in scales):
            raise ConfigError(f"scales is {tuple(scales)}; it takes one or more of 4, 2, 1 and 0.5.")
        self.dim = dim
        self.scales = tuple(scales)
        norm_layer = nn.BatchNorm2d if norm == "batch" else ChannelNorm
        self.levels = nn.ModuleList(_pyramid_level(dim, out_dim, scale, norm_layer) for scale in scales)

    def reset_parameters(self) -> None:
        """Draw all convolutions as PyTorch does, norms start as the identity."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.LayerNorm | nn.BatchNorm2d):
                module.reset_parameters()

    def forward(self, source: Tensor) -> list[Tensor]:
        """Turn a map (B, dim, H, W) into one map (B, out_dim, scale * H, scale * W) per scale; odd sides round down.

        Raises:
            ConfigError: if a side is 1 and shall be halved.
        """
        if min(source.shape[2:]) == 1 and 0.5 in self.scales:
            raise ConfigError(f"A map of {tuple(source.shape[2:])} cannot be halved; leave the scale 0.5 out.")
        return [level(source) for level in self.levels]


class ChannelNorm(nn.LayerNorm):
    """Layer norm over the channels of each position of a map (B, C, H, W)."""

    def __init__(self, dim: int) -> None:
        super().__init__(dim, eps=1e-6)

    def forward(self, source: Tensor) -> Tensor:
        """Normalise (B, C, H, W)."""
        return super().forward(source.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def _pyramid_level(dim: int, out_dim: int, scale: float, norm_layer: type[nn.Module]) -> nn.Sequential:
    resize: list[nn.Module]
    if scale == 4:
        resize = [_double(dim, dim // 2), norm_layer(dim // 2), nn.GELU(), _double(dim // 2, dim // 4)]
        dim = dim // 4
    elif scale == 2:
        resize = [_double(dim, dim // 2)]
        dim = dim // 2
    else:
        resize = [] if scale == 1 else [nn.MaxPool2d(kernel_size=2)]
    return nn.Sequential(
        *resize,
        nn.Conv2d(dim, out_dim, kernel_size=1, bias=False),
        norm_layer(out_dim),
        nn.Conv2d(out_dim, out_dim, kernel_size=3, padding=1, bias=False),
        norm_layer(out_dim),
    )


def _double(in_dim: int, out_dim: int) -> nn.ConvTranspose2d:
    return nn.ConvTranspose2d(in_dim, out_dim, kernel_size=2, stride=2)


def _average_down(source: Tensor, height: int, width: int) -> Tensor:
    size = (min(source.shape[2], height), min(source.shape[3], width))
    return source if source.shape[2:] == size else F.adaptive_avg_pool2d(source, size)


def _check_choice(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ConfigError(
            f"{name} is {value!r}; it takes {' or '.join(map(repr, allowed))}.{did_you_mean(value, allowed)}"
        )
