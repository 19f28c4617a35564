"""Which rule each parameter of a vision transformer or CNN is updated by.

Roles are recognised by the type of the module that owns the parameter, by its name, and by its shape, for vitrail's own
models and for those of timm, transformers and torchvision.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Final, Literal, get_args

from torch import Tensor, nn

from vitrail.errors import ConfigError, did_you_mean

Role = Literal["matrix", "convolution", "head", "vector"]
"""matrix: a linear map, also that of a patch embedding or a 1 x 1 kernel. convolution: a kernel whose windows overlap,
one matrix (out, in * kh * kw) per group. head: the classifier. vector: everything else (biases, norms, scales, tokens,
positions, embeddings, depthwise kernels)."""

_CONVOLUTIONS: Final = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
# What torch.compile, DistributedDataParallel and common wrappers put before a name.
_WRAPPERS: Final = re.compile(r"^(?:(?:_orig_mod|module|model)\.)+")
_HEADS: Final = frozenset(
    {"head", "heads", "head_dist", "classifier", "cls_classifier", "distillation_classifier", "fc"}
)
# Modules that compute several maps with one matrix, stacked along its rows. Each map has its own singular values.
_FUSED: Final = {
    **dict.fromkeys(("qkv", "qkv_proj", "to_qkv", "Wqkv", "in_proj", "query_key_value", "c_attn"), 3),
    **dict.fromkeys(("kv", "kv_proj", "to_kv", "key_value", "qk", "w12"), 2),
}
_LOOKED_UP: Final = re.compile(r"token|pos_|position|table|embedding|latent|query$|wte|wpe")
# Orthogonalising a few rows only normalises them, and with them every element's own scale is lost.
_THINNEST: Final = 8
_MATRIX_NAMES: Final = frozenset({"weight", "in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight"})


@dataclass(frozen=True)
class Route:
    """How one parameter is updated."""

    name: str
    role: Role
    parts: int
    """Matrices that its rows hold, one below the other: 3 for fused queries, keys and values."""
    shape: tuple[int, ...]
    why: str
    """What it was recognised by."""


class Routing(tuple[Route, ...]):
    """The route of every parameter of an optimizer; printed, a table in which numbered layers share a row."""

    __slots__ = ()

    def __str__(self) -> str:
        rows: dict[tuple[str, ...], tuple[int, int]] = {}
        for route in self:
            parts = f"{route.role} x {route.parts}" if route.parts > 1 else route.role
            size = 1
            for side in route.shape:
                size *= side
            key = (re.sub(r"\b\d+\b", "*", route.name), "x".join(map(str, route.shape)), parts, route.why)
            count, total = rows.get(key, (0, 0))
            rows[key] = (count + 1, total + size)
        header = ("parameter", "shape", "role", "recognised by", "tensors", "elements")
        cells: list[tuple[str, ...]] = [header]
        cells += [(*key, str(count), f"{total:,}") for key, (count, total) in rows.items()]
        widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
        return "\n".join(
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells
        )


def route_parameters(
    named: Iterable[tuple[str, Tensor]],
    model: nn.Module | None = None,
    overrides: Mapping[str, Role] | None = None,
) -> Routing:
    """Return the route of every parameter.

    Args:
        named: names and parameters. A name may be empty; then only the model and the shape tell.
        model: the module that owns them, whose layers' types tell most. None: by names and shapes.
        overrides: roles by name or pattern, such as ``{"*.conv.weight": "vector"}``; a later one wins.

    Raises:
        ConfigError: for a role that does not exist, a pattern without a parameter, or a matrix of fewer than two axes.
    """
    parameters = list(named)
    owners = {} if model is None else _owners(model)
    heads = _heads([name for name, parameter in parameters if parameter.ndim >= 2])
    routes = []
    for name, parameter in parameters:
        role, parts, why = _recognise(name, parameter, owners.get(id(parameter)), name in heads)
        routes.append(Route(name, role, parts, tuple(parameter.shape), why))
    return Routing(_override(routes, overrides or {}))


def _owners(model: nn.Module) -> dict[int, tuple[nn.Module, str, str]]:
    """Return, by the parameter's id, the module that owns it, the module's own name and the parameter's in it."""
    return {
        id(parameter): (module, path.rpartition(".")[2], name)
        for path, module in model.named_modules()
        for name, parameter in module.named_parameters(recurse=False)
    }


def _heads(names: Sequence[str]) -> set[str]:
    """Return the weight of each classifier: the last one under a name that heads have (others there are hidden)."""
    last = {}
    for name in names:
        top = _WRAPPERS.sub("", name).split(".")[0]
        if top in _HEADS and name.endswith("weight"):
            last[top] = name
    return set(last.values())


