"""A model, its images and its training, all small enough for a test."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from vitrail.optim import create_optimizer
from vitrail.runtime.precision import Precision
from vitrail.training import Ema, TrainState

FP32 = Precision(torch.float32, "cpu", "fp32.")


class TinyModel(nn.Module):
    """Has a matrix, vectors, a buffer that changes and dropout."""

    def __init__(self, dropout: float = 0.0, width: int = 8) -> None:
        super().__init__()
        self.embed = nn.Linear(12, width)
        self.norm = nn.BatchNorm1d(width)
        self.drop = nn.Dropout(dropout)
        self.head = nn.Linear(width, 3)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.drop(self.norm(self.embed(images.flatten(1)).relu())))


@dataclass
class Batch:
    images: Tensor
    targets: Tensor


class Batches:
    """Random images; batch b of epoch n is always the same."""

    def __init__(self, sizes: tuple[int, ...] = (4, 4, 4, 4)) -> None:
        self.sizes = sizes

    def __len__(self) -> int:
        return len(self.sizes)

    def epoch(self, n: int, start_batch: int = 0) -> Iterator[Batch]:
        for index in range(start_batch, len(self.sizes)):
            generator = torch.Generator().manual_seed(1000 * n + index)
            images = torch.randn(self.sizes[index], 3, 2, 2, generator=generator)
            yield Batch(images, torch.randint(3, (self.sizes[index],), generator=generator))


@pytest.fixture
def batches() -> Callable[..., Batches]:
    return Batches


@pytest.fixture
def fp32() -> Precision:
    return FP32


@pytest.fixture
def make_state() -> Callable[..., TrainState]:
    def make(
        *, seed: int = 0, dropout: float = 0.0, optimizer: str = "adamw", lr: float = 0.01, width: int = 8
    ) -> TrainState:
        torch.manual_seed(seed)
        model = TinyModel(dropout, width)
        return TrainState(
            model=model,
            optimizer=create_optimizer(model, optimizer, lr=lr, weight_decay=0.05),
            ema=Ema(model, 0.9),
        )

    return make
