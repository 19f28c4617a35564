"""`vitrail data`: look at images before a minute is spent on training; in Python `vitrail.admit`."""

import re
import shlex
from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from vitrail.config import AdmitConfig, DataConfig, from_options
from vitrail.data import Dataset, ImageRefusedError, Pair, display_name, open_dataset, shown
from vitrail.reports import Command, DataPage, Picture, ShownFinding, ShownPair, ShownPicture, write_data_page
from vitrail.reports.datapage import MAX_LABELS, MAX_PAIRS, MAX_PICTURES, ShownLabels
from vitrail.runtime.device import describe_machine
from vitrail.runtime.files import write_json
from vitrail.training import Run
from vitrail.verbs.assess import now
from vitrail.verbs.labelcheck import LabelCheck, check_labels

_MOST_REFUSED_SHOWN = 20
_MOST_LABELS_SHOWN = 10
_THUMBNAIL_PX = 160


@dataclass(frozen=True, kw_only=True)
class Admission:
    """What became of a source."""

    dataset: Dataset
    path: Path
    """The folder with the manifest (every file, its split, and why it was refused if it was), the findings as JSON, and
    the page that shows them."""
    labels: LabelCheck | None = None
    """Which labels are suspicious; None where nobody looked."""

    @property
    def report_path(self) -> Path:
        """The page for people."""
        return Run(self.path).report_path


def admit(source: str | Path, **options: Any) -> Admission:
    """Check every file of a source, divide what is usable and write the manifest.

    Args:
        source: a folder with one folder of images per class, or with train, val and test folders of such; a table of
            paths and labels; a Hugging Face dataset; shards; idx files or an .npz archive; or "digits".
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
    _print_findings(admission.dataset, console)
    if admission.labels is not None:
        _print_labels(admission.labels, console)
    console.print(f"report   {display_name(admission.report_path)}", markup=False, soft_wrap=True)
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
    labels = check_labels(dataset, config) if config.label_folds else None
    folder = Run.create(config.out, "data", config.name or re.sub(r"[/\\]+", "-", dataset.name))
    with folder.removed_on_error():
        folder.write_config(config)
        folder.write_labels(dataset.classes)
        write_json(folder.environment_path, describe_machine())
        dataset.write_manifest(folder.manifest_path)
        write_json(folder.path / "findings.json", dataset.findings.to_dict())
        if labels is not None:
            write_json(folder.path / "label_issues.json", labels.to_dict())
        write_data_page(folder.report_path, _page(dataset, config, labels))
    return Admission(dataset=dataset, path=folder.path, labels=labels)


def _page(dataset: Dataset, config: AdmitConfig, labels: LabelCheck | None) -> DataPage:
    findings = dataset.findings
    leaking = {frozenset((leak.path, leak.of)) for leak in findings.leaks}

    def gravity(pair: Pair) -> tuple[bool, bool, float]:
        both = frozenset((pair.first, pair.second))
        return pair.labels[0] == pair.labels[1], both not in leaking, -pair.similarity

    show = _Pictures(dataset)
    pairs = sorted(findings.pairs, key=gravity)[:MAX_PAIRS]
    words = shlex.join([config.source, *_flags(config)])
    return DataPage(
        title=dataset.name,
        created_at=now(),
        classes=tuple(display_name(label) for label in dataset.classes),
        counts={name: split.counts for name, split in dataset.splits.items()},
        totals={name: len(split) for name, split in dataset.splits.items()},
        findings=tuple(
            ShownFinding(
                text=item.text,
                warning=item.severity == "warning",
                kind=item.kind,
                pictures=tuple(show(path) for path in item.paths[:MAX_PICTURES]),
            )
            for item in findings.items
        ),
        pairs=tuple(_shown_pair(pair, show, frozenset((pair.first, pair.second)) in leaking) for pair in pairs),
        labels=None if labels is None else _shown_labels(labels, show),
        num_pairs=len(findings.pairs),
        num_leaks=len(findings.leaks),
        refused=tuple((refused.path, refused.reason) for refused in dataset.refused),
        dropped=tuple((dropped.path, dropped.reason) for dropped in dataset.dropped),
        ignored=dict(sorted(dataset.ignored.items())),
        commands=(
            Command("Train on these images", f"vitrail train {words}"),
            *([Command("Look for wrong labels", f"vitrail data {words} --label-folds 5")] if labels is None else []),
        ),
    )


def _flags(config: DataConfig) -> list[str]:
    """Return the words that divide the images in the same way again."""
    words = []
    for field in fields(DataConfig):
        value = getattr(config, field.name)
        if value != field.default:
            flag = f"--{field.name.replace('_', '-')}"
            values = value if isinstance(value, tuple) else (value,)
            words += [flag] if value is True else [flag, *map(str, values)]
    return words


class _Pictures:
    """Reads pictures for the page; one that has vanished meanwhile is shown as such."""

    def __init__(self, dataset: Dataset) -> None:
        self._open = next(iter(dataset.splits.values())).pictures.open
        self._labels = {record.path: record.shown_label for record in dataset.records}

    def __call__(self, path: str, note: str | None = None) -> ShownPicture:
        picture: Picture | None = None
        with suppress(ImageRefusedError):
            image = shown(self._open(path, _THUMBNAIL_PX))
            image.thumbnail((_THUMBNAIL_PX, _THUMBNAIL_PX))
            picture = np.asarray(image)
        return ShownPicture(picture=picture, name=display_name(path), note=self._labels[path] if note is None else note)


def _shown_labels(labels: LabelCheck, show: _Pictures) -> ShownLabels:
    return ShownLabels(
        text=labels.text,
        num=len(labels.issues),
        pictures=tuple(show(issue.path, issue.text) for issue in labels.issues[:MAX_LABELS]),
    )


def _shown_pair(pair: Pair, show: _Pictures, leaks: bool) -> ShownPair:
    warnings = (["two labels"] if pair.labels[0] != pair.labels[1] else []) + (["in two splits"] if leaks else [])
    verdict = "exactly the same pixels" if pair.kind == "exact" else f"{pair.kind}, similarity {pair.similarity:.3f}"
    return ShownPair(first=show(pair.first), second=show(pair.second), verdict=verdict, warning=", ".join(warnings))


def _table(dataset: Dataset) -> Table:
    table = Table(title=f"{dataset.name}: {len(dataset.classes)} classes", title_justify="left")
    table.add_column("class", overflow="fold")
    for name in dataset.splits:
        table.add_column(name, justify="right")
    for label, *counts in zip(dataset.classes, *(split.counts for split in dataset.splits.values()), strict=True):
        table.add_row(display_name(label), *map(str, counts))
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


def _print_labels(labels: LabelCheck, console: Console) -> None:
    console.print(f"labels: {labels.text}", markup=False, soft_wrap=True)
    for issue in labels.issues[:_MOST_LABELS_SHOWN]:
        console.print(f"  {display_name(issue.path)}: {issue.text}", markup=False, soft_wrap=True)
    if len(labels.issues) > _MOST_LABELS_SHOWN:
        console.print(f"  and {len(labels.issues) - _MOST_LABELS_SHOWN} more; label_issues.json has all", markup=False)


def _print_findings(dataset: Dataset, console: Console) -> None:
    for item in dataset.findings.items:
        console.print(f"{item.severity}: {item.text}", markup=False, soft_wrap=True)
        if item.kind in {"leak", "conflict"}:
            for path in item.paths[:3]:
                console.print(f"  {display_name(path)}", markup=False, soft_wrap=True)
