"""MobileNetV3: a convolutional network found by search for the processors of phones.

Axes: B batch, C channels, H W a map.

Names of parameters are timm's.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitrail.config import from_options
from vitrail.errors import ConfigError
from vitrail.layers.block import add_branch
from vitrail.layers.conv import DepthwiseConv2d, SqueezeExcite, make_divisible, reset_conv_parameters
from vitrail.layers.embed import as_pair
from vitrail.models.contract import Model, ModelEntry, Published, make_head

STEM_WIDTH: Final = 16
NARROW: Final = 0.75
"""Below this width the stem keeps its channels."""


@dataclass(frozen=True)
class Row:
    """A block of the tables that describe the network."""

    kernel: int
    """Side of the depthwise kernel."""
    expansion: float
    """Inner channels in multiples of the input's; 1 for a block without the first 1x1 convolution."""
    width: int
    """Channels of the output at width 1."""
    squeeze: bool
    """Whether squeeze-and-excitation stands behind the depthwise convolution."""
    hard_swish: bool
    """Whether the activation is hard-swish instead of ReLU."""
    stride: int = 1


@dataclass(frozen=True)
class MobileNetV3Shape:
    """The stages of a MobileNetV3 at width 1, and what follows them."""

    stages: tuple[tuple[Row, ...], ...]
    last_width: int
    """Channels of the 1x1 convolution that is the last stage."""
    features: int
    """Width of the features before the head, whatever the width of the network."""


# Howard et al., Searching for MobileNetV3, arXiv 1905.02244, tables 1 and 2: blocks of equal output are one stage.
SHAPES: Final[dict[str, MobileNetV3Shape]] = {
    "large": MobileNetV3Shape(
        stages=(
            (Row(3, 1, 16, False, False),),
            (Row(3, 4, 24, False, False, 2), Row(3, 3, 24, False, False)),
            (Row(5, 3, 40, True, False, 2), *[Row(5, 3, 40, True, False)] * 2),
            (Row(3, 6, 80, False, True, 2), Row(3, 2.5, 80, False, True), *[Row(3, 2.3, 80, False, True)] * 2),
            (*[Row(3, 6, 112, True, True)] * 2,),
            (Row(5, 6, 160, True, True, 2), *[Row(5, 6, 160, True, True)] * 2),
        ),
        last_width=960,
        features=1280,
    ),
    "small": MobileNetV3Shape(
        stages=(
            (Row(3, 1, 16, True, False, 2),),
            (Row(3, 4.5, 24, False, False, 2), Row(3, 3.67, 24, False, False)),
            (Row(5, 4, 40, True, True, 2), *[Row(5, 6, 40, True, True)] * 2),
            (*[Row(5, 3, 48, True, True)] * 2,),
            (Row(5, 6, 96, True, True, 2), *[Row(5, 6, 96, True, True)] * 2),
        ),
        last_width=576,
        features=1024,
    ),
}


@dataclass(frozen=True, kw_only=True)
class MobileNetV3Options:
    """Everything of a MobileNetV3 but its tables and its width."""

    num_classes: int = 1000
    """Outputs of the head; 0 leaves the head out."""
    image_size: int | tuple[int, int] = 224
    """Height and width in pixels, best multiples of 32. Other sizes run too."""
    in_channels: int = 3
    """Channels of the image."""
    drop_path: float = 0.0
    """Rate of stochastic depth in the last residual block, in [0, 1); rises linearly from 0 in the first block."""


def _hard_swish(x: Tensor) -> Tensor:
    # Its gradient needs the input: changing it in place would copy it first.
    return F.hardswish(x, inplace=not torch.is_grad_enabled())


def _relu(x: Tensor) -> Tensor:
    return F.relu(x, inplace=True)


def _activation(hard_swish: bool) -> Callable[[Tensor], Tensor]:
    return _hard_swish if hard_swish else _relu


