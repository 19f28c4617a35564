"""MobileViTv2: MobileViT with attention whose cost is linear in the number of pixels.

Axes: B batch, C channels, H W a map, N = H / 2 * W / 2 patches, D width of a token.

Names of parameters are timm's, so that its weights load as they are. Those weights, and the published numbers, belong
to pixels from 0 to 1 that are not normalised further.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, ClassVar, Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitrail.config import from_options
from vitrail.errors import lookup
from vitrail.layers.block import add_branch
from vitrail.layers.conv import ConvNorm
from vitrail.layers.mobile import from_patches, resize_to_even, to_patches
from vitrail.models.contract import ModelEntry, Published
from vitrail.models.mobilevit import MLP_RATIO, MobileVit, MobileVitOptions, MobileVitShape


def shape_of(width: float) -> MobileVitShape:
    """Return the shape of a width multiplier from 0.5 to 2.

    Source: Mehta and Rastegari, MobileViTv2, arXiv 2206.02680; in numbers in their code, ml-cvnets.
    """
    stem, *widths = (round(width * channels) for channels in (32, 64, 128, 256, 384, 512))
    first, second, third, fourth, fifth = widths
    dims = (third // 2, fourth // 2, fifth // 2)
    return MobileVitShape(stem, (first, second, third, fourth, fifth), dims, (1, 2), 2, 0)


SHAPES: Final[dict[str, MobileVitShape]] = {
    f"{percent:03d}": shape_of(percent / 100) for percent in (50, 75, 100, 125, 150, 175, 200)
}
"""By width multiplier in percent."""


class Pointwise(nn.Conv2d):
    """A 1x1 convolution of tokens (..., D); computed as a linear layer, which is the faster on a CPU."""

    def __init__(self, in_dim: int, out_dim: int) -> None:
        super().__init__(in_dim, out_dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., D) to (..., out_dim)."""
        return F.linear(x, self.weight.flatten(1), self.bias)

    def fold_(self) -> None:
        """Drop the weight's two axes of 1: ExecuTorch's XNNPACK takes weights that are stored as they are used."""
        self.weight = nn.Parameter(self.weight.detach().flatten(1))


class SeparableAttention(nn.Module):
    """Each token takes from one weighted mean of all tokens that have the same place in their 2x2 patch.

    With scores ``c`` (softmax over the patches of a place) the mean of the keys ``sum_n c_n (W_k x_n + b_k)`` is
    computed as ``W_k (sum_n c_n x_n) + b_k``: the same number, because the scores sum to 1, without a key for every
    token. One of the layer's seven products of (N x D) and (D x D) is saved.

    Source: Mehta and Rastegari, MobileViTv2, arXiv 2206.02680, section 3.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.qkv_proj: nn.Module = nn.Conv2d(dim, 1 + 2 * dim, 1)
        self.out_proj = Pointwise(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, 4, N, D) to (B, 4, N, D)."""
        score, key, value = self._score_key_value()
        scores = F.linear(x, *score).transpose(2, 3).softmax(dim=-1)  # (B, 4, 1, N)
        context = F.linear(scores @ x, *key)  # (B, 4, 1, D)
        out: Tensor = self.out_proj(F.linear(x, *value).relu() * context)
        return out

    def fold_(self) -> None:
        """Give score, key and value a layer each."""
        self.qkv_proj = nn.ModuleList(_linear(weight, bias) for weight, bias in self._score_key_value())

    def _score_key_value(self) -> list[tuple[Tensor, Tensor]]:
        if isinstance(self.qkv_proj, nn.ModuleList):
            return [(part.get_parameter("weight"), part.get_parameter("bias")) for part in self.qkv_proj]
        weight, bias = self.qkv_proj.get_parameter("weight").flatten(1), self.qkv_proj.get_parameter("bias")
        sizes = [1, weight.shape[1], weight.shape[1]]
        return list(zip(torch.split(weight, sizes), torch.split(bias, sizes), strict=True))


class Perceptron(nn.Module):
    """Two 1x1 convolutions with a SiLU between them."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.fc1 = Pointwise(dim, MLP_RATIO * dim)
        self.fc2 = Pointwise(MLP_RATIO * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, 4, N, D) to (B, 4, N, D)."""
        out: Tensor = self.fc2(F.silu(self.fc1(x)))
        return out


