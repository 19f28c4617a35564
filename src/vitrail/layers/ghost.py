"""Ghost modules: half of the channels come from a 1x1 convolution, the other half cheaply from the first.

Axes: B batch, C channels, H W a grid. Names of parameters are those of timm's GhostNet.
"""

from typing import ClassVar, Final

import torch
from torch import Tensor, nn

from vitrail.errors import ConfigError
from vitrail.layers.block import add_branch
from vitrail.layers.conv import DepthwiseConv2d, SqueezeExcite, make_divisible

CHANNEL_MULTIPLE: Final = 4
"""Widths of a GhostNet are whole multiples of it, those inside its squeeze-and-excitation too."""


class GhostModule(nn.Module):
    """A 1x1 convolution to half of the channels, and a depthwise 3x3 convolution of these to the other half.

    Each convolution is followed by a batch norm, and by a ReLU if asked for.

    Source: Han et al., GhostNet, arXiv 1911.11907, section 3.1, with the ratio 2 and the kernel 3 of section 4.1.

    Args:
        in_dim: channels of the input.
        out_dim: channels of the output, an even number.
        act: whether a ReLU follows each norm.

    Raises:
        ConfigError: if ``out_dim`` is odd.
    """

    fold_pairs: ClassVar = (("primary_conv.0", "primary_conv.1"), ("cheap_operation.0", "cheap_operation.1"))

    def __init__(self, in_dim: int, out_dim: int, *, act: bool) -> None:
        super().__init__()
        if out_dim % 2:
            raise ConfigError(f"out_dim is {out_dim}; a Ghost module makes its channels in two halves, take it even.")
        half = out_dim // 2
        self.primary_conv = _conv_norm(in_dim, half, act=act)
        self.cheap_operation = _conv_norm(half, half, 3, groups=half, act=act)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in_dim, H, W) to (B, out_dim, H, W)."""
        primary = self.primary_conv(x)
        return torch.cat((primary, self.cheap_operation(primary)), dim=1)


class GhostBottleneck(nn.Module):
    """Two Ghost modules, the first widening and the second narrowing, added to what came in.

    With a stride above 1, a depthwise convolution between them reduces the grid. Where the shape changes, the shortcut
    is a depthwise and a 1x1 convolution.

    Source: Han et al., GhostNet, arXiv 1911.11907, section 3.2 and figure 3.

    Args:
        in_dim: channels of the input.
        hidden_dim: channels between the two modules, an even number.
        out_dim: channels of the output, an even number.
        kernel: side of the kernels that reduce the grid.
        stride: by which the grid is reduced.
        excite: whether squeeze-and-excitation weighs the channels before the second module.
        drop_path: rate of stochastic depth in training, in [0, 1); for blocks that keep the shape.

    Raises:
        ConfigError: if a number of channels is odd.
    """

    def __init__(
        self,
        in_dim: int,
        hidden_dim: int,
        out_dim: int,
        *,
        kernel: int = 3,
        stride: int = 1,
        excite: bool = False,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        self.drop_path = drop_path
        fold_pairs = []
        self.ghost1 = GhostModule(in_dim, hidden_dim, act=True)
        self.conv_dw: nn.Module | None = None
        self.bn_dw: nn.Module | None = None
        if stride > 1:
            self.conv_dw = DepthwiseConv2d(hidden_dim, kernel, stride)
            self.bn_dw = nn.BatchNorm2d(hidden_dim)
            fold_pairs += [("conv_dw", "bn_dw")]
        self.se = ghost_excite(hidden_dim) if excite else None
        self.ghost2 = GhostModule(hidden_dim, out_dim, act=False)
        self.shortcut = nn.Sequential()
        if stride > 1 or in_dim != out_dim:
            self.shortcut = nn.Sequential(
                DepthwiseConv2d(in_dim, kernel, stride),
                nn.BatchNorm2d(in_dim),
                nn.Conv2d(in_dim, out_dim, 1, bias=False),
                nn.BatchNorm2d(out_dim),
            )
            fold_pairs += [("shortcut.0", "shortcut.1"), ("shortcut.2", "shortcut.3")]
        self.fold_pairs = tuple(fold_pairs)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in_dim, H, W) to (B, out_dim, H / stride, W / stride), rounded up."""
        if len(self.shortcut):
            out: Tensor = self.shortcut(x) + self._branch(x)
            return out
        return add_branch(x, self._branch, self.drop_path if self.training else 0.0)

    def _branch(self, x: Tensor, _: Tensor | None = None) -> Tensor:
        x = self.ghost1(x)
        if self.conv_dw is not None and self.bn_dw is not None:
            x = self.bn_dw(self.conv_dw(x))
        if self.se is not None:
            x = self.se(x)
        out: Tensor = self.ghost2(x)
        return out


def ghost_excite(dim: int) -> SqueezeExcite:
    """Return squeeze-and-excitation with a quarter of ``dim`` channels inside."""
    return SqueezeExcite(dim, make_divisible(dim / 4, CHANNEL_MULTIPLE))


def _conv_norm(in_dim: int, out_dim: int, kernel: int = 1, *, groups: int = 1, act: bool) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_dim, out_dim, kernel, padding=kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(out_dim),
        nn.ReLU(inplace=True) if act else nn.Identity(),
    )
