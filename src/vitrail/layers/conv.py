"""Convolutions with their norms, what stands beside them in mobile networks, and folding norms into them.

Axes: B batch, C channels, H W a grid.
"""

import copy
from collections.abc import Callable
from typing import ClassVar, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

Activation = Callable[[], nn.Module]
Folded = TypeVar("Folded", bound=nn.Module)


class DepthwiseConv2d(nn.Conv2d):
    """A depthwise convolution without bias, padded so that stride 1 keeps the grid; on a CPU it trains in fp32.

    oneDNN has no fast bf16 gradient of it there: in bf16 alone, a training step of MobileNetV3-small takes twice as
    long, and longer than in fp32 altogether (one core of an EPYC Zen 4, 128 pixels).

    Args:
        dim: C.
        kernel: side of the kernel.
        stride: of the convolution.
    """

    def __init__(self, dim: int, kernel: int, stride: int = 1) -> None:
        super().__init__(dim, dim, kernel, stride, padding=kernel // 2, groups=dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, C, H / stride, W / stride), rounded up, in the type of the input."""
        is_slow = x.device.type == "cpu" and (x.dtype == torch.bfloat16 or torch.is_autocast_enabled("cpu"))
        if not (self.training and is_slow):
            return super().forward(x)
        with torch.autocast("cpu", enabled=False):
            exact: Tensor = self._conv_forward(x.float(), self.weight.float(), None)
            return exact.to(x.dtype)


class ConvNorm(nn.Module):
    """A convolution without bias, a batch norm, and an activation if one is given.

    Args:
        in_dim: channels of the input.
        out_dim: channels of the output.
        kernel: side of the kernel; the input is padded so that stride 1 keeps the grid.
        stride: of the convolution.
        groups: of the convolution; ``in_dim`` of them make it depthwise.
        act: makes the activation; None for none.
    """

    fold_pairs: ClassVar = (("conv", "bn"),)

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        kernel: int = 1,
        *,
        stride: int = 1,
        groups: int = 1,
        act: Activation | None = None,
    ) -> None:
        super().__init__()
        self.conv: nn.Conv2d
        if groups == in_dim == out_dim:
            self.conv = DepthwiseConv2d(in_dim, kernel, stride)
        else:
            self.conv = nn.Conv2d(in_dim, out_dim, kernel, stride, padding=kernel // 2, groups=groups, bias=False)
        self.bn = nn.BatchNorm2d(out_dim)
        self.act = act() if act else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in_dim, H, W) to (B, out_dim, H / stride, W / stride), rounded up."""
        out: Tensor = self.act(self.bn(self.conv(x)))
        return out


class SqueezeExcite(nn.Module):
    """Scale each channel by a gate that sees the mean of all channels over the grid.

    Source: Hu et al., Squeeze-and-Excitation Networks, arXiv 1709.01507, section 3; with hard sigmoid as in Howard et
    al., Searching for MobileNetV3, arXiv 1905.02244, section 5.3.

    Args:
        dim: channels.
        hidden_dim: channels between the two 1x1 convolutions.
        act: makes the activation between them.
        gate: makes the function that maps to (0, 1).
    """

    def __init__(
        self, dim: int, hidden_dim: int, *, act: Activation = nn.ReLU, gate: Activation = nn.Hardsigmoid
    ) -> None:
        super().__init__()
        self.conv_reduce = nn.Conv2d(dim, hidden_dim, 1)
        self.act1 = act()
        self.conv_expand = nn.Conv2d(hidden_dim, dim, 1)
        self.gate = gate()

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, C, H, W)."""
        means = x.mean(dim=(2, 3), keepdim=True)
        scaled: Tensor = x * self.gate(self.conv_expand(self.act1(self.conv_reduce(means))))
        return scaled


def make_divisible(channels: float, divisor: int = 8, *, floor: float = 0.9) -> int:
    """Return the multiple of ``divisor`` nearest to ``channels``, at least ``divisor`` and ``floor`` of ``channels``.

    Source: the rule of MobileNetV2's reference code, which all widths of mobile networks since follow.
    """
    rounded = max(divisor, int(channels + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < floor * channels else rounded


def reset_conv_parameters(module: nn.Module) -> None:
    """Draw the weights of every convolution anew, and set every batch norm to the identity.

    Convolutions: normal, variance 2 / fan-out over all channels of the output's group (He et al., arXiv 1502.01852,
    section 2.2), bias 0. Batch norms: weight 1, bias 0, fresh statistics.
    """
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            fan_out = layer.kernel_size[0] * layer.kernel_size[1] * layer.out_channels // layer.groups
            nn.init.normal_(layer.weight, std=(2 / fan_out) ** 0.5)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
        elif isinstance(layer, nn.BatchNorm2d):
            layer.reset_parameters()


def fold(model: Folded) -> Folded:
    """Return a copy in evaluation mode that computes the same with fewer operations.

    Batch norms become part of the convolutions before them, and branches that only training needs become one
    convolution. A module takes part by naming, in ``fold_pairs``, its convolutions with their norms (a norm is replaced
    by an identity), or by a method ``fold_()`` that changes it in place.
    """
    folded = copy.deepcopy(model).eval()
    for module in list(folded.modules()):
        for conv_name, norm_name in getattr(module, "fold_pairs", ()):
            conv, norm = module.get_submodule(conv_name), module.get_submodule(norm_name)
            if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                module.set_submodule(conv_name, fuse_conv_bn_eval(conv, norm))
                module.set_submodule(norm_name, nn.Identity())
    # From the inside out, so that a branch that is itself made of parts finds them folded.
    for module in reversed(list(folded.modules())):
        if callable(fold_ := getattr(module, "fold_", None)):
            fold_()
    return folded


@torch.no_grad()
def sum_parallel(convs: list[nn.Conv2d], *, identity: bool = False) -> nn.Conv2d:
    """Return one convolution that computes the sum of parallel ones, and of their input where ``identity`` is set.

    All have equal channels, groups and stride, odd kernels padded to keep the grid; smaller kernels are padded with
    zeros to the largest.

    Source: Ding et al., RepVGG, arXiv 2101.03697, section 3.3.
    """
    largest = max(convs, key=lambda conv: conv.kernel_size[0])
    side = largest.kernel_size[0]
    weight, bias = torch.zeros_like(largest.weight), largest.weight.new_zeros(largest.out_channels)
    for conv in convs:
        margin = (side - conv.kernel_size[0]) // 2
        weight += nn.functional.pad(conv.weight, [margin] * 4)
        if conv.bias is not None:
            bias += conv.bias
    if identity:
        per_group = weight.shape[1]
        for channel in range(weight.shape[0]):
            weight[channel, channel % per_group, side // 2, side // 2] += 1
    merged = nn.Conv2d(
        largest.in_channels,
        largest.out_channels,
        side,
        (largest.stride[0], largest.stride[1]),
        padding=side // 2,
        groups=largest.groups,
        device=weight.device,
        dtype=weight.dtype,
    )
    merged.weight.copy_(weight)
    assert merged.bias is not None
    merged.bias.copy_(bias)
    return merged