class DepthwiseSeparable(nn.Module):
    """A depthwise convolution, squeeze-and-excitation if asked for, and a 1x1 convolution without activation.

    Source: Howard et al., arXiv 1905.02244, section 3 and figure 4, where the expansion is 1.
    """

    fold_pairs: ClassVar = (("conv_dw", "bn1"), ("conv_pw", "bn2"))

    def __init__(self, in_dim: int, out_dim: int, row: Row, drop_path: float = 0.0) -> None:
        super().__init__()
        self.drop_path = drop_path
        self.act = _activation(row.hard_swish)
        self.conv_dw = DepthwiseConv2d(in_dim, row.kernel, row.stride)
        self.bn1 = nn.BatchNorm2d(in_dim)
        self.se = _squeeze(in_dim, row)
        self.conv_pw = nn.Conv2d(in_dim, out_dim, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_dim)
        self.is_residual = row.stride == 1 and in_dim == out_dim

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in_dim, H, W) to (B, out_dim, H / stride, W / stride), rounded up."""
        if not self.is_residual:
            return self._branch(x)
        return add_branch(x, self._branch, self.drop_path if self.training else 0.0)

    def _branch(self, x: Tensor, _: Tensor | None = None) -> Tensor:
        x = self.act(self.bn1(self.conv_dw(x)))
        out: Tensor = self.bn2(self.conv_pw(self.se(x)))
        return out


class InvertedResidual(nn.Module):
    """Widen with a 1x1 convolution, filter each channel by itself, weigh the channels if asked for, narrow again.

    Source: Howard et al., arXiv 1905.02244, section 3 and figure 4.
    """

    fold_pairs: ClassVar = (("conv_pw", "bn1"), ("conv_dw", "bn2"), ("conv_pwl", "bn3"))

    def __init__(self, in_dim: int, out_dim: int, row: Row, drop_path: float = 0.0) -> None:
        super().__init__()
        self.drop_path = drop_path
        self.act = _activation(row.hard_swish)
        hidden = make_divisible(in_dim * row.expansion)
        self.conv_pw = nn.Conv2d(in_dim, hidden, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(hidden)
        self.conv_dw = DepthwiseConv2d(hidden, row.kernel, row.stride)
        self.bn2 = nn.BatchNorm2d(hidden)
        self.se = _squeeze(hidden, row)
        self.conv_pwl = nn.Conv2d(hidden, out_dim, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_dim)
        self.is_residual = row.stride == 1 and in_dim == out_dim

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in_dim, H, W) to (B, out_dim, H / stride, W / stride), rounded up."""
        if not self.is_residual:
            return self._branch(x)
        return add_branch(x, self._branch, self.drop_path if self.training else 0.0)

    def _branch(self, x: Tensor, _: Tensor | None = None) -> Tensor:
        x = self.act(self.bn1(self.conv_pw(x)))
        x = self.act(self.bn2(self.conv_dw(x)))
        out: Tensor = self.bn3(self.conv_pwl(self.se(x)))
        return out


