"""Muon8: orthogonalised momentum in 8 bits for the matrices of a vision transformer, a small AdamW for the rest."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, Literal, get_args

import torch
from torch import Tensor, nn

from vitrail.errors import ConfigError, did_you_mean
from vitrail.optim.groups import parameter_groups
from vitrail.optim.matrices import Update, new_matrix_state, update_matrices
from vitrail.optim.momentum import MomentumDtype
from vitrail.optim.newton_schulz import COEFFICIENTS
from vitrail.optim.release import GradientRelease
from vitrail.optim.routing import Qkv, Role, Route, Routing, route_parameters
from vitrail.optim.vectors import LARGE_HEAD, new_head_state, new_vector_state, update_heads, update_vectors

Mode = Literal["scratch", "finetune"]
Groups = Iterable[Tensor] | Iterable[tuple[str, Tensor]] | Iterable[dict[str, Any]]

_DTYPES: Final = (torch.float32, torch.bfloat16)


class Muon8(torch.optim.Optimizer):
    """Optimizer for vision transformers with about one byte of state per parameter.

    Matrices (linear layers, the patch embedding, and convolutions as one matrix (out, in * kh * kw) per group) move
    along the orthogonalised Nesterov momentum; its rows are equalised by their running variance. The momentum is kept
    in 8 bits. Queries, keys and values fused in one layer are three matrices. Every other parameter has AdamW, a large
    classifier with a factored second moment. `routing` tells which is which.

    Updates of matrices have the RMS of AdamW's, so one learning rate, of AdamW's size, serves all parameters.

    Parameters are fp32 or bf16 (rounded stochastically, by numbers that depend on the step alone). Works with gradient
    accumulation, clipping and several processes: under DistributedDataParallel as it is; parameters that FSDP2 has
    sharded are gathered matrix by matrix, and every process keeps the whole state.

    Source: Jordan et al., Muon, 2024; RMS-matched rate and decay: arXiv 2502.16982, section 2.2; row variance: NorMuon,
    arXiv 2510.05491; 8-bit momentum: arXiv 2509.23106; convolutions as flattened matrices: the airbench94_muon record
    of Jordan, arXiv 2404.00498; Adam-pretrained weights do not suit orthogonal updates: arXiv 2605.10468.

    Args:
        params: a module, or parameters, named parameters or groups of them as every optimizer of torch takes. Each
            group may have its own ``lr`` and ``weight_decay`` (and any argument down to ``newton_schulz_steps``). The
            groups of a module are those of `vitrail.optim.parameter_groups`, which decay matrices and convolutions.
        lr: learning rate; `vitrail.optim.default_lr` knows one by batch and width.
        model: the module that the parameters belong to, where ``params`` is none. Without it, and without names, roles
            are recognised by shape alone, and no classifier is recognised.
        weight_decay: decoupled, multiplied with the learning rate.
        momentum: share of the old momentum in a step, in [0, 1); rises to it from 0.85 over the first 300 steps.
        betas: AdamW's, of the parameters that are no matrices.
        eps: AdamW's.
        momentum_dtype: "int8", "bf16" or "fp32": how the momentum of matrices and of a large classifier is kept.
        mode: "scratch", or "finetune" for weights that were pretrained with Adam: matrices then move along the sign of
            the same momentum, as Adam moves them where the gradient's noise is even (Lion, arXiv 2302.06675,
            algorithm 2).
        row_variance: whether rows are equalised; 4 bytes per row.
        newton_schulz_steps: 3, 4, 5 or 6: rounds of matrix products per orthogonalisation. With fewer, weak directions
            of the momentum stay weaker.
        qkv: "split": queries, keys and values made by one layer are a matrix each. "fused": they are one. "heads":
            those of every head are a matrix each, also where layers of their own make them; needs a module whose
            attention tells its number of heads.
        roles: overrides of the routing, by parameter name or pattern, such as ``{"*.conv.weight": "vector"}``.
        release_gradients: update each block during the backward pass and free its gradients at once, so that those of
            the whole model never coexist. Not with gradient accumulation, clipping of the norm of all gradients,
            gradient scaling, closures or several processes. ``step()`` ends the step.

    Raises:
        ConfigError: for a value outside its range, a role that does not exist, or parameters of another dtype.
    """

    def __init__(
        self,
        params: nn.Module | Groups,
        lr: float = 5e-3,
        *,
        model: nn.Module | None = None,
        weight_decay: float = 0.05,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.99),
        eps: float = 1e-8,
        momentum_dtype: MomentumDtype = "int8",
        mode: Mode = "scratch",
        row_variance: bool = True,
        newton_schulz_steps: int = 5,
        qkv: Qkv = "split",
        roles: Mapping[str, Role] | None = None,
        release_gradients: bool = False,
    ) -> None:
        groups: Any = params
        if isinstance(params, nn.Module):
            model, groups = params, parameter_groups(params, weight_decay)
        defaults = {
            "lr": lr,
            "weight_decay": weight_decay,
            "momentum": momentum,
            "betas": betas,
            "eps": eps,
            "momentum_dtype": momentum_dtype,
            "mode": mode,
            "row_variance": row_variance,
            "newton_schulz_steps": newton_schulz_steps,
            "steps": 0,
        }
        _check_choice("qkv", qkv, get_args(Qkv))
        self._qkv: Qkv = qkv
        self._model = model
        self._routes: list[Route] = []
        # Overrides are checked against all parameters together, so groups are routed when all are there.
        self._is_built = False
        super().__init__(groups, defaults)
        self._route(dict(roles or {}), self.param_groups)
        self._model = None
        self._is_built = True
        self._numbers = self._number()
        self._release: GradientRelease | None = None
        if release_gradients:
            self._release = GradientRelease(self._named(), self._update_parameters)

    @property
    def routing(self) -> Routing:
        """How every parameter is updated; ``print(optimizer.routing)`` shows a table."""
        return Routing(self._routes)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters, for example of layers that are no longer frozen; recognised by names and shapes.

        Raises:
            ConfigError: for a value outside its range or parameters of another dtype.
        """
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        _check(group)
        if self._is_built:
            self._route({}, [group])
            group["steps"] = self.param_groups[0]["steps"]
            self._numbers = self._number()
            if self._release is not None:
                self._release.close()
                self._release = GradientRelease(self._named(), self._update_parameters)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Update all parameters that have a gradient; with ``release_gradients``, those not updated before.

        Args:
            closure: computes the loss and its gradients anew; its result is returned.

        Raises:
            ConfigError: for a closure beside ``release_gradients``, or sparse gradients.
        """
        loss = None
        if closure is not None:
            if self._release is not None:
                raise ConfigError("step() takes no closure with release_gradients: call backward() before it.")
            with torch.enable_grad():
                loss = closure()
        if self._release is None:
            self._update_parameters([parameter for group in self.param_groups for parameter in group["params"]])
        else:
            self._update_parameters(self._release.end_step())
        for group in self.param_groups:
            group["steps"] += 1
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over what `state_dict` gave, bit for bit.

        torch's own method converts states to the dtype of their parameters, which would destroy 8-bit ones.

        Raises:
            ValueError: if the groups hold other parameters, or parameters with other roles.
        """
        for own, saved in zip(self.param_groups, state_dict["param_groups"], strict=False):
            if own["roles"] != saved.get("roles") or own["parts"] != saved.get("parts"):
                raise ValueError("the saved state belongs to parameters with other roles")
        super().load_state_dict(state_dict)
        self._numbers = self._number()  # torch has put new groups in place of the old ones
        parameters = [parameter for group in self.param_groups for parameter in group["params"]]
        saved_ids = [number for group in state_dict["param_groups"] for number in group["params"]]
        for number, parameter in zip(saved_ids, parameters, strict=True):
            saved = state_dict["state"].get(number)
            if saved is None:
                continue
            template = self._new_state(parameter)
            if template.keys() != saved.keys() or any(saved[k].shape != v.shape for k, v in template.items()):
                raise ValueError("the saved state is of parameters of other shapes")
            self.state[parameter] = {k: saved[k].detach().to(v.device, v.dtype, copy=True) for k, v in template.items()}

    def _update_parameters(self, parameters: list[Tensor]) -> None:
        """Take one step with those of ``parameters`` that have a gradient."""
        by_role: dict[str, list[Update]] = {"matrices": [], "heads": [], "vectors": []}
        for parameter in parameters:
            if parameter.grad is None:
                continue
            if parameter.grad.is_sparse:
                raise ConfigError("Muon8 takes no sparse gradients; build the Embedding with sparse=False.")
            group, place, number = self._numbers[parameter]
            state = self.state[parameter]
            if not state:
                state.update(self._new_state(parameter))
            rule = _rule(group["roles"][place], parameter)
            seed = group["steps"] * 1_000_003 + number
            by_role[rule].append(Update(parameter, state, group, group["parts"][place], seed))
        with torch.no_grad():
            update_matrices(by_role["matrices"])
            update_heads(by_role["heads"])
            update_vectors(by_role["vectors"])

    def _new_state(self, parameter: Tensor) -> dict[str, Tensor]:
        group, place, _ = self._numbers[parameter]
        rule = _rule(group["roles"][place], parameter)
        if rule == "matrices":
            return new_matrix_state(parameter, group["parts"][place], group)
        return new_head_state(parameter, group) if rule == "heads" else new_vector_state(parameter)

    def _route(self, overrides: Mapping[str, Role], groups: list[dict[str, Any]]) -> None:
        """Write the roles of all parameters into their groups."""
        routes = iter(route_parameters(_named_in(groups), self._model, overrides, self._qkv))
        for group in groups:
            own = [next(routes) for _ in group["params"]]
            group["roles"] = [route.role for route in own]
            group["parts"] = [list(route.parts) for route in own]
            self._routes += own

    def _number(self) -> dict[Tensor, tuple[dict[str, Any], int, int]]:
        """Return each parameter's group, its place in the group and its number in the optimizer."""
        found: dict[Tensor, tuple[dict[str, Any], int, int]] = {}
        for group in self.param_groups:
            for place, parameter in enumerate(group["params"]):
                found[parameter] = (group, place, len(found))
        return found

    def _named(self) -> list[tuple[str, Tensor]]:
        return _named_in(self.param_groups)


