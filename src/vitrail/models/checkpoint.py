"""Our own checkpoints: one .safetensors file that rebuilds a model.

Our file holds the tensors under timm's names and, in the metadata entry "vitrail", a JSON object: "format", "spec" (how
to build the model), "classes", "preprocess", "task", "calibration", and "sha256" over all of these and the tensors. No
pickle is ever read.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, get_args

import torch
from torch import Tensor

from vitrail.config import Preprocess, TaskName
from vitrail.errors import CheckpointError, ConfigError
from vitrail.models import Model, ModelSpec, build
from vitrail.models.describe import Description
from vitrail.models.guests import Guest, is_guest
from vitrail.models.vit import VisionTransformer
from vitrail.models.weights import check_fit, find_weights, first_few, read_tensors
from vitrail.runtime.tensors import fingerprint, write_tensors

_METADATA_KEY: Final = "vitrail"
_FORMAT: Final = 1


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """What one of our own files holds."""

    model: Model
    """On the CPU, in evaluation mode."""
    classes: tuple[str, ...] | None = None
    """Names of the outputs of the head, in their order."""
    preprocess: Preprocess | None = None
    """How images are prepared for it."""
    task: TaskName = "classification"
    """What the outputs mean."""
    calibration: dict[str, Any] | None = None
    """What was fitted after training, such as the temperature."""


def save_checkpoint(
    path: str | Path,
    model: Model,
    *,
    classes: Sequence[str] | None = None,
    preprocess: Preprocess | None = None,
    task: TaskName = "classification",
    calibration: dict[str, Any] | None = None,
    layout: Literal["vitrail", "timm"] = "vitrail",
) -> None:
    """Write a model to one .safetensors file, whole or not at all.

    Args:
        path: the file, such as ``run/model.safetensors``.
        model: one that `create_model` built.
        classes: names of its outputs in their order.
        preprocess: how images are prepared for it.
        task: what its outputs mean.
        calibration: plain values that JSON can hold.
        layout: "vitrail" for a file that `load_checkpoint` rebuilds the model from; "timm" for tensors alone, which
            timm's model of the same shape loads.

    Raises:
        ConfigError: if the model cannot be rebuilt, the classes are not as many as its outputs, or the layout cannot
            hold the model.
        StorageError: if the file cannot be written.
    """
    if model.spec is None:
        raise ConfigError("The model was not built by create_model, so its file could not rebuild it.")
    if classes is not None and len(classes) != model.num_classes:
        raise ConfigError(f"There are {len(classes)} names of classes for a model with {model.num_classes} outputs.")
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    metadata = {"format": "pt"}
    if layout == "timm":
        _check_timm_can_hold(model)
    else:
        header = {
            "format": _FORMAT,
            "spec": model.spec.to_dict(),
            "classes": None if classes is None else list(classes),
            "preprocess": None if preprocess is None else preprocess.to_dict(),
            "task": task,
            "calibration": calibration,
        }
        header = json.loads(json.dumps(header, allow_nan=False))  # as it will be read: lists for tuples
        metadata[_METADATA_KEY] = json.dumps({**header, "sha256": fingerprint(header, tensors)})
    write_tensors(Path(path), tensors, metadata)


def load_checkpoint(path: str | Path) -> Checkpoint:
    """Rebuild the model that `save_checkpoint` wrote.

    Args:
        path: the file, or the folder that has it as model.safetensors.

    Raises:
        CheckpointError: if the file is missing, damaged, changed since it was written, or not ours.
    """
    file = find_weights(path)
    tensors, metadata = read_tensors(file)
    header = read_header(metadata, tensors, file)
    if header is None:
        raise CheckpointError(
            f"{file} holds weights alone, not how to build their model. Create the model and use load_pretrained."
        )
    model = build_described(header, file)
    expected = model.state_dict()
    if expected.keys() != tensors.keys():
        different = first_few(sorted(expected.keys() ^ tensors.keys()))
        raise CheckpointError(
            f"{file} does not hold the tensors of the model it describes; they differ in {different}."
        )
    check_fit(tensors, expected, file)
    if not isinstance(model, Guest):
        assert {name for name, _ in model.named_buffers()} <= expected.keys(), "a buffer outside the state has no value"
        model.to_empty(device="cpu")
    model.load_state_dict(tensors)
    model.eval()
    described = describe_own(header, model, file)
    task = header.get("task", "classification")  # which files of version 0.1 do not tell
    if task not in get_args(TaskName):
        raise CheckpointError(f"{file} is of the task {task!r}; this vitrail knows {', '.join(get_args(TaskName))}.")
    return Checkpoint(
        model=model,
        classes=described.classes,
        preprocess=described.preprocess,
        task=task,
        calibration=header.get("calibration"),
    )


def _check_timm_can_hold(model: Model) -> None:
    if not isinstance(model, VisionTransformer):
        raise ConfigError(f"The layout of timm is written for vision transformers only, not {type(model).__name__}.")
    options = model.options
    foreign = [f"{name}={getattr(options, name)!r}" for name in ("local", "fusion") if getattr(options, name)]
    if options.position != "learned":
        foreign.append(f"position={options.position!r}")
    if foreign:
        raise ConfigError(f"timm's ViT has no {', '.join(foreign)}; save this model in the layout 'vitrail'.")


def read_header(metadata: dict[str, str], tensors: dict[str, Tensor], path: Path) -> dict[str, Any] | None:
    """Return the description in our own file, verified, or None for a file of others."""
    if _METADATA_KEY not in metadata:
        return None
    try:
        header = json.loads(metadata[_METADATA_KEY])
        file_format, sha256 = header["format"], header.pop("sha256")
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"The description in {path} is damaged. Copy or download the file again.") from error
    if file_format != _FORMAT:
        raise CheckpointError(f"{path} has the format {file_format}; this vitrail reads {_FORMAT}. Upgrade vitrail.")
    if sha256 != fingerprint(header, tensors):
        raise CheckpointError(f"{path} was changed or damaged after it was written. Copy or download it again.")
    return dict(header)


def build_described(header: dict[str, Any], path: Path) -> Model:
    """Build the model of our own file: on the meta device, so that a forged description cannot claim any memory.

    A model of another library is built in memory: it may keep tensors that are not in its state.

    Raises:
        CheckpointError: if the description is of no model that can be built.
    """
    try:
        spec = ModelSpec.from_dict(header["spec"])
        if is_guest(spec.name):
            with torch.random.fork_rng(devices=[]):  # the caller's random numbers stay where they are
                return build(spec)
        with torch.device("meta"):
            return build(spec)
    # The description comes from a file, so its values can be of any type and size.
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path} describes a model that cannot be built: {error}") from error


def describe_own(header: dict[str, Any], model: Model, path: Path) -> Description:
    """Return what our own file says beside its tensors.

    Raises:
        CheckpointError: if it is damaged.
    """
    try:
        preprocess, classes = header["preprocess"], header["classes"]
        return Description(
            classes=None if classes is None else tuple(classes),
            preprocess=None if preprocess is None else Preprocess.from_dict(preprocess),
            image_size=model.image_size,
            heads=model.shape.heads if isinstance(model, VisionTransformer) else None,
        )
    except (LookupError, TypeError, ValueError) as error:
        raise CheckpointError(f"The description in {path} is damaged: {error}") from error
