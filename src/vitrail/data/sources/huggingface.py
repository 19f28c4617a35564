"""Datasets of the Hugging Face library `datasets`: saved to a folder, or whatever the library loads by a name.

The library finds the files and tells the columns. The images are taken as the bytes that the dataset keeps, or from the
files that it names, and are decoded here like all others. A picture is known by its split and its row: train/00042. A
version of the library that runs code of a dataset is not used.
"""

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import count
from pathlib import Path
from typing import Any, Final

from vitrail.config import SourceConfig
from vitrail.data.images import ImageRefusedError, display_name, read_file
from vitrail.data.inspections import FileKey, file_key
from vitrail.data.sources.cells import cell_text
from vitrail.data.sources.columns import LABEL_NAMES, PATH_NAMES, choose_column
from vitrail.data.sources.contract import EncodedPictures, Listing, Source, place_of
from vitrail.data.sources.labelling import choose_labelling
from vitrail.data.sources.listing import Columns, Row, choose_columns, list_rows
from vitrail.data.sources.naming import split_called
from vitrail.data.sources.pixels import numbered
from vitrail.errors import DataError, MissingExtraError

PREFIX: Final = "hf-dataset:"
"""Before the name of a dataset on the hub, or of a folder of its files; @REVISION and :CONFIGURATION may follow."""

_MARKS: Final = ("dataset_dict.json", "state.json")
_FIRST_WITHOUT_CODE: Final = 4
_MOST_OF_A_REASON: Final = 300


def is_saved_dataset(path: Path) -> bool:
    """Return whether a folder was written by ``save_to_disk``."""
    return any((path / name).is_file() for name in _MARKS)


def open_huggingface(name: str, config: SourceConfig) -> Source:
    """Return the source that a folder of ``save_to_disk`` is; or, after `PREFIX`, what ``load_dataset`` loads.

    Raises:
        MissingExtraError: if `datasets` does not import.
        DataError: if there is no such dataset, or it has no images.
        ConfigError: if it has no column of a name that was given.
    """
    address = _address(name)
    parts = _load(name, address)
    shown = display_name(name)
    image = _image_column(parts, config.path_column, shown)
    table = DatasetRows(shown=shown, parts=parts, image=image)
    own = (address.where,) if address.is_local else ()
    return Source(
        name=display_name(Path(address.where).resolve().name if address.is_local else Path(address.where).name),
        place=f"{PREFIX}{place_of(address.where)}:{address.configuration}" if address.is_local else name,
        pictures=DatasetPictures(
            parts={split: _Images.of(part, image, shown) for split, part in parts.items()},
            roots=None if config.allow_outside else tuple(map(os.path.abspath, (*own, *_cache_folders()))),
        ),
        list=lambda group_by: _list(table, config, group_by),
    )


@dataclass(frozen=True)
class _Images:
    """The images of a split, as Arrow keeps them: on the disk."""

    data: Any
    """Chunked array of bytes, null where a file has them."""
    files: Any | None
    """Chunked array of the names of files, null where there is none."""
    key: FileKey | None
    """Changes with the files of the split."""

    @classmethod
    def of(cls, part: Any, column: str, shown: str) -> "_Images":
        """Take the images of a `datasets.Dataset`, undecoded."""
        if column not in part.features:
            raise DataError(f"{shown} has splits without the column {display_name(column)!r}, which holds its images.")
        table = part.select_columns([column]).with_format("arrow")[:].flatten()
        names = [name for name in (column, f"{column}.bytes", f"{column}.path") if name in table.column_names]
        data, *files = (table.column(name) for name in names)
        return cls(data, files[0] if files else None, _key(part))

    def __len__(self) -> int:
        return len(self.data)


