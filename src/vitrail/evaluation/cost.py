"""What a model costs: parameters, multiply-adds, activations, bytes, and measured time.

One multiply-add (MAC) is two floating-point operations. The matrix products inside attention are counted, as are
convolutions and linear layers; sums, norms and activation functions, as everywhere in the literature, are not.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from vitrail.evaluation.predict import evaluation_mode

Built = TypeVar("Built", bound=nn.Module)


@dataclass(frozen=True)
class Cost:
    """What one image costs, whatever the machine."""

    parameters: int
    macs: int
    """Multiply-adds of one image."""
    activations: int
    """Numbers that convolutions, linear layers and attention's products put out for one image."""
    weights_bytes: int
    """Size of the weights in memory, and nearly that of their file."""

    def to_dict(self) -> dict[str, int]:
        """Return plain data that JSON can hold."""
        return asdict(self)


@dataclass(frozen=True)
class Latency:
    """How long one image takes, on the machine it was measured on."""

    p50_ms: float
    """Median."""
    p90_ms: float
    """Nine runs of ten were at least as fast."""
    num_runs: int
    threads: int

    def to_dict(self) -> dict[str, float]:
        """Return plain data that JSON can hold."""
        return asdict(self)


aten = torch.ops.aten

# Operations whose result has the type and the broadcast shape of their tensors. The meta kernels of these and of some
# more below are decompositions in Python, which take most of the time of counting and import the compiler, 1 s.
_ELEMENTWISE: Final = {
    getattr(aten, name)
    for name in (
        *("_safe_softmax", "_softmax", "add", "clamp", "div", "gelu", "hardsigmoid", "hardswish", "leaky_relu"),
        *("mul", "relu", "sigmoid", "silu", "sub"),
    )
}

_IN_PLACE: Final = {
    *(getattr(aten, name).default for name in ("hardswish_", "hardtanh_", "relu_", "silu_")),
    *(getattr(aten, name).Tensor for name in ("add_", "mul_")),
}

# What changes the values of a tensor in place. Of torch.nn.init, the functions that a mode sees as one call.
_FILLS: Final = {
    *(
        getattr(Tensor, f"{name}_")
        for name in ("add", "clamp", "copy", "div", "erfinv", "fill", "mul", "normal", "sub", "uniform", "zero")
    ),
    *(getattr(nn.init, f"{name}_") for name in ("constant", "kaiming_normal", "kaiming_uniform", "normal", "uniform")),
}


