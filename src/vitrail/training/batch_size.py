"""How many images a step takes when nobody says."""

from collections.abc import Callable

import torch

# Fewer steps per epoch than this, and a small data set learns slowly however many epochs it gets.
_STEPS_PER_EPOCH = 20
_SMALLEST = 16
_LARGEST_ON_CPU = 128
_LARGEST_ON_GPU = 512
_LARGEST_MEMORY_SHARE = 0.8


def choose_batch_size(num_images: int, device: torch.device, try_step: Callable[[int], None] | None = None) -> int:
    """Return a batch size for a training set.

    The rule: the largest power of two that leaves at least 20 steps in an epoch, from 16 up to 128 on a CPU (whose
    speed per image no longer grows with the batch) and up to 512 on a GPU; never more than there are images. On a
    GPU it is then proven by doing: batches are doubled from 1 until one does not fit or takes more than 80 % of the
    memory.

    Args:
        num_images: in the training set, at least 1.
        device: that trains.
        try_step: does a forward and backward pass on that many images and forgets them; for CUDA only.
    """
    largest = _LARGEST_ON_CPU if device.type == "cpu" else _LARGEST_ON_GPU
    wanted = _SMALLEST
    while wanted * 2 <= largest and wanted * 2 * _STEPS_PER_EPOCH <= num_images:
        wanted *= 2
    if device.type == "cuda" and try_step is not None:
        wanted = _largest_that_fits(wanted, device, try_step)
    return min(wanted, num_images)


def _largest_that_fits(wanted: int, device: torch.device, try_step: Callable[[int], None]) -> int:
    total_bytes = torch.cuda.get_device_properties(device).total_memory
    fits, candidate = 1, 1
    while candidate <= wanted:
        torch.cuda.reset_peak_memory_stats(device)
        try:
            try_step(candidate)
        except torch.cuda.OutOfMemoryError:
            break
        finally:
            torch.cuda.empty_cache()
        if torch.cuda.max_memory_allocated(device) > _LARGEST_MEMORY_SHARE * total_bytes:
            break
        fits, candidate = candidate, candidate * 2
    return fits
