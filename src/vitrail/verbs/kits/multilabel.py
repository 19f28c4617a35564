"""Any number of labels per image."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from rich.table import Table

from vitrail.config import Preprocess, TrainConfig
from vitrail.data import Split, display_name, prepare, shown
from vitrail.errors import ConfigError
from vitrail.evaluation.intervals import Estimate
from vitrail.evaluation.multilabel import MultiLabelMetrics, multilabel_metrics
from vitrail.evaluation.predict import Outputs
from vitrail.evaluation.thresholds import LabelCalibration, calibrate_labels, given_labels, label_probabilities
from vitrail.reports import LabelsCase
from vitrail.tasks import MultiLabel, balanced_pairs
from vitrail.verbs.kits.contract import Answer, EpochScores
from vitrail.verbs.kits.shown import CAPTION, cell, percent

NUM_ERRORS_SHOWN: Final = 24


class MultiLabelKit:
    """Sigmoids, average precision and thresholds; see `Kit`."""

    def complete(self, config: TrainConfig) -> TrainConfig:
        """Smooth no labels where nothing else is said."""
        if config.sampling == "balanced":
            raise ConfigError(
                "sampling is balanced, which shows as many images of every class; these images have several labels, so "
                "no order does that. Leave it away; class_weights balanced makes rare labels count."
            )
        return replace(config, label_smoothing=0.0) if config.label_smoothing is None else config

    def make_task(self, config: TrainConfig, train: Split) -> MultiLabel:
        """Return the task, with weights of presence and absence where they are asked for."""
        weights = balanced_pairs(train.labels) if config.class_weights == "balanced" else None
        assert config.label_smoothing is not None, "the configuration is complete"
        return MultiLabel(len(train.classes), config.label_smoothing, weights)

    def calibrate(self, logits: npt.ArrayLike, labels: npt.ArrayLike) -> LabelCalibration:
        """Fit the temperature and the thresholds."""
        return calibrate_labels(logits, labels)

    def read_calibration(self, data: Mapping[str, Any]) -> LabelCalibration | None:
        """Return the calibration; a bundle of an uncalibrated model has thresholds alone, all 0.5."""
        return LabelCalibration.from_dict(dict(data)) if "common_threshold" in data else None

    def measure(
        self,
        logits: npt.ArrayLike,
        labels: npt.ArrayLike,
        classes: tuple[str, ...],
        calibration: LabelCalibration | None,
    ) -> MultiLabelMetrics:
        """Return average precision, F1 and their relatives."""
        return multilabel_metrics(logits, labels, classes, calibration=calibration)

    def epoch_scores(self, scores: MultiLabelMetrics) -> EpochScores:
        """Tell mAP, which decides; accuracy is the share of images whose labels are all right, from 0.5 on."""
        precision = scores.mean_average_precision.value or 0.0  # without any label the loss alone decides
        return EpochScores(
            scores.log_loss, scores.exact_match.value or 0.0, precision, precision - 1e-7 * min(scores.log_loss, 1e3)
        )

    def headline(self, scores: MultiLabelMetrics) -> tuple[str, Estimate]:
        """Return the mean average precision."""
        return "mAP", scores.mean_average_precision

    def table(self, scores: MultiLabelMetrics, title: str) -> Table:
        """Return the classes, then the totals."""
        table = Table(title=title, title_justify="left")
        table.caption = (
            f"{CAPTION}; on {cell(scores.exact_match)} of the images all labels are right, "
            f"{cell(scores.hamming_loss)} of all decisions are wrong"
        )
        for column in ("", "images", "AP", "precision", "recall", "F1"):
            table.add_column(column, justify="left" if column == "" else "right")
        for each in scores.classes:
            # Intervals of all four would be wider than a terminal; the report has them.
            found = (percent(each.precision), percent(each.recall))
            row = (f"{each.support}", cell(each.average_precision), *found, cell(each.f1))
            table.add_row(display_name(each.name), *row)
        table.add_section()
        means = (cell(scores.mean_average_precision), "", "", cell(scores.macro_f1))
        table.add_row("mean of classes", f"{scores.num_images}", *means)
        table.add_row("all decisions", "", "", "", "", cell(scores.micro_f1))
        return table

    def worst_errors(
        self, split: Split, outputs: Outputs, preprocess: Preprocess, calibration: LabelCalibration | None
    ) -> tuple[LabelsCase, ...]:
        """Return the images with the surest mistakes: wrong labels of high probability, missed ones of low."""
        table, given = (each(outputs.logits, calibration) for each in (label_probabilities, given_labels))
        sureness = np.where(given == outputs.labels, -1.0, np.where(given, table, 1 - table))
        worst = sureness.max(axis=1)
        rows = np.flatnonzero(worst >= 0)
        rows = rows[np.argsort(-worst[rows], kind="stable")][:NUM_ERRORS_SHOWN]
        return tuple(
            LabelsCase(
                picture=np.asarray(shown(prepare(split.decode(int(outputs.indices[row])), preprocess))),
                name=display_name(split.paths[int(outputs.indices[row])]),
                invented=_shown(split, np.where(given[row], sureness[row], -1), table[row]),
                missed=_shown(split, np.where(given[row], -1, sureness[row]), table[row]),
                found=tuple(_names(split, given[row] & outputs.labels[row])),
            )
            for row in rows.tolist()
        )

    def answer_rows(self, split: Split, outputs: Outputs, calibration: LabelCalibration | None) -> Iterator[list[str]]:
        """Yield path, labels and given labels (JSON), whether all are right, and the probability of each class."""
        table, given = (each(outputs.logits, calibration) for each in (label_probabilities, given_labels))
        names = (f"probability: {display_name(name)}" for name in split.classes)
        yield ["path", "labels", "given", "correct", *names]
        for row, labels in enumerate(outputs.labels):
            sets = (json.dumps(_names(split, each), ensure_ascii=False) for each in (labels, given[row]))
            correct = str(bool((labels == given[row]).all())).lower()
            shares = (f"{share:.6f}" for share in table[row])
            yield [display_name(split.paths[int(outputs.indices[row])]), *sets, correct, *shares]

    def answer(
        self,
        logits: npt.NDArray[np.float32],
        classes: Sequence[str],
        calibration: LabelCalibration | None,
        top_k: int | None,
    ) -> Answer:
        """Return every label from its threshold on, which may be none."""
        if top_k is not None:
            raise ConfigError(
                f"top_k is {top_k}, and this model gives every label whose probability reaches its threshold, however "
                "many these are. Leave top_k away."
            )
        shares, given = label_probabilities(logits, calibration), given_labels(logits, calibration)
        best = [place for place in np.argsort(-shares, kind="stable").tolist() if given[place]]
        return Answer(tuple(classes[place] for place in best), tuple(float(shares[place]) for place in best), None)


def _names(split: Split, labels: npt.NDArray[np.bool_]) -> list[str]:
    """Return the names of an image's labels, a row of (B, C)."""
    return [display_name(split.classes[place]) for place in np.flatnonzero(labels).tolist()]


def _shown(
    split: Split, sureness: npt.NDArray[np.float64], shares: npt.NDArray[np.float64]
) -> tuple[tuple[str, float], ...]:
    """Return the names and probabilities of the mistakes (C,) whose sureness is not negative, the surest first."""
    order = np.argsort(-sureness, kind="stable").tolist()
    return tuple((display_name(split.classes[k]), float(shares[k])) for k in order if sureness[k] >= 0)
