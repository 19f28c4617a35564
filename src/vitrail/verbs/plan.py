"""What "auto" and "by default" mean: the choices that a training makes for its user, in one place."""

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Final

import numpy as np
import torch

from vitrail.config import Preprocess, TrainConfig
from vitrail.data import AugmentPolicy, Dataset, augment_policy, channel_statistics
from vitrail.errors import ConfigError, lookup
from vitrail.models import MODELS, Model, create_model, native_image_size, split_size
from vitrail.models.guests import is_guest
from vitrail.models.pretrained import checkpoint_source, read_spec
from vitrail.models.vit import VisionTransformer
from vitrail.optim import OPTIMIZERS, default_lr, default_weight_decay
from vitrail.runtime.precision import choose_precision
from vitrail.training import choose_batch_size

LARGEST_IMAGE_SIZE: Final = 224
SMALLEST_IMAGE_SIZE: Final = 32
DEFAULT_EPOCHS: Final = 50
AUTO_MODEL: Final = "lucarne_s"
"""Made for phones, and learns more than a ViT from random weights in equal time (benchmarks/compare_models.py)."""
PRETRAINED_VIT_LAYER_DECAY: Final = 0.75


def choose_image_size(dataset: Dataset, model: str) -> int:
    """Return the side in pixels that the model's name tells, or that suits most training images.

    That is their median shorter side, within 32 to 224, rounded down to a whole number of cells of the model's last
    grid (patches, or strides of a convolutional model) and at least two of them. Of a model of another library, which
    does not tell its cells, it is that of most published models.
    """
    name, side = split_size(model)
    if side is not None:
        return side
    if is_guest(name):
        return native_image_size(name)
    shorter = dataset.splits["train"].sizes.min(axis=1)
    side = int(np.clip(np.median(shorter), SMALLEST_IMAGE_SIZE, LARGEST_IMAGE_SIZE))
    cell = lookup(MODELS, name, "model").multiple
    return max(2 * cell, side - side % cell)


def like_pretrained(config: TrainConfig) -> TrainConfig:
    """Return the configuration with the model of the weights, where ``model`` is a checkpoint or leaves it open.

    The result names a model of the table with its options, so that nobody needs the weights to build it again, and has
    the weights as ``pretrained``.

    Raises:
        CheckpointError: if the weights are missing, damaged or of no known model.
        ConfigError: if there are two sources of weights, or they are for images that are not square and no size is
            given.
    """
    source = None if config.model == "auto" else checkpoint_source(config.model, config.model_options)
    if source is not None and config.pretrained is not None:
        raise ConfigError(
            f"model is {config.model}, which has weights of its own, and pretrained is {config.pretrained}. Give one."
        )
    if source is None:
        if config.pretrained is None or config.model != "auto":
            return config
        source = config.pretrained
    spec = read_spec(source)
    height, width = spec.image_size
    channels = 3 if config.channels is None else config.channels
    if channels not in {1, spec.in_channels} and channels < spec.in_channels:
        raise ConfigError(
            f"{source} takes images of {spec.in_channels} channels, and these have {channels}. Give channels"
            f" {spec.in_channels}, or other weights."
        )
    if height != width and config.image_size is None:
        raise ConfigError(
            f"{source} takes images of {height} x {width} pixels; training takes squares. Give image_size."
        )
    own = {name: value for name, value in spec.options.items() if name not in {"local", "fusion", "drop_path"}}
    forms = {name: spec.options[name] for name in ("local", "fusion") if isinstance(spec.options.get(name), str)}
    options = {**own, **forms, **config.model_options}
    return replace(
        config,
        model=spec.name,
        pretrained=source,
        options=tuple(f"{name}={json.dumps(value)}" for name, value in options.items()),
        image_size=config.image_size or height,
        local=config.local or bool(spec.options.get("local")),
        fusion=config.fusion or bool(spec.options.get("fusion")),
    )


def build_model(config: TrainConfig, image_size: tuple[int, int], num_classes: int) -> Model:
    """Create the model that a configuration describes, with fresh weights, once its name is decided."""
    channels = 3 if config.channels is None else config.channels
    switches = {name: True for name in ("local", "fusion") if getattr(config, name)}
    options = {"drop_path": config.drop_path, **switches, **config.model_options}
    return create_model(config.model, num_classes=num_classes, image_size=image_size, in_channels=channels, **options)


def choose_policy(config: TrainConfig, dataset: Dataset) -> AugmentPolicy:
    """Return the augmentation by its strength, with the flags that override parts of it.

    Colours change only where there are three channels of integers, which may be red, green and blue.
    """
    strength = dataset.traits.augment if config.augment == "auto" else config.augment
    flip = False if config.flip is None and not dataset.traits.flip else config.flip
    policy = augment_policy(strength, flip=flip, mixup=config.mixup, cutmix=config.cutmix)
    return policy if has_colours(dataset) else replace(policy, three_augment=False, colour_jitter=0.0)


