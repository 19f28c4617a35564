"""What the samples of shards show: labels and more from the files beside an image.

A file beside an image is a column, called by its extension: cls, txt. So is each field of the object in a json.
"""

import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import IO, Any, Final

from vitrail.config import SourceConfig
from vitrail.data.images import display_name
from vitrail.data.sources.cells import cell_text
from vitrail.data.sources.columns import LABEL_NAMES, choose_column
from vitrail.data.sources.contract import Listing, Source
from vitrail.data.sources.labelling import choose_labelling
from vitrail.data.sources.listing import Columns, Row, choose_columns, list_rows
from vitrail.data.sources.naming import is_read, suffix_of, why_not_read
from vitrail.data.sources.shards import Shard, ShardPictures, Shards, files_of
from vitrail.errors import DataError

_JSON: Final = "json"
_NUMBERS: Final = "cls"
_LABELS: Final = (_NUMBERS, "txt", _JSON)
_NAMES_OF_CLASSES: Final = ("classnames.txt", "classes.txt")
_MOST_BYTES: Final = 2**20


@dataclass
class _Sample:
    """The files of one key."""

    images: dict[str, str] = field(default_factory=dict)
    """Name by extension."""
    others: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Place and size by extension."""
    twice: set[str] = field(default_factory=set)
    """Extensions that several files have."""


def open_shards(shards: Shards, config: SourceConfig, *, arrays: bool = False) -> Source:
    """Return the source that shards are; with ``arrays``, .npy files are images too."""
    pictures = ShardPictures(shards.root, shards.shards)
    return Source(
        name=shards.name,
        place=shards.place,
        pictures=pictures,
        list=lambda group_by: _list(Samples(shards, shards.shards, pictures, arrays), config, group_by),
    )


def _list(samples: "Samples", config: SourceConfig, group_by: str | None) -> Listing:
    by_name = [shard for shard in samples.shards if shard.split is not None]
    told = {shard.split for shard in by_name}
    by_parts = config.split_column is None and ("train" in told or len(by_name) == len(samples.shards))
    ignored: Counter[str] = Counter()
    if samples.source.num_others:
        ignored["folders beside the shards"] = samples.source.num_others
    if by_parts and len(by_name) < len(samples.shards):
        ignored["shards beside train, val and test"] = len(samples.shards) - len(by_name)
        samples = replace(samples, shards=by_name)
    if not samples.images:
        raise DataError(f"{samples.shown} has no images: its shards hold none under a name such as 0001.jpg.")
    if not samples.header:
        raise DataError(f"{samples.shown} has no labels: its shards take 0001.cls, .txt or .json beside 0001.jpg.")
    image = choose_column(samples.images, config.path_column, (), flag="path_column", source=samples.shown)
    labels = choose_labelling(samples, _with_label_column(samples, config))
    columns = choose_columns(samples, config, group_by, labels, splits_are_known=by_parts)
    listing = list_rows(samples.rows(columns, image, ignored, by_parts=by_parts), columns)
    listing.ignored += ignored
    return listing


def _with_label_column(samples: "Samples", config: SourceConfig) -> SourceConfig:
    """Name the column of labels where no option does: cls before a field of the usual names before any other text."""
    if config.label_columns or config.label_column is not None:
        return config
    usual = None
    if _NUMBERS not in samples.header:
        usual = choose_column(samples.header, None, LABEL_NAMES, flag="label_column", source=samples.shown)
    found = usual or next((name for name in _LABELS if name in samples.header), None)
    return config if found is None else replace(config, label_column=found)


@dataclass(frozen=True, eq=False)
class Samples:
    """The samples of shards, in columns."""

    source: Shards
    shards: Sequence[Shard]
    pictures: ShardPictures
    arrays: bool

    @property
    def shown(self) -> str:
        """How they are named to a person."""
        return self.source.name

    @property
    def header(self) -> tuple[str, ...]:
        """Names of the columns."""
        return tuple(self._columns[0])

    @property
    def images(self) -> tuple[str, ...]:
        """Extensions of images."""
        return tuple(sorted(self._columns[1]))

    def is_list(self, name: str) -> bool:
        """Return whether a column holds a list anywhere."""
        return self._columns[0][name]

    @cached_property
    def _columns(self) -> tuple[dict[str, bool], set[str]]:
        """Names of the columns and whether they hold lists, and the extensions of images; all samples are looked at."""
        columns: dict[str, bool] = {}
        images: set[str] = set()
        for shard in self.shards:
            with self._open(shard) as file:
                for _, sample in self._of(shard, Counter()):
                    images.update(sample.images)
                    columns.update(dict.fromkeys((name for name in sample.others if name != _JSON), False))
                    for name, value in _fields(file, sample)[0].items():
                        columns[name] = columns.get(name, False) or isinstance(value, list)
        return columns, images

    def rows(self, columns: Columns, image: str | None, ignored: Counter[str], *, by_parts: bool) -> Iterator[Row]:
        """Yield what each sample says.

        Args:
            columns: what is read.
            image: extension of the images; None where each sample has one image alone.
            ignored: is told what is passed over.
            by_parts: the splits are those of the shards.

        Raises:
            DataError: if a sample has several images.
        """
        classes = _class_names(self.source.root)
        wanted, number = columns.names, 0
        for shard in self.shards:
            ignored.update(self.pictures.index(shard.name).ignored)
            with self._open(shard) as file:
                for key, sample in self._of(shard, ignored):
                    place = f"{display_name(shard.name)}, sample {display_name(key)},"
                    found = image if image is not None else _only_image(sample, place)
                    if found not in sample.images:
                        ignored["samples without an image"] += 1
                        continue
                    path = f"{shard.name}/{sample.images[found]}"
                    cells, reason = _cells(file, sample, wanted, place, classes)
                    if sample.twice & {found, *wanted, *([_JSON] if _JSON in sample.others else [])}:
                        reason = "its shard has several files of this name"
                    split = shard.split or "" if by_parts else ""
                    yield columns.row(number, place, path, cells, split=split, reason=reason)
                    number += 1

    def _of(self, shard: Shard, ignored: Counter[str]) -> Iterator[tuple[str, _Sample]]:
        """Yield the samples of a shard with their keys; what belongs to none is counted."""
        begun: dict[str, _Sample] = {}
        index = self.pictures.index(shard.name)
        num_files = 0
        for key, extension, name, place, size in files_of(index):
            num_files += 1
            # Names are sorted, and those of a sample begin alike; only a folder of that beginning can lie between them.
            for done in [each for each in begun if not name.startswith(f"{each}.")]:
                yield done, begun.pop(done)
            sample = begun.setdefault(key, _Sample())
            suffix = suffix_of(name)
            files: dict[str, Any] = sample.others
            value: Any = (place, size)
            if is_read(suffix, arrays=self.arrays) or why_not_read(suffix):
                files, value = sample.images, name
            if extension in files:
                sample.twice.add(extension)
            files.setdefault(extension, value)
        if num_files < len(index):
            ignored["hidden files and those without an extension"] += len(index) - num_files
        yield from begun.items()

    def _open(self, shard: Shard) -> IO[bytes]:
        try:
            return Path(self.pictures.join(shard.name)).open("rb")
        except OSError as error:
            raise DataError(f"{display_name(shard.name)} cannot be read: {error.strerror or error}.") from error


def _only_image(sample: _Sample, place: str) -> str | None:
    if len(sample.images) > 1:
        names = ", ".join(map(display_name, sorted(sample.images)))
        raise DataError(f"{place} has several images, {names}; say which one is meant with path_column.")
    return next(iter(sample.images), None)


def _cells(
    file: IO[bytes], sample: _Sample, names: Sequence[str], place: str, classes: Sequence[str] | None
) -> tuple[list[str], str]:
    """Return a sample's cells, and why it is refused, or nothing."""
    fields: dict[str, Any] = {}
    reason = ""
    if any(name not in sample.others or name == _JSON for name in names):
        fields, reason = _fields(file, sample)
    cells = []
    for name in names:
        if name in sample.others and name != _JSON:
            text, failed = _text(file, *sample.others[name])
            cells.append(_class_of(text, classes, place) if name == _NUMBERS and classes else text)
            reason = reason or (failed and f"its .{display_name(name)} {failed}")
        else:
            cells.append(cell_text(fields.get(name), name, place.rstrip(",")))
    return cells, reason


