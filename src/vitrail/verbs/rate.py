"""`--lr find`: a short training at rates that rise, on copies and before there is a run, tells the learning rate."""

import copy
import math
from dataclasses import replace
from typing import Final

import torch
from rich.console import Console

from vitrail.config import Preprocess, TrainConfig
from vitrail.data import Dataset
from vitrail.models import Model
from vitrail.runtime.precision import choose_precision
from vitrail.training.sweep import SPAN, Sweep, SweepPlan, sweep_rates
from vitrail.verbs import plan
from vitrail.verbs import teacher as teaching
from vitrail.verbs.learner import make_learner, make_loader

FIND: Final = "find"


def find_rate(
    config: TrainConfig, dataset: Dataset, preprocess: Preprocess, model: Model, teacher: teaching.OpenTeacher | None
) -> tuple[TrainConfig, Sweep | None]:
    """Return the configuration with a rate in place of "find", and what was seen; model and random state stay as is.

    The sweep has its middle at the default rate. Where its loss never falls, the default stays.

    Args:
        config: is complete but for its rate.
        dataset: the images.
        preprocess: how they are prepared.
        model: on its device; a copy of it is trained.
        teacher: if there is one.

    Raises:
        TrainingError: if even the first loss is not finite.
    """
    if config.lr != FIND:
        return config, None
    default = plan.default_rate(config, model, config.batch_size or 1)
    device = next(model.parameters()).device
    precision = choose_precision(config.precision, device, convolutional=model.channels_last)
    plain = replace(config, distill_cache="off")
    with (
        torch.random.fork_rng([device] if device.type == "cuda" else []),
        Console(stderr=True, quiet=config.quiet).status("looking for a learning rate, a minute at most"),
    ):
        state, objective = make_learner(
            plain, dataset, preprocess, copy.deepcopy(model), teacher, precision, default * math.sqrt(SPAN)
        )
        loader = make_loader(plain, dataset, preprocess, device)
        sweep = sweep_rates(
            state, objective, loader, SweepPlan(accumulate=config.accumulate, grad_clip=config.grad_clip), precision
        )
    return replace(config, lr=sweep.suggestion or default), sweep


def describe(config: TrainConfig, model: Model, sweep: Sweep | None) -> list[str]:
    """Return a sentence on the rate that was found, if one was looked for."""
    if sweep is None:
        return []
    default = plan.default_rate(config, model, config.batch_size or 1)
    if sweep.suggestion is None:
        steps = len(sweep.rates)
        return [
            f"The loss fell at no rate of a sweep of {steps} steps; the learning rate is the default, {default:.2g}."
        ]
    told = f"The learning rate is {config.lr:.2g}, a fifteenth of the highest that the loss bore in a sweep"
    return [f"{told}; the default is {default:.2g}. The curve is in rates.html."]
