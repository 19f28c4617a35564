"""Every knob of every verb on one page, with its unit. Pure data: nothing here imports torch or numpy.

The same dataclasses make the command line (``vitrail train SOURCE --epochs 10``), the Python calls
(``vitrail.train(source, epochs=10)``) and the ``config.json`` of a run.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal, get_type_hints

from vitrail.dataconfig import DataConfig as DataConfig
from vitrail.dataconfig import SourceConfig as SourceConfig
from vitrail.dataconfig import SplitName as SplitName
from vitrail.errors import ConfigError
from vitrail.options import check_choice, check_range, parse_assignments, parse_count, parse_duration
from vitrail.options import from_options as from_options
from vitrail.preprocess import IMAGE_SIZE_RANGE
from vitrail.preprocess import Interpolation as Interpolation
from vitrail.preprocess import PixelType as PixelType
from vitrail.preprocess import Preprocess as Preprocess
from vitrail.preprocess import ResizeMode as ResizeMode

TaskName = Literal["classification", "multilabel"]
Runtime = Literal["eager", "compiled", "onnx", "onnx-int8"]
AugmentStrength = Literal["auto", "none", "light", "medium", "strong"]


@dataclass(frozen=True, kw_only=True)
class AdmitConfig(DataConfig):
    """Every knob of `vitrail data`: look at images before training on them."""

    source: str
    """A folder of images, one folder per class; a table of paths and labels; a Hugging Face dataset, saved or as
    hf-dataset:NAME; shards (.tar), a folder or a pattern; idx files; an .npz archive; "digits"."""
    out: str = "runs"
    """Folder of all runs; the manifest is written to a new folder in it."""
    name: str | None = None
    """Name of the new folder. Default: the source's name. A number is added when it exists."""
    label_folds: int = 0
    """Look for wrong labels: parts into which the images are divided, each judged by a quick model that learnt the
    others, from 2 to 20; 5 is usual, 0 does not look. Needs the extra labels."""
    label_model: str | None = None
    """Published weights, as `pretrained` of train takes them, whose features the quick model learns from. Default:
    those of small patches, which it finds in the images themselves within milliseconds an image."""

    def __post_init__(self) -> None:
        """Refuse values outside their range."""
        super().__post_init__()
        if self.label_folds != 0:
            check_range("label_folds", self.label_folds, 2, 20)
        elif self.label_model is not None:
            raise ConfigError("label_model is for looking for wrong labels, and label_folds is 0. Give 5 or so.")
        if self.label_model is not None and self.channels is not None:
            raise ConfigError(
                f"label_model looks at RGB, and channels is {self.channels}. Leave it out; patches of all channels are "
                "looked at then."
            )


