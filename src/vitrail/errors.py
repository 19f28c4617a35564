"""The errors that a user can meet, and the sentence that helps when a name is misspelt.

Every message says what was given, what is allowed and what to do. The command line prints the message alone, without a
traceback, and ends with the error's ``exit_code``.
"""

import difflib
from collections.abc import Iterable, Mapping
from typing import ClassVar, Final, TypeVar

Value = TypeVar("Value")

INTERRUPTED: Final = 130
"""What the command line returns after Ctrl-C, as shells do: 128 and the number of SIGINT."""


class VitrailError(Exception):
    """Base of everything that vitrail raises on purpose."""

    exit_code: ClassVar[int] = 1
    """What the command line returns: 1 for work that failed, 2 for a wrong call."""


class ConfigError(VitrailError, ValueError):
    """An option or argument has a value that is not allowed."""

    exit_code: ClassVar[int] = 2


class UnknownNameError(ConfigError):
    """A name that is not in the table it was looked up in."""


class DataError(VitrailError):
    """The images, or the folder they were expected in, cannot be used."""


class CheckpointError(VitrailError):
    """A file of weights is damaged, of another shape, or of a kind that is not loaded."""


class TrainingError(VitrailError):
    """Training cannot go on, for example because the loss is no longer finite."""


class ParityError(VitrailError):
    """An exported model does not give the answers of the model it was made from."""


class BundleError(VitrailError):
    """A bundle is incomplete or was changed after it was made."""


class StorageError(VitrailError):
    """The disk is full or a file cannot be written."""


class MissingExtraError(VitrailError, ImportError):
    """An optional library is needed; the message names the extra to install."""


def did_you_mean(name: str, allowed: Iterable[str]) -> str:
    """Return `` Did you mean 'x'?`` for the closest allowed name, or an empty string."""
    close = difflib.get_close_matches(name, list(allowed), n=1, cutoff=0.6)
    return f" Did you mean {close[0]!r}?" if close else ""


def lookup(table: Mapping[str, Value], name: str, kind: str) -> Value:
    """Return ``table[name]``.

    Args:
        table: what is allowed.
        name: what was asked for.
        kind: what the table holds, for the message ("model", "optimizer").

    Raises:
        UnknownNameError: if the name is not in the table; the message suggests the nearest one.
    """
    if name in table:
        return table[name]
    hint = did_you_mean(name, table)
    known = ", ".join(sorted(table)) if len(table) <= 12 else f"{len(table)} names"
    raise UnknownNameError(f"There is no {kind} {name!r}.{hint} Known: {known}.")
