"""MobileViT: a mobile network whose last three stages let each pixel attend to its like in every 2x2 patch of the map.

Axes: B batch, C channels, H W a map, N = H / 2 * W / 2 patches, D width of a token.

Names of parameters are timm's, so that its weights load as they are. Those weights, and the published numbers, belong
to pixels from 0 to 1 that are not normalised further.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitrail.config import from_options
from vitrail.errors import ConfigError, lookup
from vitrail.layers.attention import Attention, attend, merge_heads, split_heads
from vitrail.layers.block import add_branch
from vitrail.layers.conv import ConvNorm, reset_conv_parameters
from vitrail.layers.embed import as_pair
from vitrail.layers.mobile import InvertedResidual, from_patches, resize_to_even, to_patches
from vitrail.models.contract import Model, ModelEntry, Published, make_head, reset_linear

HEADS: Final = 4
"""Attention heads of every layer."""
MLP_RATIO: Final = 2
"""Width of the perceptron's hidden layer in multiples of a token's."""
NUM_LAYERS: Final = (2, 4, 3)
"""Transformer layers of the last three stages, in both versions of MobileViT."""


@dataclass(frozen=True)
class MobileVitShape:
    """How wide and deep a MobileViT is."""

    stem: int
    """Channels at stride 2."""
    widths: tuple[int, int, int, int, int]
    """Channels of the stages, at strides 2, 4, 8, 16 and 32."""
    dims: tuple[int, int, int]
    """Width of a token in the last three stages."""
    num_residuals: tuple[int, int]
    """Inverted residuals of the first two stages; the others have one before their transformer."""
    expansion: int
    """Inner channels of an inverted residual in multiples of its input's."""
    features: int
    """Channels of the 1x1 convolution before the pool; 0 for none."""


# Mehta and Rastegari, MobileViT, arXiv 2110.02178; in numbers in their code, ml-cvnets.
SHAPES: Final[dict[str, MobileVitShape]] = {
    "xxs": MobileVitShape(16, (16, 24, 48, 64, 80), (64, 80, 96), (1, 3), 2, 320),
    "xs": MobileVitShape(16, (32, 48, 64, 80, 96), (96, 120, 144), (1, 3), 4, 384),
    "s": MobileVitShape(16, (32, 64, 96, 128, 160), (144, 192, 240), (1, 3), 4, 640),
}


@dataclass(frozen=True, kw_only=True)
class MobileVitOptions:
    """Everything of a MobileViT, v1 or v2, but its shape."""

    num_classes: int = 1000
    """Outputs of the head; 0 leaves the head out."""
    image_size: int | tuple[int, int] = 256
    """Height and width in pixels, best multiples of 64: then every map has even sides. Other sizes run too."""
    in_channels: int = 3
    """Channels of the image."""
    drop_path: float = 0.0
    """Rate of stochastic depth in the last transformer layer, in [0, 1); rises linearly from 0 in the first."""

    def __post_init__(self) -> None:
        """Refuse values outside their range."""
        for name, lowest in (("num_classes", 0), ("in_channels", 1)):
            if (value := getattr(self, name)) < lowest:
                raise ConfigError(f"{name} is {value}; it takes a whole number from {lowest}.")
        if not 0 <= self.drop_path < 1:
            raise ConfigError(f"drop_path is {self.drop_path}; it takes a rate from 0 up to, not including, 1.")


class PatchwiseAttention(Attention):
    """Attention among all pixels that have the same place in their 2x2 patch, for each of the four places."""

    def forward(self, x: Tensor, _: Tensor | None = None) -> Tensor:
        """Map (B, 4, N, D) to (B, 4, N, D)."""
        parts = self.qkv(x).chunk(3, dim=-1)
        if torch.compiler.is_exporting():
            # One head after the other: the batch stays an axis of its own and there is no fifth, for phone runtimes.
            heads = zip(*(part.chunk(self.heads, dim=-1) for part in parts), strict=True)
            mixed = torch.cat([attend(q, k, v) for q, k, v in heads], dim=-1)
        else:
            q, k, v = (split_heads(part.flatten(0, 1), self.heads) for part in parts)
            mixed = merge_heads(attend(q, k, v)).view_as(x)
        out: Tensor = self.proj(mixed)
        return out


class Perceptron(nn.Module):
    """Two linear layers with a SiLU between them, applied to each token by itself."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, MLP_RATIO * dim)
        self.fc2 = nn.Linear(MLP_RATIO * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, 4, N, D) to (B, 4, N, D)."""
        out: Tensor = self.fc2(F.silu(self.fc1(x)))
        return out