@dataclass(frozen=True, kw_only=True)
class TrainConfig(DataConfig):
    """Every knob of `vitrail train`: from a folder of images to a trained, evaluated model and its report."""

    source: str
    """Folders of images, one per class (or train, val and test folders of these); a table of paths and labels; a
    Hugging Face dataset, saved or as hf-dataset:NAME; shards (.tar), a folder or a pattern; idx files; an .npz archive;
    "digits"; or a run to resume."""

    # What is trained
    model: str = "auto"
    """A name of `vitrail models`, or a checkpoint with its weights: hf-hub:org/name, timm's name with its tag, a run, a
    file, a folder; or timm:NAME, transformers:NAME. "auto": that of `pretrained`, else lucarne_s."""
    options: tuple[str, ...] = ()
    """Options of the model's family, such as pool=mean layer_scale=1e-4."""
    pretrained: str | None = None
    """Start from these weights: a run, a .safetensors file, a folder in Hugging Face's layout or hf-hub:org/name."""
    image_size: int | None = None
    """Side of the square the model sees, in pixels. Default: that of the weights or in the model's name, else what most
    images have, at most 224, and at least two cells of the model's last grid: smaller images are enlarged."""
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
    """Mirror half of the training images. Default: by the strength of `augment`, and never where the classes are called
    by numbers or single letters, which may be writing."""
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
    optimizer: str = "auto"
    """adamw, sgd, muon8, muon (torch's own), lion, adafactor or schedule-free (which needs the extra schedulefree).
    "auto": muon8 for a ViT from random weights, adamw for other models and with `pretrained`."""
    lr: float | Literal["find"] | None = None
    """Highest learning rate; or "find": a fifteenth of the highest that the loss bears in a sweep of a hundred
    steps over rising rates. Default: by the optimizer and the batch size; a tenth of it with `pretrained`."""
    weight_decay: float | None = None
    """Weight decay of matrices and convolutions; vectors, norms and positions have none. Default: by the optimizer."""
    layer_decay: float | None = None
    """Factor of the learning rate from a layer to the one before it, in (0, 1]. Default: 0.75 for a ViT with
    `pretrained`, else 1."""
    head_first: int = 0
    """Epochs at the start in which only the head learns, and the rest computes as in evaluation."""
    warmup: float = 0.1
    """Share of the training in which the learning rate rises from 0, in [0, 0.5]."""
    label_smoothing: float | None = None
    """Probability mass spread over all classes, in [0, 1); with several labels per image, the share by which each 0 or
    1 moves towards 1/2. Default: 0.1, and 0 with several labels."""
    class_weights: Literal["none", "balanced"] = "none"
    """Weights of the classes in the loss. balanced: inverse to their number of training images, 1 on average; with
    several labels per image, those that make presence and absence of a class count alike."""
    sampling: Literal["plain", "balanced"] = "plain"
    """Training images of an epoch. plain: each once. balanced: as many of every class, drawn again where few."""
    grad_clip: float = 1.0
    """Largest L2 norm of all gradients together; 0 switches clipping off."""
    ema: bool = True
    """Evaluate and keep an exponential moving average of the weights. schedule-free keeps its own instead."""
    patience: int | None = None
    """Stop after this many epochs without a better validation accuracy (mAP with several labels). Default: never."""

    # A teacher
    teacher: str | None = None
    """Learn from the answers of this trained model too: a run or a .safetensors file that knows the same classes."""
    distill: Literal["soft", "hard"] = "soft"
    """What is learnt of the teacher: its probabilities, or the class it finds most probable."""
    distill_weight: float = 0.5
    """Share of the loss that compares with the teacher's answers, in [0, 1]; the rest compares with the labels."""
    distill_temperature: float = 3.0
    """By which logits are divided before soft answers are compared, from 0.1 to 100."""
    distill_features: float = 0.0
    """Weight of the distance between pooled features, added to the loss; 0 leaves it out."""
    distill_cache: Literal["auto", "off"] | int = "off"
    """Epochs after which order and augmentation repeat, so that the teacher's answers can be kept. "auto": where that
    at least halves the multiply-adds."""

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
        for name in ("augment", "cache", "precision", "compile", "resize", "class_weights", "sampling"):
            check_choice(name, getattr(self, name), get_type_hints(type(self))[name])
        for name in ("epochs", "batch_size", "patience", "accumulate", "workers"):
            check_range(name, getattr(self, name), 1, 2**31 - 1)
        check_range("image_size", self.image_size, *IMAGE_SIZE_RANGE)
        check_range("drop_path", self.drop_path, 0, 0.99)
        check_range("label_smoothing", self.label_smoothing, 0, 0.99)
        check_range("warmup", self.warmup, 0, 0.5)
        check_range("layer_decay", self.layer_decay, 0, 1, open_low=True)
        check_range("head_first", self.head_first, 0, 2**31 - 1)
        object.__setattr__(self, "options", tuple(self.options))  # JSON has no tuples
        parse_assignments("options", self.options)
        if isinstance(self.lr, str) and self.lr != "find":
            raise ConfigError(f"lr is {self.lr!r}; it takes a number or 'find'.")
        check_range("lr", None if isinstance(self.lr, str) else self.lr, 0, 1e3)
        for name in ("weight_decay", "grad_clip", "mixup", "cutmix"):
            check_range(name, getattr(self, name), 0, 1e3)
        if self.time_budget is not None:
            parse_duration(self.time_budget)
        self._check_distillation()

    def _check_distillation(self) -> None:
        check_choice("distill", self.distill, Literal["soft", "hard"])
        check_range("distill_weight", self.distill_weight, 0, 1)
        check_range("distill_temperature", self.distill_temperature, 0.1, 100)
        check_range("distill_features", self.distill_features, 0, 1e3)
        cache = self.distill_cache
        if cache not in {"auto", "off"} and (not isinstance(cache, int) or isinstance(cache, bool) or cache < 1):
            raise ConfigError(f"distill_cache is {cache!r}; it takes 'auto', 'off' or a number of epochs from 1.")
        fields = [item for item in dataclasses.fields(self) if item.name.startswith("distill")]
        given = [item.name for item in fields if getattr(self, item.name) != item.default]
        if given and self.teacher is None:
            raise ConfigError(f"{', '.join(given)} says how to learn from a teacher, and none is given. Add teacher.")

    @property
    def model_options(self) -> dict[str, Any]:
        """The options of the model's family by name, their values read as JSON, or as text where they are none."""
        return parse_assignments("options", self.options)

    @property
    def time_budget_s(self) -> float | None:
        """The time budget in seconds."""
        return None if self.time_budget is None else parse_duration(self.time_budget)


def _check_data_given(config: SourceConfig, data: str | None) -> None:
    """Refuse to tell how data is read where none is given: a run reads its own as it was told then."""
    if data is None and config.source_options:
        raise ConfigError(f"{', '.join(config.source_options)} tells how data is read, and none is given. Add data.")


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig(SourceConfig):
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
        super().__post_init__()
        _check_data_given(self, self.data)
        check_choice("precision", self.precision, get_type_hints(type(self))["precision"])
        check_range("batch_size", self.batch_size, 1, 2**31 - 1)
        if self.split is not None:
            check_choice("split", self.split, SplitName)


