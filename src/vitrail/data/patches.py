"""Features of pictures that are learnt from small patches of them, without labels, in milliseconds a picture.

Filters are found by clustering whitened patches, and each picture is described by how strongly they answer in each
ninth of it. A linear classifier on them is no match for a network that was trained long, but learns more from a few
thousand pictures than one whose training took thirty times as long (benchmarks/label_issues.py).

Source: Coates, Ng and Lee, An Analysis of Single-Layer Networks in Unsupervised Feature Learning, AISTATS 2011, with
both signs of an answer and the threshold of Coates and Ng, The Importance of Encoding Versus Training with Sparse
Coding and Vector Quantization, ICML 2011.

Axes: n pictures, C channels, F filters, P patches, D values of a patch.
"""

from typing import Final

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from vitrail.data.randomness import Stream, uniforms

SIDE: Final = 32
"""Height and width of the pictures that are looked at."""

_PATCH: Final = 6
_FILTERS: Final = 100
_GRID: Final = 3
_PATCHES_PER_PICTURE: Final = 8
_MOST_PATCHES: Final = 40_000
_ROUNDS: Final = 10
_THRESHOLD: Final = 0.25
_LEAST_VARIANCE: Final = 10.0
"""Added to the variance of a patch, in squared grey values, so that even ones do not become noise."""
_WHITENING: Final = 0.1
_MOST_CHANNELS: Final = 16
_TYPICAL_SPREAD: Final = 50.0
_CHUNK: Final = 100


class PatchFeatures:
    """Describes pictures by the filters that were found in some of them.

    Args:
        pictures: (n, SIDE, SIDE, C) of bytes, or of any numbers, of which each channel is then brought to the spread of
            photographs. The filters are learnt of them; a few thousand suffice. Of more than 16 channels as many at
            equal distances are looked at.
        seed: of the patches that are looked at.

    Attributes:
        num_features: how many numbers describe a picture.
    """

    num_features: int = 2 * _FILTERS * _GRID**2

    def __init__(self, pictures: np.ndarray, seed: int) -> None:
        num_channels = pictures.shape[3]
        self._channels = np.unique(np.linspace(0, num_channels - 1, min(num_channels, _MOST_CHANNELS)).astype(int))
        centre, scale = np.zeros(len(self._channels)), np.ones(len(self._channels))
        if pictures.dtype != np.uint8:
            values = pictures[..., self._channels].reshape(-1, len(self._channels)).astype(np.float64)
            centre, spread = values.mean(axis=0), values.std(axis=0)
            scale = _TYPICAL_SPREAD / np.where(spread > 0, spread, 1)
        self._centre, self._scale = centre.astype(np.float32), scale.astype(np.float32)
        patches = _normalised(self._levels(_sample(pictures, seed)).flatten(1))
        mean = patches.mean(dim=0)
        whitening = _whitening(patches - mean)
        filters = _cluster((patches - mean) @ whitening, seed)
        kernels = whitening @ filters.T  # (D, F): whitening and filtering in one
        self._offsets = (mean @ kernels).view(1, -1, 1, 1)
        # Patches are kept as they lie in a picture, so that the filters can be slid over it.
        self._kernels = kernels.T.reshape(_FILTERS, _PATCH, _PATCH, -1).permute(0, 3, 1, 2).contiguous()

    def __call__(self, pictures: np.ndarray) -> np.ndarray:
        """Describe pictures, (n, SIDE, SIDE, C) of the type they were learnt of: float32 (n, num_features)."""
        rows = [
            self._describe(self._levels(pictures[start : start + _CHUNK])).numpy()
            for start in range(0, len(pictures), _CHUNK)
        ]
        return np.concatenate([np.empty((0, self.num_features), np.float32), *rows])

    def _levels(self, pixels: np.ndarray) -> Tensor:
        """Return the channels that are looked at, as grey levels: float32 (..., C)."""
        return torch.from_numpy((pixels[..., self._channels].astype(np.float32) - self._centre) * self._scale)

    def _describe(self, pictures: Tensor) -> Tensor:
        images = pictures.permute(0, 3, 1, 2)
        # The answer to a patch of mean m and deviation s is (x - m) / s times the kernel: two sums of the picture.
        average = torch.full((1, *self._kernels.shape[1:]), 1 / self._kernels[0].numel())
        means = F.conv2d(images, average)
        variances = F.conv2d(images.square(), average) - means.square()
        answers = F.conv2d(images, self._kernels) - means * self._kernels.sum(dim=(1, 2, 3)).view(1, -1, 1, 1)
        answers = answers / (variances.clamp_min(0) + _LEAST_VARIANCE).sqrt() - self._offsets
        both = torch.cat([F.relu(answers - _THRESHOLD), F.relu(-answers - _THRESHOLD)], dim=1)
        return F.adaptive_avg_pool2d(both, _GRID).flatten(1)


def _sample(pictures: np.ndarray, seed: int) -> np.ndarray:
    """Return random patches: (P, _PATCH, _PATCH, C)."""
    num = min(_MOST_PATCHES, _PATCHES_PER_PICTURE * len(pictures))
    numbers = uniforms(seed, 0, Stream.PATCHES, np.arange(num), 3)
    which, top, left = (numbers * [len(pictures), *(2 * [SIDE - _PATCH + 1])]).astype(np.int64).T
    rows, columns = top[:, None, None] + np.arange(_PATCH)[:, None], left[:, None, None] + np.arange(_PATCH)
    patches: np.ndarray = pictures[which[:, None, None], rows, columns]
    return patches


def _normalised(patches: Tensor) -> Tensor:
    """Return patches (P, D) of mean 0 and a variance of about 1 each."""
    centred = patches - patches.mean(dim=1, keepdim=True)
    return centred / (centred.square().mean(dim=1, keepdim=True) + _LEAST_VARIANCE).sqrt()


def _whitening(patches: Tensor) -> Tensor:
    """Return the symmetric matrix (D, D) after which patches (P, D) of mean 0 have no correlations."""
    values, vectors = torch.linalg.eigh(patches.T @ patches / len(patches))
    scales = (values.clamp_min(0) + _WHITENING).rsqrt()
    matrix: Tensor = vectors @ torch.diag(scales) @ vectors.T
    return matrix


def _cluster(patches: Tensor, seed: int) -> Tensor:
    """Return unit vectors (F, D) along which patches (P, D) lie, of either sign: spherical k-means."""
    start = uniforms(seed, 1, Stream.PATCHES, np.arange(_FILTERS), patches.shape[1]) - 0.5
    filters = F.normalize(torch.from_numpy(start).float())
    for _ in range(_ROUNDS):
        answers = patches @ filters.T
        nearest = answers.abs().argmax(dim=1)
        strengths = answers.gather(1, nearest[:, None])
        # A filter that no patch is nearest to keeps its direction.
        filters = F.normalize((1e-3 * filters).index_add(0, nearest, strengths * patches))
    return filters
