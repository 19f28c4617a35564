"""RepViT: a convolutional network laid out like a light vision transformer, with branches that only training needs.

Axes: B batch, C channels, H W a map.

Names of parameters are timm's. Published weights were trained with a teacher and hold a second head for its answers,
``head.head_dist``; `merge_heads` makes one head of both.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from vitrail.config import from_options
from vitrail.errors import ConfigError, lookup
from vitrail.layers.block import add_branch
from vitrail.layers.conv import make_divisible, reset_conv_parameters, sum_parallel
from vitrail.layers.embed import as_pair
from vitrail.models.contract import Model, ModelEntry, Published, make_head

EXPANSION: Final = 2
"""Inner channels of a channel mixer in multiples of the outer ones."""


@dataclass(frozen=True)
class RepVitShape:
    """How wide and deep each of the four stages is, at strides 4, 8, 16 and 32."""

    widths: tuple[int, int, int, int]
    blocks: tuple[int, int, int, int]
    """Blocks of each stage behind its downsampling."""


SHAPES: Final[dict[str, RepVitShape]] = {
    # Wang et al., RepViT: Revisiting Mobile CNN From ViT Perspective, arXiv 2307.09283, section 3.4 and the authors'
    # code.
    "m0_9": RepVitShape((48, 96, 192, 384), (2, 2, 14, 2)),
    "m1_0": RepVitShape((56, 112, 224, 448), (2, 2, 14, 2)),
    "m1_1": RepVitShape((64, 128, 256, 512), (2, 2, 12, 2)),
}


@dataclass(frozen=True, kw_only=True)
class RepVitOptions:
    """Everything of a RepViT but its shape."""

    num_classes: int = 1000
    """Outputs of the head; 0 leaves its linear layer out."""
    image_size: int | tuple[int, int] = 224
    """Height and width in pixels, best multiples of 32. Other sizes run too."""
    in_channels: int = 3
    """Channels of the image."""
    drop_path: float = 0.0
    """Rate of stochastic depth in the last channel mixer, in [0, 1); rises linearly from 0 in the first."""


class NormedConv(nn.Module):
    """A convolution without bias and a batch norm, under the names that RepViT's weights have."""

    fold_pairs: ClassVar = (("c", "bn"),)

    def __init__(self, in_dim: int, out_dim: int, kernel: int = 1, *, stride: int = 1, groups: int = 1) -> None:
        super().__init__()
        self.c = nn.Conv2d(in_dim, out_dim, kernel, stride, padding=kernel // 2, groups=groups, bias=False)
        self.bn = nn.BatchNorm2d(out_dim)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in_dim, H, W) to (B, out_dim, H / stride, W / stride), rounded up."""
        out: Tensor = self.bn(self.c(x))
        return out


class TokenMixer(nn.Module):
    """Depthwise 3x3 and 1x1 convolutions and the input itself, summed and normalised; folds into one convolution.

    Source: Wang et al., arXiv 2307.09283, section 3.2 and figure 3; Ding et al., RepVGG, arXiv 2101.03697.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv = NormedConv(dim, dim, 3, groups=dim)
        self.conv1 = nn.Conv2d(dim, dim, 1, groups=dim)
        self.bn = nn.BatchNorm2d(dim)
        self.folded: nn.Conv2d | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, C, H, W)."""
        out: Tensor = self.bn(self._sum(x)) if self.folded is None else self.folded(x)
        return out

    def _sum(self, x: Tensor) -> Tensor:
        # The depthwise 1x1 convolution and the input are one multiplication per channel: in fp32 a training step and an
        # answer of M0.9 on a CPU take two thirds of the time.
        scale, shift = self.conv1.weight.view(1, -1, 1, 1) + 1, self.conv1.bias
        assert shift is not None
        return torch.addcmul(self.conv(x), x, scale.to(x.dtype)) + shift.view(1, -1, 1, 1).to(x.dtype)

    def fold_(self) -> None:
        """Make one convolution of all branches and the norm, in place, once."""
        if self.folded is not None:
            return
        branches = sum_parallel([self.conv.c, self.conv1], identity=True).eval()
        assert isinstance(self.bn, nn.BatchNorm2d)
        self.folded = fuse_conv_bn_eval(branches, self.bn)
        del self.conv, self.conv1, self.bn


class SqueezeExcite(nn.Module):
    """Squeeze-and-excitation with a sigmoid, under the names that RepViT's weights have.

    Source: Hu et al., Squeeze-and-Excitation Networks, arXiv 1709.01507, section 3.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        hidden = make_divisible(dim / 4, floor=0.0)
        self.fc1 = nn.Conv2d(dim, hidden, 1)
        self.fc2 = nn.Conv2d(hidden, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, C, H, W)."""
        gate: Tensor = self.fc2(F.relu(self.fc1(x.mean(dim=(2, 3), keepdim=True)), inplace=True))
        return x * gate.sigmoid()


class ChannelMixer(nn.Module):
    """Two 1x1 convolutions with an exact GELU between them, to be added to what came in."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv1 = NormedConv(dim, EXPANSION * dim)
        self.conv2 = NormedConv(EXPANSION * dim, dim)

    def forward(self, x: Tensor, _: Tensor | None = None) -> Tensor:
        """Map (B, C, H, W) to (B, C, H, W)."""
        out: Tensor = self.conv2(F.gelu(self.conv1(x)))
        return out


