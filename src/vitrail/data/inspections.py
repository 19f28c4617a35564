"""What was found out about files, kept on disk, so that the next look at the same folder decodes only what has changed.

One file per source in the user's cache folder (``$XDG_CACHE_HOME/vitrail`` or ``~/.cache/vitrail``), about 700
bytes for each picture. An entry holds for a file of the same name, size, times of change and inode; all others are
decoded again. Only pictures that are whole are kept: a file that was refused is tried again. A cache of another
version, of another Pillow, or one that is damaged counts as none.
"""

import hashlib
import json
import os
import zipfile
import zlib
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
import PIL

from vitrail.data.images import THUMB_SIDE, Inspection
from vitrail.errors import StorageError
from vitrail.runtime.files import atomic_path

_VERSION: Final = 2
"""Of what an inspection finds and how it is kept; another number makes every old cache void."""
UNREADABLE: Final = (OSError, EOFError, ValueError, KeyError, IndexError, zipfile.BadZipFile, zlib.error)
"""What reading a damaged file of the cache may raise."""


class FileKey(NamedTuple):
    """What a file must still have for an entry to hold."""

    num_bytes: int
    mtime_ns: int
    ctime_ns: int
    inode: int


def file_key(path: str) -> FileKey | None:
    """Return the key of a file, or None where there is no such file."""
    try:
        status = os.stat(path)  # noqa: PTH116  (per image)
    except OSError:
        return None
    return FileKey(status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino % 2**63)


class InspectionCache:
    """Inspections of the pictures of a source, by their path there.

    Args:
        place: what the source is known by, such as the resolved path of its folder.
    """

    def __init__(self, place: str) -> None:
        self.path = cache_file("admission", place)
        self._kept = _read(self.path)
        self._new: dict[str, tuple[FileKey, Inspection]] = {}

    def get(self, path: str, key: FileKey | None) -> Inspection | None:
        """Return what is known of the file, or None where it has to be inspected."""
        known = self._kept.get(path)
        return known[1] if known is not None and known[0] == key else None

    def put(self, path: str, key: FileKey, inspection: Inspection) -> None:
        """Remember what was found in a file whose key was taken before it was read."""
        self._new[path] = (key, inspection)

    def save(self, paths: Iterable[str]) -> str:
        """Write the entries of ``paths`` if there are new ones; return why that failed, or nothing."""
        if not self._new:
            return ""
        entries = self._kept | self._new
        try:
            _write(self.path, {path: entries[path] for path in paths if path in entries})
        except (StorageError, OSError) as error:
            return str(error)
        return ""


class PairCache:
    """Pairs of equal pictures, by the content of all pictures that were compared and by how they were.

    Args:
        inspections: of the pictures, in their order.
        how: what else the answer depends on.
    """

    def __init__(self, inspections: Iterable[Inspection], how: str) -> None:
        digest = hashlib.blake2b(f"{_VERSION} {PIL.__version__} {how}".encode(), digest_size=16)
        for inspection in inspections:
            digest.update(bytes.fromhex(inspection.sha256))
        self.path = cache_folder() / "duplicates" / f"{digest.hexdigest()}.npz"

    def read(self) -> np.ndarray | None:
        """Return what was kept, float64 (n, 4), or None where there is nothing, or nothing that can be read."""
        try:
            with np.load(self.path, allow_pickle=False) as file:
                return np.asarray(file["pairs"], np.float64).reshape(-1, 4)
        except UNREADABLE:
            return None

    def write(self, pairs: np.ndarray) -> None:
        """Keep float64 (n, 4). Where that fails the next time compares again, which the inspections' cache tells."""
        with (
            suppress(StorageError, OSError),
            atomic_path(self.path) as temporary,
            temporary.open("wb") as file,
        ):
            np.savez(file, allow_pickle=False, pairs=pairs)


def cache_file(kind: str, name: str) -> Path:
    """Return where something of this kind and name is kept."""
    return cache_folder() / kind / f"{hashlib.blake2b(os.fsencode(name), digest_size=16).hexdigest()}.npz"


def cache_folder() -> Path:
    """Return where vitrail keeps what can be made again."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    if not base or not Path(base).is_absolute():  # as the XDG base directory specification asks
        with suppress(RuntimeError):  # a user without a home
            base = str(Path.home() / ".cache")
    return Path(base) / "vitrail"


def _write(path: Path, entries: dict[str, tuple[FileKey, Inspection]]) -> None:
    found = [inspection for _, inspection in entries.values()]
    words = sorted({word for each in found for word in (each.format, each.mode)})
    header = {"version": _VERSION, "pillow": PIL.__version__, "words": words}
    number = {word: place for place, word in enumerate(words)}
    columns = {
        "header": _bytes(json.dumps(header).encode()),
        "paths": _bytes(b"\0".join(os.fsencode(name) for name in entries)),
        "keys": np.array([key for key, _ in entries.values()], np.int64).reshape(-1, 4),
        "sizes": np.array([(each.height, each.width) for each in found], np.int32).reshape(-1, 2),
        "sha256": _bytes(b"".join(bytes.fromhex(each.sha256) for each in found)),
        "pixels": _bytes(b"".join(each.pixels for each in found)),
        "thumbs": _bytes(b"".join(each.thumb for each in found)),
        "colours": np.array([each.colour for each in found], np.uint8).reshape(-1, 2),
        "words": np.array([(number[each.format], number[each.mode]) for each in found], np.uint8).reshape(-1, 2),
        "animated": np.array([each.animated for each in found], np.bool_),
    }
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.savez(file, allow_pickle=False, **columns)


def _read(path: Path) -> dict[str, tuple[FileKey, Inspection]]:
    """Return what is kept, or nothing where it is absent, damaged or of another version."""
    try:
        with np.load(path, allow_pickle=False) as file:
            header = json.loads(file["header"].tobytes())
            if (header["version"], header["pillow"]) != (_VERSION, PIL.__version__):
                return {}
            return _entries(header["words"], {name: file[name] for name in file.files})
    except UNREADABLE:
        return {}


def _entries(words: list[str], columns: dict[str, np.ndarray]) -> dict[str, tuple[FileKey, Inspection]]:
    names = columns["paths"].tobytes().split(b"\0")
    num = len(columns["keys"])
    sha256 = columns["sha256"].reshape(num, 32)
    pixels, thumbs = columns["pixels"].reshape(num, 16), columns["thumbs"].reshape(num, THUMB_SIDE**2)
    rest = (columns[name].tolist() for name in ("keys", "sizes", "colours", "words", "animated"))
    return {
        os.fsdecode(name): (
            FileKey(*key),
            Inspection(
                width=width,
                height=height,
                sha256=sha256[row].tobytes().hex(),
                pixels=pixels[row].tobytes(),
                thumb=thumbs[row].tobytes(),
                colour=(cb, cr),
                format=words[form],
                mode=words[mode],
                animated=animated,
            ),
        )
        for row, (name, key, (height, width), (cb, cr), (form, mode), animated) in enumerate(
            zip(names, *rest, strict=True)
        )
    }


def _bytes(data: bytes) -> np.ndarray:
    return np.frombuffer(data, np.uint8)