class TransformerLayer(nn.Module):
    """Attention within each place of a patch, then a perceptron, each behind a norm and added to what came in."""

    def __init__(self, dim: int, drop_path: float) -> None:
        super().__init__()
        self.drop_path = drop_path
        self.norm1 = nn.LayerNorm(dim)
        self.attn = PatchwiseAttention(dim, HEADS)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Perceptron(dim)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, 4, N, D) to (B, 4, N, D)."""
        rate = self.drop_path if self.training else 0.0
        x = add_branch(x, lambda kept, _: self.attn(self.norm1(kept)), rate)
        return add_branch(x, lambda kept, _: self.mlp(self.norm2(kept)), rate)


class MobileVitBlock(nn.Module):
    """Neighbours through a 3x3 convolution, all patches through a transformer, joined with the input.

    Source: Mehta and Rastegari, MobileViT, arXiv 2110.02178, section 3.1. A map with an odd side is resized to an even
    one for the transformer and back, as in the authors' code.

    Args:
        channels: of the map.
        dim: width of a token.
        rates: of stochastic depth, one for each transformer layer.
    """

    def __init__(self, channels: int, dim: int, rates: Sequence[float]) -> None:
        super().__init__()
        self.conv_kxk = ConvNorm(channels, channels, 3, act=nn.SiLU)
        self.conv_1x1 = nn.Conv2d(channels, dim, 1, bias=False)
        self.transformer = nn.Sequential(*(TransformerLayer(dim, rate) for rate in rates))
        self.norm = nn.LayerNorm(dim)
        self.conv_proj = ConvNorm(dim, channels, act=nn.SiLU)
        self.conv_fusion = ConvNorm(2 * channels, channels, 3, act=nn.SiLU)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, C, H, W)."""
        local: Tensor = self.conv_1x1(self.conv_kxk(x))
        even = resize_to_even(local, align_corners=False)
        tokens = self.norm(self.transformer(to_patches(even)))
        mixed = from_patches(tokens, even.shape[2], even.shape[3])
        if even is not local:
            mixed = F.interpolate(mixed, local.shape[-2:], mode="bilinear", align_corners=False)
        out: Tensor = self.conv_fusion(torch.cat([x, self.conv_proj(mixed)], dim=1))
        return out


class MobileVit(Model):
    """A MobileViT for images of any rectangular size.

    Source: Mehta and Rastegari, MobileViT, arXiv 2110.02178.

    Raises:
        ConfigError: for a value outside its range.
    """

    stem_name: ClassVar[str] = "stem.conv"
    head_name: ClassVar[str] = "head.fc"
    channels_last: ClassVar[bool] = True
    block_type: ClassVar[type[nn.Module]] = MobileVitBlock
    """Made of channels, width of a token and rates of stochastic depth."""

    def __init__(self, shape: MobileVitShape, options: MobileVitOptions) -> None:
        super().__init__()
        self.shape = shape
        self.options = options
        self.num_classes = options.num_classes
        self.num_features = shape.features or shape.widths[-1]
        self.image_size = as_pair("image_size", options.image_size)
        self.stem = ConvNorm(options.in_channels, shape.stem, 3, stride=2, act=nn.SiLU)
        self.stages = _make_stages(shape, options, self.block_type)
        last = shape.widths[-1]
        self.final_conv = ConvNorm(last, shape.features, act=nn.SiLU) if shape.features else nn.Identity()
        self.head = nn.ModuleDict({"fc": make_head(self.num_features, options.num_classes)})
        self.feature_info = [
            {"name": f"stage{number + 1}", "channels": width, "stride": (2 << number, 2 << number)}
            for number, width in enumerate(shape.widths)
        ]
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw all weights anew, as the authors do.

        Convolutions: normal, variance 2 / fan-out. Linear layers: truncated normal, std 0.02. Biases: 0. Norms: 1.
        """
        reset_conv_parameters(self)
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                reset_linear(layer)
            elif isinstance(layer, nn.LayerNorm | nn.GroupNorm):
                layer.reset_parameters()

    def intermediates(self, images: Tensor) -> Iterator[tuple[str, Tensor]]:
        """Yield "stem", "stage1" to "stage5", (B, C, H / stride, W / stride), and "pooled" (B, num_features)."""
        x = self.stem(images)
        yield "stem", x
        for number, stage in enumerate(self.stages):
            x = stage(x)
            yield f"stage{number + 1}", x
        yield "pooled", self.final_conv(x).mean(dim=(2, 3))

    def layer_groups(self) -> list[tuple[str, ...]]:
        """Return the stem, each block of each stage, and the head with the convolution before it."""
        blocks = [
            (f"stages.{number}.{index}.",)
            for number, stage in enumerate(self.stages)
            for index, _ in enumerate(stage.children())
        ]
        return [("stem.",), *blocks, ("final_conv.", "head.")]


def _make_stages(shape: MobileVitShape, options: MobileVitOptions, block_type: type[nn.Module]) -> nn.Sequential:
    num_layers = sum(NUM_LAYERS)
    rates = [options.drop_path * index / (num_layers - 1) for index in range(num_layers)]
    stages = nn.Sequential()
    before = shape.stem
    for number, width in enumerate(shape.widths):
        count = shape.num_residuals[number] if number < 2 else 1
        stage = nn.Sequential()
        for index in range(count):
            stride = 2 if number and not index else 1
            stage.append(InvertedResidual(before, width, expansion=shape.expansion, stride=stride))
            before = width
        if number >= 2:
            depth = NUM_LAYERS[number - 2]
            stage.append(block_type(width, shape.dims[number - 2], rates[:depth]))
            rates = rates[depth:]
        stages.append(stage)
    return stages


def build(size: str, **options: Any) -> MobileVit:
    """Build the MobileViT of a size in `SHAPES` with `MobileVitOptions` given as keyword arguments."""
    return MobileVit(lookup(SHAPES, size, "size of a MobileViT"), from_options(MobileVitOptions, options))


_SOURCE: Final = "Apple's code, ml-cvnets, model zoo; multiply-adds: timm's benchmark tables"
_PUBLISHED: Final = {
    "xxs": Published(top1=69.0, params_m=1.272, macs_m=420, image_size=256, source=_SOURCE),
    "xs": Published(top1=74.7, params_m=2.318, macs_m=1050, image_size=256, source=_SOURCE),
    "s": Published(top1=78.3, params_m=5.579, macs_m=2030, image_size=256, source=_SOURCE),
}

MODELS: Final[dict[str, ModelEntry]] = {
    f"mobilevit_{size}": ModelEntry(build=partial(build, size), image_size=256, published=_PUBLISHED[size])
    for size in SHAPES
}
"""The three published sizes."""
