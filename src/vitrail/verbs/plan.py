"""What "auto" and "by default" mean: the choices that a training makes for its user, in one place."""

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Final

import numpy as np
import torch

from vitrail.config import TrainConfig
from vitrail.data import AugmentPolicy, Dataset, augment_policy
from vitrail.errors import ConfigError
from vitrail.models import Model, create_model
from vitrail.models.checkpoint import read_spec
from vitrail.optim import default_lr, default_weight_decay
from vitrail.runtime.precision import choose_precision
from vitrail.training import choose_batch_size

LARGEST_IMAGE_SIZE: Final = 224
SMALLEST_IMAGE_SIZE: Final = 32
DEFAULT_EPOCHS: Final = 50
ENOUGH_FOR_TINY: Final = 20_000

# Patch sizes that give 64 to 196 tokens: fewer lose the picture's detail, more cost their square in attention.
_PATCH_BY_LARGEST_IMAGE: Final = ((48, 4), (112, 8), (LARGEST_IMAGE_SIZE, 16))


def choose_image_size(dataset: Dataset, model: str) -> int:
    """Return the side in pixels that the model's name tells, or that suits most training images.

    That is their median shorter side, within 32 to 224, rounded down to a whole number of patches: of the model's, or
    for "auto" of those that such images get.
    """
    if sized := re.fullmatch(r".+_patch\d+_(\d+)", model):
        return int(sized[1])
    shorter = dataset.splits["train"].sizes.min(axis=1)
    side = int(np.clip(np.median(shorter), SMALLEST_IMAGE_SIZE, LARGEST_IMAGE_SIZE))
    named = re.search(r"_patch(\d+)", model)
    patch = int(named[1]) if named else choose_patch_size(side)
    return max(patch, side - side % patch)


def choose_patch_size(image_size: int) -> int:
    """Return 4, 8 or 16 pixels for images of up to 48, up to 112 and more pixels."""
    return next((patch for largest, patch in _PATCH_BY_LARGEST_IMAGE if image_size <= largest), 16)


def choose_model(image_size: int, num_images: int) -> str:
    """Return the ViT for ``--model auto``: micro for fewer than 20,000 training images, tiny for more.

    From random weights the larger one only begins to pay when there is much to learn from, and a CPU sees each image
    several times as often with the smaller one.
    """
    size = "micro" if num_images < ENOUGH_FOR_TINY else "tiny"
    return f"vit_{size}_patch{choose_patch_size(image_size)}"


def like_pretrained(config: TrainConfig) -> TrainConfig:
    """Return the configuration with the model of the pretrained weights, where "auto" leaves it open and they tell it.

    Raises:
        CheckpointError: if the weights are missing or damaged.
        ConfigError: if they are for images that are not square, and no size is given.
    """
    spec = read_spec(config.pretrained) if config.pretrained and config.model == "auto" else None
    if spec is None:
        return config
    height, width = spec.image_size
    if height != width and config.image_size is None:
        raise ConfigError(
            f"{config.pretrained} takes images of {height} x {width} pixels; training takes squares. Give image_size."
        )
    return replace(
        config,
        model=spec.name,
        image_size=config.image_size or height,
        local=config.local or bool(spec.options.get("local")),
        fusion=config.fusion or bool(spec.options.get("fusion")),
    )


def build_model(config: TrainConfig, image_size: tuple[int, int], num_classes: int) -> Model:
    """Create the model that a configuration describes, once its name is decided."""
    switches = {name: True for name in ("local", "fusion") if getattr(config, name)}
    return create_model(
        config.model, num_classes=num_classes, image_size=image_size, drop_path=config.drop_path, **switches
    )


def choose_policy(config: TrainConfig, dataset: Dataset) -> AugmentPolicy:
    """Return the augmentation by its strength, with the flags that override parts of it."""
    strength = dataset.traits.augment if config.augment == "auto" else config.augment
    flip = False if config.flip is None and not dataset.traits.flip else config.flip
    return augment_policy(strength, flip=flip, mixup=config.mixup, cutmix=config.cutmix)


def complete(
    config: TrainConfig, dataset: Dataset, device: torch.device, try_step: Callable[[int], None]
) -> TrainConfig:
    """Return the configuration with the augmentation, the batch size, the rates, the length and the precision decided.

    What stays "auto" is where and with which means the machine computes, which a resumed run may find changed.

    Args:
        config: names the model already.
        dataset: the images.
        device: that trains.
        try_step: does a step on that many images, to see whether they fit into a GPU's memory.
    """
    num_images = len(dataset.splits["train"])
    batch_size = min(num_images, config.batch_size or choose_batch_size(num_images, device, try_step))
    lr = config.lr
    if lr is None:
        lr = default_lr(config.optimizer, batch_size * config.accumulate, config.pretrained is not None)
    weight_decay = default_weight_decay(config.optimizer) if config.weight_decay is None else config.weight_decay
    epochs = config.epochs
    if epochs is None and config.time_budget is None:
        epochs = DEFAULT_EPOCHS
    policy = choose_policy(config, dataset)
    return replace(
        config,
        augment=dataset.traits.augment if config.augment == "auto" else config.augment,
        flip=policy.flip_rate > 0,
        mixup=policy.mixup_alpha,
        cutmix=policy.cutmix_alpha,
        epochs=epochs,
        batch_size=batch_size,
        lr=lr,
        weight_decay=weight_decay,
        precision="bf16" if choose_precision(config.precision, device).dtype == torch.bfloat16 else "fp32",
    )