class TokenNorm(nn.GroupNorm):
    """Normalise all numbers of an image together, then scale each channel."""

    def __init__(self, dim: int) -> None:
        super().__init__(1, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, 4, N, D) to (B, 4, N, D)."""
        if torch.compiler.is_exporting():
            # Written out, because the exporter's own form moves the channels forth and back and asks for shapes.
            centred = x - x.mean(dim=(1, 2, 3), keepdim=True)
            variance = centred.square().mean(dim=(1, 2, 3), keepdim=True)
            return centred * (variance + self.eps).rsqrt() * self.weight + self.bias
        return super().forward(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class TransformerLayer(nn.Module):
    """Separable attention, then a perceptron, each behind a norm and added to what came in."""

    def __init__(self, dim: int, drop_path: float) -> None:
        super().__init__()
        self.drop_path = drop_path
        self.norm1 = TokenNorm(dim)
        self.attn = SeparableAttention(dim)
        self.norm2 = TokenNorm(dim)
        self.mlp = Perceptron(dim)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, 4, N, D) to (B, 4, N, D)."""
        rate = self.drop_path if self.training else 0.0
        x = add_branch(x, lambda kept, _: self.attn(self.norm1(kept)), rate)
        return add_branch(x, lambda kept, _: self.mlp(self.norm2(kept)), rate)


class MobileVitV2Block(nn.Module):
    """Neighbours through a depthwise convolution, then all patches through a transformer.

    Source: Mehta and Rastegari, MobileViTv2, arXiv 2206.02680, section 3. A map with an odd side is resized to an even
    one and stays so, as in the authors' code.

    Args:
        channels: of the map.
        dim: width of a token.
        rates: of stochastic depth, one for each transformer layer.
    """

    def __init__(self, channels: int, dim: int, rates: Sequence[float]) -> None:
        super().__init__()
        self.conv_kxk = ConvNorm(channels, channels, 3, groups=channels, act=nn.SiLU)
        self.conv_1x1 = nn.Conv2d(channels, dim, 1, bias=False)
        self.transformer = nn.Sequential(*(TransformerLayer(dim, rate) for rate in rates))
        self.norm = TokenNorm(dim)
        self.conv_proj = ConvNorm(dim, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, C, H, W), odd sides one pixel longer."""
        x = resize_to_even(x, align_corners=True)
        tokens = self.norm(self.transformer(to_patches(self.conv_1x1(self.conv_kxk(x)))))
        out: Tensor = self.conv_proj(from_patches(tokens, x.shape[2], x.shape[3]))
        return out


class MobileVitV2(MobileVit):
    """A MobileViTv2 for images of any rectangular size.

    Source: Mehta and Rastegari, MobileViTv2, arXiv 2206.02680.

    Raises:
        ConfigError: for a value outside its range.
    """

    block_type: ClassVar[type[nn.Module]] = MobileVitV2Block


def _linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], device="meta")
    layer.weight, layer.bias = nn.Parameter(weight.detach().clone()), nn.Parameter(bias.detach().clone())
    return layer


def build(size: str, **options: Any) -> MobileVitV2:
    """Build the MobileViTv2 of a width in `SHAPES` with `MobileVitOptions` given as keyword arguments."""
    return MobileVitV2(lookup(SHAPES, size, "width of a MobileViTv2"), from_options(MobileVitOptions, options))


_SOURCE: Final = "Apple's code, ml-cvnets, model zoo"
_PUBLISHED: Final = {
    # Without multiply-adds: those printed (480 M at width 0.5) hold a key for every token, which is not computed here;
    # ours are 5 to 8 % fewer.
    "050": Published(top1=70.18, params_m=1.371, image_size=256, source=_SOURCE),
    "075": Published(top1=75.56, params_m=2.866, image_size=256, source=_SOURCE),
    "100": Published(top1=78.09, params_m=4.902, image_size=256, source=_SOURCE),
    "125": Published(top1=79.65, params_m=7.48, image_size=256, source=_SOURCE),
    "150": Published(top1=80.38, params_m=10.59, image_size=256, source=_SOURCE),
    "175": Published(top1=80.84, params_m=14.25, image_size=256, source=_SOURCE),
    "200": Published(top1=81.17, params_m=18.45, image_size=256, source=_SOURCE),
}

MODELS: Final[dict[str, ModelEntry]] = {
    f"mobilevitv2_{size}": ModelEntry(build=partial(build, size), image_size=256, published=_PUBLISHED[size])
    for size in SHAPES
}
"""Every published width."""
