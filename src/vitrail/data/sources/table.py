"""Tables of paths and labels: where their paths lead."""

import os
import posixpath
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from vitrail.config import SourceConfig
from vitrail.data.images import display_name
from vitrail.data.records import is_manifest, read_manifest
from vitrail.data.sources.columns import PATH_NAMES, columns_given, require_column
from vitrail.data.sources.contract import Listing, Pictures, Source, place_of
from vitrail.data.sources.labelling import choose_labelling
from vitrail.data.sources.listing import Columns, Row, choose_columns, list_rows
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
    paths = require_column(table.header, config.path_column, PATH_NAMES, flag="path_column", source=table.shown)
    columns = choose_columns(table, config, group_by, choose_labelling(table, config))
    rows = _rows(table, paths, columns, _Root(root, config.allow_outside))
    return list_rows(rows, columns)


def _rows(table: Table, paths: str, columns: Columns, root: "_Root") -> Iterator[Row]:
    for number, (path, *cells) in table.columns([paths, *columns.names]):
        place = table.place_of_row(number)
        yield columns.row(number, place, root.inside(path, place) if path.strip() else "", cells)


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
