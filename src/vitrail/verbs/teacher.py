"""The teacher of a training: opened from a run or a checkpoint, and what is learnt from it."""

import math
from dataclasses import dataclass, replace
from typing import Final

import torch
from torch import nn

from vitrail.config import Preprocess, TrainConfig
from vitrail.data import Dataset
from vitrail.data.records import read_manifest
from vitrail.errors import CheckpointError, ConfigError
from vitrail.evaluation.cost import model_cost
from vitrail.models import Model
from vitrail.runtime.memory import available_memory_bytes
from vitrail.runtime.precision import Precision
from vitrail.shipping.predictor import is_bundle
from vitrail.training import Distillation, Objective, RememberingTeacher, Run, Supervised, Teacher
from vitrail.training.distillation import BYTES_PER_REMEMBERED_NUMBER, class_order
from vitrail.verbs.kits import KITS
from vitrail.verbs.target import open_target

# "auto" repeats the augmentation after a fifth of the training, and never shows fewer views of a picture than this.
_PERIODS: Final = 5
_FEWEST_VIEWS: Final = 10

# The multiply-adds that keeping the answers must save, as a share of those without.
_SMALLEST_SAVING: Final = 0.5
_SHARE_OF_FREE_MEMORY: Final = 0.25

# A training step takes about three forward passes: forward, and backward to the weights and to the activations.
_PASSES_PER_STEP: Final = 3

_GIVES: Final = {"classification": "names one class per image", "multilabel": "gives any number of labels"}
_HAVE: Final = {"classification": "one label each", "multilabel": "any number of labels"}


@dataclass(frozen=True, kw_only=True)
class OpenTeacher:
    """A model that can teach."""

    name: str
    model: Model
    """On the training's device."""
    classes: tuple[str, ...]
    preprocess: Preprocess
    num_leaked: int = 0
    """Images that measure the student and that the teacher learnt, where it is known what it learnt."""


def open_teacher(config: TrainConfig, dataset: Dataset, device: torch.device) -> OpenTeacher | None:
    """Open what ``config.teacher`` names, or return None where it names nothing.

    Raises:
        CheckpointError: if it is not there, or is no model that can be opened.
        ConfigError: if it is a bundle, or knows other classes than the images show.
    """
    if config.teacher is None:
        return None
    if is_bundle(config.teacher):
        raise ConfigError(f"The teacher {config.teacher} is a bundle; name the run it was made from.")
    try:
        target = open_target(config.teacher, device=str(device), precision=config.precision)
    except CheckpointError as error:
        raise CheckpointError(f"The teacher cannot be opened, and the training needs it: {error}") from error
    assert target.checkpoint is not None, "only a bundle has none"
    channels, expected = dataset.channels or 3, target.predictor.preprocess.num_channels
    if channels != expected:
        raise ConfigError(f"The teacher {config.teacher} takes {expected} channels, and these images have {channels}.")
    classes = target.predictor.classes
    if target.task != dataset.task:
        raise ConfigError(
            f"The teacher {config.teacher} {_GIVES[target.task]}, and the images of {dataset.name} have "
            f"{_HAVE[dataset.task]}. Train a teacher on these images first."
        )
    class_order(classes, dataset.classes)  # before anything is written or computed
    return OpenTeacher(
        name=target.name,
        model=target.checkpoint.model,
        classes=classes,
        preprocess=target.predictor.preprocess,
        num_leaked=0 if target.run is None else _num_leaked(dataset, target.run),
    )


def caveats(teacher: OpenTeacher | None) -> list[str]:
    """Return a sentence for who reads the accuracies, if the teacher has learnt images that measure the student."""
    if teacher is None or not teacher.num_leaked:
        return []
    return [
        f"The teacher {teacher.name} was trained on {teacher.num_leaked:,} of this run's validation and test images, "
        "so the student's accuracy on them is too high. Train both with the same seed and shares."
    ]


def try_answers(teacher: OpenTeacher, num_images: int) -> None:
    """Do what asking the teacher about that many images keeps in memory, and forget it."""
    device = next(teacher.model.parameters()).device
    with torch.no_grad():
        channels = teacher.preprocess.num_channels
        teacher.model(torch.zeros(num_images, channels, *teacher.preprocess.image_size, device=device))


