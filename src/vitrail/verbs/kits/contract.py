"""What the verbs do otherwise from task to task."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
from rich.table import Table

from vitrail.config import Preprocess, TrainConfig
from vitrail.data import Split
from vitrail.evaluation.intervals import Estimate
from vitrail.evaluation.kinds import AnyCalibration, Scores
from vitrail.evaluation.predict import Outputs
from vitrail.reports import ErrorCase, LabelsCase
from vitrail.tasks import Task

ScoresT = TypeVar("ScoresT", bound=Scores)
CalibrationT = TypeVar("CalibrationT", bound=AnyCalibration)


class EpochScores(NamedTuple):
    """What a row of metrics.csv tells of the validation images."""

    loss: float
    accuracy: float
    map: float | None
    """Mean average precision, where there is one."""
    best_by: float
    """The higher, the better the epoch."""


class Answer(NamedTuple):
    """What is said of one image."""

    labels: tuple[str, ...]
    """The most probable first."""
    probabilities: tuple[float, ...]
    """Of these."""
    accepted: bool | None
    """Whether the answer is sure enough; None where there is no such question."""


class Kit(Protocol[ScoresT, CalibrationT]):
    """All that the verbs need of one task.

    Axes: B images, C classes. Labels are those of the task: indices (B,), or which classes are there (B, C).
    """

    def complete(self, config: TrainConfig) -> TrainConfig:
        """Return the configuration with the choices made that depend on the task.

        Raises:
            ConfigError: if it asks for what the task does not have.
        """

    def make_task(self, config: TrainConfig, train: Split) -> Task:
        """Return what is trained."""

    def calibrate(self, logits: npt.ArrayLike, labels: npt.ArrayLike) -> CalibrationT:
        """Fit what turns logits into answers. Raises DataError if there are no images."""

    def read_calibration(self, data: Mapping[str, Any]) -> CalibrationT | None:
        """Return what was fitted, of the values that a checkpoint or a bundle holds; None where nothing was."""

    def measure(
        self, logits: npt.ArrayLike, labels: npt.ArrayLike, classes: tuple[str, ...], calibration: CalibrationT | None
    ) -> ScoresT:
        """Measure the answers. Raises DataError if they cannot be."""

    def epoch_scores(self, scores: ScoresT) -> EpochScores:
        """Return what is told of an epoch."""

    def headline(self, scores: ScoresT) -> tuple[str, Estimate]:
        """Return the score that stands for all, with its name."""

    def table(self, scores: ScoresT, title: str) -> Table:
        """Return the scores for a terminal."""

    def worst_errors(
        self, split: Split, outputs: Outputs, preprocess: Preprocess, calibration: CalibrationT | None
    ) -> tuple[ErrorCase, ...] | tuple[LabelsCase, ...]:
        """Return the errors that the model was surest of, each with its picture as the model saw it."""

    def answer_rows(self, split: Split, outputs: Outputs, calibration: CalibrationT | None) -> Iterator[list[str]]:
        """Yield the answer to every image as a row of a table, the header first."""

    def answer(
        self,
        logits: npt.NDArray[np.float32],
        classes: Sequence[str],
        calibration: CalibrationT | None,
        top_k: int | None,
    ) -> Answer:
        """Return what is said of one image, by its logits (C,).

        Raises:
            ConfigError: if ``top_k`` is given and the task does not have it.
        """
