"""Does an exported model give the answers of the model it was made from? Measured on real images, judged by a limit."""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitrail.errors import ParityError

Logits = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Tolerance:
    """How far the logits of the exported model may be from the reference, both in float32."""

    logits: float = 1e-3
    """Largest absolute difference, in units of the spread of the logits where that is above 1.

    Two float32 runtimes that add up in another order differ by 3e-6 to 9e-6 (measured: ViT-Ti/16 and MobileViT in six
    runtimes, logits with a standard deviation of 0.7 and 2.3; the ViT of tests/shipping 3e-6 at 1.3). The hundredfold
    leaves room for other processors and deeper models. On that ViT, mistakes move a logit by this much: other mean and
    std 1.9, weights rounded to bf16 0.025, division by 256 for 255 0.0099, weights rounded to fp16 0.0017. What is
    smaller passes: a LayerNorm's epsilon of 1e-5 for 1e-6 gives 0.0001.
    """

    def limit(self, logit_std: float) -> float:
        """Return the largest allowed difference of logits with the standard deviation ``logit_std``."""
        return self.logits * max(1.0, logit_std)


@dataclass(frozen=True, kw_only=True)
class Difference:
    """An image to which the two models give another label."""

    path: str
    reference_label: int
    exported_label: int
    reference_margin: float
    """How much higher the reference's logit of its own label is than its logit of the other label."""
    exported_margin: float
    """The same for the exported model."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Whether the exported model may be shipped, and why not."""

    passed: bool
    reasons: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Parity:
    """How two models' answers to the same images compare."""

    num_images: int
    differences: tuple[Difference, ...]
    """Every image with another top-1 label."""
    max_logit_difference: float
    mean_logit_difference: float
    max_probability_difference: float
    logit_std: float
    """Standard deviation of the reference's logits over images and classes."""
    reference_accuracy: float | None
    """Share of the images with the right label, in [0, 1]; none where the labels are not known."""
    exported_accuracy: float | None

    @property
    def agreement(self) -> float:
        """Share of the images with the same top-1 label, in [0, 1]."""
        return 1 - len(self.differences) / self.num_images

    def verdict(self, tolerance: Tolerance) -> Verdict:
        """Judge the logits by ``tolerance``.

        There is no rule of its own for the labels, because the one for the logits contains it: when no logit is off by
        more than the limit, a label can only change between two logits that are within twice the limit of each other.
        Such ties are listed in ``differences`` and pass.
        """
        limit = tolerance.limit(self.logit_std)
        if not math.isfinite(self.max_logit_difference):
            return Verdict(passed=False, reasons=("Some logits are not finite.",))
        if self.max_logit_difference <= limit:
            return Verdict(passed=True)
        reasons = [f"The largest logit difference is {self.max_logit_difference:.3g}; at most {limit:.3g} is allowed."]
        if self.differences:
            reasons.append(f"{len(self.differences)} of {self.num_images} images get another label.")
        return Verdict(passed=False, reasons=tuple(reasons))

    def summary(self) -> str:
        """Return one sentence for a person."""
        same = self.num_images - len(self.differences)
        accuracy = ""
        if self.reference_accuracy is not None:
            accuracy = f"; accuracy {self.exported_accuracy:.1%}, {self.reference_accuracy:.1%} before"
        return (
            f"the same label for {same} of {self.num_images} images, "
            f"largest logit difference {self.max_logit_difference:.2g}{accuracy}"
        )

    def to_dict(self) -> dict[str, Any]:
        """Return plain data that JSON can hold."""
        return {**dataclasses.asdict(self), "agreement": self.agreement}


def compare(
    reference: Logits, exported: Logits, labels: NDArray[np.int64] | None = None, paths: Sequence[str] | None = None
) -> Parity:
    """Compare two models' logits ``(N, C)`` of the same N images.

    Args:
        reference: of the model as it was trained.
        exported: of the file that is to be shipped.
        labels: the right class of each image ``(N,)``, where known.
        paths: the name of each image, for the list of differences. Default: its number.

    Raises:
        ParityError: if there is no image, or the shapes differ.
    """
    if reference.shape != exported.shape or reference.ndim != 2:
        raise ParityError(f"The model gives logits of shape {reference.shape}, the exported one {exported.shape}.")
    num_images = len(reference)
    if num_images == 0:
        raise ParityError("There is no image to compare the exported model on; give a split that has images.")
    with np.errstate(invalid="ignore"):  # infinity less infinity; `verdict` has a sentence for it
        return _measure(reference, exported, labels, paths or [str(index) for index in range(num_images)])


def softmax(logits: Logits) -> NDArray[np.float64]:
    """Return the probabilities ``(N, C)`` of logits ``(N, C)``, in float64."""
    exponentials = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    return np.asarray(exponentials / exponentials.sum(axis=1, keepdims=True), dtype=np.float64)


def _measure(reference: Logits, exported: Logits, labels: NDArray[np.int64] | None, paths: Sequence[str]) -> Parity:
    gaps = np.abs(reference.astype(np.float64) - exported)
    return Parity(
        num_images=len(reference),
        differences=_differences(reference, exported, paths),
        max_logit_difference=float(gaps.max()),
        mean_logit_difference=float(gaps.mean()),
        max_probability_difference=float(np.abs(softmax(reference) - softmax(exported)).max()),
        logit_std=float(reference.std(dtype=np.float64)),
        reference_accuracy=None if labels is None else float(np.mean(reference.argmax(1) == labels)),
        exported_accuracy=None if labels is None else float(np.mean(exported.argmax(1) == labels)),
    )


def _differences(reference: Logits, exported: Logits, paths: Sequence[str]) -> tuple[Difference, ...]:
    ours, theirs = reference.argmax(1), exported.argmax(1)
    return tuple(
        Difference(
            path=paths[index],
            reference_label=int(ours[index]),
            exported_label=int(theirs[index]),
            reference_margin=float(reference[index, ours[index]] - reference[index, theirs[index]]),
            exported_margin=float(exported[index, theirs[index]] - exported[index, ours[index]]),
        )
        for index in map(int, np.flatnonzero(ours != theirs))
    )
