"""A run: the folder in which a verb leaves all it used and all it found out."""

import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, is_dataclass
from pathlib import Path
from typing import Any, Self, TypeVar

from vitrail.config import Preprocess, from_options
from vitrail.errors import ConfigError, DataError, did_you_mean
from vitrail.runtime.files import storage_error, write_json

Config = TypeVar("Config")

_CONFIG = "config.json"
_ENVIRONMENT = "environment.json"
_PREPROCESS = "preprocess.json"


@dataclass(frozen=True)
class Run:
    """The folder ``<out>/<verb>/<name>/``. It explains itself, and is never written over by another run."""

    path: Path

    @classmethod
    def create(cls, out: str | Path, verb: str, name: str) -> Self:
        """Make the folder of a new run; when its name is taken, the first free one of name-2, name-3 and so on.

        Raises:
            ConfigError: if the name is not a plain folder name.
            StorageError: if the folder cannot be made.
        """
        if name in {"", ".", ".."} or any(character in name for character in "/\\\0"):
            raise ConfigError(f"name is {name!r}; it takes the name of one folder, without slashes.")
        parent = Path(out) / verb
        number = 1
        while True:
            path = parent / (name if number == 1 else f"{name}-{number}")
            try:
                parent.mkdir(parents=True, exist_ok=True)
                # The folder itself is the lock: of two runs that start at once, one gets the next number.
                path.mkdir()
            except FileExistsError as error:
                if not parent.is_dir():
                    raise storage_error(path, error) from error
                number += 1
            except OSError as error:
                raise storage_error(path, error) from error
            else:
                return cls(path)

    @classmethod
    def open(cls, path: str | Path) -> Self:
        """Return the run of `train` at ``path``.

        Raises:
            DataError: if there is none; the message names the nearest run beside it.
        """
        path = Path(path)
        if is_run(path):
            return cls(path)
        if path.exists():
            raise DataError(
                f"{path} is not a run: it lacks {_CONFIG}, {_ENVIRONMENT} or {_PREPROCESS}. Give a folder of `train`."
            )
        siblings = (
            sorted(entry.name for entry in path.parent.iterdir() if is_run(entry)) if path.parent.is_dir() else []
        )
        known = f" Runs beside it: {', '.join(siblings[:12])}." if siblings else ""
        raise DataError(f"There is no run {path}.{did_you_mean(path.name, siblings)}{known}")

    @contextmanager
    def removed_on_error(self) -> Iterator[None]:
        """Remove the whole folder when the block raises: what could not be begun leaves nothing."""
        try:
            yield
        except BaseException:
            shutil.rmtree(self.path, ignore_errors=True)
            raise

    @property
    def config_path(self) -> Path:
        """Every knob of the run (JSON)."""
        return self.path / _CONFIG

    @property
    def environment_path(self) -> Path:
        """Machine and versions (JSON)."""
        return self.path / _ENVIRONMENT

    @property
    def labels_path(self) -> Path:
        """The classes in the order of the logits (JSON)."""
        return self.path / "labels.json"

    @property
    def preprocess_path(self) -> Path:
        """How pictures are prepared (JSON)."""
        return self.path / _PREPROCESS

    @property
    def manifest_path(self) -> Path:
        """Every image with its split, hash and fate (CSV)."""
        return self.path / "manifest.csv"

    @property
    def metrics_path(self) -> Path:
        """One row of numbers per epoch (CSV)."""
        return self.path / "metrics.csv"

    @property
    def model_path(self) -> Path:
        """The best weights (safetensors)."""
        return self.path / "model.safetensors"

    @property
    def state_path(self) -> Path:
        """What an interrupted training goes on from (safetensors)."""
        return self.path / "state.safetensors"

    @property
    def rates_path(self) -> Path:
        """What a search for the learning rate saw (HTML; the same as JSON beside it)."""
        return self.path / "rates.html"

    @property
    def evaluation_path(self) -> Path:
        """The measured quality (JSON)."""
        return self.path / "evaluation.json"

    @property
    def predictions_path(self) -> Path:
        """The answer to every image that was evaluated (CSV)."""
        return self.path / "predictions.csv"

    @property
    def report_path(self) -> Path:
        """The page for people (HTML)."""
        return self.path / "report.html"

    def write_config(self, config: Any) -> None:
        """Write a dataclass of knobs as config.json."""
        assert is_dataclass(config), config
        assert not isinstance(config, type), config
        write_json(self.config_path, asdict(config))

    def read_config(self, kind: type[Config]) -> Config:
        """Return the knobs as ``kind``, the dataclass they were written from.

        Raises:
            DataError: if the file is missing or damaged.
            ConfigError: if it has a knob or a value that this version does not know.
        """
        values = _read_json(self.config_path)
        if not isinstance(values, dict):
            raise DataError(f"{self.config_path} holds no configuration.")
        return from_options(kind, values)

    def write_preprocess(self, preprocess: Preprocess) -> None:
        """Write how pictures are prepared."""
        write_json(self.preprocess_path, preprocess.to_dict())

    def read_preprocess(self) -> Preprocess:
        """Return how pictures are prepared.

        Raises:
            DataError: if the file is missing or damaged.
        """
        values = _read_json(self.preprocess_path)
        try:
            return Preprocess.from_dict(values)
        except (AttributeError, TypeError, ValueError) as error:
            raise DataError(f"{self.preprocess_path} does not tell how pictures are prepared ({error}).") from error

    def write_labels(self, classes: Sequence[str]) -> None:
        """Write the classes in the order of the logits."""
        write_json(self.labels_path, list(classes))

    def read_labels(self) -> tuple[str, ...]:
        """Return the classes in the order of the logits.

        Raises:
            DataError: if the file is missing or damaged.
        """
        labels = _read_json(self.labels_path)
        if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
            raise DataError(f"{self.labels_path} holds no list of classes.")
        return tuple(labels)


def is_run(path: str | Path) -> bool:
    """Return whether ``path`` is the folder of a run of `train`.

    The environment tells it from a checkpoint in Hugging Face's layout, which has a config.json too; the preprocessing
    from the folders of other verbs, which train nothing.
    """
    return all((Path(path) / name).is_file() for name in (_CONFIG, _ENVIRONMENT, _PREPROCESS))


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} is missing or damaged ({error}).") from error