@dataclass(frozen=True, kw_only=True)
class PredictConfig:
    """Every knob of `vitrail predict`: labels and probabilities for files, folders and globs."""

    target: str
    """A run, a bundle or a checkpoint."""
    images: tuple[str, ...]
    """Picture files, folders (searched through) and globs."""
    top_k: int | None = None
    """How many labels to give for each picture. Default: 1; a model of several labels gives all from their thresholds
    on."""
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
        check_choice("format", self.format, get_type_hints(type(self))["format"])
        check_range("batch_size", self.batch_size, 1, 2**31 - 1)
        check_range("top_k", self.top_k, 1, 2**31 - 1)
        if not self.images:
            raise ConfigError("No images were named. Give files, folders or globs after the model.")


@dataclass(frozen=True, kw_only=True)
class ExportConfig(SourceConfig):
    """Every knob of `vitrail export`: a bundle that was proven to give the same answers."""

    target: str
    """A run, or a checkpoint together with `data`."""
    format: Literal["onnx", "executorch"] = "onnx"
    """What the bundle is made for: an ONNX file, or beside it a program for phones too (extra `executorch`)."""
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
        super().__post_init__()
        _check_data_given(self, self.data)
        check_choice("format", self.format, get_type_hints(type(self))["format"])
        check_range("tolerance", self.tolerance, 0, 1, open_low=True)


@dataclass(frozen=True, kw_only=True)
class CheckConfig:
    """Every knob of `vitrail check`: repeat a bundle's proof on this machine."""

    bundle: str
    """A folder that `vitrail export` wrote."""


@dataclass(frozen=True, kw_only=True)
class BenchConfig:
    """Every knob of `vitrail bench`: how fast models are, side by side on this machine."""

    models: tuple[str, ...]
    """Names of `vitrail models`, runs, checkpoints and bundles; the others are compared with the first."""
    runtimes: tuple[Runtime, ...] = ("eager", "onnx")
    """PyTorch as it is, PyTorch through torch.compile, onnxruntime, and onnxruntime with matrix products in int8."""
    precision: tuple[Literal["fp32", "bf16"], ...] = ("fp32",)
    """Numbers of the heavy matrix products in PyTorch; onnxruntime computes in fp32."""
    batch_size: tuple[int, ...] = (1, 16)
    """Images per forward pass."""
    threads: tuple[int, ...] = ()
    """Threads on the CPU. Default: 1, and one per processor core."""
    image_size: int | None = None
    """Side in pixels for the models given by name. Default: that of the published model; trained models keep theirs."""
    rounds: int = 5
    """How often each is measured, in turns; one more round before them is thrown away."""
    time_budget: str | None = None
    """Longest time, such as "5m": turns get shorter, and no round starts after it. Default: half a second a turn."""
    device: str = "cpu"
    """auto, cpu, cuda, cuda:1 or mps."""
    out: str = "runs"
    """Folder of all runs; the measurement is written to a new folder in it."""
    name: str | None = None
    """Name of the new folder. Default: the first model's name. A number is added when it exists."""
    quiet: bool = False
    """Show no progress."""

    def __post_init__(self) -> None:
        if not self.models:
            raise ConfigError("No model was named. Give names of `vitrail models`, runs, checkpoints or bundles.")
        for name, choice in (("runtimes", Runtime), ("precision", Literal["fp32", "bf16"])):
            for value in getattr(self, name):
                check_choice(name, value, choice)
        for name, values in (("batch_size", self.batch_size), ("threads", self.threads)):
            for value in values:
                check_range(name, value, 1, 2**16)
        check_range("image_size", self.image_size, *IMAGE_SIZE_RANGE)
        check_range("rounds", self.rounds, 1, 10_000)


@dataclass(frozen=True, kw_only=True)
class ModelsConfig:
    """Every knob of `vitrail models`: what can be trained, and what each costs."""

    patterns: tuple[str, ...]
    """Only names that match one of these, such as "vit_tiny*". Default: all."""
    max_params: str | None = None
    """Only models of at most as many parameters, such as "5M" or "800k"."""
    max_macs: str | None = None
    """Only models of at most as many multiply-adds for one image, such as "500M" or "0.5G"."""
    image_size: int | None = None
    """Side in pixels for which the multiply-adds are counted. Default: that of the published model."""
    sort: Literal["family", "name", "params", "macs", "accuracy"] = "family"
    """Order: by family, by name, the least parameters or multiply-adds first, or the highest accuracy first."""
    format: Literal["table", "csv", "json"] = "table"
    """What is printed."""

    def __post_init__(self) -> None:
        for name in ("sort", "format"):
            check_choice(name, getattr(self, name), get_type_hints(type(self))[name])
        for limit in (self.max_params, self.max_macs):
            if limit is not None:
                parse_count(limit)
        check_range("image_size", self.image_size, *IMAGE_SIZE_RANGE)


@dataclass(frozen=True, kw_only=True)
class DemoConfig:
    """Every knob of `vitrail demo`: the whole way on the built-in handwritten digits, in about two minutes."""

    out: str = "runs"
    """Folder of all runs."""
    seed: int = 0
    """Decides the split, the initial weights, the order of the images and every augmentation."""
    epochs: int = 40
    """Passes over the training images."""