class RepVitBlock(nn.Module):
    """A token mixer, squeeze-and-excitation if asked for, and a channel mixer added to what comes out of them."""

    def __init__(self, dim: int, *, squeeze: bool, drop_path: float = 0.0) -> None:
        super().__init__()
        self.drop_path = drop_path
        self.token_mixer = TokenMixer(dim)
        self.se = SqueezeExcite(dim) if squeeze else nn.Identity()
        self.channel_mixer = ChannelMixer(dim)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, C, H, W)."""
        x = self.se(self.token_mixer(x))
        return add_branch(x, self.channel_mixer, self.drop_path if self.training else 0.0)


class Downsample(nn.Module):
    """A block, then half the resolution and other channels by separate convolutions, then a channel mixer.

    Source: Wang et al., arXiv 2307.09283, section 3.3, "Deeper downsampling layers".
    """

    def __init__(self, in_dim: int, out_dim: int, drop_paths: tuple[float, float]) -> None:
        super().__init__()
        self.drop_path = drop_paths[1]
        self.pre_block = RepVitBlock(in_dim, squeeze=False, drop_path=drop_paths[0])
        self.spatial_downsample = NormedConv(in_dim, in_dim, 3, stride=2, groups=in_dim)
        self.channel_downsample = NormedConv(in_dim, out_dim)
        self.ffn = ChannelMixer(out_dim)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in_dim, H, W) to (B, out_dim, H / 2, W / 2), rounded up."""
        x = self.channel_downsample(self.spatial_downsample(self.pre_block(x)))
        return add_branch(x, self.ffn, self.drop_path if self.training else 0.0)


class Stage(nn.Module):
    """A downsampling if the channels change, then blocks of which every other one has squeeze-and-excitation."""

    def __init__(self, in_dim: int, dim: int, depth: int, rates: Iterator[float]) -> None:
        super().__init__()
        self.downsample = nn.Identity() if in_dim == dim else Downsample(in_dim, dim, (next(rates), next(rates)))
        self.blocks = nn.Sequential(
            *(RepVitBlock(dim, squeeze=index % 2 == 0, drop_path=next(rates)) for index in range(depth))
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in_dim, H, W) to (B, C, H, W), of half the resolution if there is a downsampling."""
        out: Tensor = self.blocks(self.downsample(x))
        return out


class Stem(nn.Module):
    """Two 3x3 convolutions of stride 2 with an exact GELU between them."""

    def __init__(self, in_channels: int, dim: int) -> None:
        super().__init__()
        self.conv1 = NormedConv(in_channels, dim // 2, 3, stride=2)
        self.conv2 = NormedConv(dim // 2, dim, 3, stride=2)

    def forward(self, images: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, dim, H / 4, W / 4), rounded up."""
        out: Tensor = self.conv2(F.gelu(self.conv1(images)))
        return out


