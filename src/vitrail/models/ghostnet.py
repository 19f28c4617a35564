"""GhostNet: a network for phones whose convolutions make half of their channels cheaply from the other half.

Axes: B batch, C channels, H W a grid. Names of parameters are those of timm's GhostNet, so that its weights load as
they are.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Final

from torch import Tensor, nn

from vitrail.config import from_options
from vitrail.errors import ConfigError
from vitrail.layers.conv import make_divisible, reset_conv_parameters
from vitrail.layers.embed import as_pair
from vitrail.layers.ghost import CHANNEL_MULTIPLE, GhostBottleneck
from vitrail.models.contract import Model, ModelEntry, Published, make_head, reset_linear

STEM_WIDTH: Final = 16
HEAD_WIDTH: Final = 1280
"""Of the pooled features, in every width of the model."""


@dataclass(frozen=True)
class Row:
    """One row of table 1 of the paper."""

    kernel: int
    hidden: int
    """Channels inside, the table's #exp."""
    out: int
    excite: bool = False
    """Whether it has squeeze-and-excitation."""
    stride: int = 1


# Han et al., GhostNet, arXiv 1911.11907, table 1. Each list is one of timm's ``blocks.s``, which begins anew after
# every reduction of the grid.
STAGES: Final[tuple[tuple[Row, ...], ...]] = (
    (Row(3, 16, 16),),
    (Row(3, 48, 24, stride=2),),
    (Row(3, 72, 24),),
    (Row(5, 72, 40, excite=True, stride=2),),
    (Row(5, 120, 40, excite=True),),
    (Row(3, 240, 80, stride=2),),
    (
        Row(3, 200, 80),
        Row(3, 184, 80),
        Row(3, 184, 80),
        Row(3, 480, 112, excite=True),
        Row(3, 672, 112, excite=True),
    ),
    (Row(5, 672, 160, excite=True, stride=2),),
    (Row(5, 960, 160), Row(5, 960, 160, excite=True), Row(5, 960, 160), Row(5, 960, 160, excite=True)),
)
WIDTHS: Final = {"ghostnet_050": 0.5, "ghostnet_100": 1.0, "ghostnet_130": 1.3}
_STAGE_ENDS: Final = {0: "stage1", 2: "stage2", 4: "stage3", 6: "stage4", 8: "stage5"}
"""The last of ``blocks`` on each grid, and the name of its feature."""


@dataclass(frozen=True, kw_only=True)
class GhostNetOptions:
    """Everything of a GhostNet, and of a MoCoViT, but its width."""

    num_classes: int = 1000
    """Outputs of the head; 0 leaves the head out."""
    image_size: int | tuple[int, int] = 224
    """Height and width in pixels, best multiples of 32. Other sizes run too."""
    in_channels: int = 3
    """Channels of the image."""
    drop_path: float = 0.0
    """Rate of stochastic depth in the last block, in [0, 1); rises linearly from 0 in the first. Blocks that change the
    shape of their input are never dropped."""
    dropout: float = 0.2
    """Share of the pooled features set to zero in training, in [0, 1)."""

    def __post_init__(self) -> None:
        """Refuse values outside their range."""
        for name, lowest in (("num_classes", 0), ("in_channels", 1)):
            if (value := getattr(self, name)) < lowest:
                raise ConfigError(f"{name} is {value}; it takes a whole number from {lowest}.")
        for name in ("drop_path", "dropout"):
            if not 0 <= (rate := getattr(self, name)) < 1:
                raise ConfigError(f"{name} is {rate}; it takes a rate from 0 up to, not including, 1.")


def scaled(channels: int, width: float) -> int:
    """Return the number of channels of a model ``width`` times as wide as the published one."""
    return make_divisible(channels * width, CHANNEL_MULTIPLE)


