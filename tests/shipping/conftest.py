"""One small model, real images for it, and one bundle of both; exports take seconds and are shared by the session."""

import hashlib
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits
from torch import nn

from vitrail.config import Preprocess
from vitrail.models import create_model
from vitrail.shipping.bundle import ProofBatch, export_bundle
from vitrail.shipping.parity import Parity

CLASSES = ("zero", "one", "two", "three", "vier und fünf")
PREPROCESS = Preprocess(image_size=(32, 32), mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
TEMPERATURE = 1.7
NUM_IMAGES = 48


@dataclass(frozen=True)
class Exported:
    """What a test needs to know of the shared bundle."""

    folder: Path
    parity: Parity
    images: np.ndarray
    labels: np.ndarray


def noisy_model(seed: int = 0) -> nn.Module:
    """A ViT whose every parameter matters: freshly made, the gates of local enhancement are zero."""
    torch.manual_seed(seed)
    model = create_model("vit_micro_patch4", image_size=32, num_classes=len(CLASSES), local=True, fusion=True)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def digit_images() -> tuple[np.ndarray, np.ndarray]:
    """Handwritten digits 0 to 4 as RGB bytes (N, 32, 32, 3) and their classes (N,), sorted by class."""
    digits = load_digits(n_class=5)
    chosen = np.sort(np.arange(len(digits.target))[:NUM_IMAGES])
    chosen = chosen[np.argsort(digits.target[chosen], kind="stable")]
    grey = (digits.images[chosen] * (255 / 16)).astype(np.uint8)
    pictures = [
        np.asarray(Image.fromarray(image).resize((32, 32), Image.Resampling.BICUBIC).convert("RGB")) for image in grey
    ]
    return np.stack(pictures), digits.target[chosen].astype(np.int64)


def batched(images: np.ndarray, labels: np.ndarray | None, size: int = 20) -> list[ProofBatch]:
    """Batches of unequal size, as the last one of a split is."""
    starts = range(0, len(images), size)
    return [
        (
            images[start : start + size],
            None if labels is None else labels[start : start + size],
            [f"digits/{index:04}" for index in range(start, min(start + size, len(images)))],
        )
        for start in starts
    ]


@pytest.fixture(scope="session")
def model() -> nn.Module:
    return noisy_model()


@pytest.fixture(scope="session")
def exported(model: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    images, labels = digit_images()
    folder = tmp_path_factory.mktemp("shipping") / "bundle"
    parity = export_bundle(
        model,
        folder,
        classes=CLASSES,
        preprocess=PREPROCESS,
        batches=batched(images, labels),
        calibration={"temperature": TEMPERATURE, "reject_threshold": 0.4},
        source="digits-run",
    )["onnx"]
    return Exported(folder, parity, images, labels)


@pytest.fixture
def bundle(exported: Exported, tmp_path: Path) -> Path:
    """A copy of the shared bundle that a test may damage."""
    return Path(shutil.copytree(exported.folder, tmp_path / "copy"))


@pytest.fixture
def sign() -> Callable[[Path], None]:
    """Make the checksums right again, so that a damage reaches the checks behind them."""

    def rewrite(folder: Path) -> None:
        files = sorted(path for path in folder.iterdir() if path.name != "SHA256SUMS")
        lines = [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in files]
        (folder / "SHA256SUMS").write_text("".join(lines))

    return rewrite
