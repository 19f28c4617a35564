"""Tables of paths and labels: what their rows mean, and what becomes of rows that are not as they should be."""

import os
import posixpath
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

from vitrail.config import SourceConfig, SplitName
from vitrail.data.images import display_name
from vitrail.data.records import Label, Record, is_manifest, read_manifest
from vitrail.data.sources.columns import (
    GROUP_NAMES,
    PATH_NAMES,
    SPLIT_NAMES,
    choose_column,
    columns_given,
    require_column,
)
from vitrail.data.sources.contract import Listing, Pictures, Source, place_of
from vitrail.data.sources.labelling import LabelColumns, Labelling, OneLabel, choose_labelling
from vitrail.data.sources.naming import split_called, suffix_of, why_not_read
from vitrail.data.sources.tabular import Table, open_table
from vitrail.errors import DataError


def open_table_source(path: Path, config: SourceConfig, pictures: Pictures, root: Path | None) -> Source:
    """Return the source that a table is.

    Args:
        path: the file.
        config: names of its columns, and whether paths may lead out of the root.
        pictures: what its paths lead to.
        root: the folder that they are below; None where it is another source.
    """
    return Source(
        name=display_name(path.stem),
        place=f"{place_of(path)}\0{'' if root is None else place_of(root)}",
        pictures=pictures,
        list=lambda group_by: _list_table(path, config, root, group_by),
    )


def _list_table(path: Path, config: SourceConfig, root: Path | None, group_by: str | None) -> Listing:
    table = open_table(path)
    if is_manifest(table.header) and not columns_given(config):
        records = read_manifest(path, allow_outside=config.allow_outside)
        return Listing(divided=True, settled=True, records=sorted(records, key=lambda record: record.path))
    columns = _choose_columns(table, config, group_by)
    return _list_rows(table, columns, _Root(root, config.allow_outside), grouped=group_by in table.header)


@dataclass(frozen=True)
class _Columns:
    """Names of the columns that are read; None where there is none."""

    path: str
    labels: Labelling
    split: str | None
    group: str | None


def _choose_columns(table: Table, config: SourceConfig, group_by: str | None) -> _Columns:
    header, source = table.header, display_name(table.path)
    return _Columns(
        path=require_column(header, config.path_column, PATH_NAMES, flag="path_column", source=source),
        labels=choose_labelling(table, config),
        split=choose_column(header, config.split_column, SPLIT_NAMES, flag="split_column", source=source),
        group=group_by
        if group_by in header
        else choose_column(header, None, GROUP_NAMES, flag="group_by", source=source),
    )


@dataclass(frozen=True)
class _Root:
    """Where the paths of a table lead."""

    folder: Path | None
    allow_outside: bool

    def inside(self, path: str, row: str) -> str:
        """Return the path below the root, in one spelling.

        Raises:
            DataError: if it leaves the root and that is not allowed, or can be no path at all.
        """
        normal = posixpath.normpath(path)
        if self.folder is not None and posixpath.isabs(normal):
            base = os.path.abspath(self.folder).rstrip("/")  # noqa: PTH100 - links stay what they are
            normal = normal.removeprefix(f"{base}/")
        leaves = posixpath.isabs(normal) or normal.partition("/")[0] == ".."
        if "\0" in normal or (leaves and not self.allow_outside):
            where = "" if self.folder is None else f" {display_name(self.folder)}"
            raise DataError(
                f"{row} has the path {display_name(path)!r}, which leaves the root{where}. Give the root of its paths,"
                " or allow_outside if you trust the table."
            )
        return normal


def _list_rows(table: Table, columns: _Columns, root: _Root, *, grouped: bool) -> Listing:
    """Return the records of the rows; each path once."""
    others = [name for name in (columns.path, columns.split, columns.group) if name is not None]
    names = [*others, *columns.labels.columns]
    no_label: Label = "" if isinstance(columns.labels, OneLabel) else ()
    ignored: Counter[str] = Counter()
    rows: dict[str, tuple[int, Record]] = {}
    for number, values in table.columns(names):
        cells = dict(zip(names, values, strict=True))
        row = table.place_of_row(number)
        if not cells[columns.path].strip():
            ignored["rows without a path"] += 1
            continue
        path = root.inside(cells[columns.path], row)
        group = cells[columns.group] if columns.group is not None else ""
        if grouped and not group:
            raise DataError(f"{row} has no {display_name(columns.group or '')}, by which images are grouped. Fill it.")
        split = _split(cells[columns.split], row) if columns.split is not None else None
        label = columns.labels.read(values[len(others) :], row)
        reason = _why_refused(path) or ("its row has no label" if label is None else "")
        record = Record(path=path, label=label or no_label, split=split, group=group, reason=reason)
        first = rows.setdefault(path, (number, record))
        if first[1] is not record:
            ignored["rows that repeat a path"] += 1
            rows[path] = (first[0], _joined(first, (number, record)))
    records = [record for _, record in rows.values()]
    divided = any(record.split for record in records)
    if divided:
        records = [
            record if record.split or record.reason else replace(record, reason="its row names no split")
            for record in records
        ]
    records.sort(key=lambda record: record.path)
    classes = columns.labels.columns if isinstance(columns.labels, LabelColumns) else None
    return Listing(divided=divided, grouped=grouped, records=records, classes=classes, ignored=ignored)


def _split(cell: str, row: str) -> SplitName | None:
    name = cell.strip()
    split = split_called(name)
    if name and split is None:
        raise DataError(
            f'{row} has the split {display_name(name)!r}; it takes train, val or test. Give split_column "" to divide '
            "the images anew, or the column of the split."
        )
    return split


def _why_refused(path: str) -> str:
    return why_not_read(suffix_of(path))


def _joined(one: tuple[int, Record], other: tuple[int, Record]) -> Record:
    """Return the record of a path that two rows have; refused where they do not say the same."""
    (first, kept), (second, record) = one, other
    says = [{"label": each.label, "split": each.split, "group": each.group} for each in (kept, record)]
    for what in says[0]:
        if says[0][what] != says[1][what] and not kept.reason:
            values = [each.shown_label if what == "label" else getattr(each, what) or "none" for each in (kept, record)]
            shown = " and ".join(display_name(value) for value in values)
            return replace(kept, reason=f"rows {first} and {second} disagree about its {what}: {shown}")
    return kept
