"""Updating the weights of a block as soon as its gradients are there, so that never all gradients coexist."""

import re
import weakref
from collections.abc import Callable, Iterable
from typing import Final

import torch
from torch import Tensor

from vitrail.errors import ConfigError
from vitrail.optim.parameters import is_sharded

# A block is what the last number counts that more than a layer belongs to: "stages.1.blocks.3" of
# "stages.1.blocks.3.mlp.0.weight". Without one it is a numbered layer, and without a number the name's first part.
_UNIT: Final = re.compile(r"^(?:.*[._]\d+(?=\.[^.]+\.)|.*?[._]\d+(?=\.)|[^.]+)")


def block_of(name: str) -> str:
    """Return the name of the block that a parameter belongs to; of one without a name, an empty string."""
    found = _UNIT.match(name)
    return found[0] if found else ""


class GradientRelease:
    """Calls ``update`` with the parameters of a block when the backward pass has left all of their gradients.

    Args:
        named: names and parameters of the optimizer, each once.
        update: updates some parameters and is called without gradients being recorded; their gradients are freed
            afterwards.

    Raises:
        ConfigError: with several processes, because gradients are averaged over them only after the block's hooks.
    """

    def __init__(self, named: Iterable[tuple[str, Tensor]], update: Callable[[list[Tensor]], None]) -> None:
        parameters = list(named)
        distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
        if (distributed and torch.distributed.get_world_size() > 1) or any(is_sharded(p) for _, p in parameters):
            raise ConfigError(
                "release_gradients is for one process: it updates a block before the gradients of several processes "
                "are averaged. Leave it out."
            )
        # Weak, for the hooks live as long as the parameters and would keep the optimizer alive.
        self._update = weakref.WeakMethod(update)
        self._units: dict[str, dict[int, Tensor]] = {}
        self._arrived: set[int] = set()
        self._handles = []
        for number, (name, parameter) in enumerate(parameters):
            unit = block_of(name) or str(number)
            self._units.setdefault(unit, {})[number] = parameter
            hook = self._hook(number, name or f"parameter {number}", unit)
            self._handles.append(parameter.register_post_accumulate_grad_hook(hook))  # type: ignore[no-untyped-call]

    def end_step(self) -> list[Tensor]:
        """Return the parameters whose gradients are still there: of blocks of which a part got none."""
        self._arrived.clear()
        return [p for members in self._units.values() for p in members.values() if p.grad is not None]

    def close(self) -> None:
        """Take the hooks off the parameters."""
        for handle in self._handles:
            handle.remove()

    def arrived(self, number: int, name: str, unit: str) -> None:
        """Note that a gradient is there, and update its block when it was the last one.

        Raises:
            ConfigError: for a second gradient since `end_step`.
        """
        if number in self._arrived:
            raise ConfigError(
                f"{name} got a second gradient before optimizer.step(). With release_gradients every backward pass is "
                "one step: leave out gradient accumulation, or release_gradients."
            )
        self._arrived.add(number)
        members, update = self._units[unit], self._update()
        if update is not None and members.keys() <= self._arrived:
            update(list(members.values()))
            for parameter in members.values():
                parameter.grad = None

    def _hook(self, number: int, name: str, unit: str) -> Callable[[Tensor], None]:
        own = weakref.ref(self)

        def hook(_: Tensor) -> None:
            release = own()
            if release is not None:
                release.arrived(number, name, unit)

        return hook