def choose_cache(config: TrainConfig, dataset: Dataset, student: Model, teacher: OpenTeacher | None) -> TrainConfig:
    """Return the configuration with ``distill_cache`` decided: a number of epochs, or "off".

    "auto" repeats after a fifth of the epochs, but shows each picture in at least ten views, if that at least halves
    the multiply-adds of the training, where a step of the student counts three of its forward passes, and if the
    answers take at most a quarter of the free memory. Without a number of epochs it is "off".

    Args:
        config: has its epochs and its batch size decided.
        dataset: the images.
        student: the model that is trained.
        teacher: on the training's device.

    Raises:
        ConfigError: if a number is given and the answers do not fit into the free memory.
    """
    if teacher is None or config.distill_cache == "off":
        return config
    free = _free_bytes(next(teacher.model.parameters()).device)
    per_epoch = _answer_bytes(config, dataset, teacher)
    if config.distill_cache != "auto":
        needed = min(config.distill_cache, config.epochs or config.distill_cache) * per_epoch
        if needed > free:
            raise ConfigError(
                f"The teacher's answers for {config.distill_cache} epochs take {needed / 2**30:.1f} GiB and "
                f"{free / 2**30:.1f} GiB of memory are free. Give a smaller distill_cache, or off."
            )
        return config
    if config.epochs is None:
        return replace(config, distill_cache="off")
    assert config.image_size is not None, "the configuration is complete"
    channels = teacher.preprocess.num_channels
    step = _PASSES_PER_STEP * model_cost(student, (config.image_size, config.image_size), channels).macs
    asked = model_cost(teacher.model, teacher.preprocess.image_size, channels).macs
    period = period_that_pays(config.epochs, asked, step)
    fits = period is not None and period * per_epoch <= _SHARE_OF_FREE_MEMORY * free
    return replace(config, distill_cache=period if period is not None and fits else "off")


def period_that_pays(epochs: int, teacher_macs: int, step_macs: int) -> int | None:
    """Return the epochs after which "auto" repeats, or None where that does not halve the work.

    Args:
        epochs: of the training.
        teacher_macs: of the teacher's forward pass, for one image.
        step_macs: of the student's training step, for one image.
    """
    period = max(_FEWEST_VIEWS, math.ceil(epochs / _PERIODS))
    fresh = epochs * (teacher_macs + step_macs)
    kept = min(period, epochs) * teacher_macs + epochs * step_macs
    return period if kept <= (1 - _SMALLEST_SAVING) * fresh else None


def make_objective(
    config: TrainConfig,
    dataset: Dataset,
    preprocess: Preprocess,
    student: Model,
    opened: OpenTeacher | None,
    precision: Precision,
) -> tuple[Objective, nn.Linear | None]:
    """Return what the training minimises, and the projection of features that is trained with the model, if any."""
    task = KITS[dataset.task].make_task(config, dataset.splits["train"])
    if opened is None:
        return Supervised(task), None
    device = next(opened.model.parameters()).device
    projection = None
    if config.distill_features > 0:
        projection = nn.Linear(student.num_features, opened.model.num_features, bias=False).to(device)
    teacher = Teacher(
        opened.model,
        opened.classes,
        opened.preprocess,
        student_classes=dataset.classes,
        student_preprocess=preprocess,
        precision=precision,
        with_features=projection is not None,
    )
    objective = Distillation(
        task,
        teacher if config.distill_cache == "off" else RememberingTeacher(teacher),
        mode=config.distill,
        weight=config.distill_weight,
        temperature=config.distill_temperature,
        projection=projection,
        features_weight=config.distill_features,
    )
    return objective, projection


def describe(config: TrainConfig, teacher: OpenTeacher | None) -> list[str]:
    """Return a sentence on the teacher for the person who waits, if there is one."""
    if teacher is None:
        return []
    parameters = sum(parameter.numel() for parameter in teacher.model.parameters())
    height, width = teacher.preprocess.image_size
    kept = "each picture is asked about in every epoch"
    if config.distill_cache != "off":
        kept = f"order and augmentation repeat after {config.distill_cache} epochs, for which its answers are kept"
    return [f"Teacher {teacher.name}: {parameters / 1e6:.2f} M parameters, {height} x {width} pixels; {kept}."]


def _num_leaked(dataset: Dataset, run: Run) -> int:
    """Return how many validation and test images the run was trained on, by the hash of their files."""
    learnt = {record.sha256 for record in read_manifest(run.manifest_path) if record.split == "train"}
    return sum(record.split in {"val", "test"} and record.sha256 in learnt for record in dataset.records)


def _answer_bytes(config: TrainConfig, dataset: Dataset, teacher: OpenTeacher) -> int:
    """Return the memory that the answers to one epoch take."""
    numbers = len(dataset.classes) + (teacher.model.num_features if config.distill_features > 0 else 0)
    return len(dataset.splits["train"]) * numbers * BYTES_PER_REMEMBERED_NUMBER


def _free_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return available_memory_bytes()
