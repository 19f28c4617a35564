"""AdamW for what is no matrix, and a form of it with small states for large classifiers."""

from collections.abc import Iterable, Sequence
from typing import Any, Final

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from vitrail.optim.blocks import Layout
from vitrail.optim.matrices import Update
from vitrail.optim.momentum import accumulate, new_momentum
from vitrail.optim.parameters import is_direct, whole, write

LARGE_HEAD: Final = 2**16
"""Elements from which a classifier's second moment is kept factored and its momentum like that of matrices."""
_FUSED_DEVICES: Final = frozenset({"cpu", "cuda", "mps"})


def new_vector_state(parameter: Tensor) -> dict[str, Tensor]:
    """Return AdamW's state, in fp32 whatever the parameter's dtype."""
    device = parameter.device
    state = {"step": torch.zeros((), device=device)}
    for name in ("exp_avg", "exp_avg_sq"):
        state[name] = torch.zeros(tuple(parameter.shape), dtype=torch.float32, device=device)
    return state


def new_head_state(parameter: Tensor, group: dict[str, Any]) -> dict[str, Tensor]:
    """Return the state of a large classifier: momentum, and the second moment's means of rows and of columns."""
    state = {"step": torch.tensor(0.0)}
    state |= new_momentum(parameter.shape, [parameter.numel()], group["momentum_dtype"], parameter.device)
    rows, columns = parameter.shape[0], parameter.numel() // parameter.shape[0]
    state["row_square"] = torch.zeros(rows, dtype=torch.float32, device=parameter.device)
    state["column_square"] = torch.zeros(columns, dtype=torch.float32, device=parameter.device)
    return state


def update_vectors(updates: Iterable[Update]) -> None:
    """Take one step of AdamW; in a fused kernel where the device has it.

    Source: Loshchilov and Hutter, Decoupled Weight Decay Regularization, arXiv 1711.05101, algorithm 2.
    """
    buckets: dict[tuple[int, torch.device], list[Update]] = {}
    for update in updates:
        buckets.setdefault((id(update.group), update.parameter.device), []).append(update)
    for chunk in buckets.values():
        # What is sharded or coarse is updated as a whole in fp32 and written back; the rest in place.
        indirect = [update for update in chunk if not is_direct(update.parameter)]
        values = [whole(update.parameter.detach()).float() for update in indirect]
        direct = [update for update in chunk if is_direct(update.parameter)]
        _adamw([update.parameter for update in direct] + values, direct + indirect)
        if indirect:
            write([update.parameter for update in indirect], values, [update.seed for update in indirect])


def _adamw(values: list[Tensor], updates: Sequence[Update]) -> None:
    group = updates[0].group
    beta1, beta2 = group["betas"]
    adamw(
        values,
        [whole(update.parameter.grad).float() for update in updates],  # type: ignore[arg-type]
        [update.state["exp_avg"] for update in updates],
        [update.state["exp_avg_sq"] for update in updates],
        [],
        [update.state["step"] for update in updates],
        fused=values[0].device.type in _FUSED_DEVICES,
        amsgrad=False,
        beta1=beta1,
        beta2=beta2,
        lr=float(group["lr"]),
        weight_decay=float(group["weight_decay"]),
        eps=group["eps"],
        maximize=False,
    )


def update_heads(updates: Iterable[Update]) -> None:
    """Take one step of AdamW whose second moment is the outer product of its rows' and its columns' means.

    Source: Shazeer and Stern, Adafactor, arXiv 1804.04235, section 3, with AdamW's momentum and bias corrections.
    """
    for update in updates:
        _update_head(update)


def _update_head(update: Update) -> None:
    parameter, state, group = update.parameter, update.state, update.group
    beta1, beta2 = group["betas"]
    gradient = whole(parameter.grad).float().reshape(parameter.shape[0], -1)  # type: ignore[arg-type]
    layout = Layout([gradient.numel()])
    scales = [state["momentum_scale"]] if "momentum_scale" in state else []
    buffer = accumulate(layout, [state["momentum"]], scales, layout.gather([gradient]), beta1)
    momentum = layout.parts(buffer)[0].view_as(gradient)
    square = gradient.square()
    rows = state["row_square"].lerp_(square.mean(dim=1), 1 - beta2)
    columns = state["column_square"].lerp_(square.mean(dim=0), 1 - beta2)
    state["step"] += 1
    correction1, correction2 = (1 - beta ** int(state["step"]) for beta in (beta1, beta2))
    mean = rows.mean().clamp_min(torch.finfo(torch.float32).tiny)
    deviation = torch.outer(rows / mean, columns).div_(correction2).sqrt_().add_(group["eps"])
    lr = float(group["lr"])
    weights = whole(parameter.detach()).float().reshape(gradient.shape) * (1 - lr * float(group["weight_decay"]))
    weights.addcdiv_(momentum, deviation, value=-lr / correction1)
    write([parameter], [weights], [update.seed])
