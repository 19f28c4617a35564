"""Tables as files, CSV or Parquet: their columns as text, whatever they hold."""

import csv
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from vitrail.data.images import display_name
from vitrail.data.sources.cells import cell_text
from vitrail.errors import DataError, MissingExtraError

_CSV: Final = (".csv", ".tsv")
_PARQUET: Final = (".parquet", ".pq")
_SEPARATORS: Final = ",;\t"


@dataclass(frozen=True)
class Table:
    """A table on disk; nothing but its header is kept."""

    path: Path
    header: tuple[str, ...]
    """Names of the columns."""

    @property
    def shown(self) -> str:
        """The table as it is named to a person."""
        return display_name(self.path)

    def columns(self, names: Sequence[str]) -> Iterator[tuple[int, tuple[str, ...]]]:
        """Yield each row's number, as `place_of_row` takes it, and its cells in these columns; "" for a missing value.

        Raises:
            DataError: if the file is damaged, or a row has another number of cells than the header.
        """
        positions = [self.header.index(name) for name in names]
        read = _parquet_rows if _is_parquet(self.path) else _csv_rows
        yield from read(self.path, self.header, positions)

    def place_of_row(self, number: int) -> str:
        """Return how a row is named to a person: CSV rows count from 1, the header; those of Parquet from 0."""
        return f"{self.shown}, row {number}"

    def is_list(self, name: str) -> bool:
        """Return whether a column holds lists, as those of Parquet may."""
        return _is_parquet(self.path) and _is_list_of_parquet(self.path, name)


def is_table(path: Path) -> bool:
    """Return whether a file is a table, by its extension."""
    return path.suffix.lower() in (*_CSV, *_PARQUET)


def open_table(path: Path) -> Table:
    """Read the header of a table.

    Raises:
        DataError: if it cannot be read, or two columns have the same name.
        MissingExtraError: if it is Parquet and pyarrow does not import.
    """
    header = _parquet_header(path) if _is_parquet(path) else _csv_header(path)
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice:
        raise DataError(f"{display_name(path)} has several columns {display_name(twice[0])!r}. Rename all but one.")
    return Table(path, header)


def _is_parquet(path: Path) -> bool:
    return path.suffix.lower() in _PARQUET


@contextmanager
def _open_csv(path: Path) -> Iterator[Iterator[list[str]]]:
    """Give the rows. The separator is the one of comma, semicolon and tab that the first line has most of."""
    try:
        # A byte order mark, which spreadsheets write, is dropped; bytes that are not UTF-8 are kept, as in file names.
        with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            first = file.readline()
            if "\0" in first:
                raise DataError(f"{display_name(path)} is no text in UTF-8. Save it as CSV in UTF-8.")
            file.seek(0)
            yield csv.reader(file, delimiter=max(_SEPARATORS, key=first.count), strict=True)
    except (OSError, csv.Error) as error:
        raise DataError(f"The table {display_name(path)} cannot be read: {error}.") from error


def _csv_header(path: Path) -> tuple[str, ...]:
    with _open_csv(path) as rows:
        return tuple(next(rows, []))


def _csv_rows(path: Path, header: Sequence[str], positions: Sequence[int]) -> Iterator[tuple[int, tuple[str, ...]]]:
    with _open_csv(path) as rows:
        next(rows)
        for number, row in enumerate(rows, start=2):
            if not row:  # a blank line
                continue
            if len(row) != len(header):
                raise DataError(
                    f"{display_name(path)}, row {number} has {len(row)} values; its first line names {len(header)}"
                    " columns."
                )
            yield number, tuple(row[position] for position in positions)


@contextmanager
def _open_parquet(path: Path) -> Iterator[Any]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise MissingExtraError(
            f"{display_name(path)} is Parquet, which takes pyarrow. Install it with `pip install 'vitrail[parquet]'`, "
            "or save the table as CSV."
        ) from error
    try:
        with parquet.ParquetFile(path) as file:
            yield file
    except (OSError, pyarrow.ArrowException) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise DataError(f"The table {display_name(path)} cannot be read: {reason}.") from error


def _parquet_header(path: Path) -> tuple[str, ...]:
    with _open_parquet(path) as file:
        return tuple(file.schema_arrow.names)


def _is_list_of_parquet(path: Path, name: str) -> bool:
    with _open_parquet(path) as file:
        from pyarrow import types

        kind = file.schema_arrow.field(name).type
        return bool(types.is_list(kind) or types.is_large_list(kind))


def _parquet_rows(path: Path, header: Sequence[str], positions: Sequence[int]) -> Iterator[tuple[int, tuple[str, ...]]]:
    names, shown = [header[position] for position in positions], display_name(path)
    number = 0
    with _open_parquet(path) as file:
        for batch in file.iter_batches(columns=names):
            for cells in zip(*(batch.column(name).to_pylist() for name in names), strict=True):
                yield number, tuple(cell_text(cell, name, shown) for cell, name in zip(cells, names, strict=True))
                number += 1
