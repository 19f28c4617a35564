"""A dataset: pictures that were checked, in splits that share one class index."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, NamedTuple, get_args

import numpy as np

from vitrail.config import DataConfig, PixelType, Preprocess, SourceConfig, SplitName, TaskName
from vitrail.data.admission import Progress, admit
from vitrail.data.channels import format_of, open_for, open_with_channels, widened
from vitrail.data.curation import Curated, curate
from vitrail.data.findings import Findings, find_out
from vitrail.data.images import ImageRefusedError, display_name
from vitrail.data.raster import Picture, size_of
from vitrail.data.records import Record, read_manifest, task_of, write_manifest
from vitrail.data.sources import Listing, Pictures, Source, Traits
from vitrail.data.split import iterative_split, stratified_split
from vitrail.errors import DataError, did_you_mean

_FEWEST_CLASSES: Final = 2
_MOST_NAMED: Final = 10


class Refused(NamedTuple):
    """A file that is not used."""

    path: str
    """As text that can be shown anywhere; the manifest has the exact name."""
    reason: str


@dataclass(frozen=True, kw_only=True, eq=False)
class Split:
    """The pictures of one split, in columns of the same length, sorted by path."""

    name: SplitName
    classes: tuple[str, ...]
    """Of the dataset: the same in every split, whether this one shows them all or not."""
    paths: list[str]
    """Below the source's root. Names that are not UTF-8 hold surrogates: show them through `display_name`."""
    labels: np.ndarray
    """int64 (n,), indices into ``classes``; with several labels per picture bool (n, C), which of them it shows."""
    sizes: np.ndarray
    """int32 (n, 2), height and width in pixels."""
    pictures: Pictures = field(repr=False)
    """Where the pictures are read from."""

    def __len__(self) -> int:
        """Return the number of pictures."""
        return len(self.paths)

    @property
    def task(self) -> TaskName:
        """What can be learnt: one label per picture, or any number of them."""
        return "classification" if self.labels.ndim == 1 else "multilabel"

    @property
    def counts(self) -> tuple[int, ...]:
        """Pictures of each class."""
        several = self.labels.ndim == 2
        counts = self.labels.sum(axis=0) if several else np.bincount(self.labels, minlength=len(self.classes))
        return tuple(counts.tolist())

    def decode(self, index: int, min_side: int | None = None) -> Picture:
        """Return picture ``index``, upright, 8-bit RGB or with its channels as they are; large JPEGs perhaps smaller.

        Raises:
            DataError: if the file is no longer the picture that was admitted.
        """
        try:
            image = self.pictures.open(self.paths[index], min_side)
        except ImageRefusedError as error:
            raise DataError(f"{error} It was whole when the images were checked; restore it or start again.") from error
        height, width = self.sizes[index].tolist()
        # In full size, or as a JPEG is decoded smaller: divided and rounded up.
        if size_of(image) not in [(-(-width // scale), -(-height // scale)) for scale in (1, 2, 4, 8)]:
            raise DataError(
                f"{display_name(self.paths[index])} has changed since it was checked: it had {width} x {height} pixels."
                " Restore it or start again."
            )
        return image


@dataclass(frozen=True, kw_only=True, eq=False)
class Dataset:
    """What a source becomes after admission."""

    name: str
    classes: tuple[str, ...]
    """Sorted; a label is an index into it, in every split."""
    splits: dict[SplitName, Split]
    """train, val, test: those there are."""
    refused: list[Refused]
    """Every file that cannot be used, and why."""
    dropped: list[Refused]
    """Every picture that was left out of val or test because another split has it too."""
    findings: Findings
    """What is unusual about the pictures; empty for a dataset made of a manifest."""
    ignored: Mapping[str, int]
    """How many other files and folders were passed over, by what they are."""
    traits: Traits
    channels: int | None
    """Of the pictures as they are; None where each becomes RGB."""
    pixel_type: PixelType
    """Of the values of all pictures."""
    records: list[Record] = field(repr=False)
    """One for each picture and each refused file, sorted by path."""

    @property
    def task(self) -> TaskName:
        """What can be learnt; the same in every split."""
        return next(iter(self.splits.values())).task

    def write_manifest(self, path: str | Path) -> None:
        """Write which picture is in which split, as CSV; `open_manifest` makes the same dataset of it.

        Raises:
            StorageError: if the disk is full or the folder cannot be written.
        """
        write_manifest(path, self.records)


def open_dataset(source: str | Path, config: DataConfig | None = None, *, progress: Progress | None = None) -> Dataset:
    """Find, check and divide the pictures of a source.

    Where the source names no splits all three are made; where only ``val`` is missing it is taken from ``train``; a
    missing ``test`` stays missing. Pictures that are the same, or of one group, are kept in one split; where the source
    has them in two, they are dropped from val and test. What a manifest says stays as it is.

    Args:
        source: a folder with one folder per class, a folder of train, val and test folders of such, a table of paths
            and labels, or "digits". A folder of that name is "./digits".
        config: how the source is read and divided. Default: as `DataConfig` does.
        progress: is told how many files were checked, and of how many.

    Raises:
        DataError: if there are no pictures, fewer than two classes, a class that is too small to be divided, a class
            that only val or test shows, or a picture without a group.
    """
    config = config or DataConfig()
    opened = open_with_channels(source, config, config.channels)
    listing = opened.list(config.group_by)
    if listing.grouped:
        config = replace(config, group_by=None)
    if listing.settled:
        config = replace(config, keep_leaks=True)
    admitted = admit(opened, listing.records, progress)
    used = [record for record in admitted.records if not record.reason]
    _check_classes(opened.name, admitted.records, used, listing.classes or ())
    curated = curate(used, admitted.inspections, opened.pictures.open, config)
    used = [record for record in curated.records if not record.reason]
    divided_splits = {record.split for record in used}
    if not listing.divided:
        splits = _divide(used, config, config.test_fraction, curated)
    elif "val" not in divided_splits:
        kept = [record for record in used if record.split != "train"]
        splits = kept + _divide([record for record in used if record.split == "train"], config, 0.0, curated)
    else:
        splits = used
    refused = [replace(record, split=None) for record in admitted.records if record.reason]
    records = splits + refused + [record for record in curated.records if record.reason]
    changed = [
        record.path
        for record, listed in zip(admitted.records, listing.records, strict=True)
        if listed.sha256 and record.sha256 != listed.sha256 and not record.reason
    ]
    findings = find_out(
        records, admitted.inspections, curated.pairs, curated.leaks, changed=changed, note=admitted.note
    )
    opened = widened(opened, [admitted.inspections[record.path] for record in used])
    return _build(opened, records, listing.ignored, findings=findings)


def open_evaluation_set(
    source: str | Path,
    classes: Sequence[str],
    config: SourceConfig | None = None,
    *,
    task: TaskName = "classification",
    preprocess: Preprocess | None = None,
    progress: Progress | None = None,
) -> Dataset:
    """Find and check pictures to evaluate a model on, labelled with the model's own classes.

    Nothing is divided: a source that does not name its splits becomes one split, "test". Classes may be missing.

    Args:
        source: as `open_dataset` takes it.
        classes: of the model.
        config: how the source is read.
        task: of the model.
        preprocess: of the model, whose channels the pictures have. Default: they become RGB.
        progress: is told how many pictures were checked, and of how many.

    Raises:
        DataError: if there are no usable pictures, a class that the model does not know, one label per picture where
            the model gives several or the other way round, or a class of the model that the source says nothing about.
    """
    opened = open_for(source, config, preprocess)
    listing = opened.list(None)
    _check_task(opened.name, listing, task, classes)
    records = admit(opened, listing.records, progress).records
    unknown = sorted(_classes_of(records) - set(classes))
    if unknown:
        hint = did_you_mean(unknown[0], classes)
        raise DataError(f"{opened.name} has classes that the model does not know: {_names(unknown)}.{hint}")
    records = [
        replace(record, split=None if record.reason else record.split if listing.divided else "test")
        for record in records
    ]
    if all(record.reason for record in records):
        raise _no_usable_pictures(opened.name, records)
    return _build(opened, records, listing.ignored, classes)


def open_manifest(
    manifest: str | Path,
    source: str | Path,
    config: SourceConfig | None = None,
    *,
    preprocess: Preprocess | None = None,
) -> Dataset:
    """Make the dataset that a manifest describes, without decoding anything.

    Args:
        manifest: a CSV file of `Dataset.write_manifest`.
        source: where the pictures lie now: the folder its paths are below, or another source.
        config: how the source is read.
        preprocess: of the model that the pictures are for, whose channels they have. Default: they become RGB.

    Raises:
        DataError: if the manifest is damaged or the source does not exist.
    """
    config = config or SourceConfig()
    records = read_manifest(manifest, allow_outside=config.allow_outside)
    try:
        return _build(open_for(source, config, preprocess), records, {})
    except DataError as error:
        raise DataError(f"{error} The pictures of {display_name(manifest)} are looked for there.") from error


def _divide(records: list[Record], config: DataConfig, test_fraction: float, curated: Curated) -> list[Record]:
    units = [curated.units.get(record.path, -1 - place) for place, record in enumerate(records)]
    paths = [record.path for record in records]
    rule: dict[str, Any] = {
        "seed": config.seed,
        "val_fraction": config.val_fraction,
        "test_fraction": test_fraction,
        "groups": units,
    }
    if task_of(records) == "multilabel":
        splits = iterative_split(paths, [record.labels for record in records], **rule)
    else:
        splits = stratified_split(paths, [label for record in records for label in record.labels], **rule)
    return [replace(record, split=split) for record, split in zip(records, splits, strict=True)]


def _classes_of(records: Iterable[Record]) -> set[str]:
    return {label for record in records for label in record.labels}


def _check_task(name: str, listing: Listing, task: TaskName, classes: Sequence[str]) -> None:
    """Refuse to measure a model by labels that say something else than it does."""
    found = task_of(listing.records)
    if found != task and task == "multilabel":
        raise DataError(
            f"The model gives any number of labels per image, and {name} has one label each, which does not tell what "
            "else the images show. Name a table with label_columns or label_separator."
        )
    if found != task:
        raise DataError(
            f"The model names one class per image, and {name} may have several labels each. Name images that have one."
        )
    untold = sorted(set(classes) - set(listing.classes or classes))
    if untold:
        raise DataError(
            f"{name} does not tell which images show {_names(untold)}, which the model may name. Give a column of each "
            "class in label_columns."
        )


def _check_classes(name: str, records: list[Record], used: list[Record], known: Sequence[str]) -> None:
    """Refuse what nothing can be trained on; ``known`` are classes that the source tells, with pictures or without."""
    if not used:
        raise _no_usable_pictures(name, records)
    usable = _classes_of(used)
    unseen = sorted(set(known) - _classes_of(records))
    if unseen:
        raise DataError(f"No picture in {name} shows {_names(unseen)}, so it cannot be learnt. Leave its column away.")
    empty = sorted(_classes_of(records) - usable)
    if empty:
        example = next(record for record in records if empty[0] in record.labels)
        raise DataError(
            f"No picture of these classes in {name} can be used: {_names(empty)}. "
            f"For example {display_name(example.path)}: {example.reason}. Repair or remove them."
        )
    if not usable:
        raise DataError(f"No picture in {name} has any label. Check the column and label_separator.")
    if len(usable) < _FEWEST_CLASSES and task_of(used) == "classification":
        raise DataError(f"{name} has one class only, {_names(sorted(usable))}. A classifier needs at least two.")
    # Where nothing is divided yet every split is None, and no class can be missing.
    learnable = _classes_of(record for record in used if record.split in {None, "train"})
    unlearnable = sorted(usable - learnable)
    if unlearnable:
        raise DataError(
            f"These classes are in val or test but have no usable picture in train: {_names(unlearnable)}. Add some to "
            "train, or remove them."
        )


def _build(
    source: Source,
    records: list[Record],
    ignored: Mapping[str, int],
    classes: Sequence[str] | None = None,
    findings: Findings | None = None,
) -> Dataset:
    channels, pixel_type = format_of(source.pictures)
    records = sorted(records, key=lambda record: record.path)
    names = tuple(classes if classes is not None else sorted(_classes_of(r for r in records if not r.reason)))
    several = task_of(records) == "multilabel"
    splits: dict[SplitName, Split] = {}
    for split in get_args(SplitName):
        members = [record for record in records if record.split == split and not record.reason]
        if members:
            splits[split] = Split(
                name=split,
                classes=names,
                paths=[record.path for record in members],
                labels=_label_array(members, names, several=several),
                sizes=np.array([(record.height, record.width) for record in members], np.int32),
                pictures=source.pictures,
            )
    return Dataset(
        name=source.name,
        classes=names,
        splits=splits,
        refused=[
            Refused(display_name(record.path), record.reason)
            for record in records
            if record.reason and not record.duplicate_of
        ],
        dropped=[
            Refused(display_name(record.path), record.reason)
            for record in records
            if record.reason and record.duplicate_of
        ],
        findings=findings or Findings(),
        ignored=dict(ignored),
        traits=_traits(source, names),
        channels=channels,
        pixel_type=pixel_type,
        records=records,
    )


def _label_array(records: Sequence[Record], classes: Sequence[str], *, several: bool) -> np.ndarray:
    """Return the `Split.labels` of records."""
    index = {label: number for number, label in enumerate(classes)}
    if not several:
        return np.array([index[label] for record in records for label in record.labels], np.int64)
    table = np.zeros((len(records), len(classes)), bool)
    for row, record in enumerate(records):
        table[row, [index[label] for label in record.labels]] = True
    return table


def _traits(source: Source, classes: Sequence[str]) -> Traits:
    """Return the source's traits; where the classes are numbers or letters, it may be writing that they show."""
    may_be_writing = all(label.isdecimal() or len(label) == 1 for label in classes)
    return replace(source.traits, flip=source.traits.flip and not may_be_writing)


def _no_usable_pictures(name: str, records: list[Record]) -> DataError:
    (reason, count), *_ = Counter(record.reason for record in records).most_common(1)
    return DataError(f"None of the {len(records)} pictures in {name} can be used; {count} of them because: {reason}.")


def _names(labels: Sequence[str]) -> str:
    shown = ", ".join(display_name(label) for label in labels[:_MOST_NAMED])
    return shown if len(labels) <= _MOST_NAMED else f"{shown} and {len(labels) - _MOST_NAMED} more"
