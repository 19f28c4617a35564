"""Finding a file of weights and reading it without trusting it."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from vitrail.errors import CheckpointError, did_you_mean

WEIGHTS_NAME: Final = "model.safetensors"
"""What a file of weights is called in a run, in a folder of Hugging Face's layout and on its hub."""

CONFIG_NAME: Final = "config.json"
PREPROCESSOR_NAME: Final = "preprocessor_config.json"

HUB_PREFIX: Final = "hf-hub:"

_PICKLE_SUFFIXES: Final = {".pt", ".pth", ".bin", ".ckpt", ".pkl", ".pickle", ".tar"}

WEIGHTS_SUFFIXES: Final = frozenset({".safetensors", *_PICKLE_SUFFIXES})
"""Ends of names by which a file of weights is known, whether it is loaded or refused with the reason."""

_FLOAT_TYPES: Final = {torch.float16, torch.bfloat16, torch.float32, torch.float64}


def find_weights(source: str | Path) -> Path:
    """Return the .safetensors file that ``source`` means.

    Args:
        source: such a file, a folder with a model.safetensors (a run, or Hugging Face's layout), or
            ``hf-hub:org/name``, with ``@revision`` where wanted, which is downloaded into Hugging Face's cache.

    Raises:
        CheckpointError: if there is no such file, it is of a kind that is not loaded, or the hub does not give it.
    """
    if str(source).startswith(HUB_PREFIX):
        return _from_hub(str(source).removeprefix(HUB_PREFIX))
    path = Path(source)
    if path.is_dir():
        return _in_folder(path)
    if path.suffix.lower() in _PICKLE_SUFFIXES:
        raise CheckpointError(_why_no_pickle(str(path)))
    if not path.is_file():
        raise CheckpointError(f"There is no file {path}.{_did_you_mean_beside(path)}")
    return path


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors and the metadata of a .safetensors file; the tensors lie in memory that maps the file.

    Raises:
        CheckpointError: if the file is damaged or no safetensors file, or a tensor in it is empty, not finite, or of
            numbers other than integers and plain floats.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no dictionary
    # The reader and torch meet values of a damaged header, such as sizes and types, with whatever they have.
    except (SafetensorError, OSError, ArithmeticError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise CheckpointError(_why_unreadable(path, error)) from error
    for name, tensor in tensors.items():
        if tensor.numel() == 0:
            raise CheckpointError(
                f"{path} is damaged: {name} has the shape {tuple(tensor.shape)}, which holds nothing."
            )
        if (tensor.is_floating_point() or tensor.is_complex()) and tensor.dtype not in _FLOAT_TYPES:
            raise CheckpointError(
                f"{path}: {name} is stored as {tensor.dtype}; floats of 16, 32 or 64 bits are loaded."
            )
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise CheckpointError(f"{path}: {name} has values that are not finite; the file is damaged or diverged.")
    return tensors, metadata


def check_fit(tensors: dict[str, Tensor], expected: dict[str, Tensor], path: Path) -> None:
    """Refuse tensors whose shape or kind is not the one that the model's tensor of the same name has.

    Raises:
        CheckpointError: with the first such name, and how many there are.
    """
    wrong = [
        f"{name} has the shape {tuple(tensor.shape)} of {tensor.dtype} and the model takes "
        f"{tuple(expected[name].shape)} of {expected[name].dtype}"
        for name, tensor in tensors.items()
        if tensor.shape != expected[name].shape or tensor.is_floating_point() != expected[name].is_floating_point()
    ]
    if wrong:
        others = f" ({len(wrong)} tensors do not fit)" if len(wrong) > 1 else ""
        raise CheckpointError(f"{path} is of another architecture: {wrong[0]}{others}.".replace("torch.", ""))


def read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file, or an empty one if there is no such file.

    Raises:
        CheckpointError: if the file is damaged.
    """
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is damaged or cannot be read ({error}). Copy or download it again.") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} holds no JSON object. Copy or download it again.")
    return value


def first_few(names: Iterable[str], limit: int = 3) -> str:
    """Return the first names, and how many there are if that is more."""
    names = list(names)
    shown = ", ".join(names[:limit])
    return shown if len(names) <= limit else f"{shown}, ... ({len(names)} in all)"


def _in_folder(folder: Path) -> Path:
    if (folder / WEIGHTS_NAME).is_file():
        return folder / WEIGHTS_NAME
    names = sorted(path.name for path in folder.iterdir())
    pickles = [name for name in names if Path(name).suffix.lower() in _PICKLE_SUFFIXES]
    if pickles:
        raise CheckpointError(_why_no_pickle(str(folder / pickles[0])))
    if f"{WEIGHTS_NAME}.index.json" in names:
        raise CheckpointError(
            f"The weights in {folder} are divided over several files; save them as one {WEIGHTS_NAME}."
        )
    others = [name for name in names if name.endswith(".safetensors")]
    hint = f" Give one of its files: {first_few(others)}." if others else " Is it a run, or a folder of Hugging Face?"
    raise CheckpointError(f"There is no {WEIGHTS_NAME} in {folder}.{hint}")


def _from_hub(name: str) -> Path:
    """Bring the weights and what describes them into the hub's cache, all three into one folder."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    repository, _, revision = name.partition("@")
    try:
        weights = Path(hf_hub_download(repository, WEIGHTS_NAME, revision=revision or None))
    except LocalEntryNotFoundError as error:
        raise CheckpointError(
            f"{HUB_PREFIX}{name} is not in the local cache and the hub cannot be reached. Go online once, or give a "
            f"folder with its {WEIGHTS_NAME} and {CONFIG_NAME}."
        ) from error
    except EntryNotFoundError as error:
        raise CheckpointError(
            f"{HUB_PREFIX}{name} has no {WEIGHTS_NAME}; pickled weights (.bin, .pth) can run code and are not loaded."
        ) from error
    except (OSError, ValueError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise CheckpointError(
            f"{HUB_PREFIX}{name} cannot be fetched: {reason} Names are hf-hub:organisation/name; private ones need "
            "`hf auth login`."
        ) from error
    for description in (CONFIG_NAME, PREPROCESSOR_NAME):
        try:
            hf_hub_download(repository, description, revision=revision or None)
        except EntryNotFoundError:
            continue  # not every model has both
        except OSError as error:
            raise CheckpointError(f"{description} of {HUB_PREFIX}{name} cannot be fetched: {error}") from error
    return weights


def _why_no_pickle(path: str) -> str:
    return (
        f"{path} looks like a pickle, which can run any code when it is loaded, so vitrail does not load it. If you "
        "trust it, convert it once: safetensors.torch.save_file(torch.load(path, weights_only=True), "
        '"model.safetensors").'
    )


def _why_unreadable(path: Path, error: Exception) -> str:
    """Look at the first bytes to say what is wrong in plain words."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(8)
    except OSError as failure:
        return f"{path} cannot be read: {failure.strerror or failure}."
    if start.startswith((b"PK\x03\x04", b"\x80\x02", b"\x80\x04", b"\x80\x05")):
        return _why_no_pickle(str(path))
    if size <= 8:
        return f"{path} is empty or cut off: it has {size} bytes. Copy or download it again."
    return f"{path} is cut off, damaged or no safetensors file ({error}). Copy or download it again."


def _did_you_mean_beside(path: Path) -> str:
    if not path.parent.is_dir():
        return f" The folder {path.parent} does not exist either."
    return did_you_mean(path.name, (entry.name for entry in path.parent.iterdir()))