class _CostCounter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts operations and the numbers that come out, by the formulas of PyTorch's FLOP counter."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.flops = 0
        self.outputs = 0

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Spare the import of the compiler, 1.5 s: nothing is compiled here."""
        return False

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = _shape_of_result(func, args)
        if result is None:
            result = func(*args, **(kwargs or {}))
        formula = flop_registry.get(func.overloadpacket)
        if formula is not None:
            output = result if isinstance(result, Tensor) else result[0]
            self.flops += formula(*args, **(kwargs or {}), out_val=result)
            self.outputs += output.numel()
        return result


class _LeaveUnfilled(TorchFunctionMode):
    """Skips the operations that fill weights in place: on the meta device there is nothing to fill."""

    def __torch_function__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func in _FILLS:
            return args[0] if args else kwargs["tensor"]  # type: ignore[index]  # as torch.nn.init names it
        return func(*args, **(kwargs or {}))


def build_on_meta(build: Callable[[], Built]) -> Built:
    """Return the module that ``build`` makes, on the meta device: its shapes without memory, values or waiting."""
    # PyTorch's random fills of meta tensors are written in Python and import its compiler, 1 s.
    with torch.device("meta"), _LeaveUnfilled():
        return build()


def _shape_of_result(func: Any, args: tuple[Any, ...]) -> Any:
    """Return an empty result for the operations whose meta kernel is slow, None for all others."""
    if func in _IN_PLACE:
        return args[0]
    if func.overloadpacket in _ELEMENTWISE:
        return _elementwise([each for each in args if isinstance(each, Tensor)])
    make = _RESULTS.get(func)
    return None if make is None else make(*args)


def _elementwise(tensors: Sequence[Tensor]) -> Tensor | None:
    if len({each.dtype for each in tensors}) > 1:
        return None
    shape = np.broadcast_shapes(*(each.shape for each in tensors))
    return _like(tensors[0]) if shape == tuple(tensors[0].shape) else tensors[0].new_empty(shape)


def _addmm(_: Tensor, left: Tensor, right: Tensor) -> Tensor:
    return left.new_empty(left.shape[0], right.shape[1])


def _batch_norm(x: Tensor, *_: Any) -> tuple[Tensor, ...]:
    return _like(x), x.new_empty(0), x.new_empty(0)  # in evaluation mode, where it returns no statistics


def _bmm(left: Tensor, right: Tensor) -> Tensor:
    return left.new_empty(left.shape[0], left.shape[1], right.shape[2])


def _cat(tensors: Sequence[Tensor], axis: int = 0) -> Tensor:
    shape = list(tensors[0].shape)
    shape[axis] = sum(each.shape[axis] for each in tensors)
    return tensors[0].new_empty(shape)


def _convolution(x: Tensor, weight: Tensor, _: Any, stride: Any, padding: Any, dilation: Any, *more: Any) -> Any:
    if more[0] or x.ndim != 2 + len(stride):  # transposed, or without a batch
        return None
    spans = [d * (k - 1) + 1 for d, k in zip(dilation, weight.shape[2:], strict=True)]
    sides = [(n + 2 * p - k) // s + 1 for n, p, k, s in zip(x.shape[2:], padding, spans, stride, strict=True)]
    return x.new_empty(x.shape[0], weight.shape[0], *sides)


def _group_norm(x: Tensor, *more: Any) -> tuple[Tensor, ...]:
    statistics = x.new_empty(x.shape[0], more[-2])  # the arguments end with groups and epsilon
    return x.new_empty(x.shape), statistics, statistics


def _layer_norm(x: Tensor, normalized_shape: Sequence[int], *_: Any) -> tuple[Tensor, ...]:
    rows = x.shape[: x.ndim - len(normalized_shape)]
    statistics = x.new_empty(*rows, *(1 for _ in normalized_shape))
    return x.new_empty(x.shape), statistics, statistics


def _mean(x: Tensor, axes: Sequence[int], keepdim: bool = False) -> Tensor:
    gone = {axis % x.ndim for axis in axes}
    kept = ((axis, size) for axis, size in enumerate(x.shape) if keepdim or axis not in gone)
    return x.new_empty([1 if axis in gone else size for axis, size in kept])


def _mm(left: Tensor, right: Tensor) -> Tensor:
    return left.new_empty(left.shape[0], right.shape[1])


_RESULTS: Final[dict[Any, Callable[..., Any]]] = {
    aten.addmm.default: _addmm,
    aten.bmm.default: _bmm,
    aten.cat.default: _cat,
    aten.convolution.default: _convolution,
    aten.mean.dim: _mean,
    aten.mm.default: _mm,
    aten.native_batch_norm.default: _batch_norm,
    aten.native_group_norm.default: _group_norm,
    aten.native_layer_norm.default: _layer_norm,
}


def _like(tensor: Tensor) -> Tensor:
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")


def model_cost(model: nn.Module, image_size: tuple[int, int], in_channels: int = 3) -> Cost:
    """Count what one image costs, without computing anything.

    The forward pass runs on the meta device, in evaluation mode. There `scaled_dot_product_attention` is made of
    countable products; on a CPU PyTorch's counter silently leaves its fused kernel out, 14 % of a ViT-Ti/16 at 224
    pixels.

    Args:
        model: maps images (B, C, H, W) to a tensor; its weights and its mode stay as they are.
        image_size: height and width in pixels.
        in_channels: channels of the image.
    """
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    shapes = {name: _without_values(tensor) for name, tensor in tensors.items()}
    image = torch.empty(1, in_channels, *image_size, device="meta")
    counter = _CostCounter()
    with evaluation_mode(model), torch.no_grad(), counter:
        torch.func.functional_call(model, shapes, (image,))
    return Cost(
        parameters=sum(each.numel() for each in model.parameters()),
        macs=counter.flops // 2,
        activations=counter.outputs,
        weights_bytes=sum(each.numel() * each.element_size() for each in model.state_dict().values()),
    )


def _without_values(tensor: Tensor) -> Tensor:
    """Return the shape alone, in fp32 where it holds floats, so that images and weights fit together."""
    dtype = torch.float32 if tensor.is_floating_point() else tensor.dtype
    return tensor if tensor.is_meta and tensor.dtype == dtype else tensor.to("meta", dtype)


def measure_latency(
    run: Callable[[], object],
    *,
    num_warmup: int = 10,
    num_runs: int = 50,
    time_limit_s: float = 10.0,
    threads: int | None = None,
) -> Latency:
    """Measure how long a call takes.

    Args:
        run: what is measured, usually the answer to one image; on a GPU it has to wait for the result.
        num_warmup: calls before the measurement, which fill caches and allocate memory.
        num_runs: measured calls.
        time_limit_s: no call starts after this many seconds, except the first measured one.
        threads: threads that ``run`` uses, for the record. Default: those of PyTorch.
    """
    started_at = time.perf_counter()
    for _ in range(num_warmup):
        run()
        if time.perf_counter() - started_at > time_limit_s:
            break
    durations_ms: list[float] = []
    while len(durations_ms) < num_runs:
        before = time.perf_counter()
        run()
        after = time.perf_counter()
        durations_ms.append(1e3 * (after - before))
        if after - started_at > time_limit_s:
            break
    p50_ms, p90_ms = np.percentile(durations_ms, (50, 90))
    return Latency(float(p50_ms), float(p90_ms), len(durations_ms), threads or torch.get_num_threads())