def has_colours(dataset: Dataset) -> bool:
    """Return whether the channels may be red, green and blue, from none to full."""
    return dataset.channels in {None, 3} and dataset.pixel_type != "float32"


def describe_channels(dataset: Dataset) -> list[str]:
    """Return a sentence on what the model is given and what is left out for it, unless that is RGB."""
    if dataset.channels is None:
        return []
    told = f"Images of {dataset.channels} channel{'' if dataset.channels == 1 else 's'}, {dataset.pixel_type}"
    without = "" if has_colours(dataset) else " no colours are changed, for the channels are not red, green and blue;"
    return [f"{told};{without} mean and std are those of the training images unless weights bring theirs."]


def choose_preprocess(
    config: TrainConfig, dataset: Dataset, image_size: tuple[int, int], known: Preprocess | None
) -> Preprocess:
    """Return how images are prepared: as for the weights, with mean and std measured where they do not tell them.

    Args:
        config: how images are made square.
        dataset: has the channels.
        image_size: height and width.
        known: of the weights to start from, if they tell it.
    """
    plain = replace(known or Preprocess(image_size=image_size), image_size=image_size, resize=config.resize)
    if dataset.channels is None and plain.channels is None:
        return plain
    kinds = {"uint8": "integer", "uint16": "integer", "float32": "float"}
    same = known is not None and kinds[known.pixel_type] == kinds[dataset.pixel_type]
    if same and plain.num_channels == (dataset.channels or 3):
        return replace(plain, channels=dataset.channels, pixel_type=dataset.pixel_type)
    num = dataset.channels or 3
    unknown = replace(
        plain, mean=(0.5,) * num, std=(0.5,) * num, channels=dataset.channels, pixel_type=dataset.pixel_type
    )
    if dataset.channels is None:
        return unknown
    mean, std = channel_statistics(dataset.splits["train"], unknown)
    return replace(unknown, mean=mean, std=std)


def mirror_note(config: TrainConfig, dataset: Dataset) -> list[str]:
    """Say so where the classes are the reason why images are not mirrored that otherwise would be."""
    strength = dataset.traits.augment if config.augment == "auto" else config.augment
    if config.flip is not None or dataset.traits.flip or augment_policy(strength).flip_rate == 0:
        return []
    return ["Images are not mirrored, for the classes are numbers or letters and may be of writing; --flip does it."]


def choose_optimizer(config: TrainConfig, model: Model) -> str:
    """Return the optimizer's name: Muon8 for what it was seen to train faster than AdamW (docs/optimizer.md)."""
    if config.optimizer != "auto":
        return config.optimizer
    return "muon8" if isinstance(model, VisionTransformer) and config.pretrained is None else "adamw"


def default_rate(config: TrainConfig, model: Model, batch_size: int) -> float:
    """Return the highest learning rate where none is given, for so many images on the device per step."""
    images, pretrained = batch_size * config.accumulate, config.pretrained is not None
    lr = default_lr(config.optimizer, images, pretrained, model.num_features)
    return lr * (MODELS[config.model].lr_scale if config.model in MODELS else 1.0)


def complete(
    config: TrainConfig, model: Model, dataset: Dataset, device: torch.device, try_step: Callable[[int], None]
) -> TrainConfig:
    """Return the configuration with the augmentation, the batch size, the rates, the length and the precision decided.

    A rate of "find" stays, to be found. What stays "auto" is where and with which means the machine computes, which a
    resumed run may find changed.

    Args:
        config: names the model already.
        model: the one it names.
        dataset: the images.
        device: that trains.
        try_step: does a step on that many images, to see whether they fit into a GPU's memory.
    """
    config = replace(config, optimizer=choose_optimizer(config, model))
    num_images = len(dataset.splits["train"])
    batch_size = min(num_images, config.batch_size or choose_batch_size(num_images, device, try_step))
    weight_decay = default_weight_decay(config.optimizer) if config.weight_decay is None else config.weight_decay
    layer_decay = config.layer_decay
    if layer_decay is None:
        is_vit = isinstance(model, VisionTransformer)
        layer_decay = PRETRAINED_VIT_LAYER_DECAY if is_vit and config.pretrained is not None else 1.0
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
        lr=default_rate(config, model, batch_size) if config.lr is None else config.lr,
        weight_decay=weight_decay,
        layer_decay=layer_decay,
        ema=config.ema and not lookup(OPTIMIZERS, config.optimizer, "optimizer").averages,
        precision="bf16" if choose_precision(config.precision, device).dtype == torch.bfloat16 else "fp32",
    )
