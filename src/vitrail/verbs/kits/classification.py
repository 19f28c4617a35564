"""One label per image."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from rich.table import Table

from vitrail.config import Preprocess, TrainConfig
from vitrail.data import Split, display_name, prepare, shown
from vitrail.evaluation.calibration import Calibration, calibrate, probabilities
from vitrail.evaluation.intervals import Estimate
from vitrail.evaluation.metrics import Metrics, classification_metrics
from vitrail.evaluation.predict import Outputs
from vitrail.reports import ErrorCase
from vitrail.tasks import Classification, balanced_weights
from vitrail.verbs.kits.contract import Answer, EpochScores
from vitrail.verbs.kits.shown import CAPTION, cell

NUM_ERRORS_SHOWN: Final = 24
LABEL_SMOOTHING: Final = 0.1


class ClassificationKit:
    """Softmax, accuracy and "unknown"; see `Kit`."""

    def complete(self, config: TrainConfig) -> TrainConfig:
        """Smooth labels by 0.1 where nothing else is said."""
        return replace(config, label_smoothing=LABEL_SMOOTHING) if config.label_smoothing is None else config

    def make_task(self, config: TrainConfig, train: Split) -> Classification:
        """Return the task, with weights of the classes where they are asked for."""
        num_classes = len(train.classes)
        weights = balanced_weights(train.labels, num_classes) if config.class_weights == "balanced" else None
        assert config.label_smoothing is not None, "the configuration is complete"
        return Classification(num_classes, config.label_smoothing, weights)

    def calibrate(self, logits: npt.ArrayLike, labels: npt.ArrayLike) -> Calibration:
        """Fit the temperature and the reject threshold."""
        return calibrate(logits, labels)

    def read_calibration(self, data: Mapping[str, Any]) -> Calibration | None:
        """Return the calibration; a bundle without a reject threshold has none."""
        return Calibration.from_dict(dict(data)) if "reject_threshold" in data else None

    def measure(
        self, logits: npt.ArrayLike, labels: npt.ArrayLike, classes: tuple[str, ...], calibration: Calibration | None
    ) -> Metrics:
        """Return accuracy and its relatives."""
        return classification_metrics(logits, labels, classes, calibration=calibration)

    def epoch_scores(self, scores: Metrics) -> EpochScores:
        """Tell the accuracy, which decides; between equal ones the smaller loss does."""
        accuracy = scores.accuracy.value or 0.0
        return EpochScores(scores.log_loss, accuracy, None, less_loss(accuracy, scores.log_loss))

    def headline(self, scores: Metrics) -> tuple[str, Estimate]:
        """Return the accuracy."""
        return "accuracy", scores.accuracy

    def table(self, scores: Metrics, title: str) -> Table:
        """Return the classes, then the totals."""
        table = Table(title=title, title_justify="left", caption=CAPTION)
        for column in ("", "images", "precision", "recall", "F1"):
            table.add_column(column, justify="left" if column == "" else "right")
        for each in scores.classes:
            estimates = (cell(estimate) for estimate in (each.precision, each.recall, each.f1))
            table.add_row(display_name(each.name), f"{each.support}", *estimates)
        table.add_section()
        table.add_row("accuracy", f"{scores.num_images}", "", cell(scores.accuracy), "")
        table.add_row("mean of classes", "", "", cell(scores.balanced_accuracy), cell(scores.macro_f1))
        return table

    def worst_errors(
        self, split: Split, outputs: Outputs, preprocess: Preprocess, calibration: Calibration | None
    ) -> tuple[ErrorCase, ...]:
        """Return the wrong answers with the highest probabilities."""
        classes, table = split.classes, _table(outputs, calibration)
        answers = table.argmax(axis=1)
        wrong = np.flatnonzero(answers != outputs.labels)
        surest_first = wrong[np.argsort(-table[wrong, answers[wrong]], kind="stable")]
        return tuple(
            ErrorCase(
                picture=np.asarray(shown(prepare(split.decode(int(outputs.indices[row])), preprocess))),
                name=display_name(split.paths[int(outputs.indices[row])]),
                true=display_name(classes[outputs.labels[row]]),
                predicted=display_name(classes[answers[row]]),
                probability=float(table[row, answers[row]]),
                true_probability=float(table[row, outputs.labels[row]]),
            )
            for row in surest_first[:NUM_ERRORS_SHOWN]
        )

    def answer_rows(self, split: Split, outputs: Outputs, calibration: Calibration | None) -> Iterator[list[str]]:
        """Yield path, label, predicted, probability, correct."""
        table = _table(outputs, calibration)
        yield ["path", "label", "predicted", "probability", "correct"]
        for row, answer in enumerate(table.argmax(axis=1)):
            name = display_name(split.paths[int(outputs.indices[row])])
            label, predicted = (display_name(split.classes[place]) for place in (outputs.labels[row], answer))
            correct = str(bool(answer == outputs.labels[row])).lower()
            yield [name, label, predicted, f"{table[row, answer]:.6f}", correct]

    def answer(
        self,
        logits: npt.NDArray[np.float32],
        classes: Sequence[str],
        calibration: Calibration | None,
        top_k: int | None,
    ) -> Answer:
        """Return the ``top_k`` (default 1) most probable classes."""
        shares = probabilities(logits, calibration.temperature if calibration else 1.0)
        best = np.argsort(-shares, kind="stable")[: top_k or 1]
        return Answer(
            tuple(classes[index] for index in best),
            tuple(float(shares[index]) for index in best),
            bool(shares.max() >= calibration.reject_threshold) if calibration else None,
        )


def less_loss(score: float, loss: float) -> float:
    """Return a score that the smaller loss makes higher, by a share that no difference in scores is as small as."""
    return score - 1e-7 * min(loss, 1e3)


def _table(outputs: Outputs, calibration: Calibration | None) -> npt.NDArray[np.float64]:
    return probabilities(outputs.logits, calibration.temperature if calibration else 1.0)
