"""Which numbers the heavy matrix products use."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch

from vitrail.errors import ConfigError, did_you_mean

# fp32 products of this size keep a relative error near 4e-7; rounding the inputs to bf16 gives some 2e-3.
_PROBE_SIZE = 256
_LARGEST_FP32_ERROR = 1e-5

# PyTorch's word for "oneDNN may do it, and may round the inputs to bf16 where that is faster".
_ONEDNN = "bf16"

# Asked for in every attention, and torch.compile cannot follow PyTorch's own getter of the switch.
_onednn_multiplies_fp32 = False
_fp32_precision_before = "none"


@dataclass(frozen=True)
class Precision:
    """The number format of a run's matrix products; weights, their updates and the loss stay in fp32."""

    dtype: torch.dtype
    """torch.bfloat16 or torch.float32."""
    device_type: str
    """"cpu", "cuda" or "mps"."""
    note: str
    """What was chosen and why, in one sentence for the person who waits."""

    def autocast(self) -> AbstractContextManager[object]:
        """Return the context in which a model runs forward in this precision."""
        if self.dtype == torch.float32:
            return nullcontext()
        return torch.autocast(self.device_type, self.dtype)


def choose_precision(name: str, device: torch.device, *, convolutional: bool = False) -> Precision:
    """Return the precision called ``name`` for ``device``.

    "auto" is bf16 where the hardware multiplies it natively (CPUs with AVX512-BF16 or AMX, GPUs since Ampere), else
    fp32. fp16 is never chosen: its range needs loss scaling. In fp32 on an AMD CPU the products go through oneDNN, for
    the whole process, if that keeps fp32's accuracy (see `_use_onednn_for_fp32`).

    Args:
        name: auto, fp32 or bf16.
        device: where the model computes.
        convolutional: whether the model's products are many small ones, those of 1x1 convolutions. oneDNN takes some
            13 microseconds to begin each, which lets MobileNetV3-small and MobileViT-XXS take 1.4 times as long for
            one image on one thread; so theirs stay where PyTorch has them.

    Raises:
        ConfigError: if the name is none of auto, fp32 and bf16.
    """
    names = ("auto", "fp32", "bf16")
    if name not in names:
        raise ConfigError(f"precision is {name!r}; it takes {', '.join(names)}.{did_you_mean(name, names)}")
    native = has_native_bf16(device)
    if name == "bf16" or (name == "auto" and native):
        speed = "which this hardware multiplies natively" if native else "which this hardware only emulates, slowly"
        return Precision(torch.bfloat16, device.type, f"bf16 autocast, {speed}.")
    if convolutional:
        _leave_fp32_to_pytorch()
    elif device.type == "cpu" and _use_onednn_for_fp32():
        return Precision(torch.float32, device.type, "fp32 with oneDNN's matrix products, checked to be fp32-accurate.")
    return Precision(torch.float32, device.type, "fp32.")


def onednn_multiplies_fp32() -> bool:
    """Return whether `choose_precision` has sent this process's fp32 matrix products on the CPU through oneDNN."""
    return _onednn_multiplies_fp32


def has_native_bf16(device: torch.device) -> bool:
    """Return whether matrix products in bf16 run in hardware on ``device``, and so faster than in fp32."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type == "cpu":
        features = torch.cpu.get_capabilities()
        return bool(features.get("avx512_bf16") or features.get("amx_bf16"))
    return False


def _use_onednn_for_fp32() -> bool:
    """Send fp32 matrix products through oneDNN where that is faster and as exact; return whether it was done.

    On AMD CPUs MKL takes a slow path. The switch is called "bf16" because it *allows* oneDNN to round its inputs,
    which it does on CPUs with AMX. Hence it is tried on AMD alone, by name and not by timing (the numbers of a run
    must not depend on how busy the machine is), and kept only if one product against float64 shows that nothing is
    rounded.
    """
    if not torch.backends.mkldnn.is_available() or not _is_amd_cpu():  # type: ignore[no-untyped-call]
        return False
    global _onednn_multiplies_fp32, _fp32_precision_before
    switch = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    if switch.fp32_precision != _ONEDNN:
        _fp32_precision_before = switch.fp32_precision
    switch.fp32_precision = _ONEDNN
    _onednn_multiplies_fp32 = _matmul_error() < _LARGEST_FP32_ERROR
    if not _onednn_multiplies_fp32:
        switch.fp32_precision = _fp32_precision_before
    return _onednn_multiplies_fp32


def _leave_fp32_to_pytorch() -> None:
    """Take back what `_use_onednn_for_fp32` did for another model of this process."""
    global _onednn_multiplies_fp32
    if _onednn_multiplies_fp32:
        torch.backends.mkldnn.matmul.fp32_precision = _fp32_precision_before  # type: ignore[attr-defined]
        _onednn_multiplies_fp32 = False


def _is_amd_cpu() -> bool:
    try:
        return "AuthenticAMD" in Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return False


def _matmul_error() -> float:
    """Return the relative error of one fp32 matrix product against float64."""
    generator = torch.Generator().manual_seed(0)
    left, right = torch.randn(2, _PROBE_SIZE, _PROBE_SIZE, generator=generator)
    exact = left.double() @ right.double()
    return float((left @ right - exact).norm() / exact.norm())
