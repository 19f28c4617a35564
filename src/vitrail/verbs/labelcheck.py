"""The part of `vitrail data` that looks for wrong labels: features, answers out of fold, and what these doubt."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from vitrail.config import AdmitConfig, PixelType, Preprocess
from vitrail.data import Dataset, EvalLoader, Split, display_name, read_manifest
from vitrail.data.duplicates import group_numbers
from vitrail.data.labels import assign_folds, find_label_issues, out_of_fold
from vitrail.data.patches import SIDE, PatchFeatures
from vitrail.errors import ConfigError
from vitrail.evaluation.predict import TorchPredictor
from vitrail.models import create_model
from vitrail.models.pretrained import load_pretrained, read_spec
from vitrail.runtime.device import resolve_device
from vitrail.runtime.precision import choose_precision
from vitrail.training import Run, is_run

_BATCH: Final = 64
_LEARNT_FROM: Final = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class DoubtfulLabel:
    """An image whose label is probably wrong."""

    path: str
    given: tuple[str, ...]
    """Its labels."""
    suggested: tuple[str, ...]
    """What it probably shows instead."""
    confidence: float
    """Probability that the label which is doubted is right, in [0, 1]; the images of a data set are ordered by it."""

    @property
    def text(self) -> str:
        """The two answers and the probability in one line."""
        given, suggested = (
            ", ".join(map(display_name, labels)) or "nothing" for labels in (self.given, self.suggested)
        )
        return f"{given} → {suggested}, {self.confidence:.1%}"


@dataclass(frozen=True, kw_only=True)
class LabelCheck:
    """What a quick model thinks of labels that it has not learnt."""

    issues: tuple[DoubtfulLabel, ...]
    """The most doubtful first."""
    agreement: float
    """Share of the labels that it gives itself, in [0, 1]: the less, the less its doubts count."""
    num_images: int
    num_folds: int
    features: str
    """What it learnt from, as a person reads it."""

    @property
    def text(self) -> str:
        """What was found, in some sentences."""
        doubted = f"{len(self.issues):,} of {self.num_images:,}" if self.issues else "none"
        return (
            f"A quick model judged each of {self.num_folds} parts of the images after learning the others by "
            f"{self.features}. It agrees with {self.agreement:.0%} of the labels and doubts {doubted}. It errs too: "
            "look at these from the first on, and stop where most are right."
        )

    def to_dict(self) -> dict[str, Any]:
        """Return plain data that JSON can hold; bytes of names that are no text are escaped."""
        return {
            "num_images": self.num_images,
            "num_folds": self.num_folds,
            "features": self.features,
            "agreement": self.agreement,
            "issues": [
                {
                    "path": display_name(issue.path),
                    "given": [display_name(label) for label in issue.given],
                    "suggested": [display_name(label) for label in issue.suggested],
                    "confidence": issue.confidence,
                }
                for issue in self.issues
            ],
        }


def check_labels(dataset: Dataset, config: AdmitConfig) -> LabelCheck:
    """Let a linear classifier that learnt the other parts of the images judge the labels of each part.

    Raises:
        ConfigError: if the model is a run that learnt these very labels.
        CheckpointError: if the model's weights cannot be used.
        DataError: if an image can no longer be read.
        MissingExtraError: if cleanlab is not installed.
    """
    images = _joined(dataset)
    if config.label_model is None:
        features = patch_features(images, config.seed, dataset.channels, dataset.pixel_type)
        named = "small patches in them"
    else:
        _refuse_what_learnt(config.label_model, dataset)
        features, named = model_features(images, config.label_model), f"the features of {config.label_model}"
    folds = assign_folds(images.labels, _units(dataset, images.paths), config.label_folds, seed=config.seed)
    probabilities = out_of_fold(features, images.labels, folds, len(images.classes))
    found = find_label_issues(images.labels, probabilities)
    answers = probabilities.argmax(axis=1) if images.task == "classification" else probabilities >= 0.5
    return LabelCheck(
        issues=tuple(
            DoubtfulLabel(
                path=images.paths[index],
                given=_names(images.labels[index], images.classes),
                suggested=_names(suggested, images.classes),
                confidence=round(float(confidence), 6),
            )
            for index, suggested, confidence in zip(
                found.indices.tolist(), found.suggested, found.confidence, strict=True
            )
        ),
        agreement=float((answers == images.labels).mean()),
        num_images=len(images),
        num_folds=config.label_folds,
        features=named,
    )


def _joined(dataset: Dataset) -> Split:
    """Return the images of all splits as one."""
    splits = list(dataset.splits.values())
    return Split(
        name="train",
        classes=dataset.classes,
        paths=[path for split in splits for path in split.paths],
        labels=np.concatenate([split.labels for split in splits]),
        sizes=np.concatenate([split.sizes for split in splits]),
        pictures=splits[0].pictures,
    )


def _units(dataset: Dataset, paths: Sequence[str]) -> np.ndarray:
    """Return int (n,), the same number for images that are copies of one another or of one group."""
    places = {path: place for place, path in enumerate(paths)}
    groups: dict[str, int] = {}
    links = [(pair.first, pair.second) for pair in dataset.findings.pairs]
    pairs = [(places[one], places[other]) for one, other in links if one in places and other in places]
    for record in dataset.records:
        if record.group and record.path in places:
            place = places[record.path]
            pairs.append((groups.setdefault(record.group, place), place))
    return group_numbers(len(paths), pairs)


def patch_features(
    images: Split, seed: int, channels: int | None = None, pixel_type: PixelType = "uint8"
) -> np.ndarray:
    """Return features of small patches that are found in the images, float32 (n, d)."""
    middle = (0.5,) * (channels or 3)
    preprocess = Preprocess(
        image_size=(SIDE, SIDE), resize="squash", mean=middle, std=middle, channels=channels, pixel_type=pixel_type
    )
    pixels = np.concatenate([batch.pixels for batch in EvalLoader(images, preprocess, _BATCH, cache="off")])
    return PatchFeatures(pixels[:: max(1, len(pixels) // _LEARNT_FROM)], seed)(pixels)


def model_features(images: Split, source: str) -> np.ndarray:
    """Return the pooled features of published weights, float32 (n, d)."""
    device = resolve_device("auto")
    spec = read_spec(source)
    model = create_model(**spec.to_dict())
    preprocess = load_pretrained(model, source).preprocess or Preprocess(image_size=spec.image_size)
    model.reset_head(0)
    precision = choose_precision("auto", device, convolutional=model.channels_last)
    predictor = TorchPredictor(model.place(device), (), preprocess, device, precision)
    with torch.inference_mode():
        return np.concatenate(
            [predictor.logits(batch.pixels) for batch in EvalLoader(images, preprocess, _BATCH, cache="off")]
        )


def _refuse_what_learnt(source: str, dataset: Dataset) -> None:
    if not is_run(source):
        return
    learnt = {record.sha256 for record in read_manifest(Run(Path(source)).manifest_path) if record.split == "train"}
    num = sum(record.sha256 in learnt for record in dataset.records if record.sha256)
    if num:
        raise ConfigError(
            f"{display_name(source)} has learnt the labels of {num} of these images and would find them right. Give "
            "label_model a model that was trained on others, or leave it out."
        )


def _names(labels: np.ndarray, classes: Sequence[str]) -> tuple[str, ...]:
    if labels.ndim == 0:
        return (classes[int(labels)],)
    return tuple(classes[index] for index in np.flatnonzero(labels).tolist())
