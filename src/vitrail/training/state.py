"""All that a training consists of between two steps, in one file from which it goes on exactly."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from vitrail.errors import CheckpointError
from vitrail.runtime.tensors import fingerprint, write_tensors
from vitrail.training.ema import Ema

_FORMAT = 2
_METADATA_KEY = "vitrail_state"
_COUNTERS = (
    "epoch",
    "batch",
    "step",
    "elapsed_s",
    "epoch_images",
    "epoch_loss_sum",
    "epoch_correct",
    "best_metric",
    "best_epoch",
    "epochs_without_improvement",
)


@dataclass(kw_only=True)
class TrainState:
    """A training between two steps.

    `save` and `load` also carry the states of torch's random generators of the CPU and of the model's CUDA device, so
    that dropout goes on as it would have: on the same machine with the same number of threads, N steps, a save, a load
    into fresh objects and M steps give bit for bit what N + M steps give.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    ema: Ema | None = None
    companion: nn.Module | None = None
    """What is trained with the model and thrown away at the end, such as the projection to a teacher's features."""
    epoch: int = 0
    """The epoch that the next step belongs to, from 0; also the number of whole epochs done."""
    batch: int = 0
    """Index of the next batch in that epoch."""
    step: int = 0
    """Steps of the optimizer that were done."""
    elapsed_s: float = 0.0
    """Time of the training so far, with what happened between its steps, over all sessions."""
    epoch_images: int = 0
    """Images of this epoch that the two sums below are over."""
    epoch_loss_sum: float = 0.0
    epoch_correct: float = 0.0
    best_metric: float | None = None
    """The largest value that `record` was given."""
    best_epoch: int | None = None
    epochs_without_improvement: int = 0

    def parameters(self) -> list[nn.Parameter]:
        """Return the parameters of the model and of what is trained with it."""
        modules = [self.model] if self.companion is None else [self.model, self.companion]
        return [parameter for module in modules for parameter in module.parameters()]

    def record(self, metric: float, epoch: int) -> bool:
        """Note the validation metric of ``epoch`` (higher is better); return whether it is the best so far."""
        if self.best_metric is None or metric > self.best_metric:
            self.best_metric, self.best_epoch, self.epochs_without_improvement = metric, epoch, 0
            return True
        self.epochs_without_improvement += 1
        return False

    def save(self, path: Path) -> None:
        """Write everything to the one file ``path``; when this fails or is killed, the old file stays whole.

        Raises:
            StorageError: if the disk is full or the folder cannot be written.
        """
        tensors, optimizer = _split_optimizer(self.optimizer)
        tensors |= _prefixed("model/", self.model.state_dict())
        tensors |= _prefixed("rng/", _random_states(_device_of(self.model)))
        if self.ema is not None:
            tensors |= _prefixed("ema/", self.ema.module.state_dict())
        if self.companion is not None:
            tensors |= _prefixed("companion/", self.companion.state_dict())
        description = {
            "format": _FORMAT,
            "counters": {name: getattr(self, name) for name in _COUNTERS},
            "ema_updates": None if self.ema is None else self.ema.num_updates,
            "optimizer": optimizer,
        }
        description = json.loads(json.dumps(description))  # as it will be read: lists for tuples
        sealed = {**description, "sha256": fingerprint(description, tensors)}
        write_tensors(path, tensors, {_METADATA_KEY: json.dumps(sealed)})

    def load(self, path: Path) -> None:
        """Take over what `save` wrote; model, optimizer and average must have been made as they were then.

        Raises:
            CheckpointError: if the file is missing, damaged, or of another model or optimizer. Nothing may be done
                with this state then: a part of it may have been loaded.
        """
        tensors, description = _read(Path(path))
        try:
            self.model.load_state_dict(_with_prefix("model/", tensors))
            if self.ema is not None:
                self.ema.module.load_state_dict(_with_prefix("ema/", tensors))
                self.ema.num_updates = int(description["ema_updates"])
            if self.companion is not None:
                self.companion.load_state_dict(_with_prefix("companion/", tensors))
            _load_optimizer(self.optimizer, _with_prefix("optimizer/", tensors), description["optimizer"])
            for name in _COUNTERS:
                setattr(self, name, description["counters"][name])
            _restore_random_states(_with_prefix("rng/", tensors), _device_of(self.model))
        except (RuntimeError, ValueError, KeyError, TypeError) as error:
            reason = str(error).strip().splitlines()[0]
            raise CheckpointError(
                f"{path} does not fit this training: it was saved with another model, optimizer or average ({reason}). "
                "Resume with the run's own configuration, or start a new run."
            ) from error


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    if not path.is_file():
        raise CheckpointError(f"There is no saved training at {path}. Start a new run.")
    try:
        with safe_open(path, framework="pt") as file:
            description = json.loads((file.metadata() or {})[_METADATA_KEY])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise CheckpointError(f"{path} is damaged or is no saved training ({error}). Start a new run.") from error
    if description.get("format") != _FORMAT:
        raise CheckpointError(
            f"{path} has format {description.get('format')} and this version of vitrail reads format {_FORMAT}."
        )
    if description.pop("sha256", None) != fingerprint(description, tensors):
        raise CheckpointError(f"{path} is damaged: it was changed after it was written. Start a new run.")
    return tensors, description


def _split_optimizer(optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the optimizer's tensors, and everything else of it as plain data for JSON."""
    whole = optimizer.state_dict()
    tensors: dict[str, Tensor] = {}
    scalars: dict[str, dict[str, Any]] = {}
    for index, entries in whole["state"].items():
        for name, value in entries.items():
            if isinstance(value, Tensor):
                tensors[f"optimizer/{index}/{name}"] = value
            else:
                scalars.setdefault(str(index), {})[name] = value
    return tensors, {"groups": whole["param_groups"], "scalars": scalars}


def _load_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], plain: dict[str, Any]) -> None:
    own_groups = optimizer.state_dict()["param_groups"]
    groups = plain["groups"]
    for own, saved in zip(own_groups, groups, strict=True):
        if own.get("param_names") != saved.get("param_names"):
            raise ValueError("the optimizer's groups hold other parameters")
        # JSON made lists of the tuples, such as AdamW's betas.
        saved.update({name: tuple(saved[name]) for name, value in own.items() if isinstance(value, tuple)})
    entries: dict[int, dict[str, Any]] = {int(index): dict(values) for index, values in plain["scalars"].items()}
    for key, tensor in tensors.items():
        index, name = key.split("/", 1)
        entries.setdefault(int(index), {})[name] = tensor
    optimizer.load_state_dict({"state": entries, "param_groups": groups})
    for parameter, values in optimizer.state.items():
        for name, value in values.items():
            # A fused update walks through memory: what belongs to a parameter has to lie as the parameter does.
            if isinstance(value, Tensor) and value.shape == parameter.shape and value.stride() != parameter.stride():
                values[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def _random_states(device: torch.device) -> dict[str, Tensor]:
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def _restore_random_states(states: Mapping[str, Tensor], device: torch.device) -> None:
    torch.set_rng_state(states["cpu"])
    if device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"], device)


def _device_of(model: nn.Module) -> torch.device:
    return next(model.parameters()).device


def _prefixed(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in tensors.items()}


def _with_prefix(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
