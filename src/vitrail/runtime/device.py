"""Which device does the work, and what kind of machine this is."""

import importlib.metadata
import os
import platform
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from vitrail.errors import ConfigError
from vitrail.runtime.memory import total_memory_bytes


def resolve_device(name: str = "auto") -> torch.device:
    """Return the device called ``name``.

    Args:
        name: "auto" (the first CUDA GPU, else Apple's GPU, else the CPU), "cpu", "cuda", "cuda:1" or "mps".

    Raises:
        ConfigError: if the name is no device, or this machine does not have it.
    """
    if name == "auto":
        return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device(_present_devices()[0])
    if not re.fullmatch(r"cpu|mps|cuda(:\d+)?", name):
        raise ConfigError(f"device is {name!r}; it takes auto, cpu, cuda, cuda:N or mps.")
    wanted = "cuda:0" if name == "cuda" else name
    present = _present_devices()
    if wanted not in present:
        raise ConfigError(f"device is {name!r}, which this machine does not have. It has: {', '.join(present)}.")
    return torch.device(wanted)


def describe_machine() -> dict[str, Any]:
    """Return what a reader of a result needs to know about the machine: hardware and versions, as JSON-able data.

    Nothing in it tells whose machine it is: no host name, user name or path.
    """
    versions = {"vitrail": "unknown", "torch": str(torch.__version__), "python": platform.python_version()}
    with suppress(importlib.metadata.PackageNotFoundError):
        versions["vitrail"] = importlib.metadata.version("vitrail")
    return {
        "cpu": cpu_name(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "memory_gib": round(total_memory_bytes() / 2**30, 1),
        "gpus": [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())],
        "cuda": torch.version.cuda,
        "os": f"{platform.system()} {platform.release()}",
        "architecture": platform.machine(),
        "versions": versions,
    }


def cpu_name() -> str:
    """Return the processor's name as its maker gives it, such as "AMD EPYC"."""
    with suppress(OSError):
        match = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.MULTILINE)
        if match:
            return match[1].strip()
    return platform.processor() or platform.machine()


def _present_devices() -> list[str]:
    gpus = [f"cuda:{index}" for index in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    apple = ["mps"] if torch.backends.mps.is_available() else []
    return [*apple, *gpus, "cpu"]
