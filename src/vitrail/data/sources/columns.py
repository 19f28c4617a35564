"""Which column of a table means what, by the name that was given or by the usual ones."""

from collections.abc import Sequence
from typing import Final

from vitrail.config import SourceConfig
from vitrail.data.images import display_name
from vitrail.errors import ConfigError, DataError, did_you_mean

PATH_NAMES: Final = ("path", "file", "filename", "file_name", "filepath", "file_path", "image", "image_path", "img")
"""What a column of paths is called by default, where words are joined by _ and case does not count."""
LABEL_NAMES: Final = ("label", "labels", "class", "target", "category", "class_name", "label_name")
SPLIT_NAMES: Final = ("split", "fold", "subset", "partition")
GROUP_NAMES: Final = ("group",)

_JOINED: Final = str.maketrans(" -", "__")


def choose_column(
    header: Sequence[str], given: str | None, usual: Sequence[str], *, flag: str, source: str
) -> str | None:
    """Return the name of the column that was given, or of the one with a usual name; None where there is none.

    Args:
        header: names of all columns.
        given: what the user named; "" for no column.
        usual: names to look for where nothing was given.
        flag: the option that names it, for the message.
        source: whose columns they are, as it is shown.

    Raises:
        ConfigError: if there is no column of the given name.
        DataError: if several columns have usual names.
    """
    if given == "":
        return None
    if given is not None:
        if given in header:
            return given
        raise ConfigError(
            f"{flag} is {display_name(given)!r}, and {source} has no such column.{did_you_mean(given, header)} "
            f"It has: {_shown(header)}."
        )
    found = [name for name in header if name.strip().casefold().translate(_JOINED) in usual]
    if len(found) > 1:
        raise DataError(f"{source} has the columns {_shown(found)}; say which one is meant with {flag}.")
    return found[0] if found else None


def require_column(header: Sequence[str], given: str | None, usual: Sequence[str], *, flag: str, source: str) -> str:
    """Return the column as `choose_column` does; raise a DataError where there is none."""
    name = choose_column(header, given, usual, flag=flag, source=source)
    if name is None:
        raise DataError(
            f"{source} has no column called {', '.join(usual[:4])} or the like; name one with {flag}. "
            f"It has: {_shown(header)}."
        )
    return name


def columns_given(config: SourceConfig) -> list[str]:
    """Return the options that name columns, of those that were given."""
    names = ("path_column", "label_column", "label_separator", "label_columns", "split_column")
    return [name for name in names if getattr(config, name) not in {None, ()}]


def _shown(names: Sequence[str]) -> str:
    return ", ".join(display_name(name) for name in names) or "none"
