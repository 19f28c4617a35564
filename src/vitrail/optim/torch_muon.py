"""torch's own Muon, which takes matrices only, with torch's AdamW for the rest."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from vitrail.optim.routing import route_parameters


class MuonWithAdamW(torch.optim.Optimizer):
    """`torch.optim.Muon` for the matrices of a model, `torch.optim.AdamW` for everything else, as one optimizer.

    Matrices are those of two axes that `vitrail.optim.routing` calls so; the classifier, convolutions and the patch
    embedding have AdamW. Fused queries, keys and values are one matrix, for torch does not divide them. Updates are
    scaled to AdamW's RMS, so one learning rate serves both.

    Args:
        params: groups of parameters with ``param_names``.
        lr: learning rate.
        model: the module that they belong to.
        weight_decay: decoupled, multiplied with the learning rate.
        momentum: of matrices, in [0, 1).
        betas: AdamW's.
    """

    def __init__(
        self,
        params: Iterable[dict[str, Any]],
        lr: float = 5e-3,
        *,
        model: nn.Module | None = None,
        weight_decay: float = 0.05,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.999),
    ) -> None:
        matrices: list[dict[str, Any]] = []
        others: list[dict[str, Any]] = []
        for group in params:
            named = list(zip(group["param_names"], group["params"], strict=True))
            routes = route_parameters(named, model)
            is_matrix = [route.role == "matrix" and len(route.shape) == 2 for route in routes]
            for chosen, target in ((True, matrices), (False, others)):
                kept = [pair for pair, matrix in zip(named, is_matrix, strict=True) if matrix is chosen]
                names, parameters = [name for name, _ in kept], [parameter for _, parameter in kept]
                if kept:
                    target.append({**group, "params": parameters, "param_names": names})
        self._parts: list[torch.optim.Optimizer] = []
        super().__init__([*matrices, *others], {"lr": lr, "weight_decay": weight_decay})
        if matrices:
            self._parts.append(
                torch.optim.Muon(
                    matrices, lr=lr, weight_decay=weight_decay, momentum=momentum, adjust_lr_fn="match_rms_adamw"
                )
            )
        if others:
            self._parts.append(torch.optim.AdamW(others, lr=lr, weight_decay=weight_decay, betas=betas))
        self.param_groups = [group for part in self._parts for group in part.param_groups]
        self._num_groups = [len(part.param_groups) for part in self._parts]

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters; AdamW updates them."""
        if not self._parts:  # torch's own __init__ calls this
            super().add_param_group(param_group)
            return
        self._parts[-1].add_param_group(param_group)
        self.param_groups.append(self._parts[-1].param_groups[-1])
        self._num_groups[-1] += 1

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Update all parameters that have a gradient; return what ``closure`` returns."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        start = 0
        for part, count in zip(self._parts, self._num_groups, strict=True):
            # Groups and state are this optimizer's own; loading a state replaces both.
            part.param_groups, part.state = self.param_groups[start : start + count], self.state
            part.step()
            start += count
        return loss
