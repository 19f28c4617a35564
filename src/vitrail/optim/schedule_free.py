"""Schedule-free AdamW, from its authors' library, and the weights that it answers with."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from vitrail.errors import MissingExtraError


def schedule_free(
    params: Iterable[Tensor] | Iterable[dict[str, Any]],
    lr: float = 2.5e-3,
    *,
    weight_decay: float = 0.05,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
) -> torch.optim.Optimizer:
    """Return AdamW without a schedule: after a warm-up the rate stays, and the steps are averaged in its place.

    Gradients are taken between the last step and the average of all steps, so the parameters hold that point while
    training goes on, and are switched to the average to be measured or kept: see `averaged_weights`.

    Args:
        params: parameters or groups of them.
        lr: learning rate.
        weight_decay: decoupled, multiplied with the learning rate.
        betas: share of the average in the point where gradients are taken, and of the old squares in the new ones.
        eps: added to the denominator.

    Raises:
        MissingExtraError: if the library does not import.

    Source: Defazio et al., The Road Less Scheduled, arXiv 2405.15682, algorithm 1.
    """
    try:
        from schedulefree import AdamWScheduleFree
    except ImportError as error:
        raise MissingExtraError(
            "schedule-free needs the package schedulefree: pip install 'vitrail[schedulefree]'."
        ) from error
    optimizer: Any = AdamWScheduleFree(params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay)
    optimizer.defaults["train_mode"] = True  # of groups that are added later
    optimizer.train()
    made: torch.optim.Optimizer = optimizer
    return made


@contextmanager
def averaged_weights(optimizer: Any) -> Iterator[None]:
    """Give the parameters the average of their steps within the block, if the optimizer keeps one."""
    if not hasattr(optimizer, "eval"):
        yield
        return
    optimizer.eval()
    try:
        yield
    finally:
        optimizer.train()
