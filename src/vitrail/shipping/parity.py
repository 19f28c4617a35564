"""Does an exported model give the answers of the model it was made from? Measured on real images, judged by a limit."""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitrail.errors import ParityError
from vitrail.shipping.readout import Readout

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
    """An image to which the two models give other labels."""

    path: str
    reference_labels: tuple[int, ...]
    """One class, or with several labels per image all that were given."""
    exported_labels: tuple[int, ...]
    reference_margin: float
    """By how much the reference's logits speak for its own labels; see `vitrail.shipping.readout.Readout.margin`."""
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
    """Every image that gets another label, or another set of labels."""
    max_logit_difference: float
    mean_logit_difference: float
    max_probability_difference: float
    logit_std: float
    """Standard deviation of the reference's logits over images and classes."""
    reference_accuracy: float | None
    """Share of the images whose label is right, or all of whose labels are, in [0, 1]; none where none are known."""
    exported_accuracy: float | None

    @property
    def agreement(self) -> float:
        """Share of the images with the same label or labels, in [0, 1]."""
        return 1 - len(self.differences) / self.num_images

    def verdict(self, tolerance: Tolerance) -> Verdict:
        """Judge the logits by ``tolerance``.

        There is no rule of its own for the labels, because the one for the logits contains it: when no logit is off by
        more than the limit, a label can only change between two logits that are within twice the limit of each other,
        and one of several only where its logit is within the limit of its threshold. Such ties are listed in
        ``differences`` and pass.
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
    reference: Logits,
    exported: Logits,
    labels: NDArray[np.int64] | NDArray[np.bool_] | None = None,
    paths: Sequence[str] | None = None,
    readout: Readout | None = None,
) -> Parity:
    """Compare two models' logits ``(N, C)`` of the same N images.

    Args:
        reference: of the model as it was trained.
        exported: of the file that is to be shipped.
        labels: the right class of each image ``(N,)``, or whether each class is there ``(N, C)``, where known.
        paths: the name of each image, for the list of differences. Default: its number.
        readout: what the logits mean. Default: one label per image, at temperature 1.

    Raises:
        ParityError: if there is no image, or the shapes differ.
    """
    if reference.shape != exported.shape or reference.ndim != 2:
        raise ParityError(f"The model gives logits of shape {reference.shape}, the exported one {exported.shape}.")
    num_images = len(reference)
    if num_images == 0:
        raise ParityError("There is no image to compare the exported model on; give a split that has images.")
    paths = paths or [str(index) for index in range(num_images)]
    with np.errstate(invalid="ignore"):  # infinity less infinity; `verdict` has a sentence for it
        return _measure(reference, exported, labels, paths, readout or Readout())


def _measure(
    reference: Logits,
    exported: Logits,
    labels: NDArray[np.int64] | NDArray[np.bool_] | None,
    paths: Sequence[str],
    readout: Readout,
) -> Parity:
    gaps = np.abs(reference.astype(np.float64) - exported)
    shares = np.abs(readout.probabilities(reference) - readout.probabilities(exported))
    ours, theirs = readout.labels(reference), readout.labels(exported)
    if labels is not None and labels.ndim == 1:
        labels = np.eye(reference.shape[1], dtype=bool)[labels]
    return Parity(
        num_images=len(reference),
        differences=tuple(
            Difference(
                path=paths[index],
                reference_labels=tuple(np.flatnonzero(ours[index]).tolist()),
                exported_labels=tuple(np.flatnonzero(theirs[index]).tolist()),
                reference_margin=readout.margin(reference[index], ours[index], theirs[index]),
                exported_margin=readout.margin(exported[index], theirs[index], ours[index]),
            )
            for index in np.flatnonzero((ours != theirs).any(axis=1)).tolist()
        ),
        max_logit_difference=float(gaps.max()),
        mean_logit_difference=float(gaps.mean()),
        max_probability_difference=float(shares.max()),
        logit_std=float(reference.std(dtype=np.float64)),
        reference_accuracy=None if labels is None else float(np.mean((ours == labels).all(axis=1))),
        exported_accuracy=None if labels is None else float(np.mean((theirs == labels).all(axis=1))),
    )
