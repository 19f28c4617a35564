"""What a model costs: parameters, multiply-adds, activations, bytes, and measured time.

One multiply-add (MAC) is two floating-point operations. The matrix products inside attention are counted, as are
convolutions and linear layers; sums, norms and activation functions, as everywhere in the literature, are not.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from vitrail.evaluation.predict import evaluation_mode


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


class _OutputCounter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the numbers that come out of the operations which the FLOP counter knows."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count = 0

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if func.overloadpacket in flop_registry:
            output = result if isinstance(result, Tensor) else result[0]
            self.count += output.numel()
        return result


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
    counter, outputs = FlopCounterMode(display=False), _OutputCounter()
    with evaluation_mode(model), torch.no_grad(), outputs, counter:
        torch.func.functional_call(model, shapes, (image,))
    return Cost(
        parameters=sum(each.numel() for each in model.parameters()),
        macs=counter.get_total_flops() // 2,
        activations=outputs.count,
        weights_bytes=sum(each.numel() * each.element_size() for each in model.state_dict().values()),
    )


def _without_values(tensor: Tensor) -> Tensor:
    """Return the shape alone, in fp32 where it holds floats, so that images and weights fit together."""
    return torch.empty_like(tensor, device="meta", dtype=torch.float32 if tensor.is_floating_point() else None)


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
