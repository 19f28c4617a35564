"""Which kind of source a name means."""

import json
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Final

from vitrail.config import SourceConfig
from vitrail.data.images import display_name
from vitrail.data.sources import digits, huggingface, npz
from vitrail.data.sources.contract import Pictures, Source
from vitrail.data.sources.folder import FolderPictures, open_folder
from vitrail.data.sources.idx import is_idx, open_idx
from vitrail.data.sources.shards import find_shards
from vitrail.data.sources.table import open_table_source
from vitrail.data.sources.tabular import is_table
from vitrail.data.sources.webdataset import open_shards
from vitrail.errors import ConfigError, DataError, did_you_mean

KINDS: Final = (
    "A source is a folder with one folder of pictures per class, a table of paths and labels (.csv, .tsv, .parquet), a "
    'Hugging Face dataset (hf-dataset:NAME), shards (.tar), an archive of arrays (.npz), idx files, or "digits".'
)


def open_source(name: str | Path, config: SourceConfig | None = None, *, arrays: bool = False) -> Source:
    """Return the source that a name means; its pictures are not looked at yet.

    Args:
        name: as a user gives it.
        config: how it is read.
        arrays: .npy files are pictures too.

    Raises:
        DataError: if there is none.
        ConfigError: if an option is for another kind of source.
    """
    name, config = str(name), config or SourceConfig()
    if not name:  # for Python the present folder, for a person a variable that was not set
        raise DataError(f"The source is an empty name. {KINDS}")
    path = Path(name)
    opened = None if name == digits.NAME else _open_with_columns(name, config, arrays=arrays)
    if opened is not None:
        return opened
    _refuse([field.name for field in fields(SourceConfig)], name, config)
    if name == digits.NAME:
        return digits.open_digits()
    if is_idx(path):
        return open_idx(path)
    if path.is_dir():
        return open_folder(path, arrays=arrays)
    if path.suffix.lower() == npz.SUFFIX:
        return npz.open_npz(path)
    raise DataError(f"{display_name(path)} is a file that is no source. {KINDS}")


def holds_no_files(name: str) -> bool:
    """Return whether a name means a source whose images are no files of their own."""
    path = Path(name)
    if name.startswith(huggingface.PREFIX) or huggingface.is_saved_dataset(path):
        return True
    return (path.is_file() and path.suffix.lower() == npz.SUFFIX) or find_shards(name) is not None


def _open_with_columns(name: str, config: SourceConfig, *, arrays: bool) -> Source | None:
    """Return a source that tells its labels in columns; None where the name means another kind."""
    path = Path(name)
    if name.startswith(huggingface.PREFIX) or huggingface.is_saved_dataset(path):
        _refuse(["root"], name, config)
        return huggingface.open_huggingface(name, config)
    shards = find_shards(name)
    if shards is not None:
        _refuse(["root", "allow_outside"], name, config)
        return open_shards(shards, config, arrays=arrays)
    if not path.exists():
        raise _nothing_there(path)
    return _open_table(path, config) if path.is_file() and is_table(path) else None


def _refuse(options: Sequence[str], name: str, config: SourceConfig) -> None:
    """Refuse options that this kind of source has no use for."""
    given = [option for option in config.source_options if option in options]
    if given:
        raise ConfigError(
            f"{', '.join(given)} tells how a table is read, and {display_name(name)} is none. Leave it away."
        )


def _nothing_there(path: Path) -> DataError:
    names = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
    hint = did_you_mean(path.name, [*names, digits.NAME])
    return DataError(f"There is no file or folder {display_name(path)}.{hint} {KINDS}")


def _open_table(path: Path, config: SourceConfig) -> Source:
    pictures = _pictures_of_table(path, config)
    root = pictures.root if isinstance(pictures, FolderPictures) else None
    return open_table_source(path, config, pictures, root)


def _pictures_of_table(path: Path, config: SourceConfig) -> Pictures:
    """Return what the paths lead to: the given root, the images of the run whose manifest it is, or its own folder."""
    if config.root is not None:
        return open_source(config.root).pictures
    run = _run_of(path)
    if run is None:
        return FolderPictures(path.parent)
    try:
        return open_source(*run).pictures
    except DataError as error:
        raise DataError(f"{error} The images of {display_name(path)} were there; give their root.") from error


def _run_of(path: Path) -> tuple[str, SourceConfig] | None:
    """Return the source that a manifest was made of, by the configuration that a run keeps beside it."""
    if path.name != "manifest.csv":
        return None
    try:
        options = json.loads(path.with_name("config.json").read_text(encoding="utf-8"))
        source = options["source"]
        known = {field.name: options[field.name] for field in fields(SourceConfig) if field.name in options}
        is_other = Path(source).resolve() != path.resolve()
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return (source, SourceConfig(**known)) if is_other else None
