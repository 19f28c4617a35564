"""Lucarne (French for a small window in a roof): our vision transformer for phones.

Convolutions where neighbours matter, one head of attention over all positions where the map is small, features of three
strides joined before the head. Every norm is a batch norm and folds into a convolution; no tensor has more than four
axes.

Axes: B batch, C channels, H W a grid, N = H * W positions, d width of queries and keys.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Final

import torch
from torch import Tensor, nn

from vitrail.config import from_options
from vitrail.errors import ConfigError, lookup
from vitrail.layers.attention import attend_maps
from vitrail.layers.block import add_branch
from vitrail.layers.conv import Activation, ConvNorm, reset_conv_parameters
from vitrail.layers.embed import as_pair
from vitrail.layers.fusion import MultiScaleFusion
from vitrail.models.contract import Model, ModelEntry, make_head

DETAIL_START: Final = 0.1
"""Strength with which local enhancement starts to add detail."""


@dataclass(frozen=True)
class LucarneShape:
    """How wide and deep each of the four stages is, at strides 4, 8, 16 and 32."""

    widths: tuple[int, int, int, int]
    convs: tuple[int, int, int, int]
    """Convolution blocks of each stage."""
    attentions: tuple[int, int]
    """Attention blocks after them, in the last two stages."""
    expansion: int
    """Hidden width of a convolution block in multiples of its width."""
    features: int
    """Width of the joined features."""


SHAPES: Final[dict[str, LucarneShape]] = {
    "xs": LucarneShape((24, 40, 80, 160), (1, 2, 2, 0), (2, 2), 3, 192),
    "s": LucarneShape((32, 48, 112, 192), (2, 2, 3, 0), (3, 2), 3, 256),
}


@dataclass(frozen=True, kw_only=True)
class LucarneOptions:
    """Everything of a Lucarne but its shape."""

    num_classes: int = 1000
    """Outputs of the head; 0 leaves the head out."""
    image_size: int | tuple[int, int] = 224
    """Height and width in pixels, best multiples of 32. Other sizes run too."""
    in_channels: int = 3
    """Channels of the image."""
    drop_path: float = 0.0
    """Rate of stochastic depth in the last block, in [0, 1); rises linearly from 0 in the first."""
    local: bool = True
    """Adaptive local enhancement before every attention."""
    fusion: bool = True
    """Join the features of strides 8, 16 and 32 before the head; otherwise the head sees stride 32."""
    attention: bool = True
    """Attention blocks where the shape has them; otherwise convolution blocks stand in their place."""


class LocalEnhancement2d(nn.Module):
    """Adaptive local enhancement on a map: ``x + g(x) * s * ReLU(DWConv3x3(x))``.

    The form of `vitrail.layers.local.LocalEnhancement` for networks with batch norms: the one behind the depthwise
    convolution gives the threshold from which a difference counts as detail (its bias) and the strength ``s`` of each
    channel (its weight), and folds into the convolution.

    Args:
        dim: C.
    """

    fold_pairs: ClassVar = (("conv", "bn"),)

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(dim, dim, 3, padding=1, groups=dim, bias=False)
        self.bn = nn.BatchNorm2d(dim)
        self.gate = nn.Conv2d(dim, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, C, H, W)."""
        out: Tensor = x + self.gate(x).sigmoid() * self.bn(self.conv(x)).relu()
        return out


