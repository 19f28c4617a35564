"""A teacher: a trained model whose answers a student learns beside the labels.

Axes: B images, C classes, D features of the student, E features of the teacher.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vitrail.config import Preprocess
from vitrail.errors import ConfigError, did_you_mean
from vitrail.models import Model
from vitrail.runtime.precision import Precision
from vitrail.tasks import DistillMode, Task
from vitrail.training.objective import TrainBatch, TrainBatches

BYTES_PER_REMEMBERED_NUMBER: Final = 2

_NUM_NAMED: Final = 3


@dataclass(frozen=True)
class Answers:
    """What a teacher says of a batch; nothing of it takes part in gradients."""

    logits: Tensor
    """fp32 (B, C), in the order of the student's classes."""
    features: Tensor | None = None
    """fp32 (B, E), pooled; None where nobody asks for them."""


class Answering(Protocol):
    """A teacher, or one that remembers."""

    def answers(self, batch: TrainBatch) -> Answers:
        """Return what it says of a batch of the student's images."""


class Teacher:
    """Asks a trained model about the student's images, exactly as augmented.

    The images are normalised as the teacher knows it and resized to its size (bilinear, with antialiasing where that
    is smaller). How the teacher's own pictures were made square plays no part: it sees the student's square. So both
    see the same view, which Beyer et al. (Knowledge distillation: A good teacher is patient and consistent, arXiv
    2106.05237, section 3) found to matter.

    Args:
        model: is put in evaluation mode, and never changed otherwise; lies on the device of the training.
        classes: names, in the order of its logits.
        preprocess: how its images were prepared.
        student_classes: names, in the order of the student's logits.
        student_preprocess: how the student's images are prepared.
        precision: of its forward pass.
        with_features: give its pooled features too.

    Raises:
        ConfigError: if the two do not know the same classes.
    """

    def __init__(
        self,
        model: Model,
        classes: Sequence[str],
        preprocess: Preprocess,
        *,
        student_classes: Sequence[str],
        student_preprocess: Preprocess,
        precision: Precision,
        with_features: bool = False,
    ) -> None:
        self.model = model.eval().requires_grad_(False)
        self.precision = precision
        self.image_size = preprocess.image_size
        self._with_features = with_features
        device = next(model.parameters()).device
        order = class_order(classes, student_classes)
        self._order = None if order == sorted(order) else torch.tensor(order, device=device)
        self._affine = _renormalisation(student_preprocess, preprocess, device)

    def prepare(self, images: Tensor) -> Tensor:
        """Return the student's normalised images (B, 3, H, W) as the teacher takes them (B, 3, h, w)."""
        if self._affine is not None:
            images = torch.addcmul(self._affine[1], images, self._affine[0])
        height, width = self.image_size
        if images.shape[2:] != self.image_size:
            smaller = height < images.shape[2] or width < images.shape[3]
            images = F.interpolate(images, size=(height, width), mode="bilinear", antialias=smaller)
        return images

    def answers(self, batch: TrainBatch) -> Answers:
        """Return what the model says of a batch of the student's images."""
        # Without gradients rather than in inference mode, whose tensors a loss could not keep for its backward pass.
        with torch.no_grad(), self.precision.autocast():
            logits, features = _logits_and_features(self.model, self.prepare(batch.images))
        logits = logits.float() if self._order is None else logits.float()[:, self._order]
        return Answers(logits, features.float() if self._with_features else None)


class RememberingTeacher:
    """A teacher that is asked once about each batch of `RepeatingBatches`.

    Its answers are kept, and given from the first time on, as fp16: so an interrupted training, which has to ask again,
    goes on with the same numbers.
    """

    def __init__(self, teacher: Answering) -> None:
        self._teacher = teacher
        self._kept: dict[int, tuple[Tensor, Tensor | None]] = {}

    def answers(self, batch: TrainBatch) -> Answers:
        """Return what the teacher says of the batch, or said of it before."""
        assert isinstance(batch, PlacedBatch), "only batches that come again can be remembered"
        if batch.place not in self._kept:
            fresh = self._teacher.answers(batch)
            features = None if fresh.features is None else fresh.features.half()
            self._kept[batch.place] = (fresh.logits.half(), features)
        logits, features = self._kept[batch.place]
        return Answers(logits.float(), None if features is None else features.float())


@dataclass(frozen=True, eq=False)
class PlacedBatch:
    """A batch that will come again, under the same number."""

    images: Tensor
    """(B, 3, H, W)."""
    targets: Tensor
    """As the task has them."""
    place: int
    """Its number in the period."""


class RepeatingBatches:
    """The batches of the first ``period`` epochs, again and again: the same order, augmentation and mixtures.

    Args:
        batches: of which each is a function of its epoch and its place there.
        period: in epochs, at least 1.
    """

    def __init__(self, batches: TrainBatches, period: int) -> None:
        self._batches = batches
        self._period = period

    def __len__(self) -> int:
        """Return the number of batches of an epoch."""
        return len(self._batches)

    def epoch(self, epoch: int, start_batch: int = 0) -> Iterator[PlacedBatch]:
        """Yield the batches of epoch ``epoch`` modulo the period, beginning with ``start_batch``."""
        epoch %= self._period
        for number, batch in enumerate(self._batches.epoch(epoch, start_batch), start=start_batch):
            yield PlacedBatch(batch.images, batch.targets, place=epoch * len(self) + number)


