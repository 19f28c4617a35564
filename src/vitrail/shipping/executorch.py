"""A classifier as one ExecuTorch program for phones, with XNNPACK for all that it knows."""

import logging
import os
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import nn

from vitrail.config import Preprocess
from vitrail.errors import BundleError, ConfigError, MissingExtraError
from vitrail.layers.conv import fold
from vitrail.runtime.files import atomic_path
from vitrail.shipping.check_program import METHOD, Program
from vitrail.shipping.onnx import DeployedClassifier
from vitrail.shipping.readout import Readout

_MOVES_ONLY: Final = frozenset({"executorch_call_delegate", "getitem"})


def export_executorch(
    model: nn.Module, path: Path, *, preprocess: Preprocess, readout: Readout | None = None
) -> Counter[str]:
    """Write ``model`` as one ``.pte`` file in fp32 with normalisation and probabilities inside, for one image a call.

    Input and outputs are those of `vitrail.shipping.onnx.export_onnx`, with a batch of 1. Batch norms and parallel
    branches are folded into convolutions. The model itself is left as it was.

    Args:
        model: takes normalised images ``(B, 3, H, W)``, or of other channels, and gives logits ``(B, C)``.
        path: the file to write, whole or not at all.
        preprocess: the size, mean and std that the model was trained with.
        readout: how the logits are read. Default: as one label per image, at temperature 1.

    Returns:
        How many operators of each name XNNPACK does not take; ExecuTorch's portable kernels, which are slow, run them.

    Raises:
        MissingExtraError: if executorch is not installed.
        BundleError: if ExecuTorch cannot take the model.
        ConfigError: if ExecuTorch has no pixels of the type in ``preprocess``.
        StorageError: if the file cannot be written.
    """
    refuse_unsupported(preprocess)
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    # A model that was trained in channels-last keeps weights in an order that the partitioner does not take.
    folded = fold(model).cpu().float().to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    deployed = DeployedClassifier(folded, preprocess, readout or Readout()).eval()
    shape, dtype = (1, *preprocess.image_size, preprocess.num_channels), getattr(torch, preprocess.pixel_type)
    with torch.no_grad(), _quiet():
        program = torch.export.export(deployed, (torch.zeros(shape, dtype=dtype),))
        try:
            edge = to_edge_transform_and_lower({METHOD: program}, partitioner=[XnnpackPartitioner()])
            left = _left_to_portable_kernels(edge.exported_program(METHOD).graph)  # which the next line rewrites
            content = edge.to_executorch().buffer
        except Exception as error:  # executorch's exceptions have no base of their own
            reason = str(error.__cause__ or error).strip().partition("\n")[0]
            raise BundleError(f"ExecuTorch cannot take this model ({reason}); export it for onnx alone.") from error
    with atomic_path(Path(path)) as temporary:
        temporary.write_bytes(content)
    return left


def open_program(path: Path, preprocess: Preprocess) -> Program:
    """Open a program that `export_executorch` wrote, without what the runtime says of the processor it finds."""
    shape = (1, *preprocess.image_size, preprocess.num_channels)
    with _quiet():
        program = Program(path)
        program.logits(np.zeros(shape, preprocess.pixel_type))  # some of it is said at the first run
    return program


def refuse_unsupported(preprocess: Preprocess) -> None:
    """Raise, before any work is done, what `export_executorch` would raise for want of a library or a type."""
    if preprocess.pixel_type == "uint16":
        raise ConfigError(
            "ExecuTorch has no operators for 16-bit pixels, which this model takes; export it without executorch."
        )
    try:
        with _quiet():
            import executorch.backends.xnnpack.partition.xnnpack_partitioner
            import executorch.exir  # noqa: F401
    except ImportError as error:
        raise MissingExtraError(
            f"An ExecuTorch program needs executorch, which does not import here ({error}). Install it with pip "
            "install 'vitrail[executorch]'."
        ) from error


def _left_to_portable_kernels(graph: Any) -> Counter[str]:
    names = (getattr(node.target, "__name__", "") for node in graph.nodes if node.op == "call_function")
    return Counter(name for name in names if name not in _MOVES_ONLY)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence what executorch and torch say of their own workings, some of it past Python."""
    disabled = logging.root.manager.disable
    logging.disable(logging.ERROR)
    kept = os.dup(2)
    try:
        with Path(os.devnull).open("w", encoding="utf-8") as nowhere, redirect_stderr(nowhere):
            os.dup2(nowhere.fileno(), 2)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        logging.disable(disabled)
