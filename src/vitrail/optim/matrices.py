"""The rule for matrices and convolutions: momentum, orthogonalised.

Axes: K matrices of equal shape, r rows, c columns.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor

from vitrail.optim.momentum import accumulate, new_momentum
from vitrail.optim.newton_schulz import orthogonalize
from vitrail.optim.parameters import whole, write

# RMS of AdamW's update in units of the learning rate: Liu et al., Muon is Scalable for LLM Training, arXiv 2502.16982,
# section 2.2. With it, one learning rate serves all parameters, and that of AdamW is the right order of magnitude.
ADAMW_RMS: Final = 0.2
_MOMENTUM_START: Final = 0.85
_MOMENTUM_WARMUP_STEPS: Final = 300
_ROW_BETA: Final = 0.95
# Elements that are worked on together. On a CPU few, so that the temporaries stay in its cache (twice as fast there on
# a Zen 4 as 2**23, beside the matrix products); elsewhere enough to fill a GPU, and little beside a model.
_CHUNK_ELEMENTS: Final = {"cpu": 2**20}
_CHUNK_ELEMENTS_ELSEWHERE: Final = 2**24


class Update(NamedTuple):
    """A parameter that has a gradient, with all that its update needs."""

    parameter: Tensor
    state: dict[str, Tensor]
    group: dict[str, Any]
    parts: int
    """Matrices that its rows hold."""
    seed: int
    """Of the rounding of bf16 weights; another one in every step and for every parameter."""


@dataclass(frozen=True)
class _Kind:
    """What matrices have in common that are updated together."""

    shape: tuple[int, int]
    parts: int
    device: str
    momentum_dtype: torch.dtype
    step: int
    momentum: float
    mode: str
    row_variance: bool
    cautious: bool
    newton_schulz_steps: int


def new_matrix_state(parameter: Tensor, parts: int, group: dict[str, Any]) -> dict[str, Tensor]:
    """Return the state of a matrix before its first step."""
    state = new_momentum(parameter.shape, parts, group["momentum_dtype"], parameter.device)
    if group["row_variance"] and group["mode"] == "scratch":
        rows = parameter.shape[0] // parts
        state["row_variance"] = torch.zeros(parts, rows, dtype=torch.float32, device=parameter.device)
    return state


def update_matrices(updates: Iterable[Update]) -> None:
    """Take one step with every matrix; those of equal shape together."""
    buckets: dict[_Kind, list[Update]] = {}
    for update in updates:
        buckets.setdefault(_kind(update), []).append(update)
    for kind, same in buckets.items():
        for chunk in _chunks(same, kind):
            _update_chunk(chunk, kind)


def _kind(update: Update) -> _Kind:
    parameter, group = update.parameter, update.group
    rows = parameter.shape[0]
    return _Kind(
        shape=(rows // update.parts, parameter.numel() // rows),
        parts=update.parts,
        device=str(parameter.device),
        momentum_dtype=update.state["momentum"].dtype,
        step=group["steps"],
        momentum=group["momentum"],
        mode=group["mode"],
        row_variance=group["row_variance"],
        cautious=group["cautious"],
        newton_schulz_steps=group["newton_schulz_steps"],
    )


def _chunks(updates: list[Update], kind: _Kind) -> Iterator[list[Update]]:
    elements = _CHUNK_ELEMENTS.get(updates[0].parameter.device.type, _CHUNK_ELEMENTS_ELSEWHERE)
    size = max(1, elements // (kind.parts * math.prod(kind.shape)))
    for start in range(0, len(updates), size):
        yield updates[start : start + size]


def _update_chunk(updates: Sequence[Update], kind: _Kind) -> None:
    gradients = _stack([whole(update.parameter.grad) for update in updates], kind)  # type: ignore[arg-type]
    beta = _momentum_at(kind.step, kind.momentum)
    states = [update.state for update in updates]
    momentum = accumulate(states, kind.parts, gradients.flatten(1), beta).view_as(gradients)
    direction = momentum.lerp_(gradients, 1 - beta)  # Nesterov's
    if kind.mode == "finetune":
        step = direction.sign_().mul_(ADAMW_RMS)
    else:
        step = orthogonalize(direction, kind.newton_schulz_steps)
        if kind.row_variance:
            step = _equalize_rows(step, [state["row_variance"] for state in states], kind.parts)
        step = step * (ADAMW_RMS * math.sqrt(max(kind.shape)))
    weights = _stack([whole(update.parameter) for update in updates], kind)
    _apply(weights, step, updates, kind)
    write([update.parameter for update in updates], _split(weights, kind), [update.seed for update in updates])


def _stack(tensors: Sequence[Tensor], kind: _Kind) -> Tensor:
    """Return a new tensor (K, r, c) in fp32."""
    return torch.cat([tensor.reshape(kind.parts, *kind.shape) for tensor in tensors]).float()


def _split(stack: Tensor, kind: _Kind) -> list[Tensor]:
    """Return the views (parts, r, c) of each parameter in a stack (K, r, c)."""
    return list(torch.split(stack, kind.parts))


def _momentum_at(step: int, highest: float) -> float:
    """Return the share of the old momentum in a step from 0: short memory while the first gradients turn quickly."""
    start = min(_MOMENTUM_START, highest)
    return start + (highest - start) * min(1.0, step / _MOMENTUM_WARMUP_STEPS)


def _equalize_rows(step: Tensor, variances: Sequence[Tensor], parts: int) -> Tensor:
    """Divide each row (an output's weights) by its running RMS and restore the norm of each matrix.

    Source: Li et al., NorMuon, arXiv 2510.05491, algorithm 1.
    """
    running = torch.cat(list(variances)).lerp_(step.square().mean(dim=-1), 1 - _ROW_BETA)  # (K, r)
    torch._foreach_copy_(list(variances), torch.split(running, parts))
    tiny = torch.finfo(torch.float32).tiny
    equal = step * running.clamp_min(tiny).rsqrt_()[..., None]
    norms = [torch.linalg.matrix_norm(each, keepdim=True) for each in (step, equal)]
    return equal.mul_(norms[0] / norms[1].clamp_min_(tiny))


def _apply(weights: Tensor, step: Tensor, updates: Sequence[Update], kind: _Kind) -> None:
    """Decay the weights (K, r, c) and move them by ``step``, each by its group's rate.

    With ``cautious``, only weights that the step moves towards zero are decayed.
    """
    rates = [float(update.group["lr"]) for update in updates]
    decays = [rate * float(update.group["weight_decay"]) for rate, update in zip(rates, updates, strict=True)]
    if any(decays):
        decayed = weights * (weights * step > 0) if kind.cautious else weights.clone()
        torch._foreach_mul_(_split(decayed, kind), decays)
        weights.sub_(decayed)
    # Multiplied by numbers and not by a tensor of them, which would make a GPU wait for its copy.
    torch._foreach_mul_(_split(step, kind), rates)
    weights.sub_(step)
