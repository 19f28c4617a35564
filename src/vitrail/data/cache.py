"""Resized pictures kept in memory as bytes, so that later epochs need no decoding."""

import threading
from collections.abc import Callable
from typing import Any, Final, Literal

import numpy as np

from vitrail.errors import DataError
from vitrail.runtime.memory import available_memory_bytes

CacheMode = Literal["auto", "on", "off"]

_SHARE_OF_FREE_MEMORY = 0.25
_BYTES: Final[np.dtype[Any]] = np.dtype(np.uint8)


class PixelCache:
    """Pictures of different sizes in one block of memory; each is loaded when it is first asked for.

    It may be used by several threads at once. Two that ask for the same missing picture both load it.

    Args:
        shapes: int (n, 3), height, width and channels of each picture as it is kept.
        load: returns picture i, of its shape.
        dtype: of the pictures.
    """

    def __init__(self, shapes: np.ndarray, load: Callable[[int], np.ndarray], *, dtype: np.dtype[Any] = _BYTES) -> None:
        self._shapes = [tuple(shape) for shape in shapes.tolist()]
        self._offsets = np.concatenate([[0], np.cumsum(shapes.prod(axis=1, dtype=np.int64))])
        self._block = np.empty(self._offsets[-1], dtype)  # pages are taken when they are first written
        self._filled = np.zeros(len(shapes), bool)
        self._load = load
        self._lock = threading.Lock()

    def read(self, index: int) -> np.ndarray:
        """Return picture ``index``, of its shape, not to be written to. Raises what ``load`` raises."""
        view = self._block[self._offsets[index] : self._offsets[index + 1]].reshape(self._shapes[index])
        if not self._filled[index]:
            pixels = self._load(index)
            with self._lock:
                view[:] = pixels
                self._filled[index] = True
        return view


def make_cache(
    mode: CacheMode, shapes: np.ndarray, load: Callable[[int], np.ndarray], *, dtype: np.dtype[Any] = _BYTES
) -> PixelCache | None:
    """Return a cache, or None where ``mode`` is "off", or "auto" and it would take over a quarter of the free memory.

    Raises:
        DataError: if ``mode`` is "on" and the free memory does not suffice.
    """
    needed, free = int(shapes.prod(axis=1, dtype=np.int64).sum()) * dtype.itemsize, available_memory_bytes()
    if mode == "off" or (mode == "auto" and needed > _SHARE_OF_FREE_MEMORY * free):
        return None
    if needed > free:
        raise DataError(
            f"The cache takes {needed / 2**30:.1f} GiB and {free / 2**30:.1f} GiB of memory are free. Use cache "
            "auto or off, or a smaller image size."
        )
    return PixelCache(shapes, load, dtype=dtype)
