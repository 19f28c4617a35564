"""`vitrail predict`: labels and probabilities for files, folders and globs, as a table, CSV or JSON."""

import csv
import io
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from vitrail.config import PredictConfig, from_options
from vitrail.data import display_name, find_pictures, load_pictures
from vitrail.runtime.files import write_text
from vitrail.verbs.kits import KITS
from vitrail.verbs.target import Target, open_target


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """The answer to one picture."""

    path: str
    """As it was named or found."""
    labels: tuple[str, ...] = ()
    """The most probable classes, the first the answer; of a model of several labels all from their thresholds on, the
    most probable first. None where the file was refused."""
    probabilities: tuple[float, ...] = ()
    """Of `labels`, calibrated where the model is."""
    accepted: bool | None = None
    """Whether the answer is sure enough to be believed (the reject threshold); None where the model has none, as those
    of several labels."""
    error: str | None = None
    """Why there is no answer."""

    @property
    def label(self) -> str | None:
        """The answer, or the surest of several; None where there is none."""
        return self.labels[0] if self.labels else None


def predict(target: str | Path, images: str | Path | Sequence[str | Path], **options: Any) -> list[Prediction]:
    """Label pictures.

    Args:
        target: a run, a bundle or a checkpoint.
        images: one or several files, folders (searched through) and globs.
        options: ``top_k``, ``batch_size`` and ``device`` of `vitrail.config.PredictConfig`.

    Returns:
        One answer per picture, in order. A file that is no usable picture has an ``error`` instead of labels.

    Raises:
        ConfigError: for an option or value that is not allowed.
        DataError: if a named file or folder does not exist, or a glob finds nothing.
        CheckpointError: if the weights cannot be used.
    """
    named = (images,) if isinstance(images, str | Path) else tuple(images)
    given = {"target": str(target), "images": tuple(map(str, named)), **options}
    return _predict(from_options(PredictConfig, given))


def run(config: PredictConfig) -> int:
    """Serve the command line: 0 when every picture was labelled, 1 when a file was refused."""
    predictions = _predict(config)
    if config.format == "table" and config.output is None:
        Console(highlight=False).print(_table(predictions))
    else:
        text = _json(predictions) if config.format == "json" else _csv(predictions)
        if config.output is None:
            sys.stdout.write(text)
        else:
            write_text(Path(config.output), text)
    refused = [each for each in predictions if each.error is not None]
    if refused:
        sys.stderr.write(f"vitrail: {len(refused)} of {len(predictions)} files were refused:\n")
        sys.stderr.writelines(f"  {display_name(each.path)}: {each.error}\n" for each in refused[:20])
    return 1 if refused else 0


def _predict(config: PredictConfig) -> list[Prediction]:
    target = open_target(config.target, device=config.device)
    paths = find_pictures(config.images, arrays=target.predictor.preprocess.channels is not None)
    predictions: list[Prediction] = []
    for start in range(0, len(paths), config.batch_size):
        part = paths[start : start + config.batch_size]
        predictions += _label(target, part, config.top_k)
    return predictions


def _label(target: Target, paths: Sequence[str], top_k: int | None) -> list[Prediction]:
    loaded = load_pictures(paths, target.predictor.preprocess)
    pixels = [each for each in loaded if isinstance(each, np.ndarray)]
    kit, classes = KITS[target.task], target.predictor.classes
    answers = iter(target.predictor.logits(np.stack(pixels)) if pixels else ())
    return [
        Prediction(path=path, **kit.answer(next(answers), classes, target.calibration, top_k)._asdict())
        if isinstance(each, np.ndarray)
        else Prediction(path=path, error=each.reason)
        for path, each in zip(paths, loaded, strict=True)
    ]


def _table(predictions: Sequence[Prediction]) -> Table:
    table = Table()
    table.add_column("picture", overflow="fold")
    table.add_column("label", overflow="fold")
    table.add_column("probability", justify="right")
    for each in predictions:
        if each.error is not None:
            table.add_row(display_name(each.path), "refused", each.error)
            continue
        names = "\n".join(display_name(label) for label in each.labels) or "-"
        doubt = " (unsure)" if each.accepted is False else ""
        shares = "\n".join(f"{share:.1%}" for share in each.probabilities)
        table.add_row(display_name(each.path), names + doubt, shares)
    return table


def _csv(predictions: Sequence[Prediction]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    num_labels = max([1, *(len(each.labels) for each in predictions)])
    more = [f"{name}_{rank}" for rank in range(2, num_labels + 1) for name in ("label", "probability")]
    writer.writerow(["path", "label", "probability", *more, "accepted", "error"])
    for each in predictions:
        pairs = [
            item
            for label, share in zip(each.labels, each.probabilities, strict=True)
            for item in (display_name(label), f"{share:.6f}")
        ]
        pairs += [""] * (2 * num_labels - len(pairs))
        accepted = "" if each.accepted is None else str(each.accepted).lower()
        writer.writerow([display_name(each.path), *pairs, accepted, each.error or ""])
    return text.getvalue()


def _json(predictions: Sequence[Prediction]) -> str:
    plain = [{**asdict(each), "path": display_name(each.path)} for each in predictions]
    return json.dumps(plain, indent=2) + "\n"