def _fields(file: IO[bytes], sample: _Sample) -> tuple[dict[str, Any], str]:
    """Return the fields of the object in a sample's json, or all that is in it as one; and why that failed."""
    if _JSON not in sample.others:
        return {}, ""
    text, failed = _text(file, *sample.others[_JSON])
    if failed:
        return {}, f"its .json {failed}"
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return {}, "its .json is no JSON"
    return (value if isinstance(value, dict) else {_JSON: value}), ""


def _text(file: IO[bytes], place: int, size: int) -> tuple[str, str]:
    """Return what is in a file, without white space around it; and why that failed."""
    if size > _MOST_BYTES:
        return "", f"has {size / 2**20:.0f} MiB; at most {_MOST_BYTES // 2**20} is read"
    file.seek(place)
    return file.read(size).decode("utf-8", "surrogateescape").strip(), ""


def _class_of(text: str, classes: Sequence[str], place: str) -> str:
    """Return the name of a class by its number; what is no number is a name."""
    if not text.isdecimal():
        return text
    if int(text) >= len(classes):
        raise DataError(f"{place} has the class {display_name(text)}, and there are names for {len(classes)} only.")
    return classes[int(text)]


def _class_names(root: Path) -> list[str] | None:
    """Return the lines of the file beside the shards that names the classes by their numbers, if there is one."""
    for name in _NAMES_OF_CLASSES:
        if (root / name).is_file():
            lines = os.fsdecode((root / name).read_bytes()).splitlines()
            names = [line.strip() for line in lines if line.strip()]
            if len(set(names)) < len(names):
                raise DataError(f"{display_name(root / name)} has a name twice. Each line names another class.")
            return names
    return None
