"""Which rule each parameter of a vision transformer or CNN is updated by.

Roles are recognised by the type of the module that owns the parameter, by its name, and by its shape, for vitrail's own
models and for those of timm, transformers and torchvision.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Final, Literal, NamedTuple, get_args

from torch import Tensor, nn

from vitrail.errors import ConfigError, did_you_mean

Role = Literal["matrix", "convolution", "head", "vector"]
"""matrix: a linear map, also that of a patch embedding or a 1 x 1 kernel. convolution: a kernel whose windows overlap,
one matrix (out, in * kh * kw) per group. head: the classifier. vector: everything else (biases, norms, scales, tokens,
positions, embeddings, depthwise kernels)."""
Qkv = Literal["split", "fused", "heads"]
"""How the matrix that makes queries, keys and values is divided where one layer makes several of them: into one for
each of them, not at all, or further into one for each of their heads (also where they are layers of their own)."""

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
_ATTENTION: Final = frozenset(_FUSED) - {"w12"} | {
    *("q", "k", "v", "query", "key", "value", "to_q", "to_k", "to_v"),
    *("q_proj", "k_proj", "v_proj"),
}
# What attention modules call the number of their heads.
_NUM_HEADS: Final = ("heads", "num_heads", "num_attention_heads", "n_heads")
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


class _Owner(NamedTuple):
    module: nn.Module
    module_name: str
    own_name: str
    """The parameter's, in the module."""
    heads: int
    """Those of the module or of the one around it; 0 where they tell none."""


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
    qkv: Qkv = "split",
) -> Routing:
    """Return the route of every parameter.

    Args:
        named: names and parameters. A name may be empty; then only the model and the shape tell.
        model: the module that owns them, whose layers' types tell most. None: by names and shapes.
        overrides: roles by name or pattern, such as ``{"*.conv.weight": "vector"}``; a later one wins.
        qkv: how the maps of an attention module are divided; "heads" needs the model.

    Raises:
        ConfigError: for a role that does not exist, a pattern without a parameter, a matrix of fewer than two axes, or
            heads that nothing tells the number of.
    """
    parameters = list(named)
    owners = {} if model is None else _owners(model)
    heads = _heads([name for name, parameter in parameters if parameter.ndim >= 2])
    routes = []
    for name, parameter in parameters:
        role, parts, why = _recognise(name, parameter, owners.get(id(parameter)), name in heads)
        routes.append(Route(name, role, parts, tuple(parameter.shape), why))
    routes = _override(routes, overrides or {})
    if qkv != "split":
        routes = [_divide(route, owners.get(id(p)), qkv) for route, (_, p) in zip(routes, parameters, strict=True)]
    return Routing(routes)


def _owners(model: nn.Module) -> dict[int, _Owner]:
    """Return, by the parameter's id, what is known about the module that owns it."""
    modules = dict(model.named_modules())
    found = {}
    for path, module in modules.items():
        around, _, module_name = path.rpartition(".")
        heads = _num_heads(module) or (_num_heads(modules[around]) if path else 0)
        for name, parameter in module.named_parameters(recurse=False):
            found[id(parameter)] = _Owner(module, module_name, name, heads)
    return found


def _num_heads(module: nn.Module) -> int:
    counts = (getattr(module, name, None) for name in _NUM_HEADS)
    return next((count for count in counts if isinstance(count, int)), 0)


def _heads(names: Sequence[str]) -> set[str]:
    """Return the weight of each classifier: the last one under a name that heads have (others there are hidden)."""
    last = {}
    for name in names:
        top = _WRAPPERS.sub("", name).split(".")[0]
        if top in _HEADS and name.endswith("weight"):
            last[top] = name
    return set(last.values())


def _recognise(name: str, parameter: Tensor, owner: _Owner | None, is_head: bool) -> tuple[Role, int, str]:
    if parameter.ndim < 2:
        return "vector", 1, "fewer than two axes"
    if is_head:
        return "head", 1, "name of a classifier"
    if owner is None:
        return _by_name(name, parameter)
    module, module_name, own_name, _ = owner
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


def _divide(route: Route, owner: _Owner | None, qkv: Qkv) -> Route:
    """Return the route of a matrix that makes queries, keys or values with as many parts as ``qkv`` asks for."""
    own_name = _module_name(route.name).removesuffix("_weight")
    if owner is not None and owner.own_name == "weight":
        own_name = owner.module_name
    if route.role != "matrix" or own_name not in _ATTENTION:
        return route
    if qkv == "fused":
        return replace(route, parts=1)
    if owner is None or owner.heads < 1:
        raise ConfigError(
            f"qkv='heads' cannot divide {route.name}: no attention module tells its number of heads "
            f"({', '.join(_NUM_HEADS)}). Give the whole model, or take qkv='split'."
        )
    parts = route.parts * owner.heads
    rows = route.shape[0]
    return replace(route, parts=parts) if rows % parts == 0 and rows // parts >= _THINNEST else route


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
