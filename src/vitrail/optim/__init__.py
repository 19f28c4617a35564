"""Optimizers by name, with parameter groups and learning rates that suit vision transformers."""

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from vitrail.errors import ConfigError, did_you_mean, lookup
from vitrail.optim.groups import parameter_groups
from vitrail.optim.lion import Lion
from vitrail.optim.muon8 import Muon8
from vitrail.optim.schedule import warmup_cosine
from vitrail.optim.schedule_free import averaged_weights, schedule_free
from vitrail.optim.torch_muon import MuonWithAdamW

__all__ = [
    "OPTIMIZERS",
    "Lion",
    "Muon8",
    "OptimizerEntry",
    "averaged_weights",
    "create_optimizer",
    "default_lr",
    "default_weight_decay",
    "parameter_groups",
    "warmup_cosine",
]

# Beyond this batch the rules that scale a learning rate with the batch no longer hold.
_LARGEST_SCALED_BATCH = 4096
_PRETRAINED_SHARE = 0.1
# What `create_optimizer` itself gives to an optimizer.
_OWN_ARGUMENTS = frozenset({"params", "lr", "model"})


@dataclass(frozen=True)
class OptimizerEntry:
    """What the table knows about an optimizer."""

    build: Callable[..., torch.optim.Optimizer]
    defaults: dict[str, Any]
    """Its options where the caller gives none."""
    lr: float
    """Highest learning rate that suits a ViT trained from random weights in batches of ``reference_batch``."""
    reference_batch: int
    batch_exponent: float
    """How the learning rate grows with the batch: 1 linearly, 0.5 with its square root."""
    weight_decay: float
    """What suits a ViT. AdamW multiplies it with the learning rate, SGD also with 1 / (1 - momentum)."""
    reference_width: int | None = None
    """Features per token for which ``lr`` holds, where it falls with their square root; None where it does not."""
    averages: bool = False
    """Whether it averages its steps itself: after the warm-up the rate stays, and no other average is kept."""


OPTIMIZERS: dict[str, OptimizerEntry] = {
    # Square root: Malladi et al., arXiv 2205.10287, section 5.
    "adamw": OptimizerEntry(torch.optim.AdamW, {"betas": (0.9, 0.999), "eps": 1e-8}, 1e-3, 128, 0.5, 0.05),
    # Linear: Goyal et al., arXiv 1706.02677, section 2.1.
    "sgd": OptimizerEntry(torch.optim.SGD, {"momentum": 0.9, "nesterov": True}, 0.1, 256, 1.0, 1e-4),
    # Updates have the RMS of AdamW's and bear a higher rate, for no direction of a matrix is larger than the others.
    # Their largest singular value is rate * RMS * sqrt(width), and how large that may be does not depend on the width:
    # Yang et al., A Spectral Condition for Feature Learning, arXiv 2310.17813, section 2.
    "muon8": OptimizerEntry(Muon8, {"momentum": 0.95, "betas": (0.9, 0.99)}, 8e-3, 128, 0.5, 0.05, 128),
    "muon": OptimizerEntry(MuonWithAdamW, {"momentum": 0.95, "betas": (0.9, 0.999)}, 8e-3, 128, 0.5, 0.05, 128),
    # A tenth of AdamW's rate and ten times its decay: Chen et al., arXiv 2302.06675, section 5.
    "lion": OptimizerEntry(Lion, {"betas": (0.9, 0.99)}, 1e-4, 128, 0.5, 0.5),
    # Its rate is relative to the RMS of each parameter. Without momentum: Shazeer and Stern, arXiv 1804.04235.
    "adafactor": OptimizerEntry(torch.optim.Adafactor, {"beta2_decay": -0.8, "d": 1.0}, 1e-2, 128, 0.5, 5e-3),
    # Its rate stays where AdamW's falls, and may be the higher: Defazio et al., arXiv 2405.15682, section 4.
    "schedule-free": OptimizerEntry(schedule_free, {"betas": (0.9, 0.999)}, 2.5e-3, 128, 0.5, 0.05, averages=True),
}


def create_optimizer(
    model: nn.Module, name: str = "adamw", *, lr: float, weight_decay: float, layer_decay: float = 1.0, **options: Any
) -> torch.optim.Optimizer:
    """Return the optimizer called ``name`` for the trainable parameters of ``model``.

    Its groups are those of `parameter_groups`. Updates run in one fused kernel where the device has it.

    Args:
        model: lies already on the device it will be trained on.
        name: one of `OPTIMIZERS`.
        lr: highest learning rate; a schedule multiplies it.
        weight_decay: of matrices and convolutions. AdamW's is decoupled from the gradient, SGD's is not.
        layer_decay: factor of the rate from a layer to the one before it, in (0, 1]; see `parameter_groups`.
        options: further arguments of the optimizer, such as ``betas`` or ``momentum``.

    Raises:
        UnknownNameError: if there is no such optimizer.
        ConfigError: for an option it does not have, or a model without trainable parameters.
        MissingExtraError: if its library does not import.
    """
    entry = lookup(OPTIMIZERS, name, "optimizer")
    arguments = inspect.signature(entry.build).parameters
    known = [option for option in arguments if option not in _OWN_ARGUMENTS]
    for option in options:
        if option not in known:
            hint = did_you_mean(option, known)
            raise ConfigError(f"{name} has no option {option!r}.{hint} Known: {', '.join(known)}.")
    groups = parameter_groups(model, weight_decay, layer_decay)
    if not groups:
        raise ConfigError("The model has no trainable parameters: all of them are frozen.")
    for group in groups:
        if "lr_scale" in group:
            group["lr"] = lr * group["lr_scale"]
    given: dict[str, Any] = {"model": model} if "model" in arguments else {}
    if "fused" in arguments and _can_fuse(groups):
        given["fused"] = True
    return entry.build(groups, lr=lr, **{**entry.defaults, **given, **options})


def default_lr(name: str, batch_size: int, pretrained: bool, width: int | None = None) -> float:
    """Return a highest learning rate for a ViT without a search.

    Args:
        name: one of `OPTIMIZERS`.
        batch_size: images per step of the optimizer (with gradient accumulation: of all its batches).
        pretrained: whether training starts from good weights, which a full rate would destroy; a tenth is used.
        width: features per token, if they are known.

    Raises:
        UnknownNameError: if there is no such optimizer.
    """
    entry = lookup(OPTIMIZERS, name, "optimizer")
    scale = math.pow(min(batch_size, _LARGEST_SCALED_BATCH) / entry.reference_batch, entry.batch_exponent)
    if entry.reference_width is not None and width is not None:
        scale *= math.sqrt(entry.reference_width / width)
    return entry.lr * scale * (_PRETRAINED_SHARE if pretrained else 1.0)


def default_weight_decay(name: str) -> float:
    """Return a weight decay that suits the optimizer called ``name``.

    Raises:
        UnknownNameError: if there is no such optimizer.
    """
    return lookup(OPTIMIZERS, name, "optimizer").weight_decay


def _can_fuse(groups: list[dict[str, Any]]) -> bool:
    parameters = [parameter for group in groups for parameter in group["params"]]
    return all(p.device.type in {"cpu", "cuda", "mps"} and p.is_floating_point() for p in parameters)
