"""Small vision transformers with gradients."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import vitrail


@pytest.fixture
def make_vit() -> Callable[..., nn.Module]:
    def make(seed: int = 0, **options) -> nn.Module:
        torch.manual_seed(seed)
        options = {"num_classes": 10, "image_size": 16, "in_channels": 3, **options}
        return vitrail.create_model("vit_micro_patch4", **options)

    return make


@pytest.fixture
def in_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Matrix products of Muon8 are exact enough to compare."""
    monkeypatch.setattr("vitrail.optim.newton_schulz.has_native_bf16", lambda device: False)


@pytest.fixture
def state_bytes() -> Callable[[torch.optim.Optimizer], int]:
    """Bytes of everything in an optimizer's state."""

    def count(optimizer: torch.optim.Optimizer) -> int:
        return sum(value.nbytes for state in optimizer.state.values() for value in state.values())

    return count


@pytest.fixture
def train_steps() -> Callable[..., list[float]]:
    """Steps on random images that depend on the number of the step alone; returns the losses."""

    def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range, size: int = 16) -> list[float]:
        losses: list[float] = []
        for step in steps:
            generator = torch.Generator().manual_seed(step)
            images = torch.randn(8, 3, size, size, generator=generator)
            labels = torch.randint(10, (8,), generator=generator)
            loss: Tensor = nn.functional.cross_entropy(model(images).float(), labels)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
        return losses

    return train
