"""Asking a model, whatever it runs in, for its answers.

Axes: B images, C classes, H height, W width.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from vitrail.config import Preprocess
from vitrail.data.loader import EvalBatch
from vitrail.runtime.precision import Precision


class Predictor(Protocol):
    """What answers: a model in PyTorch, or an exported one in its runtime."""

    classes: tuple[str, ...]
    """Names, in the order of the logits."""
    preprocess: Preprocess
    """How a picture becomes the pixels that `logits` takes."""

    def logits(self, pixels: NDArray[Any]) -> NDArray[np.float32]:
        """Return the logits (B, C) of prepared images, RGB (B, H, W, 3) or of the channels and type asked for."""
        ...


@dataclass(frozen=True)
class Outputs:
    """A model's answers to a whole split."""

    logits: NDArray[np.float32]
    """(B, C)."""
    labels: NDArray[Any]
    """The class of each image, int (B,); or with several labels per image which of them are there, bool (B, C)."""
    indices: NDArray[np.int64]
    """Places of the images in their split (B,)."""


class TorchPredictor:
    """Answers of a model in PyTorch.

    Args:
        model: maps normalised images (B, channels, H, W) to logits (B, C); it stays on its device, and in its mode.
        classes: names, in the order of the logits.
        preprocess: how pictures are prepared and normalised.
        device: where the model's weights are.
        precision: numbers of the heavy matrix products. Default: fp32.
    """

    def __init__(
        self,
        model: nn.Module,
        classes: tuple[str, ...],
        preprocess: Preprocess,
        device: torch.device | str = "cpu",
        precision: Precision | None = None,
    ) -> None:
        self.model = model
        self.classes = classes
        self.preprocess = preprocess
        self._device = torch.device(device)
        self._precision = precision or Precision(torch.float32, self._device.type, "fp32.")
        self._mean, self._std = (
            torch.tensor(values, dtype=torch.float32, device=self._device).view(-1, 1, 1)
            for values in (preprocess.mean, preprocess.std)
        )

    @torch.inference_mode()
    def logits(self, pixels: NDArray[Any]) -> NDArray[np.float32]:
        """Return the logits (B, C) of prepared images (B, H, W, channels)."""
        images = torch.from_numpy(np.ascontiguousarray(pixels)).to(self._device)
        # In float32; the exported graph folds this into one multiply-add, which differs by some 3e-7.
        images = (images.permute(0, 3, 1, 2).float() / self.preprocess.peak - self._mean) / self._std
        with evaluation_mode(self.model), self._precision.autocast():
            answers = self.model(images)
        result: NDArray[np.float32] = answers.float().cpu().numpy()
        return result


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Put every module in evaluation mode, and back in its own mode when the block ends."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def collect(predictor: Predictor, batches: Iterable[EvalBatch]) -> Outputs:
    """Return the answers to every image of ``batches`` in their order."""
    num_classes = len(predictor.classes)
    logits, indices = [np.empty((0, num_classes), np.float32)], [np.empty(0, np.int64)]
    labels = []
    for batch in batches:
        logits.append(predictor.logits(batch.pixels))
        labels.append(batch.labels)
        indices.append(batch.indices)
    found = np.concatenate(labels) if labels else np.empty(0, np.int64)
    return Outputs(np.concatenate(logits), found, np.concatenate(indices))
