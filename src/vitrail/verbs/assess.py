"""What `train` and `evaluate` share: a model's answers to a split, measured, and the page that shows them."""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from vitrail.config import Preprocess
from vitrail.data import Dataset, EvalLoader, Split, display_name, prepare
from vitrail.evaluation.calibration import Calibration, probabilities
from vitrail.evaluation.metrics import Metrics, classification_metrics
from vitrail.evaluation.predict import Outputs, Predictor, collect
from vitrail.reports import DataSummary, ErrorCase
from vitrail.runtime.files import write_text

NUM_ERRORS_SHOWN: Final = 24


@dataclass(frozen=True, kw_only=True)
class Assessment:
    """A model's answers to one split, and how good they are."""

    split: Split
    outputs: Outputs
    metrics: Metrics


def assess(
    predictor: Predictor, split: Split, *, batch_size: int, calibration: Calibration | None = None
) -> Assessment:
    """Ask for the answers to a whole split and measure them.

    Raises:
        DataError: if an image of the split cannot be read any more, or an answer is not finite.
    """
    loader = EvalLoader(split, predictor.preprocess, batch_size)
    outputs = collect(predictor, loader)
    metrics = classification_metrics(outputs.logits, outputs.labels, predictor.classes, calibration=calibration)
    return Assessment(split=split, outputs=outputs, metrics=metrics)


def worst_errors(
    assessment: Assessment, preprocess: Preprocess, calibration: Calibration | None
) -> tuple[ErrorCase, ...]:
    """Return the errors that the model was surest of, each with its picture as the model saw it."""
    outputs, classes = assessment.outputs, assessment.split.classes
    table = probabilities(outputs.logits, calibration.temperature if calibration else 1.0)
    answers = table.argmax(axis=1)
    wrong = np.flatnonzero(answers != outputs.labels)
    surest_first = wrong[np.argsort(-table[wrong, answers[wrong]], kind="stable")]
    return tuple(
        ErrorCase(
            picture=prepare(assessment.split.decode(int(outputs.indices[row])), preprocess),
            name=display_name(assessment.split.paths[int(outputs.indices[row])]),
            true=display_name(classes[outputs.labels[row]]),
            predicted=display_name(classes[answers[row]]),
            probability=float(table[row, answers[row]]),
            true_probability=float(table[row, outputs.labels[row]]),
        )
        for row in surest_first[:NUM_ERRORS_SHOWN]
    )


def summarise_data(dataset: Dataset) -> DataSummary:
    """Return what a report tells of the images."""
    return DataSummary(
        name=dataset.name,
        classes=tuple(display_name(name) for name in dataset.classes),
        counts={name: _counts(split.labels, dataset.classes) for name, split in dataset.splits.items()},
        refused=tuple((refused.path, refused.reason) for refused in dataset.refused),
    )


def data_caveats(dataset: Dataset, assessment: Assessment) -> tuple[str, ...]:
    """Return what a reader has to know about the images before believing the numbers."""
    caveats = []
    if kept := [leak for leak in dataset.findings.leaks if not leak.dropped]:
        caveats.append(f"{len(kept)} images of val or test are in train too, so the scores are too high.")
    if dataset.dropped:
        caveats.append(f"{len(dataset.dropped)} images were left out of val and test because train has them too.")
    if conflicts := dataset.findings.conflicts:
        caveats.append(f"{len(conflicts)} pairs of the same image have two labels; `vitrail data` shows them.")
    if dataset.refused:
        caveats.append(f"{len(dataset.refused)} files were left out because they are broken or of no known format.")
    if absent := assessment.metrics.absent_classes:
        names = ", ".join(display_name(name) for name in absent)
        caveats.append(f"No image of {assessment.split.name} shows {names}: these classes count in no mean.")
    return tuple(caveats)


def write_answers(path: Path, assessment: Assessment, calibration: Calibration | None) -> None:
    """Write the answer to every image of the split as CSV: path, label, predicted, probability, correct."""
    outputs, classes = assessment.outputs, assessment.split.classes
    table = probabilities(outputs.logits, calibration.temperature if calibration else 1.0)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["path", "label", "predicted", "probability", "correct"])
    for row, answer in enumerate(table.argmax(axis=1)):
        name = display_name(assessment.split.paths[int(outputs.indices[row])])
        label, predicted = display_name(classes[outputs.labels[row]]), display_name(classes[answer])
        correct = str(bool(answer == outputs.labels[row])).lower()
        writer.writerow([name, label, predicted, f"{table[row, answer]:.6f}", correct])
    write_text(path, text.getvalue())


def now() -> str:
    """Return the date and time as a person reads them."""
    return datetime.now().astimezone().strftime("%Y-%m-%d %H:%M")


def _counts(labels: NDArray[np.int64], classes: Sequence[str]) -> tuple[int, ...]:
    return tuple(int(count) for count in np.bincount(labels, minlength=len(classes)))