def _named_in(groups: list[dict[str, Any]]) -> list[tuple[str, Tensor]]:
    named: list[tuple[str, Tensor]] = []
    for group in groups:
        names = group.get("param_names") or [""] * len(group["params"])
        named += zip(names, group["params"], strict=True)
    return named


def _rule(role: Role, parameter: Tensor) -> str:
    if role == "head":
        return "heads" if parameter.numel() >= LARGE_HEAD else "vectors"
    return "vectors" if role == "vector" else "matrices"


def _check(group: dict[str, Any]) -> None:
    for name, allowed in (
        ("momentum_dtype", get_args(MomentumDtype)),
        ("mode", get_args(Mode)),
        ("newton_schulz_steps", tuple(COEFFICIENTS)),
    ):
        _check_choice(name, group[name], allowed)
    for name in ("lr", "weight_decay", "eps"):
        if not float(group[name]) >= 0:
            raise ConfigError(f"{name} is {group[name]}; it takes a number of at least 0.")
    for name, value in (("momentum", group["momentum"]), *(("betas", beta) for beta in group["betas"])):
        if not 0 <= value < 1:
            raise ConfigError(f"{name} is {group[name]}; it takes numbers from 0 up to, not including, 1.")
    for parameter in group["params"]:
        if parameter.dtype not in _DTYPES:
            raise ConfigError(f"Muon8 takes parameters in fp32 and bf16, not {parameter.dtype}; convert the model.")


def _check_choice(name: str, value: object, allowed: tuple[object, ...]) -> None:
    if value not in allowed:
        hint = did_you_mean(str(value), [str(each) for each in allowed])
        raise ConfigError(f"{name} is {value!r}; it takes {', '.join(map(repr, allowed))}.{hint}")