@dataclass(frozen=True, eq=False)
class Distillation:
    """Learning from the labels and from a teacher.

    The loss is ``(1 - weight) * labels + weight * teacher``, and with a projection ``features_weight * features`` on
    top of it. ``labels`` and ``teacher`` are the task's `loss` and `answers_loss`.

    ``features`` is the squared distance between the teacher's pooled features and a learned linear map of the
    student's, both scaled to length 1, which is 2 - 2 cos and lies in [0, 4]. The map is the regressor of Romero et
    al., FitNets, arXiv 1412.6550, section 2.2; the distance is that of Grill et al., BYOL, arXiv 2006.07733, equation
    2.
    """

    task: Task
    teacher: Answering
    mode: DistillMode = "soft"
    weight: float = 0.5
    """Share of the teacher's part, in [0, 1]."""
    temperature: float = 3.0
    """T of the soft targets, above 0."""
    projection: nn.Linear | None = None
    """From D to E; trained with the student and thrown away. None: the features are not compared."""
    features_weight: float = 0.0
    """Of the features' distance."""

    def network(self, model: nn.Module) -> nn.Module:
        """Return the student, with its projected features where they are compared."""
        if self.projection is None:
            return model
        assert isinstance(model, Model), model
        return _WithFeatures(model, self.projection)

    def loss(self, outputs: Any, batch: TrainBatch) -> tuple[Tensor, Tensor]:
        """Return the mean loss as a scalar in fp32, and the student's logits (B, C)."""
        logits, features = outputs if self.projection is not None else (outputs, None)
        answers = self.teacher.answers(batch)
        loss = (1 - self.weight) * self.task.loss(logits, batch.targets)
        theirs = self.task.answers_loss(logits.float(), answers.logits, self.mode, self.temperature)
        loss = loss + self.weight * theirs
        if features is not None:
            assert answers.features is not None, "the teacher was made without features"
            loss = loss + self.features_weight * features_distance(features.float(), answers.features)
        return loss, logits

    def correct(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return (B,) booleans: whether the student agrees with the label, whatever the teacher says."""
        return self.task.correct(logits, targets)


def features_distance(projected: Tensor, teacher: Tensor) -> Tensor:
    """Return 2 - 2 cos of features (B, E), the mean over B, in [0, 4]."""
    return 2 - 2 * F.cosine_similarity(projected, teacher, dim=1).mean()


def class_order(teacher: Sequence[str], student: Sequence[str]) -> list[int]:
    """Return for each of the student's classes its place among the teacher's.

    Raises:
        ConfigError: if the names differ.
    """
    if tuple(teacher) == tuple(student):
        return list(range(len(student)))
    if sorted(teacher) == sorted(student):
        places = {name: place for place, name in enumerate(teacher)}
        return [places[name] for name in student]
    strange = [name for name in student if name not in teacher]
    left_over = [name for name in teacher if name not in student]
    hint = did_you_mean(strange[0], left_over) if strange else ""
    raise ConfigError(
        f"The teacher knows {len(teacher)} classes and the images show {len(student)}: "
        f"{_named(strange)} only the images, {_named(left_over)} only the teacher.{hint} Both need the same names; "
        "train the teacher on these classes first."
    )


class _WithFeatures(nn.Module):
    """Maps images to the model's logits and its projected pooled features."""

    def __init__(self, model: Model, projection: nn.Linear) -> None:
        super().__init__()
        self.model = model
        self.projection = projection

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        logits, features = _logits_and_features(self.model, images)
        return logits, self.projection(features)


def _logits_and_features(model: Model, images: Tensor) -> tuple[Tensor, Tensor]:
    for _, features in model.intermediates(images):
        pooled = features  # the last one; none of the others is kept
    return model.forward_head(pooled), pooled


def _renormalisation(source: Preprocess, target: Preprocess, device: torch.device) -> tuple[Tensor, Tensor] | None:
    """Return factor and summand (1, C, 1, 1) from one normalisation to the other; None where they are the same."""
    if (source.mean, source.std) == (target.mean, target.std):
        return None
    factor = [ours / theirs for ours, theirs in zip(source.std, target.std, strict=True)]
    summand = [(ours - theirs) / std for ours, theirs, std in zip(source.mean, target.mean, target.std, strict=True)]
    first, second = (torch.tensor(values, device=device).view(1, -1, 1, 1) for values in (factor, summand))
    return first, second


def _named(names: Sequence[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:_NUM_NAMED]) or "none"
    return shown if len(names) <= _NUM_NAMED else f"{shown}, ... ({len(names)} in all)"
