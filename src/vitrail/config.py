"""Every knob of every verb on one page, with its unit. Pure data: nothing here imports torch or numpy.

The same dataclasses make the command line (``vitrail train SOURCE --epochs 10``), the Python calls
(``vitrail.train(source, epochs=10)``) and the ``config.json`` of a run.
"""

import dataclasses
import re
from dataclasses import dataclass
from pathlib import PurePath
from types import UnionType
from typing import Any, Literal, Self, TypeVar, Union, get_args, get_origin, get_type_hints

from vitrail.errors import ConfigError, did_you_mean

Config = TypeVar("Config")

ResizeMode = Literal["crop", "squash", "pad"]
Interpolation = Literal["bicubic", "bilinear", "lanczos", "nearest"]
SplitName = Literal["train", "val", "test"]
AugmentStrength = Literal["auto", "none", "light", "medium", "strong"]

IMAGE_SIZE_RANGE = (4, 4096)


@dataclass(frozen=True, kw_only=True)
class Preprocess:
    """How a picture becomes the numbers a model sees; travels with every checkpoint, run and bundle.

    A picture is oriented by its EXIF tag, made RGB, resized to ``image_size`` and then normalised as
    ``(value / 255 - mean) / std`` per channel.
    """

    image_size: tuple[int, int]
    """Height and width in pixels."""
    resize: ResizeMode = "crop"
    """crop: shorter side to the size, centre cut out. squash: both sides to the size. pad: longer side, black bars."""
    crop_fraction: float = 1.0
    """Share of the resized shorter side that a centre crop keeps, in (0, 1]; only for resize "crop"."""
    interpolation: Interpolation = "bicubic"
    """Filter of the resizing."""
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    """Per channel (red, green, blue), of values in [0, 1]."""
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    """Per channel, positive."""

    def __post_init__(self) -> None:
        """Refuse values that no picture can be prepared with."""
        low, high = IMAGE_SIZE_RANGE
        if not all(low <= side <= high for side in self.image_size):
            raise ConfigError(
                f"image_size is {self.image_size}; it takes height and width from {low} to {high} pixels."
            )
        if not 0 < self.crop_fraction <= 1:
            raise ConfigError(f"crop_fraction is {self.crop_fraction}; it takes a number above 0 and up to 1.")
        _check_choice("resize", self.resize, ResizeMode)
        _check_choice("interpolation", self.interpolation, Interpolation)
        if min(self.std) <= 0:
            raise ConfigError(f"std is {self.std}; it takes three numbers above 0.")

    def to_dict(self) -> dict[str, Any]:
        """Return plain data that JSON can hold."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """Read what `to_dict` wrote."""
        values: dict[str, Any] = {key: tuple(item) if isinstance(item, list) else item for key, item in data.items()}
        return cls(**values)


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """How images are divided. Shared by `data` and `train`."""

    val_fraction: float = 0.1
    """Share of the images that goes to validation, in (0, 0.5], where the source has no validation folder."""
    test_fraction: float = 0.2
    """Share of the images held out for the test, in [0, 0.5], where the source has no folders for its splits."""
    seed: int = 0
    """Decides the split, the initial weights, the order of the images and every augmentation."""

    def __post_init__(self) -> None:
        """Refuse shares that leave nothing to train on."""
        _check_range("val_fraction", self.val_fraction, 0, 0.5, open_low=True)
        _check_range("test_fraction", self.test_fraction, 0, 0.5)
        _check_range("seed", self.seed, 0, 2**31 - 1)


@dataclass(frozen=True, kw_only=True)
class AdmitConfig(DataConfig):
    """Every knob of `vitrail data`: look at images before training on them."""

    source: str
    """A folder of images, one folder per class, or the built-in "digits"."""
    out: str = "runs"
    """Folder of all runs; the manifest is written to a new folder in it."""
    name: str | None = None
    """Name of the new folder. Default: the source's name. A number is added when it exists."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig(DataConfig):
    """Every knob of `vitrail train`: from a folder of images to a trained, evaluated model and its report."""

    source: str
    """Folders of images, one per class (or train, val and test folders of these), "digits", or a run to resume."""

    # What is trained
    model: str = "auto"
    """A name of `vitrail models`. "auto": that of `pretrained`, else a ViT whose size and patch suit the images."""
    pretrained: str | None = None
    """Start from these weights: a run, a .safetensors file, a folder in Hugging Face's layout or hf-hub:org/name."""
    image_size: int | None = None
    """Side of the square the model sees, in pixels. Default: the size in the model's name, else what most images have,
    at most 224."""
    local: bool = False
    """Add adaptive local enhancement to the blocks of a ViT."""
    fusion: bool = False
    """Add multi-scale fusion before the head of a ViT."""
    drop_path: float = 0.1
    """Rate of stochastic depth in the last block, in [0, 1); rises linearly from 0 in the first."""

    # How images are prepared
    resize: ResizeMode = "crop"
    """How a picture that is not square is made square, in evaluation and prediction."""
    augment: AugmentStrength = "auto"
    """Strength of the augmentation of training images. "auto": medium, or light for the built-in digits."""
    flip: bool | None = None
    """Mirror half of the training images. Default: by the strength of `augment`, and never for the built-in digits."""
    mixup: float | None = None
    """Alpha of mixup's Beta distribution; 0 switches it off. Default: by the strength of `augment`."""
    cutmix: float | None = None
    """Alpha of CutMix's Beta distribution; 0 switches it off. Default: by the strength of `augment`."""
    cache: Literal["auto", "on", "off"] = "auto"
    """Keep resized images in memory as bytes. "auto": where they take at most a quarter of the free memory."""
    workers: int | None = None
    """Threads that prepare images. Default: the number of processor cores, at most 8."""

    # How long, and how fast it learns
    epochs: int | None = None
    """Passes over the training images. Default: 50, or as many as fit in `time_budget`."""
    time_budget: str | None = None
    """Longest time to train, such as "90s", "10m" or "2h"; the learning rate reaches its end just then."""
    batch_size: int | None = None
    """Images per step on the device. Default: by the number of images, and by memory on a GPU."""
    accumulate: int = 1
    """Batches whose gradients are summed before each step of the optimizer."""
    optimizer: str = "adamw"
    """adamw or sgd."""
    lr: float | None = None
    """Highest learning rate. Default: by the optimizer and the batch size; a tenth of it with `pretrained`."""
    weight_decay: float | None = None
    """Weight decay of matrices and convolutions; vectors, norms and positions have none. Default: by the optimizer."""
    warmup: float = 0.1
    """Share of the training in which the learning rate rises from 0, in [0, 0.5]."""
    label_smoothing: float = 0.1
    """Probability mass spread over all classes, in [0, 1)."""
    grad_clip: float = 1.0
    """Largest L2 norm of all gradients together; 0 switches clipping off."""
    ema: bool = True
    """Evaluate and keep an exponential moving average of the weights."""
    patience: int | None = None
    """Stop after this many epochs without a better validation accuracy. Default: never."""

    # The machine
    device: str = "auto"
    """auto, cpu, cuda, cuda:1 or mps."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Numbers of the heavy matrix products. "auto": bf16 where the hardware multiplies it natively."""
    compile: Literal["auto", "on", "off"] = "auto"
    """Use torch.compile. "auto": on a GPU with a `time_budget` of five minutes or more, which pays for it."""

    # Where results go
    out: str = "runs"
    """Folder of all runs."""
    name: str | None = None
    """Name of this run's folder. Default: the model's name. A number is added when it exists."""
    quiet: bool = False
    """Show no progress."""
    resume: bool = False
    """Go on with the interrupted run that `source` names, with the configuration it was started with."""

    def __post_init__(self) -> None:
        """Refuse values outside their range, each with its name, its value and what is allowed."""
        super().__post_init__()
        for name in ("augment", "cache", "precision", "compile", "resize"):
            _check_choice(name, getattr(self, name), get_type_hints(type(self))[name])
        for name in ("epochs", "batch_size", "patience", "accumulate", "workers"):
            _check_range(name, getattr(self, name), 1, 2**31 - 1)
        if self.image_size is not None:
            _check_range("image_size", self.image_size, *IMAGE_SIZE_RANGE)
        _check_range("drop_path", self.drop_path, 0, 0.99)
        _check_range("label_smoothing", self.label_smoothing, 0, 0.99)
        _check_range("warmup", self.warmup, 0, 0.5)
        for name in ("lr", "weight_decay", "grad_clip", "mixup", "cutmix"):
            _check_range(name, getattr(self, name), 0, 1e3)
        if self.time_budget is not None:
            parse_duration(self.time_budget)

    @property
    def time_budget_s(self) -> float | None:
        """The time budget in seconds."""
        return None if self.time_budget is None else parse_duration(self.time_budget)


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """Every knob of `vitrail evaluate`: accuracy and its relatives, each with a 95 % interval."""

    target: str
    """A run, a bundle or a checkpoint."""
    data: str | None = None
    """Another source of images, with the same classes. Default: the images the run was trained on."""
    split: SplitName | None = None
    """Which images. Default: test where there is one, else val; all of them with `data` that has no splits."""
    batch_size: int = 64
    """Images per forward pass."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1 or mps."""
    precision: Literal["auto", "fp32", "bf16"] = "fp32"
    """Numbers of the heavy matrix products."""
    out: str = "runs"
    """Folder of all runs; the evaluation and its report are written to a new folder in it."""
    name: str | None = None
    """Name of the new folder. Default: the target's name and the split. A number is added when it exists."""

    def __post_init__(self) -> None:
        """Refuse values outside their range."""
        _check_choice("precision", self.precision, get_type_hints(type(self))["precision"])
        _check_range("batch_size", self.batch_size, 1, 2**31 - 1)
        if self.split is not None:
            _check_choice("split", self.split, SplitName)


