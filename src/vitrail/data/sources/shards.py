"""Shards, tar archives in the layout of WebDataset: where they are, and how their images are read where they lie.

Files of the same name up to its first dot are a sample: n01/0007.jpg, n01/0007.cls. Shards stay as they are: nothing is
unpacked, and each image is read by itself, from the place that the index of its shard tells. The library webdataset
reads shards from front to back, through buffers that shuffle what happens to be in them: the order depends on the
number of workers, no image can be read twice and no epoch continued from its middle, so it is not used.
"""

import glob
import os
import re
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Final

from vitrail.config import SplitName
from vitrail.data.images import MAX_FILE_BYTES, ImageRefusedError, display_name
from vitrail.data.inspections import FileKey, file_key
from vitrail.data.sources.contract import EncodedPictures
from vitrail.data.sources.naming import split_called
from vitrail.data.sources.tarindex import TarIndex, check_plain, read_index
from vitrail.errors import DataError

SUFFIX: Final = ".tar"

_PACKED: Final = re.compile(r"\.(tar\.\w+|tgz|tbz2?|txz)$")
_BRACES: Final = re.compile(r"\{([^{}]*)\}")
_RANGE: Final = re.compile(r"(\d+)\.\.(\d+)")
_MOST_SHARDS: Final = 100_000


@dataclass(frozen=True)
class Shard:
    """One archive."""

    name: str
    """Its path below the root."""
    split: SplitName | None
    """Which its folder or its name tells."""


@dataclass(frozen=True)
class Shards:
    """The archives that a source is."""

    name: str
    """As it is shown."""
    place: str
    """See `Source`."""
    root: Path
    """Folder that all of them are below."""
    shards: Sequence[Shard]
    """Sorted by name."""
    num_others: int = 0
    """Folders beside those that have them."""


def find_shards(name: str) -> Shards | None:
    """Return the shards that a name means: a folder of them, one with a folder of them per split, one, or a pattern.

    A folder that has other folders too is none, for archives often lie beside folders of classes.

    Raises:
        DataError: if a shard of a pattern is missing, or they are packed.
    """
    path = Path(name)
    if path.is_dir():
        return _in_folder(path)
    if path.is_file():
        if _PACKED.search(path.name):
            _refuse_packed(path)
        if path.suffix != SUFFIX:
            return None
        return Shards(display_name(path.stem), str(path.resolve()), path.parent, _sorted([path.name]))
    if name.endswith(SUFFIX) and (_BRACES.search(name) or glob.has_magic(name)):
        return _of_pattern(name)
    return None


def _in_folder(root: Path) -> Shards | None:
    folders, archives, packed = _look_into(root)
    splits = [folder for folder in folders if split_called(folder) is not None]
    names = archives
    if folders:
        inside = {folder: _look_into(root / folder) for folder in splits}
        names = [f"{folder}/{name}" for folder, (below, held, _) in inside.items() if not below for name in held]
        packed = []
    if names:
        others = len(folders) - len({name.rpartition("/")[0] for name in names} - {""})
        return Shards(display_name(root.resolve().name), str(root.resolve()), root, _sorted(names), others)
    if packed and not folders:
        _refuse_packed(root / packed[0])
    return None


def _look_into(folder: Path) -> tuple[list[str], list[str], list[str]]:
    """Return the names of folders, of archives, and of packed ones."""
    folders, archives, packed = [], [], []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if entry.name.endswith(SUFFIX) and entry.is_file():
                    archives.append(entry.name)
                elif _PACKED.search(entry.name):
                    packed.append(entry.name)
                elif entry.is_dir():
                    folders.append(entry.name)
    except OSError:  # whoever reads it as a folder of classes tells why
        return [], [], []
    return sorted(folders), archives, sorted(packed)


def _refuse_packed(path: Path) -> None:
    try:
        with path.open("rb") as file:
            check_plain(str(path), file.read(512))
    except OSError as error:
        raise DataError(f"{display_name(path)} cannot be read: {error.strerror or error}.") from error


def _of_pattern(pattern: str) -> Shards:
    names = []
    for each in expand(pattern):
        found = glob.glob(each) if glob.has_magic(each) else [each] * Path(each).is_file()  # noqa: PTH207 - keeps the form
        if not found:
            raise DataError(f"There is no shard {display_name(each)}, which {display_name(pattern)} asks for.")
        names += found
    head = re.split(r"[{*?\[]", pattern, maxsplit=1)[0]
    root = Path(head[: head.rfind("/") + 1] or ".")
    below = sorted({os.path.relpath(name, root) for name in names})
    return Shards(display_name(root.resolve().name), f"{root.resolve()}/{Path(pattern).name}", root, _sorted(below))


