"""The rule for matrices and convolutions: momentum, orthogonalised.

Axes: K matrices of equal shape, r rows, c columns; B blocks of 128 elements, in which the elements of all matrices of a
chunk lie side by side, so that everything but the products is one operation for matrices of any shapes.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor

from vitrail.optim.blocks import BLOCK, Layout, num_blocks
from vitrail.optim.momentum import accumulate, new_momentum
from vitrail.optim.newton_schulz import orthogonalize_all
from vitrail.optim.parameters import is_direct, whole, write

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
# Arguments of a group that matrices must share to be updated together.
_SHARED: Final = (*("steps", "momentum", "momentum_dtype", "mode", "row_variance", "newton_schulz_steps"),)


class Update(NamedTuple):
    """A parameter that has a gradient, with all that its update needs."""

    parameter: Tensor
    state: dict[str, Tensor]
    group: dict[str, Any]
    parts: Sequence[int]
    """Rows of each matrix that it holds."""
    seed: int
    """Of the rounding of bf16 weights; another one in every step and for every parameter."""


class _Matrix(NamedTuple):
    """One of the matrices that a parameter holds."""

    update: Update
    start: int
    """Its first row."""
    rows: int
    columns: int
    block: int
    """Its first scale."""

    def of(self, tensor: Tensor) -> Tensor:
        """Return its rows of a tensor of the parameter's shape."""
        return tensor if self.rows == tensor.shape[0] else tensor.narrow(0, self.start, self.rows)


def new_matrix_state(parameter: Tensor, parts: Sequence[int], group: dict[str, Any]) -> dict[str, Tensor]:
    """Return the state of a parameter that holds matrices before its first step."""
    columns = parameter.numel() // parameter.shape[0]
    sizes = [rows * columns for rows in parts]
    state = new_momentum(parameter.shape, sizes, group["momentum_dtype"], parameter.device)
    if group["row_variance"] and group["mode"] == "scratch":
        state["row_square"] = torch.zeros(parameter.shape[0], dtype=torch.float32, device=parameter.device)
    return state


def update_matrices(updates: Iterable[Update]) -> None:
    """Take one step with every matrix; those of equal shape are multiplied together."""
    buckets: dict[tuple[object, ...], list[Update]] = {}
    shared: dict[int, tuple[object, ...]] = {}
    for update in updates:
        group = update.group
        if id(group) not in shared:
            shared[id(group)] = tuple(group[name] for name in _SHARED)
        buckets.setdefault((update.parameter.device, *shared[id(group)]), []).append(update)
    for same in buckets.values():
        for chunk in _chunks(same):
            _update_chunk(chunk)