class PointwiseConv(nn.Module):
    """A 1x1 convolution, a batch norm and a ReLU; its names are timm's, which differ from those of `ConvNorm`."""

    fold_pairs: ClassVar = (("conv", "bn1"),)

    def __init__(self, in_dim: int, out_dim: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_dim, out_dim, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_dim)
        self.act = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in_dim, H, W) to (B, out_dim, H, W)."""
        out: Tensor = self.act(self.bn1(self.conv(x)))
        return out


class GhostNet(Model):
    """A GhostNet for images of any size.

    Source: Han et al., GhostNet: More Features from Cheap Operations, arXiv 1911.11907, table 1.

    Args:
        width: factor on all numbers of channels but those of the pooled features; 1 is the published GhostNet 1.0x.
        options: the rest.

    Raises:
        ConfigError: if ``options.image_size`` is not one number of pixels above 0, or two.
    """

    stem_name: ClassVar[str] = "conv_stem"
    head_name: ClassVar[str] = "classifier"
    channels_last: ClassVar[bool] = True
    fold_pairs: ClassVar = (("conv_stem", "bn1"),)

    def __init__(self, width: float, options: GhostNetOptions) -> None:
        super().__init__()
        self.width = width
        self.options = options
        self.num_classes = options.num_classes
        self.num_features = HEAD_WIDTH
        self.image_size = as_pair("image_size", options.image_size)
        dim = self._scaled(STEM_WIDTH)
        self.conv_stem = nn.Conv2d(options.in_channels, dim, 3, 2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(dim)
        self.act1 = nn.ReLU(inplace=True)
        self.feature_info = [{"name": "stem", "channels": dim, "stride": (2, 2)}]
        self.blocks = nn.Sequential()
        number, last, side = 0, sum(map(len, STAGES)) - 1, 2
        for stage, shapes in enumerate(STAGES):
            blocks = nn.Sequential()
            for shape in shapes:
                drop_path = options.drop_path * number / last
                blocks.append(self._block(number, shape, dim, drop_path))
                dim, number, side = self._scaled(shape.out), number + 1, side * shape.stride
            self.blocks.append(blocks)
            if stage in _STAGE_ENDS:
                self.feature_info.append({"name": _STAGE_ENDS[stage], "channels": dim, "stride": (side, side)})
        final = self._scaled(STAGES[-1][-1].hidden)
        self.blocks.append(nn.Sequential(PointwiseConv(dim, final)))
        self.conv_head = nn.Conv2d(final, HEAD_WIDTH, 1)
        self.act2 = nn.ReLU(inplace=True)
        self.dropout = nn.Dropout(options.dropout)
        self.classifier = make_head(HEAD_WIDTH, options.num_classes)
        self.reset_parameters()

    def _scaled(self, channels: int) -> int:
        return scaled(channels, self.width)

    def _block(self, number: int, shape: Row, dim: int, drop_path: float) -> nn.Module:
        """Return block ``number`` of the network; its input has ``dim`` channels, its shape is not yet scaled."""
        return GhostBottleneck(
            dim,
            self._scaled(shape.hidden),
            self._scaled(shape.out),
            kernel=shape.kernel,
            stride=shape.stride,
            excite=shape.excite,
            drop_path=drop_path,
        )

    def reset_parameters(self) -> None:
        """Draw all weights anew: convolutions normal with variance 1 / fan-in, the head with std 0.02.

        By fan-out, convolutions from 960 channels to 80 would let logits reach 1e8 before a norm has seen any data.
        """
        reset_conv_parameters(self)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="linear")
        if isinstance(self.classifier, nn.Linear):
            reset_linear(self.classifier)

    def intermediates(self, images: Tensor) -> Iterator[tuple[str, Tensor]]:
        """Yield "stem", "stage1" to "stage5", (B, C, H / stride, W / stride), and "pooled" (B, 1280)."""
        x = self.act1(self.bn1(self.conv_stem(images)))
        yield "stem", x
        for index, blocks in enumerate(self.blocks):
            x = blocks(x)
            if index in _STAGE_ENDS:
                yield _STAGE_ENDS[index], x
        yield "pooled", self.act2(self.conv_head(x.mean(dim=(2, 3), keepdim=True))).flatten(1)

    def forward_head(self, pooled: Tensor) -> Tensor:
        """Map pooled features (B, 1280) to logits (B, num_classes), with dropout in training."""
        logits: Tensor = self.classifier(self.dropout(pooled))
        return logits

    def layer_groups(self) -> list[tuple[str, ...]]:
        """Return the stem, each block, the last convolution, and the head with the layer before it."""
        groups: list[tuple[str, ...]] = [("conv_stem.", "bn1.")]
        for stage, blocks in enumerate(self.blocks):
            assert isinstance(blocks, nn.Sequential)
            groups += [(f"blocks.{stage}.{index}.",) for index in range(len(blocks))]
        return [*groups, ("conv_head.", "classifier.")]


def build(width: float, **options: Any) -> GhostNet:
    """Build the GhostNet of a width with `GhostNetOptions` given as keyword arguments."""
    return GhostNet(width, from_options(GhostNetOptions, options))


def matching_width(tensors: dict[str, Tensor], widths: dict[str, float]) -> str | None:
    """Return which of ``widths`` the stem and the last 1x1 convolution of native tensors have; None if none fits."""
    stem, last = tensors.get("conv_stem.weight"), tensors.get("blocks.9.0.conv.weight")
    if stem is None or last is None:
        return None
    found, final = (stem.shape[0], *last.shape[:2]), STAGES[-1][-1]
    for name, width in widths.items():
        if found == tuple(scaled(channels, width) for channels in (STEM_WIDTH, final.hidden, final.out)):
            return name
    return None


def recognise(tensors: dict[str, Tensor]) -> str | None:
    """Return the name of the GhostNet that native tensors belong to, by their shapes; None if none fits.

    A head may be missing. GhostNetV2, whose modules have a branch of attention, is another architecture.
    """
    if "blocks.8.3.ghost1.primary_conv.0.weight" not in tensors or any(".short_conv." in name for name in tensors):
        return None
    return matching_width(tensors, WIDTHS)


_PAPER: Final = "Han et al., arXiv 1911.11907, table 7"
_PUBLISHED: Final = {
    "ghostnet_050": Published(top1=66.2, params_m=2.6, macs_m=42, source=_PAPER),
    "ghostnet_100": Published(
        top1=73.98, params_m=5.18, macs_m=141, source=f"{_PAPER}; top-1 and parameters of the authors' weights"
    ),
    "ghostnet_130": Published(
        top1=75.7, params_m=7.36, macs_m=226, source=f"{_PAPER}, which cuts 7.36 million parameters to 7.3"
    ),
}
MODELS: Final[dict[str, ModelEntry]] = {
    name: ModelEntry(build=partial(build, width), published=_PUBLISHED[name]) for name, width in WIDTHS.items()
}
"""Every width that the paper measures."""
