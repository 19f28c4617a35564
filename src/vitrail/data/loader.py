"""From the pictures of a split to batches on the device, prepared ahead in threads."""

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from vitrail.config import Preprocess
from vitrail.data.augment import cut_out, finish
from vitrail.data.cache import CacheMode, make_cache
from vitrail.data.dataset import Split
from vitrail.data.images import prepare, side_needed
from vitrail.data.mix import mix
from vitrail.data.ordered import default_workers, ordered_map
from vitrail.data.policy import AugmentPolicy, Draws, draw
from vitrail.data.randomness import balanced, shuffled
from vitrail.data.raster import Picture, resize, size_of

_AHEAD: Final = 2
"""Batches that wait ready, beyond one per worker."""

_CACHED_SIDE: Final = 256 / 224
"""Shorter side of a cached picture, relative to the image size; crops below it are enlarged."""


@dataclass(frozen=True, eq=False)
class Batch:
    """Images to learn from, and what they show."""

    images: Tensor
    """float32 (B, C, H, W), normalised, on the device; 3 channels unless others were asked for."""
    labels: Tensor
    """int64 (B,), on the device; with several labels per image bool (B, C), which of them it shows."""
    targets: Tensor
    """What the loss compares with: the labels, or float32 (B, C) where images are mixed."""
    indices: np.ndarray
    """int64 (B,): which pictures of the split."""


@dataclass(frozen=True, eq=False)
class EvalBatch:
    """Images to ask about, as a shipped model is fed, and what they show."""

    pixels: np.ndarray
    """uint8 (B, H, W, 3); or (B, H, W, C) of another type, where the preprocessing says so."""
    labels: np.ndarray
    """int64 (B,), or bool (B, C); see `Batch`."""
    indices: np.ndarray
    """int64 (B,): which pictures of the split."""


@dataclass(frozen=True)
class _Prepared:
    """A batch as the threads leave it."""

    batch: int
    indices: np.ndarray
    pixels: np.ndarray
    draws: Draws


class TrainLoader:
    """Batches of augmented images, in an order and with an augmentation that only (seed, epoch, image) decide.

    The last images of an epoch that do not fill a batch are left out of it; a split smaller than one batch is one
    batch.

    Args:
        split: the pictures.
        preprocess: image size and normalisation.
        augment: how images are varied.
        batch_size: B.
        seed: of the order and the augmentation.
        device: where batches go.
        workers: threads. Default: the number of processor cores, at most 8.
        cache: keep resized pictures in memory: "on", "off", or "auto", where they take at most a quarter of it.
        balance: take as many of every class in each epoch; see `balanced`. For one label per picture.

    Attributes:
        wait_s: seconds that the caller has waited for pictures so far.
        cached: whether resized pictures are kept in memory.
    """

    def __init__(
        self,
        split: Split,
        preprocess: Preprocess,
        augment: AugmentPolicy,
        batch_size: int,
        *,
        seed: int,
        device: torch.device | str = "cpu",
        workers: int | None = None,
        cache: CacheMode = "auto",
        balance: bool = False,
    ) -> None:
        self.split = split
        self.preprocess = preprocess
        self.augment = augment
        self.batch_size = min(batch_size, len(split))
        self.seed = seed
        self.balance = balance
        self.device = torch.device(device)
        self.workers = workers or default_workers()
        self.wait_s = 0.0
        self._side = math.ceil(max(preprocess.image_size) * _CACHED_SIDE)
        if augment.crop_scale is None:
            sizes = np.tile(np.array(preprocess.image_size), (len(split), 1))
            load = self._load_prepared
        else:
            sizes, load = _reduced(split.sizes, self._side), self._load_reduced
        self._cache = make_cache(cache, _shapes(sizes, preprocess), load, dtype=np.dtype(preprocess.pixel_type))
        self.cached = self._cache is not None

    def __len__(self) -> int:
        """Return the number of batches in an epoch."""
        return len(self.split) // self.batch_size

    def epoch(self, epoch: int, start_batch: int = 0) -> Iterator[Batch]:
        """Yield the batches of an epoch, from 0, in order, beginning with ``start_batch``.

        Raises:
            DataError: if a file is no longer the picture that was admitted; the message names it.
        """
        if self.balance:
            order, repeats = balanced(self.seed, epoch, self.split.labels)
        else:
            order = shuffled(self.seed, epoch, len(self.split))
            repeats = np.zeros_like(order)

        def prepare_batch(batch: int) -> _Prepared:
            part = slice(batch * self.batch_size, (batch + 1) * self.batch_size)
            return self._prepare(epoch, batch, order[part], repeats[part])

        batches = ordered_map(prepare_batch, range(start_batch, len(self)), workers=self.workers, ahead=_AHEAD)
        try:
            while True:
                started_at = time.perf_counter()
                prepared = next(batches, None)
                self.wait_s += time.perf_counter() - started_at
                if prepared is None:
                    return
                yield self._finish(epoch, prepared)
        finally:
            batches.close()  # type: ignore[attr-defined]  # a generator, which ends its threads

    def _prepare(self, epoch: int, batch: int, indices: np.ndarray, repeats: np.ndarray) -> _Prepared:
        """Fill the bytes of a batch: everything that is done to one picture alone."""
        size = self.preprocess.image_size
        keys = indices + repeats * len(self.split)  # an image that comes again is varied anew
        draws = draw(self.augment, keys, self.split.sizes[indices], size, seed=self.seed, epoch=epoch)
        pixels = np.empty((len(indices), *size, self.preprocess.num_channels), self.preprocess.pixel_type)
        top = pixels.dtype.type(self.preprocess.peak)
        for row, index in enumerate(indices.tolist()):
            image = self._image(index, draws, row)
            pixels[row] = _mirrored(image).numpy() if draws.flips[row] else image.numpy()
            if draws.solarised[row]:
                # Values of the upper half, from 128 on for bytes, are inverted.
                np.minimum(pixels[row], top - pixels[row], out=pixels[row])
        return _Prepared(batch, indices, pixels, draws)

    def _image(self, index: int, draws: Draws, row: int) -> Tensor:
        """Return the image, cut out and resized: (H, W, C)."""
        if self.augment.crop_scale is None:
            return torch.from_numpy(self._load_prepared(index) if self._cache is None else self._cache.read(index))
        crop = draws.crops[row]
        picture = self._decode_for(index, crop) if self._cache is None else self._cache.read(index)
        return cut_out(picture, crop, self.preprocess.image_size, draws.blurs[row])

    def _decode_for(self, index: int, crop: np.ndarray) -> Picture:
        """Decode a picture no larger than what this crop of it needs."""
        (height, width), target = self.split.sizes[index].tolist(), self.preprocess.image_size
        enlarge = max(target[0] / ((crop[3] - crop[1]) * height), target[1] / ((crop[2] - crop[0]) * width))
        return self.split.decode(index, math.ceil(min(height, width) * min(1.0, enlarge)))

    def _load_prepared(self, index: int) -> np.ndarray:
        return prepare(self.split.decode(index, side_needed(self.preprocess)), self.preprocess)

    def _load_reduced(self, index: int) -> np.ndarray:
        image = self.split.decode(index, self._side)
        height, width = _reduced(self.split.sizes[index : index + 1], self._side)[0].tolist()
        if size_of(image) != (width, height):
            return resize(image, (width, height), Image.Resampling.BILINEAR)
        return np.array(image)

    def _finish(self, epoch: int, prepared: _Prepared) -> Batch:
        images = finish(_to_device(prepared.pixels, self.device), prepared.draws, self.preprocess)
        labels = _to_device(self.split.labels[prepared.indices], self.device)
        targets = labels
        if self.augment.mixes:
            shown = F.one_hot(labels, len(self.split.classes)) if labels.ndim == 1 else labels
            targets = mix(images, shown, self.augment, seed=self.seed, epoch=epoch, batch=prepared.batch)
        return Batch(images, labels, targets, prepared.indices)


