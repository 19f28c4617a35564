"""What optimizers are compared on: small trainings on real images, each a function of a setting, a length and a seed.

Initial weights, the order of the images and their augmentation depend on the seed and the step alone, so every
optimizer sees the same. Weak augmentation mirrors and shifts; strong augmentation also erases a box of half of the
images and mixes half of the batches (mixup or CutMix, `vitrail.data.mix`).
"""

import gzip
import io
import math
import time
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

import vitrail
from vitrail.data.mix import mix
from vitrail.data.policy import AugmentPolicy
from vitrail.models.vit import VisionTransformer, VitOptions, VitShape
from vitrail.optim import Muon8, create_optimizer, warmup_cosine
from vitrail.runtime.precision import Precision

UNTIMED_STEPS = 20
NUM_VALIDATION = 5000
NANO = VitShape(dim=64, depth=4, heads=4, mlp_ratio=4.0)
MIXED = AugmentPolicy(mixup_alpha=0.8, cutmix_alpha=1.0, mix_rate=0.5)


@dataclass(frozen=True)
class Task:
    """A data set with a model, a batch and a target."""

    data: Literal["fashion_mnist", "cifar10"]
    target: float
    """Accuracy on the test images, in [0, 1], chosen where tuned AdamW needs about a thousand steps."""
    model: str = "vit"
    """ "vit": a ViT of width 64 and depth 4, 0.2 million parameters. Otherwise a name of `vitrail models`."""
    patch: int = 4
    """Side of the ViT's patches in pixels."""
    batch: int = 128
    strong: bool = False
    """Whether the augmentation is the strong one."""
    tune_steps: tuple[int, ...] = (200, 600)
    """Lengths of the trials: all settings are tried at the first, the best third of them at the second, and so on."""
    classes: tuple[int, ...] = tuple(range(10))
    """Labels of the data set that take part."""
    num_train: int | None = None
    """Images to learn from, the first of them; None for all."""
    before: str | None = None
    """The task whose trained weights it starts from, apart from the classifier's."""
    weights: Path | None = None
    """File that holds those weights."""


TASKS = {
    "fashion": Task("fashion_mnist", target=0.80, patch=7, tune_steps=(150, 450, 1200)),
    "fashion-b512": Task("fashion_mnist", target=0.80, patch=7, batch=512, tune_steps=(100, 300)),
    "cifar": Task("cifar10", target=0.45, batch=64),
    "cifar-strong": Task("cifar10", target=0.40, batch=64, strong=True),
    "cifar-mobile": Task("cifar10", target=0.55, model="lucarne_xs", batch=64),
    "fashion-half": Task("fashion_mnist", target=0.80, patch=7, classes=(0, 1, 2, 3, 4)),
    "fashion-few": Task(
        "fashion_mnist",
        target=0.80,
        patch=7,
        batch=64,
        tune_steps=(60, 200),
        classes=(5, 6, 7, 8, 9),
        num_train=1000,
    ),
}
TASKS["fashion-finetune"] = replace(TASKS["fashion-few"], before="fashion-half")


