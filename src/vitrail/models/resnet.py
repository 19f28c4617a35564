"""ResNet: the convolutional network that everything since is compared with.

Axes: B batch, C channels, H W a map.

Names of parameters are timm's, which are torchvision's.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Final

import torch.nn.functional as F
from torch import Tensor, nn

from vitrail.config import from_options
from vitrail.errors import ConfigError, lookup
from vitrail.layers.block import add_branch
from vitrail.layers.conv import reset_conv_parameters
from vitrail.layers.embed import as_pair
from vitrail.models.contract import Model, ModelEntry, Published, make_head

WIDTHS: Final = (64, 128, 256, 512)
"""Inner channels of the stages at strides 4, 8, 16 and 32."""
EXPANSION: Final = 4
"""Outer channels of a bottleneck in multiples of the inner ones."""


@dataclass(frozen=True)
class ResNetShape:
    """How deep a ResNet is, and of which blocks it is made."""

    blocks: tuple[int, int, int, int]
    """Blocks of each stage."""
    bottleneck: bool
    """1x1, 3x3 and 1x1 convolutions in a block instead of two of 3x3."""


SHAPES: Final[dict[str, ResNetShape]] = {
    # He et al., Deep Residual Learning for Image Recognition, arXiv 1512.03385, table 1.
    "18": ResNetShape((2, 2, 2, 2), bottleneck=False),
    "34": ResNetShape((3, 4, 6, 3), bottleneck=False),
    "50": ResNetShape((3, 4, 6, 3), bottleneck=True),
}


@dataclass(frozen=True, kw_only=True)
class ResNetOptions:
    """Everything of a ResNet but its shape."""

    num_classes: int = 1000
    """Outputs of the head; 0 leaves the head out."""
    image_size: int | tuple[int, int] = 224
    """Height and width in pixels, best multiples of 32. Other sizes run too."""
    in_channels: int = 3
    """Channels of the image."""
    drop_path: float = 0.0
    """Rate of stochastic depth in the last block, in [0, 1); rises linearly from 0 in the first."""


class ResidualBlock(nn.Module):
    """Convolutions with batch norms, added to what came in, and a ReLU over the sum.

    Two 3x3 convolutions, or a bottleneck of 1x1, 3x3 and 1x1. Where the shape changes, a 1x1 convolution brings the
    input to it. The first 3x3 convolution has the stride; in a bottleneck the paper gave it to the 1x1 before, but all
    published weights of today have it here ("v1.5").

    Source: He et al., arXiv 1512.03385, figures 2 and 5, equation 1.
    """

    def __init__(self, in_dim: int, dim: int, *, bottleneck: bool, stride: int = 1, drop_path: float = 0.0) -> None:
        super().__init__()
        self.drop_path = drop_path
        self.bottleneck = bottleneck
        out_dim = EXPANSION * dim if bottleneck else dim
        self.conv1 = _conv(in_dim, dim, 1) if bottleneck else _conv(in_dim, dim, 3, stride)
        self.bn1 = nn.BatchNorm2d(dim)
        self.conv2 = _conv(dim, dim, 3, stride if bottleneck else 1)
        self.bn2 = nn.BatchNorm2d(dim)
        self.fold_pairs = [("conv1", "bn1"), ("conv2", "bn2")]
        if bottleneck:
            self.conv3 = _conv(dim, out_dim, 1)
            self.bn3 = nn.BatchNorm2d(out_dim)
            self.fold_pairs.append(("conv3", "bn3"))
        self.downsample: nn.Sequential | None = None
        if stride > 1 or in_dim != out_dim:
            self.downsample = nn.Sequential(_conv(in_dim, out_dim, 1, stride), nn.BatchNorm2d(out_dim))
            self.fold_pairs.append(("downsample.0", "downsample.1"))

    @property
    def last_norm(self) -> nn.BatchNorm2d:
        """The norm whose result is added to the shortcut."""
        return self.bn3 if self.bottleneck else self.bn2

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in_dim, H, W) to (B, out_dim, H / stride, W / stride), rounded up."""
        shortcut = x if self.downsample is None else self.downsample(x)

        def branch(_: Tensor, rows: Tensor | None) -> Tensor:
            return self._branch(x if rows is None else x.index_select(0, rows))

        return F.relu(add_branch(shortcut, branch, self.drop_path if self.training else 0.0), inplace=True)

    def _branch(self, x: Tensor) -> Tensor:
        out: Tensor = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)), inplace=True)))
        if self.bottleneck:
            out = self.bn3(self.conv3(F.relu(out, inplace=True)))
        return out


