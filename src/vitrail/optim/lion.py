"""Lion: steps along the sign of an interpolated momentum."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor


class Lion(torch.optim.Optimizer):
    """One momentum per parameter and steps of equal size everywhere.

    Against AdamW, learning rates are 3 to 10 times lower and weight decays as many times higher.

    Args:
        params: parameters or groups of them.
        lr: learning rate, the size of every element's step.
        betas: share of the momentum in the step, and of the old momentum in the new one; each in [0, 1).
        weight_decay: decoupled, multiplied with the learning rate.

    Source: Chen et al., Symbolic Discovery of Optimization Algorithms, arXiv 2302.06675, algorithm 2.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float = 1e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Update all parameters that have a gradient; return what ``closure`` returns."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
            if parameters:
                self._update(parameters, group)
        return loss

    def _update(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        momenta = [self.state[p].setdefault("exp_avg", torch.zeros_like(p)) for p in parameters]
        lr, (beta1, beta2) = float(group["lr"]), group["betas"]
        steps = [momentum.clone() for momentum in momenta]
        torch._foreach_lerp_(steps, gradients, weight=1 - beta1)
        torch._foreach_sign_(steps)
        torch._foreach_mul_(parameters, 1 - lr * float(group["weight_decay"]))
        torch._foreach_add_(parameters, steps, alpha=-lr)
        torch._foreach_lerp_(momenta, gradients, weight=1 - beta2)
