"""What a report says: plain data, put together by the verbs and shown by `vitrail.reports.html`."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitrail.config import SplitName
from vitrail.evaluation.cost import Cost, Latency
from vitrail.evaluation.kinds import AnyCalibration, Scores

Picture = NDArray[np.uint8]
"""RGB pixels (H, W, 3)."""


@dataclass(frozen=True, kw_only=True)
class EpochRow:
    """One pass over the training images; None where nothing was measured."""

    epoch: int
    """Counted from 1."""
    train_loss: float | None = None
    val_loss: float | None = None
    val_accuracy: float | None = None
    """In [0, 1]; with several labels per image, the share of images whose labels are all right."""
    val_map: float | None = None
    """Mean average precision in [0, 1], of several labels per image alone."""
    lr: float | None = None
    """Learning rate at the end of the epoch."""
    elapsed_s: float | None = None
    """Since the start of the training."""


@dataclass(frozen=True, kw_only=True)
class DataSummary:
    """The images of a run."""

    name: str
    classes: tuple[str, ...]
    counts: Mapping[str, tuple[int, ...]]
    """Images of each class, for each split."""
    totals: Mapping[str, int]
    """Images of each split; one may count for several classes, or for none."""
    refused: tuple[tuple[str, str], ...] = ()
    """Files that were left out: path and reason."""


@dataclass(frozen=True, kw_only=True)
class ErrorCase:
    """One image with a wrong answer."""

    picture: Picture
    name: str
    """Path of the image, or its name in a built-in data set."""
    true: str
    predicted: str
    probability: float
    """Of the wrong answer, in [0, 1]."""
    true_probability: float
    """Of the right one."""


@dataclass(frozen=True, kw_only=True)
class LabelsCase:
    """One image whose labels are not all right; labels with their probabilities, the worst mistakes first."""

    picture: Picture
    name: str
    """Path of the image."""
    invented: tuple[tuple[str, float], ...]
    """Labels that were given and are wrong."""
    missed: tuple[tuple[str, float], ...]
    """Labels that are right and were not given."""
    found: tuple[str, ...]
    """Labels that were given and are right."""


@dataclass(frozen=True)
class Command:
    """What to do next."""

    purpose: str
    line: str


@dataclass(frozen=True, kw_only=True)
class RunReport:
    """Everything that one page shows. Only the first four are needed; what is absent is left out of the page."""

    title: str
    """Name of the run."""
    model: str
    split: SplitName | str
    """Which images the metrics are measured on."""
    metrics: Scores
    created_at: str = ""
    """Date and time, as it is to be read."""
    data: DataSummary | None = None
    history: tuple[EpochRow, ...] = ()
    best_epoch: int | None = None
    """The epoch whose weights were kept."""
    errors: tuple[ErrorCase, ...] | tuple[LabelsCase, ...] = ()
    """The worst errors, the most confident first: of the kind that the metrics are."""
    augmented: tuple[Picture, ...] = ()
    """Some training images as the model sees them."""
    calibration: AnyCalibration | None = None
    cost: Cost | None = None
    latency: Mapping[str, Latency] = field(default_factory=dict)
    """By runtime, such as "PyTorch" or "onnxruntime"."""
    timings_s: Mapping[str, float] = field(default_factory=dict)
    """Seconds of each stage."""
    details: Mapping[str, str] = field(default_factory=dict)
    """What else is known of the model, such as the learned gates of the local enhancement."""
    caveats: tuple[str, ...] = ()
    """What a reader has to know before believing the numbers."""
    commands: tuple[Command, ...] = ()
    config: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return plain data that JSON can hold: the same content, of pictures the names alone."""
        pictures = {"errors", "augmented", "metrics"}
        plain = {name: value for name, value in vars(self).items() if name not in pictures}
        errors = [{key: value for key, value in vars(each).items() if key != "picture"} for each in self.errors]
        return {
            **{name: _plain(value) for name, value in plain.items()},
            "metrics": self.metrics.to_dict(),
            "errors": errors,
        }


def _plain(value: Any) -> Any:
    """Return ``value`` as dictionaries, lists and scalars; a number that is not finite becomes None."""
    if hasattr(value, "__dataclass_fields__"):
        return _plain(asdict(value))
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return value if np.isfinite(value) else None
    return value if isinstance(value, str | int | bool) or value is None else str(value)
