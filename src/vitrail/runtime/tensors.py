"""Named tensors in one safetensors file, whole or not at all."""

import errno
import hashlib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from vitrail.runtime.files import atomic_path


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write ``tensors`` and ``metadata`` to the safetensors file ``path``.

    Tensors may lie on any device and may share memory; each is written on its own.

    Raises:
        StorageError: if the disk is full or the folder cannot be written; ``path`` is then what it was before.
    """
    with atomic_path(path) as temporary:
        try:
            save_file(_independent(tensors), temporary, metadata=dict(metadata))
        except SafetensorError as error:
            raise _as_os_error(error) from error
        # safetensors gives its files to their owner alone; others get what they get of any new file.
        temporary.chmod(0o666 & ~_umask())


def fingerprint(description: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 over a description and every tensor's name, type, shape and bytes; it shows damage.

    Args:
        description: plain values as JSON gives them back: lists, not tuples.
        tensors: by name, on any device.
    """
    digest = hashlib.sha256(json.dumps(description, sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _independent(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return contiguous CPU tensors, copied where two share memory (tied weights), which the format cannot hold."""
    result: dict[str, Tensor] = {}
    storages: set[int] = set()
    for name, tensor in tensors.items():
        plain = tensor.detach().cpu().contiguous()
        if plain.untyped_storage().data_ptr() in storages:
            plain = plain.clone()
        storages.add(plain.untyped_storage().data_ptr())
        result[name] = plain
    return result


def _as_os_error(error: SafetensorError) -> OSError:
    """Recover the operating system's error, which safetensors reports as text: "... (os error 28)"."""
    match = re.search(r"\(os error (\d+)\)", str(error))
    return OSError(int(match[1]) if match else errno.EIO, str(error))