class LastConv(nn.Module):
    """The 1x1 convolution behind the last block."""

    fold_pairs: ClassVar = (("conv", "bn1"),)

    def __init__(self, in_dim: int, out_dim: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_dim, out_dim, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_dim)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in_dim, H, W) to (B, out_dim, H, W)."""
        return _hard_swish(self.bn1(self.conv(x)))


def _squeeze(dim: int, row: Row) -> nn.Module:
    """A quarter of the inner channels, a multiple of 8, and a hard sigmoid (section 5.3)."""
    return SqueezeExcite(dim, make_divisible(dim / 4)) if row.squeeze else nn.Identity()


class MobileNetV3(Model):
    """A stem, five or six stages of inverted residuals and a 1x1 convolution; one more behind the pooling.

    Raises:
        ConfigError: for a value outside its range.
    """

    stem_name: ClassVar[str] = "conv_stem"
    head_name: ClassVar[str] = "classifier"
    channels_last: ClassVar[bool] = True
    fold_pairs: ClassVar = (("conv_stem", "bn1"),)

    def __init__(self, shape: MobileNetV3Shape, width: float, options: MobileNetV3Options) -> None:
        super().__init__()
        if not 0 <= options.drop_path < 1:
            raise ConfigError(f"drop_path is {options.drop_path}; it takes a rate from 0 up to, not including, 1.")
        self.num_classes = options.num_classes
        self.image_size = as_pair("image_size", options.image_size)
        in_dim = STEM_WIDTH if width < NARROW else make_divisible(STEM_WIDTH * width)
        self.conv_stem = nn.Conv2d(options.in_channels, in_dim, 3, 2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(in_dim)
        total = sum(len(rows) for rows in shape.stages)
        rates = iter([options.drop_path * index / (total - 1) for index in range(total)])
        stages: list[nn.Sequential] = []
        self.feature_info = []
        stride = 2
        for rows in shape.stages:
            blocks: list[nn.Module] = []
            for row in rows:
                out_dim = make_divisible(row.width * width)
                block = InvertedResidual if row.expansion > 1 else DepthwiseSeparable
                blocks.append(block(in_dim, out_dim, row, next(rates)))
                in_dim, stride = out_dim, stride * row.stride
            stages.append(nn.Sequential(*blocks))
            self._describe(len(stages), in_dim, stride)
        last_dim = make_divisible(shape.last_width * width)
        self.blocks = nn.Sequential(*stages, nn.Sequential(LastConv(in_dim, last_dim)))
        self._describe(len(self.blocks), last_dim, stride)
        self.num_features = shape.features
        self.conv_head = nn.Conv2d(last_dim, shape.features, 1)
        self.classifier = make_head(shape.features, options.num_classes)
        self.reset_parameters()

    def _describe(self, number: int, dim: int, stride: int) -> None:
        self.feature_info.append({"name": f"stage{number}", "channels": dim, "stride": (stride, stride)})

    def reset_parameters(self) -> None:
        """Draw the weights of all convolutions and norms anew."""
        reset_conv_parameters(self)

    def intermediates(self, images: Tensor) -> Iterator[tuple[str, Tensor]]:
        """Yield "stem", "stage1", "stage2", ..., (B, C, H / stride, W / stride), and "pooled".

        The last stage is a 1x1 convolution; "pooled" lies behind another one and a hard-swish.
        """
        x = _hard_swish(self.bn1(self.conv_stem(images)))
        yield "stem", x
        for index, blocks in enumerate(self.blocks):
            x = blocks(x)
            yield f"stage{index + 1}", x
        yield "pooled", _hard_swish(self.conv_head(x.mean(dim=(2, 3), keepdim=True))).flatten(1)

    def layer_groups(self) -> list[tuple[str, ...]]:
        """Return the stem, each block, and what follows them."""
        blocks = [
            (f"blocks.{stage}.{index}.",)
            for stage, blocks in enumerate(self.blocks)
            for index, _ in enumerate(blocks.children())
        ]
        return [("conv_stem.", "bn1."), *blocks, ("conv_head.", "classifier.")]


def build(size: str, width: float, **options: Any) -> MobileNetV3:
    """Build the MobileNetV3 of `SHAPES` at a width with `MobileNetV3Options` given as keyword arguments."""
    return MobileNetV3(SHAPES[size], width, from_options(MobileNetV3Options, options))


_VARIANTS: Final = {
    "mobilenetv3_small_050": ("small", 0.5),
    "mobilenetv3_small_075": ("small", 0.75),
    "mobilenetv3_small_100": ("small", 1.0),
    "mobilenetv3_large_075": ("large", 0.75),
    "mobilenetv3_large_100": ("large", 1.0),
}


def recognise(tensors: dict[str, Tensor]) -> str | None:
    """Return the name in `MODELS` of the MobileNetV3 that has these tensors under native names, None if none has.

    The head and the channels of the image may be any.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    for name, (size, width) in _VARIANTS.items():
        shape = SHAPES[size]
        last = f"blocks.{len(shape.stages)}.0.conv.weight"
        before, last_dim = make_divisible(shape.stages[-1][-1].width * width), make_divisible(shape.last_width * width)
        fits = shapes.get("conv_head.weight") == (shape.features, last_dim, 1, 1)
        # Other networks with these names and widths differ in the first squeeze-and-excitation.
        squeezed = f"blocks.{0 if size == 'small' else 2}.0.se.conv_reduce.weight" in shapes
        if fits and squeezed and shapes.get(last) == (last_dim, before, 1, 1):
            return name
    return None


_SOURCE: Final = "arXiv 1905.02244, table 3; parameters as in timm's results-imagenet.csv"
_PUBLISHED: Final = {
    "mobilenetv3_small_050": Published(top1=57.91, params_m=1.59, source="timm's results-imagenet.csv, lamb_in1k"),
    "mobilenetv3_small_075": Published(top1=65.4, params_m=2.04, macs_m=44, source=_SOURCE),
    "mobilenetv3_small_100": Published(top1=67.4, params_m=2.54, macs_m=56, source=_SOURCE),
    "mobilenetv3_large_075": Published(top1=73.3, params_m=3.99, macs_m=155, source=_SOURCE),
    "mobilenetv3_large_100": Published(top1=75.2, params_m=5.48, macs_m=219, source=_SOURCE),
}

MODELS: Final[dict[str, ModelEntry]] = {
    name: ModelEntry(build=partial(build, size, width), published=_PUBLISHED[name])
    for name, (size, width) in _VARIANTS.items()
}
"""Both networks at the widths that are used."""