def expand(pattern: str) -> list[str]:
    """Return what a pattern of braces means, as shells and WebDataset read it: {000..009}, {train,val}.

    Raises:
        DataError: if that are more names than anyone has shards.
    """
    match = _BRACES.search(pattern)
    if match is None:
        return [pattern]
    bounds = _RANGE.fullmatch(match[1])
    choices: Sequence[str] = match[1].split(",")
    if bounds is not None:
        first, last = int(bounds[1]), int(bounds[2])
        if last - first >= _MOST_SHARDS:
            raise DataError(f"{display_name(pattern)} means more than {_MOST_SHARDS:,} shards. Name fewer.")
        width = len(bounds[1]) if bounds[1].startswith("0") else 0
        choices = [f"{number:0{width}d}" for number in range(first, last + 1)]
    names: list[str] = []
    for choice in choices:
        names += expand(f"{pattern[: match.start()]}{choice}{pattern[match.end() :]}")
        if len(names) > _MOST_SHARDS:
            raise DataError(f"{display_name(pattern)} means more than {_MOST_SHARDS:,} shards. Name fewer.")
    return names


def _sorted(names: Sequence[str]) -> list[Shard]:
    return [Shard(name, _split_of(name)) for name in sorted(names)]


def _split_of(name: str) -> SplitName | None:
    """Return the split that the folder of a shard is called by, or one word of its name."""
    folder, _, file = name.rpartition("/")
    words = [folder] if folder and split_called(folder) else re.split(r"[-_.]+", file)
    splits = {split for word in words if (split := split_called(word)) is not None}
    return splits.pop() if len(splits) == 1 else None


@dataclass(frozen=True, eq=False)
class ShardPictures(EncodedPictures):
    """The images of shards. The path of one is that of its shard and its name there: train-000.tar/0007.jpg."""

    root: Path
    shards: Sequence[Shard]
    _indices: dict[str, TarIndex] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @cached_property
    def names(self) -> frozenset[str]:
        """Paths of the shards below the root."""
        return frozenset(shard.name for shard in self.shards)

    def index(self, shard: str) -> TarIndex:
        """Return the index of a shard as it is now.

        Raises:
            DataError: if the shard is damaged.
        """
        path = self.join(shard)
        with self._lock:
            known = self._indices.get(shard)
            if known is None or known.key != file_key(path):
                known = self._indices[shard] = read_index(path)
            return known

    def join(self, shard: str) -> str:
        """Return where a shard is."""
        return os.path.join(self.root, shard)  # noqa: PTH118  (per image)

    def stored(self, path: str) -> bytes:
        """Read the bytes of a file where they lie in its shard."""
        shard, index, name = self._find(path)
        found = index.find(name)
        if found is None:
            raise ImageRefusedError(path, "there is no such file in its shard, or several")
        place, size = found
        if size > MAX_FILE_BYTES:
            raise ImageRefusedError(path, f"it has {size / 2**20:.0f} MiB; at most {MAX_FILE_BYTES // 2**20} are read")
        try:
            with open(self.join(shard), "rb", buffering=0) as file:  # noqa: PTH123  (per image)
                file.seek(place)
                data = file.read(size)
        except OSError as error:
            raise ImageRefusedError(path, f"its shard cannot be read ({error.strerror or error})") from error
        if len(data) != size:
            raise ImageRefusedError(path, "its shard is cut short")
        return data

    def key(self, path: str) -> FileKey | None:
        """Return the key of the shard when its index was made."""
        return self._find(path)[1].key

    def _find(self, path: str) -> tuple[str, TarIndex, str]:
        """Return the shard of a picture, its index, and the name in it."""
        stem, _, name = path.partition(f"{SUFFIX}/")
        shard = f"{stem}{SUFFIX}"
        if shard not in self.names:
            raise ImageRefusedError(path, "there is no such shard")
        try:
            return shard, self.index(shard), name
        except DataError as error:
            raise ImageRefusedError(path, f"its shard cannot be read: {error}") from error


def files_of(index: TarIndex) -> Iterator[tuple[str, str, str, int, int]]:
    """Yield key and extension, by WebDataset's rule, name, place and size of each file of a sample.

    Hidden files, those without an extension, and those whose name begins with two underscores are of none.
    """
    for name, place, size in index:
        folder, slash, file = name.rpartition("/")
        stem, dot, extension = file.partition(".")
        if stem and dot and not stem.startswith("__"):
            yield f"{folder}{slash}{stem}", extension.lower(), name, place, size
