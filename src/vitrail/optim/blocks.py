"""Tensors of any shapes side by side in one flat buffer, so that one operation works on all of them."""

from collections.abc import Sequence
from itertools import accumulate
from typing import Final

import torch
from torch import Tensor

BLOCK: Final = 128
"""Neighbouring elements that share a scale in 8 bits: with one of 16 bits, they take 1.016 bytes each."""


def num_blocks(size: int) -> int:
    """Return how many blocks ``size`` elements begin."""
    return -(-size // BLOCK)


class Layout:
    """Where tensors lie in a buffer: one after the other, each from the start of a block.

    Args:
        sizes: elements of each.
    """

    def __init__(self, sizes: Sequence[int]) -> None:
        self.sizes = list(sizes)
        self.blocks = [num_blocks(size) for size in sizes]
        padded = [blocks * BLOCK for blocks in self.blocks]
        self.starts = list(accumulate(padded, initial=0))
        self._cuts = [cut for size, whole in zip(sizes, padded, strict=True) for cut in (size, whole - size)]
        self._is_full = not any(self._cuts[1::2])

    def new(self, dtype: torch.dtype, device: torch.device) -> Tensor:
        """Return a buffer (B, 128); what no tensor lies in is zero, the rest may be anything."""
        make = torch.empty if self._is_full else torch.zeros
        return make((self.starts[-1] // BLOCK, BLOCK), dtype=dtype, device=device)

    def parts(self, buffer: Tensor) -> list[Tensor]:
        """Return a view (n,) of each tensor in a buffer."""
        return list(torch.split(buffer.view(-1), self._cuts)[::2])

    def gather(self, tensors: Sequence[Tensor], dtype: torch.dtype = torch.float32) -> Tensor:
        """Return a new buffer (B, 128) that holds ``tensors``."""
        buffer = self.new(dtype, tensors[0].device)
        parts = self.parts(buffer)
        # In the tensors' shapes, so that ones with other strides are copied in one go.
        torch._foreach_copy_([part.view(each.shape) for part, each in zip(parts, tensors, strict=True)], list(tensors))
        return buffer

    def scatter(self, buffer: Tensor, tensors: Sequence[Tensor]) -> None:
        """Copy what a buffer holds into ``tensors``."""
        parts = self.parts(buffer)
        torch._foreach_copy_(list(tensors), [part.view(each.shape) for part, each in zip(parts, tensors, strict=True)])
