"""What `train` and `evaluate` share: a model's answers to a split, measured, and the page that shows them."""

import csv
import io
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from vitrail.data import Dataset, EvalLoader, Split, display_name
from vitrail.evaluation.kinds import AnyCalibration, Scores
from vitrail.evaluation.predict import Outputs, Predictor, collect
from vitrail.reports import DataSummary
from vitrail.runtime.files import write_text
from vitrail.verbs.kits import KITS


@dataclass(frozen=True, kw_only=True)
class Assessment:
    """A model's answers to one split, and how good they are."""

    split: Split
    outputs: Outputs
    metrics: Scores


def assess(
    predictor: Predictor, split: Split, *, batch_size: int, calibration: AnyCalibration | None = None
) -> Assessment:
    """Ask for the answers to a whole split and measure them.

    Raises:
        DataError: if an image of the split cannot be read any more, or an answer is not finite.
    """
    loader = EvalLoader(split, predictor.preprocess, batch_size)
    outputs = collect(predictor, loader)
    metrics = KITS[split.task].measure(outputs.logits, outputs.labels, predictor.classes, calibration)
    return Assessment(split=split, outputs=outputs, metrics=metrics)


def summarise_data(dataset: Dataset) -> DataSummary:
    """Return what a report tells of the images."""
    return DataSummary(
        name=dataset.name,
        classes=tuple(display_name(name) for name in dataset.classes),
        counts={name: split.counts for name, split in dataset.splits.items()},
        totals={name: len(split) for name, split in dataset.splits.items()},
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
        caveats.append(f"{len(conflicts)} pairs of the same image have two labels; vitrail data shows them.")
    if dataset.refused:
        caveats.append(f"{len(dataset.refused)} files were left out because they are broken or of no known format.")
    if absent := assessment.metrics.absent_classes:
        names = ", ".join(display_name(name) for name in absent)
        caveats.append(f"No image of {assessment.split.name} shows {names}: these classes count in no mean.")
    return tuple(caveats)


def write_answers(path: Path, assessment: Assessment, calibration: AnyCalibration | None) -> None:
    """Write the answer to every image of the split as CSV."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows(KITS[assessment.split.task].answer_rows(assessment.split, assessment.outputs, calibration))
    write_text(path, text.getvalue())


def now() -> str:
    """Return the date and time as a person reads them."""
    return datetime.now().astimezone().strftime("%Y-%m-%d %H:%M")