@dataclass(frozen=True, kw_only=True)
class PredictConfig:
    """Every knob of `vitrail predict`: labels and probabilities for files, folders and globs."""

    target: str
    """A run, a bundle or a checkpoint."""
    images: tuple[str, ...]
    """Picture files, folders (searched through) and globs."""
    top_k: int = 1
    """How many labels to give for each picture."""
    format: Literal["table", "csv", "json"] = "table"
    """What is printed, or written to `output`."""
    output: str | None = None
    """Write the predictions to this file rather than to the terminal."""
    batch_size: int = 64
    """Images per forward pass."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1 or mps."""

    def __post_init__(self) -> None:
        """Refuse values outside their range."""
        _check_choice("format", self.format, get_type_hints(type(self))["format"])
        _check_range("batch_size", self.batch_size, 1, 2**31 - 1)
        _check_range("top_k", self.top_k, 1, 2**31 - 1)
        if not self.images:
            raise ConfigError("No images were named. Give files, folders or globs after the model.")


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """Every knob of `vitrail export`: a bundle that was proven to give the same answers."""

    target: str
    """A run, or a checkpoint together with `data`."""
    format: Literal["onnx"] = "onnx"
    """What the bundle is made for."""
    data: str | None = None
    """Images to prove the export on. Default: the validation images of the run."""
    tolerance: float = 1e-3
    """Largest difference between the logits of both, relative to their standard deviation where that is above 1."""
    out: str = "runs"
    """Folder of all runs; the bundle is a new folder in it."""
    name: str | None = None
    """Name of the new folder. Default: the target's name. A number is added when it exists."""

    def __post_init__(self) -> None:
        """Refuse values outside their range."""
        _check_choice("format", self.format, get_type_hints(type(self))["format"])
        _check_range("tolerance", self.tolerance, 0, 1, open_low=True)


