"""Rows that tell what pictures show: which columns are read, and what becomes of rows that are not as they should."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from vitrail.config import SourceConfig, SplitName
from vitrail.data.images import display_name
from vitrail.data.records import Label, Record
from vitrail.data.sources.cells import Header
from vitrail.data.sources.columns import GROUP_NAMES, SPLIT_NAMES, choose_column
from vitrail.data.sources.contract import Listing
from vitrail.data.sources.labelling import LabelColumns, Labelling, OneLabel
from vitrail.data.sources.naming import split_called, suffix_of, why_not_read
from vitrail.errors import DataError


class Row(NamedTuple):
    """What one row says."""

    number: int
    """Counts the rows."""
    place: str
    """How it is named to a person."""
    path: str
    """Of the picture; empty where it names none."""
    split: str
    """As it is written; empty where it names none."""
    group: str
    labels: Sequence[str]
    """Cells of the columns of labels."""
    reason: str = ""
    """Why its picture is refused, whatever the row says."""


@dataclass(frozen=True)
class Columns:
    """The columns that are read; None where there is none."""

    labels: Labelling
    split: str | None
    group: str | None
    grouped: bool
    """Whether each row has to have a group."""

    @property
    def names(self) -> list[str]:
        """Names of all of them."""
        return [*(name for name in (self.split, self.group) if name is not None), *self.labels.columns]

    def row(
        self, number: int, place: str, path: str, cells: Sequence[str], *, split: str = "", reason: str = ""
    ) -> Row:
        """Return what a row says.

        Args:
            number: of the row.
            place: how it is named to a person.
            path: of its picture.
            cells: one of each of `names`.
            split: where no column names it.
            reason: as that of `Row`.
        """
        others = list(cells[: len(cells) - len(self.labels.columns)])
        named = others.pop(0) if self.split is not None else split
        group = others.pop(0) if self.group is not None else ""
        return Row(number, place, path, named, group, cells[len(cells) - len(self.labels.columns) :], reason)


def choose_columns(
    table: Header, config: SourceConfig, group_by: str | None, labels: Labelling, *, splits_are_known: bool = False
) -> Columns:
    """Return the columns that the options name, or those of the usual names.

    Args:
        table: which has them.
        config: the options.
        group_by: the column of groups, or a regular expression.
        labels: how labels are read.
        splits_are_known: no column of splits is looked for by the usual names.

    Raises:
        ConfigError: if there is no column of a name that was given.
        DataError: if several columns have usual names.
    """
    usual = () if splits_are_known else SPLIT_NAMES
    grouped = group_by in table.header
    group = group_by
    if not grouped:
        group = choose_column(table.header, None, GROUP_NAMES, flag="group_by", source=table.shown)
    return Columns(
        labels=labels,
        split=choose_column(table.header, config.split_column, usual, flag="split_column", source=table.shown),
        group=group,
        grouped=grouped,
    )


def list_rows(rows: Iterable[Row], columns: Columns) -> Listing:
    """Return the records of rows; each path once.

    Args:
        rows: what they say.
        columns: where they say it.

    Raises:
        DataError: if a row says what cannot be; the message names it.
    """
    no_label: Label = "" if isinstance(columns.labels, OneLabel) else ()
    ignored: Counter[str] = Counter()
    found: dict[str, tuple[int, Record]] = {}
    for row in rows:
        if not row.path:
            ignored["rows without a path"] += 1
            continue
        if columns.grouped and not row.group:
            raise DataError(
                f"{row.place} has no {display_name(columns.group or '')}, by which images are grouped. Fill it."
            )
        label = columns.labels.read(row.labels, row.place)
        reason = row.reason or why_not_read(suffix_of(row.path)) or ("its row has no label" if label is None else "")
        record = Record(
            path=row.path,
            label=label or no_label,
            split=_split(row.split, row.place),
            group=row.group,
            reason=reason,
        )
        first = found.setdefault(row.path, (row.number, record))
        if first[1] is not record:
            ignored["rows that repeat a path"] += 1
            found[row.path] = (first[0], _joined(first, (row.number, record)))
    records = [record for _, record in found.values()]
    divided = any(record.split for record in records)
    if divided:
        records = [
            record if record.split or record.reason else replace(record, reason="its row names no split")
            for record in records
        ]
    records.sort(key=lambda record: record.path)
    classes = columns.labels.columns if isinstance(columns.labels, LabelColumns) else None
    return Listing(divided=divided, grouped=columns.grouped, records=records, classes=classes, ignored=ignored)


def _split(cell: str, place: str) -> SplitName | None:
    name = cell.strip()
    split = split_called(name)
    if name and split is None:
        raise DataError(
            f'{place} has the split {display_name(name)!r}; it takes train, val or test. Give split_column "" to'
            " divide the images anew, or the column of the split."
        )
    return split


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