class EvalLoader:
    """All pictures of a split in their order, prepared as a shipped model's are; the last batch may be smaller.

    Args:
        split: the pictures.
        preprocess: how they are prepared.
        batch_size: B.
        workers: threads. Default: the number of processor cores, at most 8.
        cache: keep prepared pixels in memory after the first pass; as in `TrainLoader`.
    """

    def __init__(
        self,
        split: Split,
        preprocess: Preprocess,
        batch_size: int,
        *,
        workers: int | None = None,
        cache: CacheMode = "auto",
    ) -> None:
        self.split = split
        self.preprocess = preprocess
        self.batch_size = batch_size
        self.workers = workers or default_workers()
        sizes = np.tile(np.array(preprocess.image_size), (len(split), 1))
        shapes = _shapes(sizes, preprocess)
        self._cache = make_cache(cache, shapes, self._load, dtype=np.dtype(preprocess.pixel_type))

    def __len__(self) -> int:
        """Return the number of batches."""
        return math.ceil(len(self.split) / self.batch_size)

    def __iter__(self) -> Iterator[EvalBatch]:
        """Yield the batches.

        Raises:
            DataError: if a file is no longer the picture that was admitted; the message names it.
        """
        everything = np.arange(len(self.split))
        parts = [everything[start : start + self.batch_size] for start in range(0, len(everything), self.batch_size)]
        for indices, pixels in ordered_map(self._prepare, parts, workers=self.workers, ahead=_AHEAD):
            yield EvalBatch(pixels, self.split.labels[indices], indices)

    def _prepare(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        read = self._load if self._cache is None else self._cache.read
        return indices, np.stack([read(index) for index in indices.tolist()])

    def _load(self, index: int) -> np.ndarray:
        return prepare(self.split.decode(index, side_needed(self.preprocess)), self.preprocess)


def _reduced(sizes: np.ndarray, side: int) -> np.ndarray:
    """Return ``sizes`` (n, 2) with the shorter side brought down to ``side``; smaller pictures stay as they are."""
    scale = np.minimum(1.0, side / sizes.min(axis=1, keepdims=True))
    reduced: np.ndarray = np.maximum(1, np.rint(sizes * scale)).astype(np.int64)
    return reduced


def _mirrored(image: Tensor) -> Tensor:
    """Return (H, W, C) from right to left."""
    # torch has no flip of uint16, whose bits are those of int16. numpy would take 17 times as long for bytes.
    bits = image.view(torch.int16) if image.dtype == torch.uint16 else image
    return bits.flip(1).view(image.dtype)


def _shapes(sizes: np.ndarray, preprocess: Preprocess) -> np.ndarray:
    """Return ``sizes`` (n, 2) with the number of channels behind them (n, 3)."""
    return np.column_stack([sizes, np.full(len(sizes), preprocess.num_channels)])


def _to_device(values: np.ndarray, device: torch.device) -> Tensor:
    tensor = torch.from_numpy(values)
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)
