"""MoCoViT: a GhostNet whose last stage is made of mobile transformer blocks.

Axes: B batch, C channels, H W a grid, N = H * W positions.

What is published: 74.5 % at 5.3 million parameters and 147 million multiply-adds (Ma et al., MoCoViT: Mobile
Convolutional Vision Transformer, arXiv 2205.12635, as Zhang et al., EMOv2, arXiv 2412.06674, table VII, prints it); the
order of the blocks, one branch for queries, keys and values, and Ghost modules in the place of all linear layers
(figure 2 of the former). No code or weights of its authors are public.

What is inferred: the convolution blocks are those of GhostNet 1.0x, four mobile transformer blocks take the place of
its last four bottlenecks with the same widths, and squeeze-and-excitation stands in every second of them, as it does
there. Of the arrangements tried, only this one gives both published sizes: 5 300 268 parameters, 146.7 million
multiply-adds in convolutions and linear layers. Open in the figure, and decided here: one head; a ReLU in the widening
Ghost module alone, as in a GhostNet's bottleneck; a batch norm after the depthwise convolution. Widths other than 1.0
follow GhostNet's rule. So weights trained by others under the same name need not fit.
"""

from functools import partial
from typing import Any, Final

import torch
from torch import Tensor, nn

from vitrail.config import from_options
from vitrail.layers.attention import attend_maps
from vitrail.layers.block import add_branch
from vitrail.layers.conv import ConvNorm
from vitrail.layers.ghost import GhostModule, ghost_excite
from vitrail.models.contract import ModelEntry, Published
from vitrail.models.ghostnet import STAGES, GhostNet, GhostNetOptions, Row, matching_width

NUM_CONVOLUTIONAL: Final = sum(map(len, STAGES[:-1]))
"""Blocks before the mobile transformer blocks."""
WIDTHS: Final = {"mocovit_050": 0.5, "mocovit_060": 0.6, "mocovit_075": 0.75, "mocovit_100": 1.0, "mocovit_130": 1.3}


class MobileSelfAttention(nn.Module):
    """Attention of one head in which queries, keys and values are the same.

    ``Ghost(softmax(V V^T / sqrt(C)) V + D V)`` with ``V = Ghost(x)``, and with a depthwise 3x3 convolution and its
    batch norm as D, which tells positions apart too.

    Source: Ma et al., MoCoViT, arXiv 2205.12635, figure 2 ("MoSA", with branch sharing).

    Args:
        dim: channels, an even number.

    Raises:
        ConfigError: if ``dim`` is odd.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.value = GhostModule(dim, dim, act=False)
        self.depthwise = ConvNorm(dim, dim, 3, groups=dim)
        self.proj = GhostModule(dim, dim, act=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, C, H, W)."""
        value = self.value(x)
        positions = value.flatten(2)  # (B, C, N)
        mixed = attend_maps(positions, positions, positions)
        out: Tensor = self.proj(torch.unflatten(mixed, 2, x.shape[2:]) + self.depthwise(value))
        return out


class MobileFeedForward(nn.Module):
    """A Ghost module that widens, squeeze-and-excitation if asked for, and a Ghost module that narrows.

    Source: Ma et al., MoCoViT, arXiv 2205.12635, figure 2 ("MoFFN").

    Args:
        dim: channels, an even number.
        hidden_dim: channels between the two modules, an even number.
        excite: whether squeeze-and-excitation weighs them.

    Raises:
        ConfigError: if a number of channels is odd.
    """

    def __init__(self, dim: int, hidden_dim: int, *, excite: bool) -> None:
        super().__init__()
        self.ghost1 = GhostModule(dim, hidden_dim, act=True)
        self.se = ghost_excite(hidden_dim) if excite else nn.Identity()
        self.ghost2 = GhostModule(hidden_dim, dim, act=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, C, H, W)."""
        out: Tensor = self.ghost2(self.se(self.ghost1(x)))
        return out


class MobileTransformerBlock(nn.Module):
    """Mobile self-attention, then the mobile feed-forward network, each added to what came in; there is no LayerNorm.

    Source: Ma et al., MoCoViT, arXiv 2205.12635, figure 2 ("MTB").

    Args:
        dim: channels, an even number.
        hidden_dim: channels inside the feed-forward network, an even number.
        excite: whether that has squeeze-and-excitation.
        drop_path: rate of stochastic depth in training, in [0, 1).

    Raises:
        ConfigError: if a number of channels is odd.
    """

    def __init__(self, dim: int, hidden_dim: int, *, excite: bool, drop_path: float = 0.0) -> None:
        super().__init__()
        self.drop_path = drop_path
        self.attn = MobileSelfAttention(dim)
        self.ffn = MobileFeedForward(dim, hidden_dim, excite=excite)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, C, H, W)."""

        def attention(kept: Tensor, _: Tensor | None) -> Tensor:
            out: Tensor = self.attn(kept)
            return out

        def feed_forward(kept: Tensor, _: Tensor | None) -> Tensor:
            out: Tensor = self.ffn(kept)
            return out

        rate = self.drop_path if self.training else 0.0
        return add_branch(add_branch(x, attention, rate), feed_forward, rate)


class MoCoViT(GhostNet):
    """A MoCoViT for images of any size; arguments, features and names as those of `vitrail.models.ghostnet.GhostNet`.

    Source: Ma et al., MoCoViT, arXiv 2205.12635, figure 2; see the top of this file for what is inferred.
    """

    def _block(self, number: int, shape: Row, dim: int, drop_path: float) -> nn.Module:
        if number < NUM_CONVOLUTIONAL:
            return super()._block(number, shape, dim, drop_path)
        return MobileTransformerBlock(dim, self._scaled(shape.hidden), excite=shape.excite, drop_path=drop_path)


def build(width: float, **options: Any) -> MoCoViT:
    """Build the MoCoViT of a width with `vitrail.models.ghostnet.GhostNetOptions` given as keyword arguments."""
    return MoCoViT(width, from_options(GhostNetOptions, options))


def recognise(tensors: dict[str, Tensor]) -> str | None:
    """Return the name of the MoCoViT that native tensors belong to, by their shapes; None if none fits."""
    if "blocks.8.3.attn.value.primary_conv.0.weight" not in tensors:
        return None
    return matching_width(tensors, WIDTHS)


_PUBLISHED: Final = Published(
    top1=74.5, params_m=5.3, macs_m=147, source="Ma et al., arXiv 2205.12635, as in EMOv2, arXiv 2412.06674, table VII"
)
MODELS: Final[dict[str, ModelEntry]] = {
    name: ModelEntry(build=partial(build, width), published=_PUBLISHED if width == 1 else Published())
    for name, width in WIDTHS.items()
}
"""The published width, and others by GhostNet's rule."""
