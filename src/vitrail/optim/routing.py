"""Which rule each parameter of a vision transformer or CNN is updated by.

Roles are recognised by the type of the module that owns the parameter, by its name, and by its shape, for vitrail's own
models and for those of timm, transformers and torchvision.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
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
_NUMBER: Final = re.compile(r"(?<![^\W_])\d+(?![^\W_])")  # also "layer_3", not "conv3"
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
# The layers of an MLP. Where the first has twice the outputs that the second takes, half are gates: timm's GluMlp.
_GATED: Final = ("fc1", "fc2")
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
    parts: tuple[int, ...]
    """Rows of the matrices that it holds, one below the other: three for fused queries, keys and values."""
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
    parts: tuple[int, ...]
    """Rows of each map, where the attention module around it tells them as ``parts``, or those of a gated MLP."""


class Routing(tuple[Route, ...]):
    """The route of every parameter of an optimizer; printed, a table in which numbered layers share a row."""

    __slots__ = ()

    def __str__(self) -> str:
        rows: dict[tuple[str, ...], tuple[int, int]] = {}
        for route in self:
            kinds = [str(len(route.parts))] if len(set(route.parts)) == 1 else [str(rows) for rows in route.parts]
            parts = f"{route.role} x {' + '.join(kinds)}" if len(route.parts) > 1 else route.role
            size = 1
            for side in route.shape:
                size *= side
            key = (_NUMBER.sub("*", route.name), "x".join(map(str, route.shape)), parts, route.why)
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
    heads = _heads(parameters, model)
    roles = [_recognise(name, parameter, owners.get(id(parameter)), name in heads) for name, parameter in parameters]
    _override(roles, parameters, overrides or {})
    return Routing(
        Route(name, role, _parts(name, role, p, owners.get(id(p)), qkv), tuple(p.shape), why)
        for (name, p), (role, why) in zip(parameters, roles, strict=True)
    )


def _owners(model: nn.Module) -> dict[int, _Owner]:
    """Return, by the parameter's id, what is known about the module that owns it."""
    modules = dict(model.named_modules())
    found = {}
    for path, module in modules.items():
        around, _, module_name = path.rpartition(".")
        heads = _num_heads(module) or (_num_heads(modules[around]) if path else 0)
        for name, parameter in module.named_parameters(recurse=False):
            parts = _told_parts(path, modules, parameter)
            found[id(parameter)] = _Owner(module, module_name, name, heads, parts)
    return found


def _told_parts(path: str, modules: Mapping[str, nn.Module], parameter: Tensor) -> tuple[int, ...]:
    """Return the rows of each map of a fused layer, as the module it is a part of tells them; or nothing."""
    names = path.split(".")
    for end in range(len(names) - 1, max(-1, len(names) - 3), -1):
        told = getattr(modules[".".join(names[:end])], "parts", None)
        is_fused = any(name in _FUSED for name in names[end:])
        if is_fused and isinstance(told, tuple) and parameter.ndim > 1 and sum(told) == parameter.shape[0]:
            return told
    if names[-1] == _GATED[0] and parameter.ndim > 1:
        next_layer = getattr(modules[".".join(names[:-1])], _GATED[1], None)
        half = getattr(next_layer, "in_features", 0)
        if parameter.shape[0] == 2 * half:
            return (half, half)
    return ()


def _num_heads(module: nn.Module) -> int:
    counts = (getattr(module, name, None) for name in _NUM_HEADS)
    return next((count for count in counts if isinstance(count, int)), 0)


def _heads(named: Sequence[tuple[str, Tensor]], model: nn.Module | None) -> set[str]:
    """Return the weight of each classifier.

    timm's models tell theirs. Of others it is the last one under a name that heads have (others there are hidden).
    """
    matrices = [(name, parameter) for name, parameter in named if parameter.ndim >= 2]
    if callable(tell := getattr(model, "get_classifier", None)):
        told = tell()
        modules = told if isinstance(told, list | tuple) else [told]
        own = {id(p) for module in modules if isinstance(module, nn.Module) for p in module.parameters()}
        return {name for name, parameter in matrices if id(parameter) in own}
    last = {}
    for name, _ in matrices:
        top = _WRAPPERS.sub("", name).split(".")[0]
        if top in _HEADS and name.endswith("weight"):
            last[top] = name
    return set(last.values())


def _recognise(name: str, parameter: Tensor, owner: _Owner | None, is_head: bool) -> tuple[Role, str]:
    if parameter.ndim < 2:
        return "vector", "fewer than two axes"
    if is_head:
        return "head", "name of a classifier"
    if owner is None:
        return _by_name(name, parameter)
    module = owner.module
    if isinstance(module, _CONVOLUTIONS):
        # Windows that do not overlap see every input once: a linear map, as patch embeddings and 1 x 1 kernels are.
        overlaps = any(side > step for side, step in zip(module.kernel_size, module.stride, strict=True))
        is_map = module.groups == 1 and not overlaps
        kind = type(module).__name__ + (", no overlap" if is_map else "")
        return _convolution(parameter, module.groups, "matrix" if is_map else "convolution", kind)
    if isinstance(module, nn.Linear | nn.MultiheadAttention) and owner.own_name in _MATRIX_NAMES:
        return _unless_thin("matrix", type(module).__name__, *_sides(parameter))
    if isinstance(module, nn.Embedding):
        return "vector", "Embedding"
    return _by_name(name, parameter)