@dataclass(frozen=True, kw_only=True)
class CheckConfig:
    """Every knob of `vitrail check`: repeat a bundle's proof on this machine."""

    bundle: str
    """A folder that `vitrail export` wrote."""


@dataclass(frozen=True, kw_only=True)
class ModelsConfig:
    """Every knob of `vitrail models`: what can be trained."""

    patterns: tuple[str, ...]
    """Only names that match one of these, such as "vit_tiny*". Default: all."""
    image_size: int = 224
    """Side in pixels for which the multiply-adds are counted."""


@dataclass(frozen=True, kw_only=True)
class DemoConfig:
    """Every knob of `vitrail demo`: the whole way on the built-in handwritten digits, in about two minutes."""

    out: str = "runs"
    """Folder of all runs."""
    seed: int = 0
    """Decides the split, the initial weights, the order of the images and every augmentation."""
    epochs: int = 60
    """Passes over the training images."""


def from_options(kind: type[Config], options: dict[str, Any]) -> Config:
    """Build the dataclass ``kind`` from keyword arguments; paths become text.

    Raises:
        ConfigError: for an option it does not have, with the nearest one it has, or a value of another type.
    """
    known = get_type_hints(kind)
    values = {name: str(value) if isinstance(value, PurePath) else value for name, value in options.items()}
    for name, value in values.items():
        if name not in known:
            raise ConfigError(f"There is no option {name!r}.{did_you_mean(name, known)} Known: {', '.join(known)}.")
        if not _is_of_type(value, known[name]):
            wanted = known[name].__name__ if isinstance(known[name], type) else known[name]
            raise ConfigError(f"{name} is {value!r}, of the type {type(value).__name__}; it takes {wanted}.")
    return kind(**values)


def parse_duration(text: str) -> float:
    """Return the seconds of a time such as "90s", "10m", "1.5h" or "90" (seconds).

    Raises:
        ConfigError: if the text is no such time, or is not above zero.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(s|m|h|d)?\s*", text)
    seconds = float(match[1]) * {"s": 1, "m": 60, "h": 3600, "d": 86400}[match[2] or "s"] if match else 0.0
    if seconds <= 0:
        raise ConfigError(f"{text!r} is not a time. Give a number with s, m, h or d, such as 90s, 10m or 2h.")
    return seconds


def _is_of_type(value: object, hint: Any) -> bool:
    """Return whether an option's value may be given where ``hint`` stands; which words it takes is checked later."""
    if get_origin(hint) in {Union, UnionType}:
        return any(_is_of_type(value, each) for each in get_args(hint))
    if get_origin(hint) is Literal:
        return True
    if get_origin(hint) is tuple:
        return isinstance(value, list | tuple)
    if isinstance(value, bool):  # which Python counts among the integers
        return hint is bool
    return isinstance(value, (int, float) if hint is float else hint)


def _check_range(name: str, value: float | None, low: float, high: float, *, open_low: bool = False) -> None:
    if value is None:
        return
    if not low <= value <= high or (open_low and value == low):
        bounds = f"above {low}" if open_low else f"from {low}"
        raise ConfigError(f"{name} is {value}; it takes a number {bounds} to {high}.")


def _check_choice(name: str, value: object, choice: Any) -> None:
    allowed = get_args(choice) if get_origin(choice) is Literal else ()
    if value not in allowed:
        hint = did_you_mean(str(value), allowed)
        raise ConfigError(f"{name} is {value!r}; it takes {', '.join(map(repr, allowed))}.{hint}")
