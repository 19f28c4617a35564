"""What learns and from what: the loader, and the model with its optimizer and its objective."""

import torch

from vitrail.config import Preprocess, TrainConfig
from vitrail.data import Dataset, TrainLoader
from vitrail.models import Model
from vitrail.optim import create_optimizer
from vitrail.runtime.precision import Precision
from vitrail.training import Objective, TrainState
from vitrail.verbs import plan
from vitrail.verbs import teacher as teaching


def make_loader(config: TrainConfig, dataset: Dataset, preprocess: Preprocess, device: torch.device) -> TrainLoader:
    """Return the batches of augmented training images."""
    return TrainLoader(
        dataset.splits["train"],
        preprocess,
        plan.choose_policy(config, dataset),
        config.batch_size or 1,
        seed=config.seed,
        device=device,
        workers=config.workers,
        cache=config.cache,
        balance=config.sampling == "balanced",
    )


def make_learner(
    config: TrainConfig,
    dataset: Dataset,
    preprocess: Preprocess,
    model: Model,
    teacher: teaching.OpenTeacher | None,
    precision: Precision,
    lr: float,
) -> tuple[TrainState, Objective]:
    """Return the state of a training before its first step, and what it minimises.

    Args:
        config: is complete but for its rate.
        dataset: the images.
        preprocess: how they are prepared.
        model: on its device.
        teacher: if there is one.
        precision: of the teacher's forward pass.
        lr: highest learning rate.
    """
    assert config.weight_decay is not None, "the configuration is complete"
    optimizer = create_optimizer(
        model, config.optimizer, lr=lr, weight_decay=config.weight_decay, layer_decay=config.layer_decay or 1.0
    )
    objective, projection = teaching.make_objective(config, dataset, preprocess, model, teacher, precision)
    if projection is not None:
        named = {"params": [projection.weight], "param_names": ["projection.weight"]}
        optimizer.add_param_group({**named, "weight_decay": config.weight_decay})
    return TrainState(model=model, optimizer=optimizer, companion=projection), objective
