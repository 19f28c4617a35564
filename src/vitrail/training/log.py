"""What a person sees of a training while it runs, and what stays of it: one row of numbers per epoch."""

import csv
import dataclasses
import io
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

from vitrail.errors import DataError
from vitrail.runtime.files import write_text
from vitrail.training.loop import StepReport

# Share of the shown speed that a new step does not change; single steps vary too much to be read.
_SPEED_SMOOTHING = 0.9

# Share of the time from which it is said that the model waits for images.
_WAITING_TOLD = 0.05


@dataclass(frozen=True, kw_only=True)
class EpochMetrics:
    """One row of metrics.csv."""

    epoch: int
    """From 0."""
    step: int
    """Steps of the optimizer so far."""
    lr: float
    """The first group's learning rate in the last step."""
    train_loss: float
    """Mean over the augmented images."""
    train_accuracy: float
    """In [0, 1], on the images as augmented; of a mixture, its larger part counts."""
    val_loss: float | None = None
    val_accuracy: float | None = None
    """In [0, 1], with the weights that would be kept (the moving average where there is one). With several labels per
    image, as for `train_accuracy`, the share of images whose labels are all right, from a probability of 0.5 on."""
    val_map: float | None = None
    """Mean average precision in [0, 1], of several labels per image alone; it decides which epoch is the best."""
    images_per_s: float
    """While training."""
    wait_share: float | None = None
    """Share of the training's time in which the model waited for images, in [0, 1]."""
    elapsed_s: float
    """Of the training so far, over all sessions."""


class MetricsLog:
    """The file metrics.csv, with a header and one row per epoch.

    Each row is added by writing the file anew under another name and renaming it, so that it is whole at any moment.

    Args:
        path: of the file; rows that are there already stay.
        resume_epoch: rows from this epoch on are dropped, because a resumed training does these epochs again.

    Raises:
        DataError: if the file that is there is no such log.
    """

    def __init__(self, path: Path, resume_epoch: int = 0) -> None:
        self.path = Path(path)
        earlier = read_metrics(self.path) if resume_epoch > 0 and self.path.exists() else []
        self.rows = [row for row in earlier if row.epoch < resume_epoch]

    def append(self, row: EpochMetrics) -> None:
        """Add the numbers of the epoch that has ended.

        Raises:
            StorageError: if the disk is full or the folder cannot be written.
        """
        self.rows.append(row)
        text = io.StringIO()
        writer = csv.DictWriter(text, [field.name for field in dataclasses.fields(EpochMetrics)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(dataclasses.asdict(row) for row in self.rows)
        write_text(self.path, text.getvalue())


def read_metrics(path: Path) -> list[EpochMetrics]:
    """Return the rows of a metrics.csv.

    Raises:
        DataError: if the file is missing or is no such log.
    """
    fields = {field.name: field.type for field in dataclasses.fields(EpochMetrics)}
    try:
        with Path(path).open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file, strict=True))
        # Logs of version 0.1 have neither val_map nor wait_share.
        return [EpochMetrics(**{name: _parse(row.get(name, ""), fields[name]) for name in fields}) for row in rows]
    except (OSError, ValueError, KeyError, TypeError, csv.Error) as error:
        raise DataError(f"{path} is missing or is no log of a training ({error}).") from error


def _parse(text: str, kind: Any) -> Any:
    if text == "" and kind == float | None:
        return None
    return int(text) if kind is int else float(text)


class TrainProgress:
    """A live bar on a terminal, one plain line per epoch elsewhere, nothing when quiet. Use it as a context.

    Args:
        epochs: of the whole training, or None when time alone ends it.
        quiet: show nothing at all.
        console: where to write; by default the standard error, so that results can be piped.
        clock: seconds from any moment on, for the time left.
    """

    def __init__(
        self,
        epochs: int | None,
        *,
        quiet: bool = False,
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._console = console or Console(stderr=True, highlight=False)
        self._console.quiet = self._console.quiet or quiet
        self._of_epochs = "" if epochs is None else f"/{epochs}"
        self._clock = clock
        self._start: tuple[float, float] | None = None
        self._images_per_s: float | None = None
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("{task.fields[numbers]}"),
            console=self._console,
            disable=quiet or not self._console.is_terminal,
            transient=True,
        )
        self._task = self._bar.add_task("starting", total=1.0, numbers="")
        self._left = ""

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def say(self, text: str) -> None:
        """Show a sentence above the bar."""
        self._console.print(text, markup=False)

    def step(self, report: StepReport) -> None:
        """Move the bar."""
        now = self._clock()
        if self._start is None:
            self._start = (now, report.progress)
        before = self._images_per_s or report.images_per_s
        self._images_per_s = _SPEED_SMOOTHING * before + (1 - _SPEED_SMOOTHING) * report.images_per_s
        self._left = _time_left(now - self._start[0], self._start[1], report.progress)
        numbers = f"loss {report.epoch_loss:.3f}  acc {report.epoch_accuracy:.1%}  {self._images_per_s:.0f} img/s"
        self._bar.update(
            self._task,
            description=f"epoch {report.epoch + 1}{self._of_epochs}",
            completed=report.progress,
            numbers=numbers + self._left,
        )

    def epoch(self, row: EpochMetrics) -> None:
        """Leave a line about an epoch that has ended."""
        parts = [f"epoch {row.epoch + 1}{self._of_epochs}", f"train loss {row.train_loss:.3f}"]
        if row.val_loss is not None:
            parts.append(f"val loss {row.val_loss:.3f}")
        if row.val_accuracy is not None:
            parts.append(f"val acc {row.val_accuracy:.1%}")
        if row.val_map is not None:
            parts.append(f"val mAP {row.val_map:.1%}")
        parts.append(f"{row.images_per_s:.0f} img/s")
        if row.wait_share is not None and row.wait_share >= _WAITING_TOLD:
            parts.append(f"{row.wait_share:.0%} of the time waiting for images")
        self.say("  ".join(parts) + self._left)


def _time_left(seconds: float, progress_before: float, progress: float) -> str:
    """Return how long the rest takes at the pace since ``progress_before``, or nothing while there is no pace yet."""
    if progress <= progress_before:
        return ""
    minutes, rest = divmod(round(seconds * (1 - progress) / (progress - progress_before)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"  {hours}:{minutes:02}:{rest:02} left" if hours else f"  {minutes}:{rest:02} left"
