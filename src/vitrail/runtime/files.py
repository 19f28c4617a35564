"""Files that are either whole or absent: written under a temporary name, flushed to disk, then renamed."""

import errno
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from vitrail.errors import StorageError


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Give a temporary path beside ``path``; it takes the name ``path`` when the block ends well.

    When the block raises, or the process is killed, ``path`` is what it was before.

    Raises:
        StorageError: if the disk is full or the folder cannot be written.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and not path.is_file():  # the new file would take the place of a device such as /dev/stdout
            raise StorageError(f"{path} cannot be written: it is there and is no plain file. Give another name.")
        yield temporary
        _flush_to_disk(temporary)
        temporary.replace(path)
    except OSError as error:
        raise storage_error(path, error) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Give an empty temporary folder beside ``path``; it takes the name ``path`` when the block ends well.

    Raises:
        StorageError: if ``path`` exists already, the disk is full or the folder cannot be written.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.mkdir(parents=True)
        yield temporary
        temporary.rename(path)
    except OSError as error:
        raise storage_error(path, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Write ``text`` as UTF-8, whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as readable JSON, whole or not at all. NaN and infinity are refused."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def free_path(path: Path) -> Path:
    """Return ``path``, or the first of path-2, path-3 and so on that does not exist."""
    number, candidate = 1, path
    while candidate.exists():
        number += 1
        candidate = path.with_name(f"{path.name}-{number}")
    return candidate


def storage_error(path: Path, error: OSError) -> StorageError:
    """Turn an operating system's error while writing ``path`` into one clear sentence."""
    if error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return StorageError(f"The disk is full: {path} was not written. Free some space and run the command again.")
    return StorageError(f"{path} cannot be written: {error.strerror or error}.")


def _flush_to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
