"""How the cells of a table tell what a picture shows: one label, several in a cell, or a column for each."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from vitrail.config import SourceConfig
from vitrail.data.images import display_name
from vitrail.data.records import SEVERAL_COLUMNS, Label, is_manifest, parse_labels
from vitrail.data.sources.cells import Header
from vitrail.data.sources.columns import LABEL_NAMES, require_column
from vitrail.errors import ConfigError, DataError, did_you_mean

_PRESENT: Final = {"1": True, "true": True, "1.0": True, "0": False, "false": False, "0.0": False}
_MOST_IN_TEXT: Final = 5


class Labelling(Protocol):
    """Reads labels from some columns."""

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns."""

    def read(self, cells: Sequence[str], row: str) -> Label | None:
        """Return what the cells of these columns tell, or None where they tell nothing.

        Args:
            cells: one of each column.
            row: how the row is named to a person.

        Raises:
            DataError: if a cell holds what no label is.
        """


@dataclass(frozen=True)
class OneLabel:
    """The whole cell is the label, as it is."""

    columns: tuple[str]

    def read(self, cells: Sequence[str], row: str) -> Label | None:
        """Return the cell."""
        return cells[0] if cells[0].strip() else None


@dataclass(frozen=True)
class SeparatedLabels:
    """A cell holds any number of labels; an empty one says that there is none."""

    columns: tuple[str]
    separator: str

    def read(self, cells: Sequence[str], row: str) -> Label | None:
        """Return the labels without the white space around them, each once, sorted."""
        names = (name.strip() for name in cells[0].split(self.separator))
        return tuple(sorted({name for name in names if name}))


@dataclass(frozen=True)
class LabelColumns:
    """A column for each class says whether it is there."""

    columns: tuple[str, ...]

    def read(self, cells: Sequence[str], row: str) -> Label | None:
        """Return the names of the columns that say so."""
        present = []
        for name, cell in zip(self.columns, cells, strict=True):
            if not cell.strip():
                return None
            if cell.strip().casefold() not in _PRESENT:
                raise DataError(
                    f"{row} has {display_name(cell)!r} in the column {display_name(name)}; a column of label_columns "
                    "takes 1 where the label is there and 0 where it is not."
                )
            if _PRESENT[cell.strip().casefold()]:
                present.append(name)
        return tuple(sorted(present))


@dataclass(frozen=True)
class ListedLabels:
    """A cell holds a list in JSON, as manifests have it; an empty one, not even that."""

    columns: tuple[str]

    def read(self, cells: Sequence[str], row: str) -> Label | None:
        """Return the list."""
        return parse_labels(cells[0], row) if cells[0] else None


def choose_labelling(table: Header, config: SourceConfig) -> Labelling:
    """Return how a table's labels are read, by the options that were given.

    Raises:
        ConfigError: if a column that was named is not there.
        DataError: if no column is named or called like one of labels.
    """
    source = table.shown
    if config.label_columns:
        missing = [name for name in config.label_columns if name not in table.header]
        if missing:
            names = ", ".join(display_name(name) for name in table.header) or "none"
            raise ConfigError(
                f"label_columns has {display_name(missing[0])!r}, and {source} has no such column."
                f"{did_you_mean(missing[0], table.header)} It has: {names}."
            )
        return LabelColumns(config.label_columns)
    column = require_column(table.header, config.label_column, LABEL_NAMES, flag="label_column", source=source)
    if config.label_separator is not None and table.is_list(column):
        raise ConfigError(
            f"The column {display_name(column)!r} of {source} holds lists of labels, which nothing separates. Leave "
            "label_separator away."
        )
    if config.label_separator is not None:
        return SeparatedLabels((column,), config.label_separator)
    if table.is_list(column) or (is_manifest(table.header) and column in SEVERAL_COLUMNS):
        return ListedLabels((column,))
    return OneLabel((column,))