@dataclass(frozen=True, eq=False)
class DatasetPictures(EncodedPictures):
    """The images of a dataset."""

    parts: Mapping[str, _Images]
    """By split."""
    roots: Sequence[str] | None
    """Folders that files lie below which the dataset names; None where they may lie anywhere."""

    def stored(self, path: str) -> bytes:
        """Return the bytes that the row holds, or those of the file that it names."""
        images, number = self._find(path)
        try:
            held = images.data[number].as_py()
        except Exception as error:  # whatever Arrow finds wrong with the file
            raise ImageRefusedError(path, f"its row cannot be read ({_one_line(error)})") from error
        if held is not None:
            return bytes(held)
        file = self._file(images, number)
        if file is None:
            raise ImageRefusedError(path, "its row has no image")
        if self.roots is not None and not any(file.startswith(f"{root.rstrip('/')}/") for root in self.roots):
            raise ImageRefusedError(
                path, f"its file {display_name(file)} is not below the dataset; allow_outside uses it"
            )
        try:
            return read_file(file)
        except ImageRefusedError as refusal:
            raise ImageRefusedError(path, refusal.reason) from refusal

    def key(self, path: str) -> FileKey | None:
        """Return the key of the split; or, where the row names a file, that of the file."""
        images, number = self._find(path)
        file = self._file(images, number) if images.data.null_count else None
        return images.key if file is None else file_key(file)

    def _find(self, path: str) -> tuple[_Images, int]:
        split, _, number = path.rpartition("/")
        images = self.parts.get(split)
        if images is None or not number.isdecimal() or int(number) >= len(images):
            raise ImageRefusedError(path, "there is no such row")
        return images, int(number)

    @staticmethod
    def _file(images: _Images, number: int) -> str | None:
        name = None if images.files is None or images.data[number].is_valid else images.files[number].as_py()
        return os.path.abspath(name) if name else None  # noqa: PTH100 - links stay what they are


@dataclass(frozen=True, kw_only=True, eq=False)
class DatasetRows:
    """The columns of a dataset as text."""

    shown: str
    parts: Mapping[str, Any]
    """A `datasets.Dataset` by split."""
    image: str
    """The column of images, which is no text."""

    @property
    def header(self) -> tuple[str, ...]:
        """Names of the other columns."""
        return tuple(name for name in self.features if name != self.image)

    @cached_property
    def features(self) -> Mapping[str, Any]:
        """What the columns of the first split hold; the others have the same, or are refused when they are read."""
        return dict(next(iter(self.parts.values())).features)

    def cells(self, split: str, names: Sequence[str]) -> Iterator[tuple[str, ...]]:
        """Yield the cells of the rows of a split; classes by their names."""
        part = self.parts[split]
        missing = [name for name in names if name not in part.features]
        if missing:
            raise DataError(
                f"The split {display_name(split)} of {self.shown} has no column {display_name(missing[0])!r}."
            )
        yield from zip(*(self._texts(part, name) for name in names), strict=True)

    def is_list(self, name: str) -> bool:
        """Return whether a column holds lists."""
        return hasattr(self.features[name], "feature")

    def _texts(self, part: Any, name: str) -> list[str]:
        feature = part.features[name]
        values = part.select_columns([name]).with_format("arrow")[:].column(0).to_pylist()
        classes = getattr(getattr(feature, "feature", feature), "names", None)
        if classes is not None:
            values = [_called(value, classes) for value in values]
        return [cell_text(value, name, self.shown) for value in values]


def _list(table: DatasetRows, config: SourceConfig, group_by: str | None) -> Listing:
    named = [split for split in table.parts if split_called(split) is not None]
    by_parts = config.split_column is None and len(table.parts) > 1  # what was never divided is often called train
    if by_parts and not named:
        names = ", ".join(map(display_name, table.parts))
        raise DataError(
            f"{table.shown} has the splits {names}, of which none is train, val or test. "
            'Give split_column "" to divide all of them anew.'
        )
    unused = [split for split in table.parts if by_parts and split not in named]
    table = replace(table, parts={split: part for split, part in table.parts.items() if split not in unused})
    labels = choose_labelling(table, _with_label_column(table, config))
    columns = choose_columns(table, config, group_by, labels, splits_are_known=by_parts)
    listing = list_rows(_rows(table, columns, by_parts=by_parts), columns)
    if unused:
        listing.ignored["splits beside train, val and test"] = len(unused)
    return listing


def _rows(table: DatasetRows, columns: Columns, *, by_parts: bool) -> Iterator[Row]:
    numbers = count()
    for split, part in table.parts.items():
        for path, cells in zip(numbered(split, len(part)), table.cells(split, columns.names), strict=True):
            place = f"{table.shown}, {display_name(path)},"
            yield columns.row(next(numbers), place, path, cells, split=split if by_parts else "")


def _with_label_column(table: DatasetRows, config: SourceConfig) -> SourceConfig:
    """Name the only column of classes, where no option tells of labels and no column has a usual name."""
    given = config.label_columns or config.label_column is not None
    if given or choose_column(table.header, None, LABEL_NAMES, flag="label_column", source=table.shown) is not None:
        return config
    classes = [name for name in table.header if hasattr(table.features[name], "names")]
    return replace(config, label_column=classes[0]) if len(classes) == 1 else config


def _called(value: Any, classes: Sequence[str]) -> Any:
    """Return the name of a class by its number, or those of several; below 0 there is none."""
    if isinstance(value, list):
        return [_called(each, classes) for each in value]
    return classes[value] if value is not None and value >= 0 else None


