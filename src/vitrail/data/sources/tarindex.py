"""Where the files of a tar archive lie, so that each can be read by itself and nothing is ever unpacked.

An archive is walked once, header by header, and what was found is kept in the user's cache folder for as long as the
archive does not change. Links, devices and everything else that is no plain file are passed over, and so are names that
lead out of the archive.
"""

import json
import os
import posixpath
import tarfile
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from vitrail.data.images import display_name
from vitrail.data.inspections import UNREADABLE, FileKey, cache_file, file_key
from vitrail.errors import DataError, StorageError
from vitrail.runtime.files import atomic_path

_VERSION: Final = 1
_BLOCK: Final = 512
_PACKED: Final = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ\0": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"\x04\x22\x4d\x18": "lz4",
    b"PK\x03\x04": "zip",
}


@dataclass(frozen=True, eq=False)
class TarIndex:
    """The plain files of an archive, sorted by the bytes of their names."""

    key: FileKey
    """Of the archive when it was walked."""
    names: bytes
    """All names, one after the other."""
    ends: np.ndarray
    """int64 (n,), where each name ends in `names`."""
    places: np.ndarray
    """int64 (n,), where each file begins in the archive, in bytes."""
    sizes: np.ndarray
    """int64 (n,), bytes of each file."""
    ignored: Counter[str]
    """How many other members there are, by what they are."""

    def __len__(self) -> int:
        """Return the number of files."""
        return len(self.ends)

    @property
    def num_bytes(self) -> int:
        """Bytes that the index takes in memory."""
        return len(self.names) + self.ends.nbytes + self.places.nbytes + self.sizes.nbytes

    def name(self, row: int) -> bytes:
        """Return the bytes of a name."""
        start = int(self.ends[row - 1]) if row else 0
        return self.names[start : int(self.ends[row])]

    def __iter__(self) -> Iterator[tuple[str, int, int]]:
        """Yield name, place and size of each file."""
        start = 0
        for end, place, size in zip(self.ends.tolist(), self.places.tolist(), self.sizes.tolist(), strict=True):
            yield os.fsdecode(self.names[start:end]), place, size
            start = end

    def find(self, name: str) -> tuple[int, int] | None:
        """Return place and size of the only file of a name; None where there is none, or several."""
        wanted = os.fsencode(name)
        row = bisect_left(range(len(self)), wanted, key=self.name)
        if row == len(self) or self.name(row) != wanted or (row + 1 < len(self) and self.name(row + 1) == wanted):
            return None
        return int(self.places[row]), int(self.sizes[row])


def read_index(path: str) -> TarIndex:
    """Return the index of an archive: the one that was kept or, where the archive has changed since, a new one.

    Raises:
        DataError: if it is no plain tar archive, damaged or cut short.
    """
    key = file_key(path)
    if key is None:
        raise DataError(f"There is no archive {display_name(path)}.")
    kept = cache_file("shards", os.path.realpath(path))
    known = _read(kept)
    if known is not None and known.key == key:
        return known
    index = _walk(path, key)
    with suppress(StorageError, OSError):  # the next time walks again
        _write(kept, index)
    return index


def _walk(path: str, key: FileKey) -> TarIndex:
    found: list[tuple[bytes, int, int]] = []
    ignored: Counter[str] = Counter()
    try:
        with Path(path).open("rb") as file:
            check_plain(path, file.read(_BLOCK))
            file.seek(0)
            with tarfile.open(fileobj=file, mode="r:", encoding="utf-8", errors="surrogateescape") as archive:
                for member in _members(archive):
                    name = posixpath.normpath(member.name)
                    if not member.isreg() or member.issparse():
                        ignored["links and the like in archives"] += not member.isdir()
                    elif posixpath.isabs(name) or name.partition("/")[0] == ".." or "\0" in name:
                        ignored["names that lead out of an archive"] += 1
                    else:
                        found.append((os.fsencode(name), member.offset_data, member.size))
                end = archive.offset
            file.seek(end)
            _check_end(path, file.read(_BLOCK), end)
    except DataError:
        raise
    except Exception as error:  # tarfile lets through what a hostile header makes other modules raise
        raise DataError(
            f"The archive {display_name(path)} is damaged or cut short ({error}). Fetch it again."
        ) from error
    found.sort()
    names = [name for name, _, _ in found]
    return TarIndex(
        key=key,
        names=b"".join(names),
        ends=np.cumsum([len(name) for name in names], dtype=np.int64),
        places=np.array([place for _, place, _ in found], np.int64),
        sizes=np.array([size for _, _, size in found], np.int64),
        ignored=+ignored,
    )


def _members(archive: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    last = -1
    while (member := archive.next()) is not None:
        archive.members = []  # type: ignore[attr-defined]  # it would keep them all
        if archive.offset <= last:  # a size below zero, which would lead round in a circle
            raise tarfile.ReadError("a header leads back")
        last = archive.offset
        yield member


def check_plain(path: str, start: bytes) -> None:
    """Refuse an archive that is packed as a whole, by its first bytes."""
    for magic, packer in _PACKED.items():
        if start.startswith(magic):
            raise DataError(
                f"{display_name(path)} is packed by {packer}, so that no image in it can be read by itself. Unpack it "
                "to a plain .tar; images hardly become smaller by packing."
            )


def _check_end(path: str, block: bytes, place: int) -> None:
    """Refuse an archive that does not end as one does, with a block of zeros; tarfile takes any damage for the end."""
    if len(block) < _BLOCK or any(block):
        what = "is damaged" if len(block) == _BLOCK else "is cut short"
        raise DataError(f"The archive {display_name(path)} {what} at byte {place:,}. Fetch it again.")


def _write(path: Path, index: TarIndex) -> None:
    header = json.dumps({"version": _VERSION, "ignored": index.ignored}).encode()
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.savez(
            file,
            allow_pickle=False,
            header=np.frombuffer(header, np.uint8),
            key=np.array(index.key, np.int64),
            names=np.frombuffer(index.names, np.uint8),
            ends=index.ends,
            places=index.places,
            sizes=index.sizes,
        )


def _read(path: Path) -> TarIndex | None:
    """Return what is kept; None where it is absent, damaged or of another version."""
    try:
        with np.load(path, allow_pickle=False) as file:
            header = json.loads(file["header"].tobytes())
            if header["version"] != _VERSION:
                return None
            return TarIndex(
                key=FileKey(*file["key"].tolist()),
                names=file["names"].tobytes(),
                ends=file["ends"],
                places=file["places"],
                sizes=file["sizes"],
                ignored=Counter(header["ignored"]),
            )
    except UNREADABLE:
        return None
