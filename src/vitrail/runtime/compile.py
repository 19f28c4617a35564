"""torch.compile where it pays, and one sentence on what was done."""

import importlib.util
import os
import shutil
from collections.abc import Callable

import torch
from torch import Tensor, nn

# A first compilation takes 10 to 40 s; a shorter run does not earn it back.
MIN_EXPECTED_S = 300.0


def compile_model(
    model: nn.Module, mode: str, device: torch.device, expected_s: float | None
) -> tuple[Callable[[Tensor], Tensor], str]:
    """Return what to call in place of ``model`` in training, and a sentence on what was chosen.

    The weights are shared: ``model`` itself stays the one to save and to evaluate.

    Args:
        model: maps a batch of images to logits.
        mode: "on", "off" or "auto". "auto" compiles on a CUDA GPU with Triton when the run is expected to take at
            least five minutes. On a CPU it does not: the matrix products take most of the time there and stay as they
            are, while compiling takes about a minute.
        device: where the model lies.
        expected_s: how long the run will take, in seconds, or None when nobody knows.
    """
    if mode == "off":
        return model, "torch.compile is off."
    if mode == "auto":
        if device.type != "cuda":
            return model, "torch.compile is not used: it gains little for training on this device."
        if expected_s is None or expected_s < MIN_EXPECTED_S:
            return model, f"torch.compile is not used: the run is not known to last {MIN_EXPECTED_S:.0f} s."
    missing = _missing_tool(device)
    if missing:
        return model, f"torch.compile is not used: {missing} is missing on this machine."
    # Without this a graph that cannot be compiled ends the training; with it the model runs uncompiled there.
    torch._dynamo.config.suppress_errors = True  # noqa: SLF001 - the documented place of the setting
    compiled: Callable[[Tensor], Tensor] = torch.compile(model)
    return compiled, "torch.compile is on; the first steps are slow while it compiles."


def _missing_tool(device: torch.device) -> str | None:
    """Return the name of what torch.compile would need and not find, or None."""
    if device.type == "cuda" and importlib.util.find_spec("triton") is None:
        return "Triton"
    if shutil.which(os.environ.get("CXX", "g++")) or shutil.which("clang++") or shutil.which("cl"):
        return None
    return "a C++ compiler"