@dataclass(frozen=True)
class _Address:
    """Where a dataset is."""

    where: str
    """A folder, or a name on the hub."""
    is_local: bool
    revision: str | None = None
    configuration: str | None = None


def _address(name: str) -> _Address:
    plain = name.removeprefix(PREFIX)
    if Path(plain).exists():
        return _Address(plain, is_local=True)
    main, _, configuration = plain.partition(":")
    if Path(main).exists():
        return _Address(main, is_local=True, configuration=configuration)
    where, _, revision = main.partition("@")
    return _Address(where, is_local=False, revision=revision or None, configuration=configuration or None)


def _load(name: str, address: _Address) -> dict[str, Any]:
    """Return the `datasets.Dataset` of each split that has rows."""
    datasets = _library(name)
    try:
        with _progress_for_people(datasets):
            if address.is_local and is_saved_dataset(Path(address.where)):
                loaded = datasets.load_from_disk(address.where)
            else:
                loaded = datasets.load_dataset(address.where, address.configuration, revision=address.revision)
    except Exception as error:  # the library and the many below it have no common one
        hint = " Without a network, it has to be in the library's cache." if isinstance(error, ConnectionError) else ""
        raise DataError(
            f"{display_name(name)} cannot be read as a Hugging Face dataset: {_one_line(error)}.{hint}"
        ) from error
    parts = loaded if isinstance(loaded, Mapping) else {"rows": loaded}
    parts = {str(split): part for split, part in parts.items() if len(part)}
    if not parts:
        raise DataError(f"{display_name(name)} has no rows.")
    return parts


def _library(name: str) -> Any:
    try:
        import datasets
    except ImportError as error:
        raise MissingExtraError(
            f"{display_name(name)} is a Hugging Face dataset, which takes the library datasets. Install it with "
            "`pip install 'vitrail[datasets]'`."
        ) from error
    if int(datasets.__version__.partition(".")[0]) < _FIRST_WITHOUT_CODE:
        raise MissingExtraError(
            f"datasets {datasets.__version__} may run code that comes with a dataset; versions from "
            f"{_FIRST_WITHOUT_CODE}.0 do not. Install one with `pip install 'vitrail[datasets]'`."
        )
    return datasets


@contextmanager
def _progress_for_people(datasets: Any) -> Iterator[None]:
    """Let the library show its progress on terminals alone."""
    if os.isatty(2) or datasets.are_progress_bars_disabled():
        yield
        return
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        datasets.enable_progress_bars()


def _image_column(parts: Mapping[str, Any], given: str | None, shown: str) -> str:
    """Return the column that was given, the only one of images, or that of several which has a usual name."""
    features: Mapping[str, Any] = next(iter(parts.values())).features
    images = [name for name, feature in features.items() if type(feature).__name__ == "Image"]
    images = images or [name for name, feature in features.items() if _may_be_images(feature)]
    column = choose_column(tuple(features), given, (), flag="path_column", source=shown)
    if column is not None and column not in images and not _may_be_images(features[column]):
        raise DataError(f"The column {display_name(column)!r} of {shown} holds no images, nor the bytes of any.")
    if column is None and len(images) > 1:
        column = choose_column(images, None, PATH_NAMES, flag="path_column", source=shown)
    if column is None and len(images) == 1:
        column = images[0]
    if column is None:
        names = ", ".join(map(display_name, images or features))
        many = "several columns" if images else "no column"
        raise DataError(f"{shown} has {many} of images; name one with path_column: {names}.")
    return column


def _may_be_images(feature: Any) -> bool:
    """Return whether a column may hold the bytes of files, as `_Images` takes them."""
    if isinstance(feature, Mapping):
        return "bytes" in feature
    return getattr(feature, "dtype", None) in {"binary", "large_binary"} or type(feature).__name__ == "Image"


def _key(part: Any) -> FileKey | None:
    """Return four numbers that change with the files of a split."""
    files = [(held["filename"], file_key(held["filename"])) for held in part.cache_files]
    if not files:
        return None
    digest = hashlib.blake2b(repr(files).encode(), digest_size=32).digest()
    return FileKey(*(int.from_bytes(digest[start : start + 8], "little") >> 1 for start in range(0, 32, 8)))


def _cache_folders() -> list[str]:
    """Return where the library keeps what it has fetched."""
    from datasets import config
    from huggingface_hub import constants

    return [str(config.HF_DATASETS_CACHE), constants.HF_HUB_CACHE]


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text[:_MOST_OF_A_REASON].rstrip(".!")
