"""What the mobile vision transformers share: the inverted residual, and a map cut into patches of 2x2 pixels and back.

Axes: B batch, C channels, H W a map, N = H / 2 * W / 2 patches.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitrail.layers.conv import ConvNorm


class InvertedResidual(nn.Module):
    """Widen with a 1x1 convolution, filter each channel by itself, narrow again; added to what came in if it fits.

    Source: Sandler et al., MobileNetV2, arXiv 1801.04381, section 3.3; with SiLU as in Mehta and Rastegari, MobileViT,
    arXiv 2110.02178.

    Args:
        in_dim: channels of the input.
        out_dim: channels of the output.
        expansion: inner channels in multiples of ``in_dim``.
        stride: of the depthwise convolution, 1 or 2.
    """

    def __init__(self, in_dim: int, out_dim: int, *, expansion: int, stride: int = 1) -> None:
        super().__init__()
        hidden = expansion * in_dim
        self.conv1_1x1 = ConvNorm(in_dim, hidden, act=nn.SiLU)
        self.conv2_kxk = ConvNorm(hidden, hidden, 3, stride=stride, groups=hidden, act=nn.SiLU)
        self.conv3_1x1 = ConvNorm(hidden, out_dim)
        self.is_residual = stride == 1 and in_dim == out_dim

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in_dim, H, W) to (B, out_dim, H / stride, W / stride), rounded up."""
        out: Tensor = self.conv3_1x1(self.conv2_kxk(self.conv1_1x1(x)))
        return x + out if self.is_residual else out


def to_patches(x: Tensor) -> Tensor:
    """Sort the pixels of a map by their place in the 2x2 patch they lie in.

    Args:
        x: map with even sides, (B, C, H, W).

    Returns:
        Tokens (B, 4, N, C): first the top left pixel of every patch, then the top right, bottom left and bottom right
        ones, patches row by row. Built with at most four axes; free of copies but the last where ``x`` is channels
        last.
    """
    batch, channels, height, width = x.shape
    pairs = x.permute(0, 2, 3, 1).reshape(batch, height, width // 2, 2 * channels)  # left and right pixel side by side
    columns = [side.reshape(batch, height // 2, width, channels) for side in pairs.chunk(2, dim=-1)]
    (top_left, bottom_left), (top_right, bottom_right) = (side.chunk(2, dim=2) for side in columns)
    sorted_pixels = torch.cat([top_left, top_right, bottom_left, bottom_right], dim=1)  # (B, 4 H / 2, W / 2, C)
    return sorted_pixels.reshape(batch, 4, -1, channels)


def from_patches(tokens: Tensor, height: int, width: int) -> Tensor:
    """Put the tokens (B, 4, N, C) of `to_patches` back in their places in the map (B, C, height, width)."""
    batch, _, _, channels = tokens.shape
    top_left, top_right, bottom_left, bottom_right = (
        pixel.reshape(batch, height // 2, width // 2, channels) for pixel in tokens.chunk(4, dim=1)
    )
    rows = [
        torch.cat([left, right], dim=-1).reshape(batch, height // 2, width, channels)
        for left, right in ((top_left, top_right), (bottom_left, bottom_right))
    ]
    return torch.cat(rows, dim=2).reshape(batch, height, width, channels).permute(0, 3, 1, 2)


def resize_to_even(x: Tensor, *, align_corners: bool) -> Tensor:
    """Return a map (B, C, H, W) with odd sides made one pixel longer by bilinear interpolation."""
    height, width = (side + side % 2 for side in x.shape[-2:])
    if (height, width) == x.shape[-2:]:
        return x
    return F.interpolate(x, (height, width), mode="bilinear", align_corners=align_corners)
