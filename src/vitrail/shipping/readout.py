"""How the logits of a model that leaves the house are read: as probabilities, and as labels.

Axes: N images, C classes.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, assert_never

import numpy as np
import numpy.typing as npt
import torch
from scipy.special import expit, logit
from torch import Tensor

from vitrail.config import TaskName
from vitrail.errors import ConfigError
from vitrail.evaluation.calibration import FloatArray, probabilities
from vitrail.evaluation.thresholds import UNFITTED_THRESHOLD

BoolArray = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Readout:
    """From logits to probabilities and labels; the same in PyTorch's graph and here."""

    task: TaskName = "classification"
    temperature: float = 1.0
    """Logits are divided by it before the softmax or the sigmoids; above 0."""
    thresholds: tuple[float, ...] = ()
    """Of a multi-label task: the probability of each class from which its label is given, in [0, 1]."""

    def __post_init__(self) -> None:
        """Refuse what gives no probabilities."""
        if not self.temperature > 0:
            raise ConfigError(f"temperature is {self.temperature}; it takes a number above 0.")
        if not all(0 <= each <= 1 for each in self.thresholds):
            raise ConfigError(f"thresholds are {self.thresholds}; each takes a number from 0 to 1.")

    @classmethod
    def of(cls, task: TaskName, calibration: Mapping[str, Any], num_classes: int) -> "Readout":
        """Return how a model with this calibration is read; where nothing was fitted, at temperature 1 and from 0.5."""
        temperature = float(calibration.get("temperature", 1.0))
        if task == "classification":
            return cls(task, temperature)
        return cls(task, temperature, tuple(calibration.get("thresholds", (UNFITTED_THRESHOLD,) * num_classes)))

    def activate(self, logits: Tensor) -> Tensor:
        """Return the probabilities (N, C) in PyTorch."""
        match self.task:
            case "classification":
                return torch.softmax(logits / self.temperature, dim=-1)
            case "multilabel":
                return torch.sigmoid(logits / self.temperature)
            case _:
                assert_never(self.task)

    def probabilities(self, logits: npt.ArrayLike) -> FloatArray:
        """Return the same in float64."""
        if self.task == "classification":
            return probabilities(logits, self.temperature)
        table: FloatArray = expit(np.asarray(logits, np.float64) / self.temperature)
        return table

    def labels(self, logits: npt.NDArray[np.float32]) -> BoolArray:
        """Return which labels are given (N, C): the most probable, or all from their thresholds on."""
        if self.task == "multilabel":
            return self.probabilities(logits) >= np.array(self.thresholds)
        given: BoolArray = np.eye(logits.shape[1], dtype=bool)[logits.argmax(axis=1)]
        return given

    def margin(self, logits: npt.NDArray[np.float32], own: BoolArray, other: BoolArray) -> float:
        """Return by how much one image's logits (C,) speak for their own labels (C,) and against the ``other``.

        With one label that is how much higher the logit of its own label is; with several, how far beyond its threshold
        the logit is that differs most.
        """
        if self.task == "classification":
            return float(logits[own][0] - logits[other][0])
        limits = self.temperature * logit(np.array(self.thresholds))
        return float(np.abs(logits - limits)[own != other].max())
