"""What "auto" and "by default" mean: the choices that a training makes for its user, in one place."""

from collections.abc import Callable
from dataclasses import replace
from typing import Final

import numpy as np
import torch

from vitrail.config import TrainConfig
from vitrail.data import AugmentPolicy, Dataset, augment_policy
from vitrail.models import Model, create_model
from vitrail.optim import default_lr, default_weight_decay
from vitrail.training import choose_batch_size

LARGEST_IMAGE_SIZE: Final = 224
SMALLEST_IMAGE_SIZE: Final = 32
DEFAULT_EPOCHS: Final = 50

# Patch sizes that give 64 to 196 tokens: fewer lose the picture's detail, more cost their square in attention.
_PATCH_BY_LARGEST_IMAGE: Final = ((48, 4), (112, 8), (LARGEST_IMAGE_SIZE, 16))


def choose_image_size(dataset: Dataset) -> int:
    """Return the side in pixels that suits most training images: their median shorter side, within 32 to 224.

    It is rounded down to a whole number of the patches that such images get.
    """
    shorter = dataset.splits["train"].sizes.min(axis=1)
    side = int(np.clip(np.median(shorter), SMALLEST_IMAGE_SIZE, LARGEST_IMAGE_SIZE))
    return side - side % choose_patch_size(side)


def choose_patch_size(image_size: int) -> int:
    """Return 4, 8 or 16 pixels for images of up to 48, up to 112 and more pixels."""
    return next((patch for largest, patch in _PATCH_BY_LARGEST_IMAGE if image_size <= largest), 16)


def choose_model(image_size: int) -> str:
    """Return the ViT for ``--model auto``: micro for images of up to 112 pixels, tiny for larger ones."""
    patch = choose_patch_size(image_size)
    return f"vit_{'tiny' if patch == 16 else 'micro'}_patch{patch}"


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
    """Return the configuration with the batch size, the rates and the length decided.

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
    return replace(config, batch_size=batch_size, lr=lr, weight_decay=weight_decay, epochs=epochs)