def _chunks(updates: list[Update]) -> Iterator[list[Update]]:
    """Divide updates so that those with matrices of equal shape are together."""
    most = _CHUNK_ELEMENTS.get(updates[0].parameter.device.type, _CHUNK_ELEMENTS_ELSEWHERE)
    chunk: list[Update] = []
    size = 0
    for update in sorted(updates, key=lambda each: (max(each.parts), each.parameter.numel() // sum(each.parts))):
        if chunk and size + update.parameter.numel() > most:
            yield chunk
            chunk, size = [], 0
        chunk.append(update)
        size += update.parameter.numel()
    yield chunk


def _matrices(updates: Iterable[Update]) -> list[_Matrix]:
    """Return the matrices of all parameters; those of equal shape are neighbours."""
    found = []
    for update in updates:
        start, block, columns = 0, 0, update.parameter.numel() // update.parameter.shape[0]
        for rows in update.parts:
            found.append(_Matrix(update, start, rows, columns, block))
            start, block = start + rows, block + num_blocks(rows * columns)
    return sorted(found, key=_shape)


def _shape(matrix: _Matrix) -> tuple[int, int]:
    return matrix.rows, matrix.columns


def _update_chunk(updates: Sequence[Update]) -> None:
    group = updates[0].group
    matrices = _matrices(updates)
    layout = Layout([matrix.rows * matrix.columns for matrix in matrices])
    gradients = {id(update): whole(update.parameter.grad) for update in updates}  # type: ignore[arg-type]
    buffer = layout.gather([matrix.of(gradients[id(matrix.update)]) for matrix in matrices])
    beta = _momentum_at(group["steps"], group["momentum"])
    direction = accumulate(layout, *_momenta(matrices, layout), buffer, beta)
    direction.lerp_(buffer, 1 - beta)  # Nesterov's
    step = buffer  # its gradients have been used
    if group["mode"] == "finetune":
        torch.sign(direction, out=step).mul_(ADAMW_RMS)
    else:
        found = orthogonalize_all(_stacks(matrices, layout, direction), group["newton_schulz_steps"])
        for stack, each in zip(_stacks(matrices, layout, step), found, strict=True):
            stack.copy_(each)
        _scale(step, matrices, layout)
    values = {id(update): whole(update.parameter.detach()) for update in updates}
    weights = layout.gather([matrix.of(values[id(matrix.update)]) for matrix in matrices])
    _apply(weights, step, matrices, layout)
    if all(is_direct(update.parameter) for update in updates):
        layout.scatter(weights, [matrix.of(values[id(matrix.update)]) for matrix in matrices])
    else:
        _write(weights, updates, matrices, layout)


def _momenta(matrices: Sequence[_Matrix], layout: Layout) -> tuple[list[Tensor], list[Tensor]]:
    """Return the momentum of each matrix, and its scales where it has some."""
    momenta = [matrix.of(matrix.update.state["momentum"]) for matrix in matrices]
    if "momentum_scale" not in matrices[0].update.state:
        return momenta, []
    pairs = zip(matrices, layout.blocks, strict=True)
    return momenta, [each.update.state["momentum_scale"].narrow(0, each.block, blocks) for each, blocks in pairs]


def _stacks(matrices: Sequence[_Matrix], layout: Layout, buffer: Tensor) -> list[Tensor]:
    """Return views (K, r, c) of a buffer, each on the matrices of one shape."""
    found = []
    number = 0
    for (rows, columns), same in groupby(matrices, key=_shape):
        count = sum(1 for _ in same)
        strides = (layout.blocks[number] * BLOCK, columns, 1)
        found.append(buffer.as_strided((count, rows, columns), strides, layout.starts[number]))
        number += count
    return found


def _momentum_at(step: int, highest: float) -> float:
    """Return the share of the old momentum in a step from 0: short memory while the first gradients turn quickly."""
    start = min(_MOMENTUM_START, highest)
    return start + (highest - start) * min(1.0, step / _MOMENTUM_WARMUP_STEPS)


def _scale(step: Tensor, matrices: Sequence[_Matrix], layout: Layout) -> None:
    """Give orthogonal matrices AdamW's size.

    With row variance each row (an output's weights) is first divided by its running RMS, and then the norm of each
    matrix restored. Source: Li et al., NorMuon, arXiv 2510.05491, algorithm 1.
    """
    sizes = [ADAMW_RMS * math.sqrt(max(_shape(matrix))) for matrix in matrices]
    if "row_square" not in matrices[0].update.state:
        torch._foreach_mul_(layout.parts(step), sizes)
        return
    lengths = [matrix.rows for matrix in matrices]
    norms = step.new_empty(sum(lengths))  # of the rows of all matrices, one after the other as in what follows
    stacks = _stacks(matrices, layout, step)
    for stack, out in zip(stacks, _by_stack(norms, stacks), strict=True):
        torch.linalg.vector_norm(stack, dim=-1, out=out)
    kept = [each.update.state["row_square"].narrow(0, each.start, each.rows) for each in matrices]
    running = torch.cat(kept).lerp_(norms.square(), 1 - _ROW_BETA)
    torch._foreach_copy_(kept, list(torch.split(running, lengths)))
    tiny = torch.finfo(torch.float32).tiny
    factors = running.clamp_min_(tiny).rsqrt_()
    before, after = (
        torch.cat([torch.linalg.vector_norm(rows, dim=1) for rows in _by_stack(values, stacks)])
        for values in (norms, norms * factors)
    )
    of_each = list(torch.split(factors, lengths))
    torch._foreach_mul_(of_each, list((before / after.clamp_min_(tiny)).unbind()))
    torch._foreach_mul_(of_each, sizes)
    for stack, rows in zip(stacks, _by_stack(factors, stacks), strict=True):
        stack.mul_(rows[..., None])


def _by_stack(rows: Tensor, stacks: Sequence[Tensor]) -> list[Tensor]:
    """Return views (K, r) of what is there for every row, each on the matrices of one stack."""
    shapes = [stack.shape[:2] for stack in stacks]
    return [part.view(shape) for part, shape in zip(torch.split(rows, [k * r for k, r in shapes]), shapes, strict=True)]


def _apply(weights: Tensor, step: Tensor, matrices: Sequence[_Matrix], layout: Layout) -> None:
    """Decay weights and move them by ``step``, each matrix by its group's rate; ``step`` is used up."""
    rates = [float(matrix.update.group["lr"]) for matrix in matrices]
    decays = [rate * float(matrix.update.group["weight_decay"]) for rate, matrix in zip(rates, matrices, strict=True)]
    if any(decays):
        weights.mul_(_common([1 - decay for decay in decays], weights, layout))
    # Multiplied by numbers and not by a tensor of them, which would make a GPU wait for its copy.
    weights.sub_(step, alpha=_common(rates, step, layout))


def _common(factors: Sequence[float], buffer: Tensor, layout: Layout) -> float:
    """Return the factor that all matrices have, or 1 after multiplying each in the buffer by its own."""
    if len(set(factors)) == 1:
        return factors[0]
    torch._foreach_mul_(layout.parts(buffer), list(factors))
    return 1.0


def _write(weights: Tensor, updates: Sequence[Update], matrices: Sequence[_Matrix], layout: Layout) -> None:
    """Set the parameters to what the buffer holds."""
    values: dict[int, list[tuple[int, Tensor]]] = {}
    for matrix, part in zip(matrices, layout.parts(weights), strict=True):
        values.setdefault(id(matrix.update), []).append((matrix.start, part))
    whole_values = []
    for update in updates:
        parts = [part for _, part in sorted(values[id(update)], key=lambda pair: pair[0])]
        whole_values.append(parts[0] if len(parts) == 1 else torch.cat(parts))
    write([update.parameter for update in updates], whole_values, [update.seed for update in updates])