class NormedLinear(nn.Module):
    """A batch norm over features and a linear layer, which takes the norm in when folded."""

    def __init__(self, dim: int, num_classes: int) -> None:
        super().__init__()
        self.bn: nn.Module = nn.BatchNorm1d(dim)
        self.l = make_head(dim, num_classes)

    @torch.no_grad()
    def fold_(self) -> None:
        """Make the norm part of the linear layer, in place; a norm without one stays."""
        if isinstance(self.l, nn.Linear) and isinstance(self.bn, nn.BatchNorm1d):
            scale, shift = _affine(*(getattr(self.bn, name) for name in _NORM), eps=self.bn.eps)
            self.l.bias.copy_(self.l.bias + self.l.weight @ shift)
            self.l.weight.copy_(self.l.weight * scale)
            self.bn = nn.Identity()


class RepVit(Model):
    """A stem that quarters the image, four stages of blocks, and a head behind a batch norm.

    `vitrail.layers.conv.fold` makes one convolution of each token mixer and takes the norm before the head into it;
    "pooled" then lies before that norm.

    Raises:
        ConfigError: for a value outside its range.
    """

    stem_name: ClassVar[str] = "stem.conv1.c"
    head_name: ClassVar[str] = "head.head.l"
    channels_last: ClassVar[bool] = True

    def __init__(self, shape: RepVitShape, options: RepVitOptions) -> None:
        super().__init__()
        if not 0 <= options.drop_path < 1:
            raise ConfigError(f"drop_path is {options.drop_path}; it takes a rate from 0 up to, not including, 1.")
        self.num_classes = options.num_classes
        self.image_size = as_pair("image_size", options.image_size)
        widths = shape.widths
        self.stem = Stem(options.in_channels, widths[0])
        total = sum(shape.blocks) + 2 * (len(widths) - 1)  # a downsampling has two channel mixers
        rates = iter([options.drop_path * index / (total - 1) for index in range(total)])
        self.stages = nn.ModuleList(
            Stage(before, dim, depth, rates)
            for before, dim, depth in zip((widths[0], *widths), widths, shape.blocks, strict=False)
        )
        self.num_features = widths[-1]
        self.head = nn.ModuleDict({"head": NormedLinear(self.num_features, options.num_classes)})
        self.feature_info = [
            {"name": f"stage{number + 1}", "channels": width, "stride": (4 << number, 4 << number)}
            for number, width in enumerate(widths)
        ]
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw all weights anew.

        As in the authors' code the last norm of every channel mixer starts at zero, and the 1x1 convolution of a token
        mixer, a factor per channel, is uniform in (-1, 1): the input with its factor is never turned round.
        """
        reset_conv_parameters(self)
        for module in self.modules():
            if isinstance(module, TokenMixer):
                nn.init.uniform_(module.conv1.weight, -1, 1)
            elif isinstance(module, ChannelMixer):
                nn.init.zeros_(module.conv2.bn.weight)

    def intermediates(self, images: Tensor) -> Iterator[tuple[str, Tensor]]:
        """Yield "stem", "stage1" to "stage4", (B, C, H / stride, W / stride), and "pooled", behind the last norm."""
        x = self.stem(images)
        yield "stem", x
        for number, stage in enumerate(self.stages):
            x = stage(x)
            yield f"stage{number + 1}", x
        yield "pooled", self.get_submodule("head.head.bn")(x.mean(dim=(2, 3)))

    def layer_groups(self) -> list[tuple[str, ...]]:
        """Return the stem, each downsampling, each block, and the head."""
        groups: list[tuple[str, ...]] = [("stem.",)]
        for number, stage in enumerate(self.stages):
            assert isinstance(stage, Stage)
            if isinstance(stage.downsample, Downsample):
                groups.append((f"stages.{number}.downsample.",))
            groups += [(f"stages.{number}.blocks.{index}.",) for index in range(len(stage.blocks))]
        return [*groups, ("head.",)]


def build(size: str, **options: Any) -> RepVit:
    """Build the RepViT of a size in `SHAPES` with `RepVitOptions` given as keyword arguments."""
    return RepVit(lookup(SHAPES, size, "size of a RepViT"), from_options(RepVitOptions, options))


_NORM: Final = ("weight", "bias", "running_mean", "running_var")
_DISTILLED: Final = "head.head_dist."


def _affine(weight: Tensor, bias: Tensor, mean: Tensor, var: Tensor, *, eps: float) -> tuple[Tensor, Tensor]:
    """Return scale and shift of the batch norm with these tensors in evaluation mode."""
    scale = weight * torch.rsqrt(var + eps)
    return scale, bias - mean * scale


def merge_heads(tensors: dict[str, Tensor], *, eps: float = 1e-5) -> dict[str, Tensor]:
    """Make one head of the two that weights trained with a teacher hold, with the mean of both heads' logits.

    Each head is a batch norm and a linear layer, so their mean is one too. The norm keeps the first head's statistics
    and loses its own scale and shift, which go into the linear layer.

    Args:
        tensors: under native names; those without a second head come back as they are.
        eps: of the norms.
    """
    if f"{_DISTILLED}l.weight" not in tensors:
        return tensors
    merged = {name: tensor for name, tensor in tensors.items() if not name.startswith(_DISTILLED)}
    weight: Tensor = torch.zeros(())
    bias: Tensor = torch.zeros(())
    mean, deviation = merged["head.head.bn.running_mean"], (merged["head.head.bn.running_var"] + eps).sqrt()
    for head in ("head.head.", _DISTILLED):
        scale, shift = _affine(*(tensors[f"{head}bn.{name}"] for name in _NORM), eps=eps)
        linear = tensors[f"{head}l.weight"]
        # In terms of z = (x - mean) / deviation, x is mean + deviation * z.
        weight = weight + linear * (scale * deviation) / 2
        bias = bias + (linear @ (shift + scale * mean) + tensors[f"{head}l.bias"]) / 2
    return {
        **merged,
        "head.head.bn.weight": torch.ones_like(mean),
        "head.head.bn.bias": torch.zeros_like(mean),
        "head.head.l.weight": weight,
        "head.head.l.bias": bias,
    }


def recognise(tensors: dict[str, Tensor]) -> str | None:
    """Return the name in `MODELS` of the RepViT that has these tensors under native names, None if none has.

    The head and the channels of the image may be any.
    """
    mixer = re.compile(r"stages\.(\d+)\.blocks\.(\d+)\.token_mixer\.conv\.c\.weight")
    found = [(int(match[1]), tensors[name].shape[0]) for name in tensors if (match := mixer.fullmatch(name))]
    # The first RepViTs have a norm behind the 1x1 convolution of a token mixer, not behind the sum.
    if "stages.0.blocks.0.token_mixer.bn.weight" not in tensors:
        return None
    for size, shape in SHAPES.items():
        expected = [(stage, width) for stage, width in enumerate(shape.widths) for _ in range(shape.blocks[stage])]
        if sorted(found) == expected:
            return f"repvit_{size}"
    return None


_SOURCE: Final = (
    "RepViT, arXiv 2307.09283, which counts parameters and multiply-adds folded; accuracy without a teacher"
)
_PUBLISHED: Final = {
    "m0_9": Published(params_m=5.1, macs_m=800, source=_SOURCE),
    # Folded they have 6.8 and 8.2 million parameters.
    "m1_0": Published(top1=78.6, macs_m=1100, source=_SOURCE),
    "m1_1": Published(top1=79.4, macs_m=1300, source=_SOURCE),
}

MODELS: Final[dict[str, ModelEntry]] = {
    f"repvit_{size}": ModelEntry(build=partial(build, size), published=_PUBLISHED[size]) for size in SHAPES
}
"""The three smallest of the family with a norm behind the sum."""