def _by_name(name: str, parameter: Tensor) -> tuple[Role, str]:
    """Recognise a parameter whose module is unknown, or of a type that torch does not define."""
    *_, module_name, own_name = ["", *name.split(".")]
    is_weight = not name or own_name in _MATRIX_NAMES
    if parameter.ndim >= 4 and is_weight:
        return _convolution(parameter, 1, "convolution", "four axes")
    looked_up = _LOOKED_UP.search(f"{module_name}.{own_name.removesuffix('weight')}".strip("."))
    if parameter.ndim == 2 and is_weight and not looked_up:
        return _unless_thin("matrix", "two axes", *_sides(parameter))
    return "vector", "name or number of axes"


def _convolution(parameter: Tensor, groups: int, role: Role, why: str) -> tuple[Role, str]:
    if parameter.shape[1] == 1 and (groups > 1 or why == "four axes"):
        return "vector", "depthwise kernel"
    rows, columns = _sides(parameter)
    return _unless_thin(role, why, rows // groups, columns)


def _unless_thin(role: Role, why: str, rows: int, columns: int) -> tuple[Role, str]:
    return ("vector", f"{why}, thinner than {_THINNEST}") if min(rows, columns) < _THINNEST else (role, why)


def _sides(parameter: Tensor) -> tuple[int, int]:
    """Return the rows and columns of a parameter as one matrix."""
    return parameter.shape[0], parameter.numel() // parameter.shape[0]


def _parts(name: str, role: Role, parameter: Tensor, owner: _Owner | None, qkv: Qkv) -> tuple[int, ...]:
    """Return the rows of each matrix that a parameter holds."""
    rows = parameter.shape[0] if parameter.ndim else 1
    if role not in {"matrix", "convolution"}:
        return (rows,)
    groups = getattr(owner.module, "groups", 1) if owner is not None else 1
    if groups > 1:
        return (rows // groups,) * groups if rows // groups >= _THINNEST else (rows,)
    layer = _module_name(name) if owner is None or owner.own_name != "weight" else owner.module_name
    layer = layer.removesuffix("_weight")
    told = owner.parts if owner is not None else ()
    parts = told or _fused_parts(layer, *_sides(parameter))
    if qkv == "split" or layer == _GATED[0] or not (told or layer in _ATTENTION):
        return parts
    if qkv == "fused":
        return (rows,)
    heads = owner.heads if owner is not None else 0
    if heads < 1 and len(set(parts)) == 1:
        raise ConfigError(
            f"qkv='heads' cannot divide {name}: no attention module tells its number of heads "
            f"({', '.join(_NUM_HEADS)}). Give the whole model, or take qkv='split'."
        )
    if heads < 1 or any(part % heads or part // heads < _THINNEST for part in parts):
        return parts
    return tuple(part // heads for part in parts for _ in range(heads))


def _fused_parts(layer: str, rows: int, columns: int) -> tuple[int, ...]:
    """Return the rows of each map that a layer of this name computes."""
    count = _FUSED.get(layer, 1)
    if count == 3 and rows == 1 + 2 * columns:  # one score per token, keys, values: MobileViTv2, arXiv 2206.02680
        return (1, columns, columns)
    if count == 3 and rows == 2 * columns:  # queries come from elsewhere
        count = 2
    return (rows // count,) * count if rows % count == 0 else (rows,)


def _override(
    roles: list[tuple[Role, str]], named: Sequence[tuple[str, Tensor]], overrides: Mapping[str, Role]
) -> None:
    """Put the roles that ``overrides`` asks for in place of those that were recognised."""
    allowed = get_args(Role)
    for pattern, role in overrides.items():
        if role not in allowed:
            hint = did_you_mean(str(role), allowed)
            raise ConfigError(f"roles[{pattern!r}] is {role!r}; it takes {', '.join(map(repr, allowed))}.{hint}")
        matches = [index for index, (name, _) in enumerate(named) if fnmatchcase(name, pattern)]
        if not matches:
            hint = did_you_mean(pattern, (name for name, _ in named))
            raise ConfigError(f"roles has {pattern!r}, but no trainable parameter is called so.{hint}")
        for index in matches:
            name, parameter = named[index]
            if role != "vector" and parameter.ndim < 2:
                raise ConfigError(f"{name} has {parameter.ndim} axes and cannot be a {role}; it takes 'vector'.")
            roles[index] = (role, "override")


def _module_name(name: str) -> str:
    *_, module_name, own_name = ["", *name.split(".")]
    return own_name if own_name != "weight" else module_name