def _conv(in_dim: int, out_dim: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(in_dim, out_dim, kernel, stride, padding=kernel // 2, bias=False)


class ResNet(Model):
    """A stem that quarters the image, then four stages of residual blocks, each at half the resolution of the last.

    Raises:
        ConfigError: for a value outside its range.
    """

    stem_name: ClassVar[str] = "conv1"
    head_name: ClassVar[str] = "fc"
    channels_last: ClassVar[bool] = True
    fold_pairs: ClassVar = (("conv1", "bn1"),)

    def __init__(self, shape: ResNetShape, options: ResNetOptions) -> None:
        super().__init__()
        if not 0 <= options.drop_path < 1:
            raise ConfigError(f"drop_path is {options.drop_path}; it takes a rate from 0 up to, not including, 1.")
        self.shape = shape
        self.num_classes = options.num_classes
        self.image_size = as_pair("image_size", options.image_size)
        self.conv1 = _conv(options.in_channels, WIDTHS[0], 7, 2)
        self.bn1 = nn.BatchNorm2d(WIDTHS[0])
        self.maxpool = nn.MaxPool2d(3, 2, padding=1)
        total = sum(shape.blocks)
        rates = iter([options.drop_path * index / (total - 1) for index in range(total)])
        expansion = EXPANSION if shape.bottleneck else 1
        in_dim = WIDTHS[0]
        self.feature_info = []
        for number, (dim, depth) in enumerate(zip(WIDTHS, shape.blocks, strict=True)):
            blocks = []
            for index in range(depth):
                stride = 2 if number > 0 and index == 0 else 1
                blocks.append(
                    ResidualBlock(in_dim, dim, bottleneck=shape.bottleneck, stride=stride, drop_path=next(rates))
                )
                in_dim = expansion * dim
            self.add_module(f"layer{number + 1}", nn.Sequential(*blocks))
            self.feature_info.append({"name": f"stage{number + 1}", "channels": in_dim, "stride": (4 << number,) * 2})
        self.num_features = in_dim
        self.fc = make_head(self.num_features, options.num_classes)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw all weights anew; the last norm of every branch starts at zero, so that a block passes its input on.

        Source: Goyal et al., Accurate, Large Minibatch SGD, arXiv 1706.02677, section 5.1; He et al., Bag of Tricks for
        Image Classification, arXiv 1812.01187, section 3.1, "Zero gamma".
        """
        reset_conv_parameters(self)
        for module in self.modules():
            if isinstance(module, ResidualBlock):
                nn.init.zeros_(module.last_norm.weight)

    def intermediates(self, images: Tensor) -> Iterator[tuple[str, Tensor]]:
        """Yield "stem" at stride 2, "stage1" to "stage4", (B, C, H / stride, W / stride), and "pooled"."""
        x = F.relu(self.bn1(self.conv1(images)), inplace=True)
        yield "stem", x
        x = self.maxpool(x)
        for number in range(1, 5):
            x = self.get_submodule(f"layer{number}")(x)
            yield f"stage{number}", x
        yield "pooled", x.mean(dim=(2, 3))

    def layer_groups(self) -> list[tuple[str, ...]]:
        """Return the stem, each block, and the head."""
        blocks = [
            (f"layer{number + 1}.{index}.",) for number, depth in enumerate(self.shape.blocks) for index in range(depth)
        ]
        return [("conv1.", "bn1."), *blocks, ("fc.",)]


def build(size: str, **options: Any) -> ResNet:
    """Build the ResNet of a size in `SHAPES` with `ResNetOptions` given as keyword arguments."""
    return ResNet(lookup(SHAPES, size, "size of a ResNet"), from_options(ResNetOptions, options))


def recognise(tensors: dict[str, Tensor]) -> str | None:
    """Return the name in `MODELS` of the ResNet that has these tensors under native names, None if none has.

    The head and the channels of the image may be any.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    stem = shapes.get("conv1.weight", ())
    inside = [name for name in shapes if name.startswith("layer")]
    # Wide, grouped, "D" and squeeze-and-excitation ResNets have other shapes or other names.
    if (
        (stem[:1], stem[2:]) != ((WIDTHS[0],), (7, 7))
        or shapes.get("layer4.0.conv2.weight") != (WIDTHS[3], WIDTHS[3], 3, 3)
        or not all(re.fullmatch(r"layer[1-4]\.\d+\.(conv[123]|bn[123]|downsample\.[01])\.\w+", name) for name in inside)
    ):
        return None
    found = {name.rpartition(".conv1.")[0] for name in inside if name.endswith(".conv1.weight")}
    blocks = tuple(sum(block.startswith(f"layer{number}.") for block in found) for number in range(1, 5))
    bottleneck = "layer1.0.conv3.weight" in shapes
    return next(
        (f"resnet{size}" for size, shape in SHAPES.items() if (shape.blocks, shape.bottleneck) == (blocks, bottleneck)),
        None,
    )


_SOURCE: Final = "torchvision's first weights, IMAGENET1K_V1, and what it prints of them"
_PUBLISHED: Final = {
    "18": Published(top1=69.76, params_m=11.69, macs_m=1814, source=_SOURCE),
    "34": Published(top1=73.31, params_m=21.80, macs_m=3664, source=_SOURCE),
    "50": Published(top1=76.13, params_m=25.56, macs_m=4089, source=_SOURCE),
}

MODELS: Final[dict[str, ModelEntry]] = {
    f"resnet{size}": ModelEntry(build=partial(build, size), published=_PUBLISHED[size]) for size in SHAPES
}
"""The three sizes that are used as baselines."""
