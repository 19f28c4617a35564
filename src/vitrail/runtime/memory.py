"""How much memory there is, and how the C library treats what is freed."""

import ctypes
import os
import platform
import sys
from contextlib import suppress
from pathlib import Path

# Parameters of glibc's mallopt (malloc.h).
_M_TRIM_THRESHOLD = -1
_M_TOP_PAD = -2
_M_MMAP_MAX = -4
_TOP_PAD_BYTES = 256 * 2**20

_CGROUP = Path("/sys/fs/cgroup")


def keep_freed_memory() -> bool:
    """Tell glibc to keep freed memory for the next step instead of returning it to the operating system.

    A training step frees and allocates the same large tensors again and again. By default glibc serves each from a
    fresh ``mmap``, and the kernel zeroes its pages every time; kept memory is reused as it is.
    The price is that the process holds its peak memory until it ends, so only verbs that train call this.

    Returns:
        Whether it took effect: True only on Linux with glibc.
    """
    if sys.platform != "linux" or platform.libc_ver()[0] != "glibc":
        return False
    with suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL("libc.so.6").mallopt
        settings = ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, 2**31 - 1), (_M_TOP_PAD, _TOP_PAD_BYTES))
        return all(mallopt(parameter, value) == 1 for parameter, value in settings)
    return False


def total_memory_bytes() -> int:
    """Return the memory this process may use at all: the machine's, or its container's limit where that is less."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 0
    limit = _cgroup_number("memory.max", "memory/memory.limit_in_bytes")
    return min(machine, limit) if limit is not None else machine


def available_memory_bytes() -> int:
    """Return the memory that new data can take without swapping; half of the total where the system does not tell."""
    free = _free_memory_of_machine()
    if free is None:
        return total_memory_bytes() // 2
    limit = _cgroup_number("memory.max", "memory/memory.limit_in_bytes")
    used = _cgroup_number("memory.current", "memory/memory.usage_in_bytes")
    if limit is None or used is None:
        return free
    return max(0, min(free, limit - used))


def resident_memory_bytes() -> int:
    """Return the memory this process holds now, after giving back what the C library keeps; 0 where nobody tells."""
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):
            ctypes.CDLL("libc.so.6").malloc_trim(0)
    return _of_this_process("VmRSS")


def forget_peak_memory() -> bool:
    """Start `peak_memory_bytes` anew, and return whether that worked: True only on Linux."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        return True
    return False


def peak_memory_bytes() -> int:
    """Return the most memory this process has held since `forget_peak_memory`, or since it began; 0 if unknown."""
    return _of_this_process("VmHWM")


def _of_this_process(entry: str) -> int:
    with suppress(OSError, ValueError):
        for line in Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith(f"{entry}:"):
                return int(line.split()[1]) * 1024
    return 0


def _free_memory_of_machine() -> int | None:
    with suppress(OSError, ValueError):
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return None


def _cgroup_number(version_2: str, version_1: str) -> int | None:
    """Read a number of this process's container; None without a container or a limit ("max")."""
    for name in (version_2, version_1):
        with suppress(OSError, ValueError):
            return int((_CGROUP / name).read_text(encoding="ascii"))
    return None