def _recognise(
    name: str, parameter: Tensor, owner: tuple[nn.Module, str, str] | None, is_head: bool
) -> tuple[Role, int, str]:
    if parameter.ndim < 2:
        return "vector", 1, "fewer than two axes"
    if is_head:
        return "head", 1, "name of a classifier"
    if owner is None:
        return _by_name(name, parameter)
    module, module_name, own_name = owner
    if isinstance(module, _CONVOLUTIONS):
        # Windows that do not overlap see every input once: a linear map, as patch embeddings and 1 x 1 kernels are.
        overlaps = any(side > step for side, step in zip(module.kernel_size, module.stride, strict=True))
        is_map = module.groups == 1 and not overlaps
        kind = type(module).__name__ + (", no overlap" if is_map else "")
        role, parts, why = _convolution(parameter, module.groups, module_name, kind)
        return ("matrix" if is_map and role == "convolution" else role), parts, why
    if isinstance(module, nn.Linear | nn.MultiheadAttention) and own_name in _MATRIX_NAMES:
        return _matrix(parameter, module_name if own_name == "weight" else own_name, type(module).__name__)
    if isinstance(module, nn.Embedding):
        return "vector", 1, "Embedding"
    return _by_name(name, parameter)


def _by_name(name: str, parameter: Tensor) -> tuple[Role, int, str]:
    """Recognise a parameter whose module is unknown, or of a type that torch does not define."""
    *_, module_name, own_name = ["", *name.split(".")]
    is_weight = not name or own_name in _MATRIX_NAMES
    if parameter.ndim >= 4 and is_weight:
        return _convolution(parameter, 1, module_name, "four axes")
    looked_up = _LOOKED_UP.search(f"{module_name}.{own_name.removesuffix('weight')}".strip("."))
    if parameter.ndim == 2 and is_weight and not looked_up:
        return _matrix(parameter, module_name if own_name == "weight" else own_name, "two axes")
    return "vector", 1, "name or number of axes"


def _convolution(parameter: Tensor, groups: int, module_name: str, why: str) -> tuple[Role, int, str]:
    rows, inputs = parameter.shape[0], parameter.shape[1]
    if inputs == 1 and (groups > 1 or why == "four axes"):
        return "vector", 1, "depthwise kernel"
    parts = groups if groups > 1 else _num_parts(module_name, rows)
    if min(rows // parts, parameter.numel() // rows) < _THINNEST:
        return "vector", 1, f"{why}, thinner than {_THINNEST}"
    return "convolution", parts, why


def _matrix(parameter: Tensor, module_name: str, why: str) -> tuple[Role, int, str]:
    parts = _num_parts(module_name, parameter.shape[0])
    if min(parameter.shape[0] // parts, parameter.shape[1]) < _THINNEST:
        return "vector", 1, f"{why}, thinner than {_THINNEST}"
    return "matrix", parts, why


def _num_parts(module_name: str, rows: int) -> int:
    parts = _FUSED.get(module_name.removesuffix("_weight"), 1)
    return parts if rows % parts == 0 else 1


def _override(routes: list[Route], overrides: Mapping[str, Role]) -> list[Route]:
    allowed = get_args(Role)
    for pattern, role in overrides.items():
        if role not in allowed:
            hint = did_you_mean(str(role), allowed)
            raise ConfigError(f"roles[{pattern!r}] is {role!r}; it takes {', '.join(map(repr, allowed))}.{hint}")
        matches = [index for index, route in enumerate(routes) if fnmatchcase(route.name, pattern)]
        if not matches:
            hint = did_you_mean(pattern, (route.name for route in routes))
            raise ConfigError(f"roles has {pattern!r}, but no trainable parameter is called so.{hint}")
        for index in matches:
            routes[index] = _with_role(routes[index], role)
    return routes


def _with_role(route: Route, role: Role) -> Route:
    if role != "vector" and len(route.shape) < 2:
        raise ConfigError(f"{route.name} has {len(route.shape)} axes and cannot be a {role}; it takes 'vector'.")
    parts = _num_parts(_module_name(route.name), route.shape[0]) if role in {"matrix", "convolution"} else 1
    return Route(route.name, role, max(parts, route.parts if role != "vector" else 1), route.shape, "override")


def _module_name(name: str) -> str:
    *_, module_name, own_name = ["", *name.split(".")]
    return own_name if own_name != "weight" else module_name