@dataclass(frozen=True)
class Images:
    """Pixels uint8 (n, C, H, W) and labels int64 (n,)."""

    pixels: Tensor
    labels: Tensor

    def take(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return some images as floats of about -2 to 2, and their labels."""
        return (self.pixels[rows].float() / 255 - 0.45) / 0.25, self.labels[rows]


@dataclass(frozen=True)
class Place:
    """Where and with which numbers a training computes."""

    device: torch.device
    precision: Precision


def load(task: Task, folder: Path, device: torch.device) -> dict[str, Images]:
    """Return the images of "train", "val" (the same of the training images every time, a tenth or so) and "test".

    Args:
        task: says which data set, which of its classes, and how many images to learn from.
        folder: holds a folder fashion_mnist with the four idx.gz files, or cifar10 with cifar10_jpeg.npz.
        device: where they are put.
    """
    read = _read_idx if task.data == "fashion_mnist" else _read_jpeg
    pixels, labels = (torch.from_numpy(values) for values in read(folder / task.data, "train"))
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    parts = {split: (pixels[rows], labels[rows]) for split, rows in _held_out(order)}
    parts["test"] = tuple(torch.from_numpy(values) for values in read(folder / task.data, "test"))
    parts = {split: _of_classes(*part, task.classes) for split, part in parts.items()}
    parts["train"] = tuple(values[: task.num_train] for values in parts["train"])
    return {split: Images(*(values.to(device) for values in part)) for split, part in parts.items()}


def _of_classes(pixels: Tensor, labels: Tensor, classes: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Return the images of some classes, which are numbered anew from 0."""
    is_one = labels[:, None] == torch.tensor(classes)
    chosen = is_one.any(dim=1)
    return pixels[chosen], is_one[chosen].int().argmax(dim=1)


def _held_out(order: Tensor) -> list[tuple[str, Tensor]]:
    return [("val", order[:NUM_VALIDATION]), ("train", order[NUM_VALIDATION:])]


def _read_idx(folder: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    prefix = "train" if split == "train" else "t10k"
    pixels = gzip.decompress((folder / f"{prefix}-images-idx3-ubyte.gz").read_bytes())[16:]
    labels = gzip.decompress((folder / f"{prefix}-labels-idx1-ubyte.gz").read_bytes())[8:]
    images = np.frombuffer(pixels, np.uint8).reshape(-1, 1, 28, 28).copy()
    return images, np.frombuffer(labels, np.uint8).astype(np.int64)


def _read_jpeg(folder: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    from PIL import Image

    with np.load(folder / "cifar10_jpeg.npz") as file:
        data, offsets, labels = (file[name] for name in (f"{split}_jpeg", f"{split}_offsets", f"y_{split}"))
    files = (data[start:end].tobytes() for start, end in pairwise(offsets))
    images = np.stack([np.asarray(Image.open(io.BytesIO(file)).convert("RGB")) for file in files])
    return images.transpose(0, 3, 1, 2).copy(), labels.astype(np.int64)


def make_model(task: Task, images: Images) -> nn.Module:
    """Return the task's model with fresh weights, or with those that it starts from and a fresh classifier."""
    _, channels, side, _ = images.pixels.shape
    options = {"num_classes": len(task.classes), "image_size": side, "in_channels": channels}
    if task.model != "vit":
        return vitrail.create_model(task.model, **options)
    model = VisionTransformer(NANO, VitOptions(patch_size=task.patch, pool="mean", class_token=False, **options))
    if task.weights is not None:
        found = {name: value for name, value in load_file(task.weights).items() if not name.startswith("head.")}
        missing = model.load_state_dict(found, strict=False).missing_keys
        assert all(name.startswith("head.") for name in missing), missing
    return model


def batch_at(task: Task, images: Images, seed: int, step: int) -> tuple[Tensor, Tensor]:
    """Return the augmented images of a step, and their targets (B, classes)."""
    generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
    device = images.labels.device
    rows = torch.randint(len(images.labels), (task.batch,), generator=generator)
    pixels, labels = images.take(rows.to(device))
    flipped = torch.rand(task.batch, generator=generator) < 0.5
    pixels = torch.where(flipped.to(device)[:, None, None, None], pixels.flip(-1), pixels)
    pixels = _shift(pixels, pixels.shape[-1] // 8, generator)
    if not task.strong:
        return pixels, F.one_hot(labels, len(task.classes)).float()
    pixels = _erase(pixels, generator)
    return pixels, mix(pixels, F.one_hot(labels, len(task.classes)), MIXED, seed=seed, epoch=0, batch=step)


def _shift(images: Tensor, most: int, generator: torch.Generator) -> Tensor:
    """Shift each image by up to ``most`` pixels in both directions."""
    count, channels, height, width = images.shape
    padded = F.pad(images, (most,) * 4, mode="reflect")
    top, left = (torch.randint(2 * most + 1, (count, 1), generator=generator) for _ in range(2))
    rows = (top + torch.arange(height))[:, None, :, None].to(images.device)
    columns = (left + torch.arange(width))[:, None, None, :].to(images.device)
    batch, channel = torch.arange(count, device=images.device), torch.arange(channels, device=images.device)
    return padded[batch[:, None, None, None], channel[None, :, None, None], rows, columns]


def _erase(images: Tensor, generator: torch.Generator) -> Tensor:
    """Set a square box of half the side, anywhere, to the mean colour in half of the images."""
    count, _, height, width = images.shape
    chosen = torch.rand(count, 1, generator=generator) < 0.5
    inside = []
    for side in (height, width):
        start = torch.randint(side // 2 + 1, (count, 1), generator=generator)
        places = torch.arange(side)
        inside.append((places >= start) & (places < start + side // 2))
    box = inside[0][:, None, :, None] & inside[1][:, None, None, :] & chosen[:, :, None, None]
    return images.masked_fill(box.to(images.device), 0.0)


def make_optimizer(name: str, model: nn.Module, setting: dict) -> torch.optim.Optimizer:
    """Return an optimizer with a setting; roles may be given for "every convolution" or the like.

    Args:
        name: one of `vitrail.optim.OPTIMIZERS`, where it has modes also with one of them: "muon8, finetune".
        model: to train.
        setting: options of the optimizer; "warmup" is left out.
    """
    name, _, mode = name.partition(", ")
    options = {key: value for key, value in setting.items() if key != "warmup"} | ({"mode": mode} if mode else {})
    if "roles" in options:
        options["roles"] = _by_name(options["roles"], model)
    return create_optimizer(model, name, **options)


def train(
    task: Task, optimizer_name: str, setting: dict, steps: int, seed: int, data: dict[str, Images], place: Place
) -> tuple[nn.Module, dict[str, float]]:
    """Build the task's model and `fit` it; return the model too."""
    torch.manual_seed(seed)
    model = make_model(task, data["train"]).to(place.device)
    return model, fit(model, task, optimizer_name, setting, steps, seed, data["train"], place)


def fit(
    model: nn.Module,
    task: Task,
    optimizer_name: str,
    setting: dict,
    steps: int,
    seed: int,
    images: Images,
    place: Place,
) -> dict[str, float]:
    """Train a model in place; return its last losses' mean and the time of its steps.

    The rate falls along a cosine to 0 at the last step; of an optimizer that averages its steps it stays, and the model
    is left with the average.

    Args:
        model: with fresh weights, on the device.
        task: what is trained.
        optimizer_name: one of `vitrail.optim.OPTIMIZERS`.
        setting: lr, weight_decay, warmup (share of the steps), and any further options of the optimizer.
        steps: length of the training, more than `UNTIMED_STEPS`.
        seed: of order and augmentation.
        images: to learn from.
        place: where it computes.
    """
    optimizer = make_optimizer(optimizer_name, model, setting)
    averages = hasattr(optimizer, "eval")
    clock, losses = [0.0, 0.0], []
    for step in range(steps):
        pixels, targets = batch_at(task, images, seed, step)
        before = _now(place.device)
        for group in optimizer.param_groups:
            group["lr"] = setting["lr"] * warmup_cosine(
                (step + 0.5) / steps, setting["warmup"], final=1.0 if averages else 0.0
            )
        with place.precision.autocast():
            logits = model(pixels)
        loss = F.cross_entropy(logits.float(), targets, label_smoothing=0.1)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if step >= UNTIMED_STEPS:
            clock = [total + end - start for total, end, start in zip(clock, _now(place.device), before, strict=True)]
        if step >= 0.9 * steps or step % 50 == 0:
            losses.append(loss.item())
            if not math.isfinite(losses[-1]):
                break
    if averages:
        optimizer.eval()
    share = steps / max(1, steps - UNTIMED_STEPS)
    last = losses[-max(1, steps // 10) :]
    return {"loss": sum(last) / len(last), "wall_s": clock[0] * share, "process_s": clock[1] * share}


def _by_name(roles: dict[str, str], model: nn.Module) -> dict[str, str]:
    names: dict[str, list[str]] = {}
    for route in Muon8(model).routing:
        names.setdefault(f"every {route.role}", []).append(route.name)
    return {name: role for given, role in roles.items() for name in names.get(given, [given])}


def _now(device: torch.device) -> tuple[float, float]:
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter(), time.process_time()


@torch.no_grad()
def accuracy(model: nn.Module, images: Images, place: Place) -> float:
    """Return the share of images that are classified rightly."""
    model.eval()
    right = 0
    for rows in torch.arange(len(images.labels), device=images.labels.device).split(1000):
        inputs, labels = images.take(rows)
        with place.precision.autocast():
            right += int((model(inputs).argmax(dim=1) == labels).sum())
    return right / len(images.labels)