class ConvBlock(nn.Module):
    """A depthwise 3x3 convolution, then a perceptron at every position, added to what came in.

    Source: Wang et al., RepViT, arXiv 2307.09283, section 3.2 (mixing of positions before that of channels).

    Args:
        dim: C.
        hidden: channels inside the perceptron.
        act: makes its activation.
        drop_path: rate of stochastic depth in training, in [0, 1).
    """

    def __init__(self, dim: int, hidden: int, *, act: Activation, drop_path: float = 0.0) -> None:
        super().__init__()
        self.drop_path = drop_path
        self.depthwise = ConvNorm(dim, dim, 3, groups=dim)
        self.expand = ConvNorm(dim, hidden, act=act)
        self.project = ConvNorm(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, C, H, W)."""

        def branch(kept: Tensor, _: Tensor | None) -> Tensor:
            out: Tensor = self.project(self.expand(self.depthwise(kept)))
            return out

        return add_branch(x, branch, self.drop_path if self.training else 0.0)


class SingleHeadAttention(nn.Module):
    """Attention of one head over all positions of a map, with narrow queries and keys.

    Source: Yun and Ro, SHViT, arXiv 2401.16456, section 3.2 (one head does as well, and moves less memory). Differs:
    values of all channels. Narrow queries and keys: Zheng, iFormer, arXiv 2501.15369, section 3.

    Args:
        dim: C.
        key_dim: d.
    """

    def __init__(self, dim: int, key_dim: int) -> None:
        super().__init__()
        self.parts = (key_dim, key_dim, dim)  # by which Muon8 divides the weight too
        self.qkv = ConvNorm(dim, sum(self.parts))
        self.proj = ConvNorm(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, C, H, W)."""
        maps = self.qkv(x).flatten(2)  # (B, 2 d + C, N)
        d = self.parts[0]
        # Slices, because XNNPACK does not take a split.
        mixed = attend_maps(maps[:, :d], maps[:, d : 2 * d], maps[:, 2 * d :])
        out: Tensor = self.proj(torch.unflatten(mixed, 2, (x.shape[2], x.shape[3])))
        return out


class AttentionBlock(nn.Module):
    """Local enhancement, attention and a perceptron, each added to what came in.

    Args:
        dim: C.
        key_dim: width of queries and keys.
        hidden: channels inside the perceptron.
        act: makes its activation.
        local: whether there is local enhancement; otherwise nothing tells positions apart but the blocks before.
        drop_path: rate of stochastic depth in training, in [0, 1).
    """

    def __init__(
        self, dim: int, key_dim: int, hidden: int, *, act: Activation, local: bool, drop_path: float = 0.0
    ) -> None:
        super().__init__()
        self.drop_path = drop_path
        self.local = LocalEnhancement2d(dim) if local else nn.Identity()
        self.attn = SingleHeadAttention(dim, key_dim)
        self.expand = ConvNorm(dim, hidden, act=act)
        self.project = ConvNorm(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, C, H, W)."""

        def attention(kept: Tensor, _: Tensor | None) -> Tensor:
            out: Tensor = self.attn(kept)
            return out

        def perceptron(kept: Tensor, _: Tensor | None) -> Tensor:
            out: Tensor = self.project(self.expand(kept))
            return out

        rate = self.drop_path if self.training else 0.0
        x = self.local(x)
        return add_branch(add_branch(x, attention, rate), perceptron, rate)


class Lucarne(Model):
    """A small vision transformer made of what is fast on a phone, in four stages at strides 4, 8, 16 and 32.

    Raises:
        ConfigError: for a value outside its range.
    """

    stem_name: ClassVar[str] = "stem.conv"
    channels_last: ClassVar[bool] = True

    def __init__(self, shape: LucarneShape, options: LucarneOptions) -> None:
        super().__init__()
        if not 0 <= options.drop_path < 1:
            raise ConfigError(f"drop_path is {options.drop_path}; it takes a rate from 0 up to, not including, 1.")
        self.num_classes = options.num_classes
        self.image_size = as_pair("image_size", options.image_size)
        widths = shape.widths
        self.stem = ConvNorm(options.in_channels, widths[0] // 2, 3, stride=2, act=nn.ReLU)
        self.downs = nn.ModuleList(
            ConvNorm(before, after, 3, stride=2, act=nn.ReLU)
            for before, after in zip((widths[0] // 2, *widths), widths, strict=False)
        )
        total = sum(shape.convs) + sum(shape.attentions)
        rates = iter([options.drop_path * index / max(1, total - 1) for index in range(total)])
        self.blocks = nn.ModuleList(_stage(shape, number, options, rates) for number in range(4))
        self.num_features = shape.features if options.fusion else widths[-1]
        self.fusion = MultiScaleFusion(widths[1:], shape.features) if options.fusion else None
        self.head = make_head(self.num_features, options.num_classes)
        self.feature_info = [
            {"name": f"stage{number + 1}", "channels": width, "stride": (4 << number, 4 << number)}
            for number, width in enumerate(widths)
        ]
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw all weights anew.

        The last norm of every branch starts at zero, so that its block is the identity, and the local detail at a
        tenth of its strength; at zero itself, a ReLU would let no gradient through.
        """
        reset_conv_parameters(self)
        for module in self.modules():
            if isinstance(module, ConvBlock | AttentionBlock):
                nn.init.zeros_(module.project.bn.weight)
            if isinstance(module, SingleHeadAttention):
                nn.init.zeros_(module.proj.bn.weight)
            if isinstance(module, LocalEnhancement2d):
                nn.init.constant_(module.bn.weight, DETAIL_START)
            if isinstance(module, MultiScaleFusion):
                module.reset_parameters()

    def intermediates(self, images: Tensor) -> Iterator[tuple[str, Tensor]]:
        """Yield "stem", "stage1" to "stage4", (B, C, H / stride, W / stride), and "pooled"."""
        x = self.stem(images)
        yield "stem", x
        maps: list[Tensor] = []
        for number, (down, blocks) in enumerate(zip(self.downs, self.blocks, strict=True)):
            x = blocks(down(x))
            maps.append(x)
            yield f"stage{number + 1}", x
        pooled = maps[-1].mean(dim=(2, 3)) if self.fusion is None else self.fusion(maps[1:], (1, 1)).flatten(1)
        yield "pooled", pooled

    def layer_groups(self) -> list[tuple[str, ...]]:
        """Return the stem, each block with what comes before it, and the head."""
        groups: list[tuple[str, ...]] = [("stem.",)]
        for stage, blocks in enumerate(self.blocks):
            assert isinstance(blocks, nn.Sequential)
            groups += [(f"downs.{stage}.",), *((f"blocks.{stage}.{index}.",) for index in range(len(blocks)))]
        return [*groups, ("fusion.", "head.")]


