"""Reading and writing parameters that are sharded, or too coarse to hold a small step."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter


def whole(tensor: Tensor) -> Tensor:
    """Return a tensor with all its elements; one that FSDP2 has sharded is gathered from every process."""
    if not is_sharded(tensor):
        return tensor
    gathered: Tensor = tensor.full_tensor()  # type: ignore[attr-defined]
    return gathered


def is_direct(parameter: Tensor) -> bool:
    """Return whether a parameter is here as a whole and fine enough to be changed in place."""
    return parameter.dtype == torch.float32 and not is_sharded(parameter)


def is_sharded(tensor: Tensor) -> bool:
    """Return whether this is a DTensor, of which each process holds a part."""
    # Asking a plain tensor for what it lacks takes long.
    return type(tensor) is not Tensor and type(tensor) is not Parameter and hasattr(tensor, "full_tensor")


def write(parameters: Sequence[Tensor], values: Sequence[Tensor], seeds: Sequence[int]) -> None:
    """Set each parameter to whole fp32 values of its number of elements.

    bf16 keeps 8 significant bits, so most steps of a training are smaller than half of what it can tell apart. They
    are rounded up or down with probabilities that make the expectation exact (Zamirski et al., Revisiting BFloat16
    Training, arXiv 2010.06192, section 4). The random numbers depend on the seed alone: processes that hold the same
    parameter, and a resumed training, draw the same.

    Args:
        parameters: in fp32 or bf16, sharded or not.
        values: in fp32.
        seeds: one per parameter.
    """
    plain: list[Tensor] = []
    new: list[Tensor] = []
    for parameter, value, seed in zip(parameters, values, seeds, strict=True):
        shaped = value.reshape(parameter.shape)
        if parameter.dtype == torch.bfloat16:
            shaped = _round_stochastically(shaped, seed)
        if is_sharded(parameter):
            parameter, shaped = _local(parameter, shaped)
        plain.append(parameter)
        new.append(shaped)
    torch._foreach_copy_(plain, new)


def _round_stochastically(values: Tensor, seed: int) -> Tensor:
    """Return fp32 values in bf16: the 16 bits that go are first added to as many random ones."""
    generator = torch.Generator(values.device).manual_seed(seed)
    noise = torch.randint(1 << 16, values.shape, dtype=torch.int32, device=values.device, generator=generator)
    bits = values.contiguous().view(torch.int32)
    rounded = torch.where(values.isfinite(), (bits + noise) & ~0xFFFF, bits)
    return rounded.view(torch.float32).bfloat16()


def _local(parameter: Any, values: Tensor) -> tuple[Tensor, Tensor]:
    """Return this process's part of a sharded parameter and of whole values for it."""
    # Imported here because torch.distributed is slow to import and missing in some builds.
    from torch.distributed.tensor import distribute_tensor

    # Every process has the values, so none has to be sent.
    own: Any = distribute_tensor(values, parameter.device_mesh, parameter.placements, src_data_rank=None)
    return parameter.to_local(), own.to_local()
