"""`vitrail data`: look at images before a minute is spent on training; in Python `vitrail.admit`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from vitrail.config import AdmitConfig, DataConfig, from_options
from vitrail.data import Dataset, display_name, open_dataset
from vitrail.runtime.device import describe_machine
from vitrail.runtime.files import write_json
from vitrail.training import Run

_MOST_REFUSED_SHOWN = 20


@dataclass(frozen=True, kw_only=True)
class Admission:
    """What became of a source."""

    dataset: Dataset
    path: Path
    """The folder with the manifest: every file, its split, and why it was refused if it was."""


def admit(source: str | Path, **options: Any) -> Admission:
    """Check every file of a source, divide what is usable and write the manifest.

    Args:
        source: a folder with one folder of images per class, or with train, val and test folders of such; or "digits".
        options: the other fields of `vitrail.config.AdmitConfig`, as the flags of ``vitrail data``.

    Raises:
        ConfigError: for an option or value that is not allowed.
        DataError: if nothing can be trained on these images.
        StorageError: if the disk is full.
    """
    return _admit(from_options(AdmitConfig, {"source": str(source), **options}))


def run(config: AdmitConfig) -> int:
    """Serve the command line: 0 where the images can be trained on, broken files or not."""
    admission = _admit(config)
    console = Console(highlight=False)
    console.print(_table(admission.dataset))
    _print_refused(admission.dataset, console)
    console.print(f"manifest {display_name(Run(admission.path).manifest_path)}", markup=False, soft_wrap=True)
    return 0


def open_with_progress(source: str, config: DataConfig, *, quiet: bool = False) -> Dataset:
    """Open a source and show how many of its files are checked; raises what `vitrail.data.open_dataset` raises."""
    columns = (TextColumn("checking images"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True, quiet=quiet)
    with Progress(*columns, console=console, transient=True, disable=quiet or not console.is_terminal) as progress:
        task = progress.add_task("", total=None)
        return open_dataset(
            source, config, progress=lambda done, total: progress.update(task, completed=done, total=total)
        )


def _admit(config: AdmitConfig) -> Admission:
    dataset = open_with_progress(config.source, config)
    folder = Run.create(config.out, "data", config.name or Path(config.source).resolve().name)
    with folder.removed_on_error():
        folder.write_config(config)
        folder.write_labels(dataset.classes)
        write_json(folder.environment_path, describe_machine())
        dataset.write_manifest(folder.manifest_path)
    return Admission(dataset=dataset, path=folder.path)


def _table(dataset: Dataset) -> Table:
    table = Table(title=f"{dataset.name}: {len(dataset.classes)} classes", title_justify="left")
    table.add_column("class", overflow="fold")
    for name in dataset.splits:
        table.add_column(name, justify="right")
    for index, label in enumerate(dataset.classes):
        table.add_row(display_name(label), *(str(int((s.labels == index).sum())) for s in dataset.splits.values()))
    table.add_section()
    table.add_row("all", *(str(len(split)) for split in dataset.splits.values()))
    return table


def _print_refused(dataset: Dataset, console: Console) -> None:
    if dataset.ignored:
        passed_over = ", ".join(f"{count} {what}" for what, count in sorted(dataset.ignored.items()))
        console.print(f"passed over: {passed_over}", markup=False)
    if dataset.refused:
        console.print(f"refused: {len(dataset.refused)} files", markup=False)
        for refused in dataset.refused[:_MOST_REFUSED_SHOWN]:
            console.print(f"  {refused.path}: {refused.reason}", markup=False, soft_wrap=True)
        if len(dataset.refused) > _MOST_REFUSED_SHOWN:
            console.print(
                f"  and {len(dataset.refused) - _MOST_REFUSED_SHOWN} more; the manifest has all", markup=False
            )