def _stage(shape: LucarneShape, number: int, options: LucarneOptions, rates: Iterator[float]) -> nn.Sequential:
    width, hidden = shape.widths[number], shape.expansion * shape.widths[number]
    num_attentions = shape.attentions[number - 2] if number >= 2 else 0
    num_convs = shape.convs[number] + (0 if options.attention else num_attentions)
    # A runtime computes a ReLU within its convolution and a hard swish after it, which costs little on small maps.
    act: Activation = nn.Hardswish if number >= 2 else nn.ReLU
    blocks: list[nn.Module] = [ConvBlock(width, hidden, act=act, drop_path=next(rates)) for _ in range(num_convs)]
    if options.attention:
        key_dim = max(16, width // 4 // 8 * 8)
        blocks += [
            AttentionBlock(width, key_dim, 2 * width, act=act, local=options.local, drop_path=next(rates))
            for _ in range(num_attentions)
        ]
    return nn.Sequential(*blocks)


def build(size: str, **options: Any) -> Lucarne:
    """Build the Lucarne of a size in `SHAPES` with `LucarneOptions` given as keyword arguments."""
    return Lucarne(lookup(SHAPES, size, "size of a Lucarne"), from_options(LucarneOptions, options))


# At a batch of 64, 2e-3 took a Lucarne-S to 57 % of CIFAR-10's test images where 1e-3 took it to 53 % (5,000 images to
# learn from, 15 epochs, one run each); on the digits 4e-3 was better still.
LR_SCALE: Final = 3.0

MODELS: Final[dict[str, ModelEntry]] = {
    f"lucarne_{size}": ModelEntry(build=partial(build, size), lr_scale=LR_SCALE) for size in SHAPES
}
"""Both sizes."""
