"""Mixup and CutMix: each image of a batch is joined with its mirror in the batch's order, and so are the targets."""

import math
from typing import Final

import numpy as np
from scipy.special import betaincinv
from torch import Tensor

from vitrail.data.policy import AugmentPolicy
from vitrail.data.randomness import Stream, uniforms

_EQUAL_CHANCE: Final = 0.5


def mix(images: Tensor, labels: Tensor, policy: AugmentPolicy, *, seed: int, epoch: int, batch: int) -> Tensor:
    """Mix images (B, channels, H, W) in place with those of the reversed batch; return the targets.

    One draw decides for the whole batch, as in timm: image i becomes ``w x_i + (1 - w) x_(B-1-i)`` (mixup), or takes a
    box with a share of 1 - w of the area from there (CutMix); w follows Beta(alpha, alpha).

    Args:
        images: the batch.
        labels: (B, C), which classes each image shows.
        policy: has the rates and alphas.
        seed: of the run.
        epoch: from 0.
        batch: the number of the batch in the epoch.

    Returns:
        float32 (B, C), the same mixture of the labels. Label smoothing is left to the loss.
    """
    numbers = uniforms(seed, epoch, Stream.MIX, np.array([batch]), 5)[0]
    weight = 1.0
    if numbers[0] < policy.mix_rate:
        cut = policy.cutmix_alpha > 0 and (policy.mixup_alpha <= 0 or numbers[1] < _EQUAL_CHANCE)
        alpha = policy.cutmix_alpha if cut else policy.mixup_alpha
        weight = float(betaincinv(alpha, alpha, numbers[2]))
        weight = _cut_mix(images, weight, numbers[3:]) if cut else _mix_up(images, weight)
    targets = labels.float()
    return targets.lerp(targets.flip(0), 1 - weight)


def _mix_up(images: Tensor, weight: float) -> float:
    # Pair by pair: both change by the same difference, so the batch is read once and nothing is copied whole.
    for first, second in _pairs(images):
        difference = (second - first).mul_(1 - weight)
        first.add_(difference)
        second.sub_(difference)
    return weight


def _cut_mix(images: Tensor, weight: float, centre: np.ndarray) -> float:
    """Exchange a box of the pairs; return the share of the area that stays, after the box is cut at the border."""
    height, width = images.shape[2:]
    share = math.sqrt(1 - weight)
    rows = _interval(centre[0] * height, share * height, height)
    columns = _interval(centre[1] * width, share * width, width)
    for first, second in _pairs(images):
        kept = first[..., rows, columns].clone()
        first[..., rows, columns] = second[..., rows, columns]
        second[..., rows, columns] = kept
    num_cut: int = (rows.stop - rows.start) * (columns.stop - columns.start)
    return 1 - num_cut / (height * width)


def _pairs(images: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Return views that are mixed with one another; the middle image of an odd batch is its own partner."""
    num = len(images)
    return [(images[i], images[num - 1 - i]) for i in range(num // 2)]


def _interval(centre: float, length: float, limit: int) -> slice:
    return slice(max(0, round(centre - length / 2)), min(limit, round(centre + length / 2)))
