"""Published weights: what model they are of, and loading them, ours or others', into a model of vitrail."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from vitrail.config import Preprocess
from vitrail.errors import CheckpointError
from vitrail.layers.embed import as_pair
from vitrail.models import MODELS, Model, ModelSpec, build, layouts, native_image_size, split_size
from vitrail.models.checkpoint import build_described, describe_own, read_header
from vitrail.models.describe import Description, describe, describe_for_transformers
from vitrail.models.guests import (
    TRANSFORMERS,
    Guest,
    is_guest,
    transformers_config,
    transformers_folder,
    transformers_tensors,
)
from vitrail.models.layouts import Family
from vitrail.models.translate_vit import resize_positions
from vitrail.models.vit import VisionTransformer
from vitrail.models.weights import (
    HUB_PREFIX,
    WEIGHTS_NAME,
    WEIGHTS_SUFFIXES,
    check_fit,
    find_weights,
    first_few,
    read_tensors,
)

_TIMMS_HUB: Final = f"{HUB_PREFIX}timm/"

_COUNTER: Final = ".num_batches_tracked"
"""End of a batch norm's count of its batches, which takes no part in any answer and is missing in many files."""


@dataclass(frozen=True, kw_only=True)
class Weights:
    """Weights as they were read: native tensors, and what is known about them."""

    source: str
    """The file, or the name that a library knows."""
    layout: str
    """Whose names the file uses: "vitrail", "timm", "huggingface" and so on."""
    tensors: dict[str, Tensor]
    """Under native names."""
    own_names: dict[str, Tensor]
    """The same under the names of the file."""
    described: Description
    family: Family | None = None
    """Whose they are; None where only the model that they are loaded into can tell."""
    spec: ModelSpec | None = None
    """How to build their model, where the file itself says so."""


@dataclass(frozen=True, kw_only=True)
class LoadReport:
    """What came of loading weights into a model; every tensor of the model and of the file is in one of the lists."""

    source: str
    """The file that was read."""
    layout: str
    """Whose names the file uses: "vitrail", "timm", "huggingface" and so on."""
    loaded: tuple[str, ...]
    """Tensors of the model that were loaded, resized and flipped ones too."""
    resized: tuple[str, ...] = ()
    """Those that were resampled to the model's grid of patches, or brought to its number of colours."""
    flipped: tuple[str, ...] = ()
    """Those whose colours were reversed, because the weights expect blue, green, red."""
    reinitialised: tuple[str, ...] = ()
    """Tensors of the head, which keep the model's own values, because the classes differ or the file has no head."""
    missing: tuple[str, ...] = ()
    """Tensors of local enhancement and fusion, which keep the model's own values, because the file has none."""
    unexpected: tuple[str, ...] = ()
    """Tensors of the file that the model has no place for."""
    classes: tuple[str, ...] | None = None
    """Names of the file's classes, where known."""
    preprocess: Preprocess | None = None
    """How images were prepared for the weights, where known; red, green, blue."""

    def summary(self) -> str:
        """Return a few lines for a person."""
        lines = [f"Loaded {len(self.loaded)} tensors from {self.source} (layout: {self.layout})."]
        for what, names in (
            ("Resized to this model", self.resized),
            ("Flipped from blue, green, red to red, green, blue", self.flipped),
            ("Fresh, because the classes differ", self.reinitialised),
            ("Fresh, because the file has none", self.missing),
            ("Left out", self.unexpected),
        ):
            if names:
                lines.append(f"{what}: {first_few(names)}.")
        return "\n".join(lines)


def checkpoint_source(model: str, options: Iterable[str] = ()) -> str | None:
    """Return where the weights are that ``model`` means: a file, a folder, or a name with its hub; None for none.

    A name of the table, and timm's with a size, means fresh weights even where a folder is called the same.

    Args:
        model: what `create_model` takes.
        options: names of the options given with it. With "config" a model of transformers is built from that.
    """
    base, dot, _ = model.partition(".")
    if split_size(model)[0] in MODELS:
        return None
    if model.startswith(TRANSFORMERS):
        return None if "config" in options else model
    if model.startswith(HUB_PREFIX) or Path(model).exists():
        return model
    if dot and split_size(base)[0] in MODELS:
        return _TIMMS_HUB + model
    is_path = ("/" in model and not is_guest(model)) or Path(model).suffix in WEIGHTS_SUFFIXES
    return model if is_path else None


def read_spec(source: str | Path) -> ModelSpec:
    """Return how to build the model that weights are of.

    Our own files say it. Of others it is recognised by config.json, where there is one, and by the tensors' names and
    shapes.

    Raises:
        CheckpointError: if the weights are missing, damaged, changed since they were written, or of no known model.
    """
    return _recognise(_open(source))


def from_pretrained(source: str | Path, **given: Any) -> Model:
    """Build the model that weights are of, and load them.

    Args:
        source: as in `load_pretrained`.
        given: what the model shall have otherwise than the weights: num_classes, image_size, in_channels, options.

    Raises:
        CheckpointError: if the weights are missing, damaged or of no known model.
        ConfigError: for an option that the model does not have.
    """
    weights = _open(source)
    model = build(ModelSpec.from_dict({**_recognise(weights).to_dict(), **_with_pair(given)}))
    _load(model, weights, None)
    return model


def load_pretrained(model: Model, source: str | Path, *, classes: Sequence[str] | None = None) -> LoadReport:
    """Load weights of the same architecture into a model, from our own files, timm's or Hugging Face's.

    Learned positions are resampled to the model's grid. The first convolution is summed over the colours for a model
    of one channel; for more channels than colours these are repeated in turn, each divided by how often it appears.
    Where the weights expect blue, green, red, its colours are reversed, so that the model takes red, green,
    blue. The head is left as it is when the classes differ. The model is changed only if everything fits.

    Args:
        model: one that `create_model` built.
        source: a run, a .safetensors file, a folder of Hugging Face's layout, ``hf-hub:org/name``, timm's name with
            its tag, or for a model of transformers ``transformers:NAME``.
        classes: names of the model's outputs; where the file's are known and others, its head is not taken over.

    Raises:
        CheckpointError: if the weights are missing, damaged, of a kind that is not loaded or of another architecture.
    """
    return _load(model, _open(source), classes)


def _with_pair(given: dict[str, Any]) -> dict[str, Any]:
    return {**given, "image_size": as_pair("image_size", given["image_size"])} if "image_size" in given else given


def _open(source: str | Path) -> Weights:
    """Read weights and everything that is known about them."""
    source = checkpoint_source(str(source)) or source
    if str(source).startswith(TRANSFORMERS):
        return _open_transformers(str(source))
    file = find_weights(source)
    tensors, metadata = read_tensors(file)
    header = read_header(metadata, tensors, file)
    if header is not None:
        model = build_described(header, file)
        return Weights(
            source=str(file),
            layout="vitrail",
            tensors=tensors,
            own_names=tensors,
            described=describe_own(header, model, file),
            family=layouts.family_of(tensors),
            spec=model.spec,
        )
    described = describe(file.parent) if file.name == WEIGHTS_NAME else Description()
    with _about(file):
        layout, native, family = layouts.to_native(tensors)
    if described.takes_bgr is None and family is not None:
        described = replace(described, takes_bgr=family.takes_bgr(layout, family.recognise(native) or ""))
    return Weights(
        source=str(file), layout=layout, tensors=native, own_names=tensors, described=described, family=family
    )


def _open_transformers(name: str) -> Weights:
    config = transformers_config(name)
    tensors = transformers_tensors(name)
    described = describe_for_transformers(transformers_folder(name))
    size = described.image_size or (native_image_size(name),) * 2
    spec = ModelSpec(
        name=name,
        num_classes=config["num_labels"],
        image_size=size,
        in_channels=config.get("num_channels", 3),
        options={"config": config},
    )
    return Weights(
        source=name, layout="transformers", tensors=tensors, own_names=tensors, described=described, spec=spec
    )


def _recognise(weights: Weights) -> ModelSpec:
    if weights.spec is not None:
        return weights.spec
    tensors, described, family = weights.tensors, weights.described, weights.family
    with _about(weights.source):
        published = split_size(described.architecture or "")[0]
        name = published if published in MODELS else layouts.recognise(tensors, family)
        options = family.options(tensors, described.image_size) if family else {}
    size = options.pop("image_size", described.image_size) or (native_image_size(name),) * 2
    with torch.device("meta"):
        model = build(ModelSpec(name=name, num_classes=1000, image_size=size, options=options))
    stem, head = (tensors.get(f"{part}.weight") for part in (model.stem_name, model.head_name))
    return ModelSpec(
        name=name,
        num_classes=0 if head is None else len(head),
        image_size=size,
        in_channels=3 if stem is None else stem.shape[1],
        options=options,
    )


def _load(model: Model, weights: Weights, classes: Sequence[str] | None) -> LoadReport:
    described, source = weights.described, weights.source
    tensors = dict(weights.tensors)
    if isinstance(model, Guest) and weights.layout != "vitrail":
        tensors = model.from_own_names(weights.own_names)
    if isinstance(model, VisionTransformer) and described.heads not in {None, model.shape.heads}:
        raise CheckpointError(
            f"{source} is of a model with {described.heads} attention heads; this one has {model.shape.heads}."
        )
    expected, stem, head = model.state_dict(), f"{model.stem_name}.weight", f"{model.head_name}."
    ignored = weights.family.ignored if weights.family else ()
    unexpected = _take_out(tensors, (name for name in tensors if name.startswith(ignored or "\0")))
    differ = bool(classes and described.classes and tuple(classes) != described.classes)
    if differ or tensors.get(f"{head}weight", torch.empty(0)).shape[:1] != (model.num_classes,):
        unexpected += _take_out(tensors, (f"{head}weight", f"{head}bias"))
    flipped = _flip(tensors, stem) if described.takes_bgr else []
    resized = _fit_colours(tensors, stem, expected[stem].shape[1])
    if isinstance(model, VisionTransformer) and stem in tensors:
        with _about(source):
            resized += resize_positions(tensors, model, described.image_size)
    absent = [name for name in expected if name not in tensors and not name.endswith(_COUNTER)]
    missing = [name for name in absent if ".local." in name or name.startswith("fusion.")]
    reinitialised = [name for name in absent if name.startswith(head)]
    _check_names(model, weights, set(absent) - {*missing, *reinitialised}, tensors.keys() - expected.keys())
    check_fit(tensors, expected, Path(source))
    model.load_state_dict(tensors, strict=False)
    return LoadReport(
        source=source,
        layout=weights.layout,
        loaded=tuple(name for name in expected if name in tensors),
        resized=tuple(resized),
        flipped=tuple(flipped),
        reinitialised=tuple(reinitialised),
        missing=tuple(missing),
        unexpected=tuple(unexpected),
        classes=described.classes,
        preprocess=described.preprocess,
    )


@contextmanager
def _about(source: str | Path) -> Iterator[None]:
    """Put the name of the weights before what is wrong with them."""
    try:
        yield
    except CheckpointError as error:
        raise CheckpointError(f"{source}: {error}") from error


def _take_out(tensors: dict[str, Tensor], names: Iterable[str]) -> list[str]:
    """Remove the tensors of these names that are there; return their names."""
    return [name for name in list(names) if tensors.pop(name, None) is not None]


def _flip(tensors: dict[str, Tensor], stem: str) -> list[str]:
    """Reverse the colours that the first convolution expects, in place; return its name."""
    if stem not in tensors or tensors[stem].dim() != 4:
        return []  # of another architecture: the check of names and shapes says so
    tensors[stem] = tensors[stem].flip(1)
    return [stem]


def _fit_colours(tensors: dict[str, Tensor], stem: str, in_channels: int) -> list[str]:
    """Bring the first convolution to the model's number of channels, in place; return its name if it changes.

    A grey image in all channels gets the answer that it got before.
    """
    weight = tensors.get(stem)
    if weight is None or weight.dim() != 4 or weight.shape[1] == in_channels:
        return []
    colours = weight.shape[1]
    if in_channels == 1:
        tensors[stem] = weight.sum(dim=1, keepdim=True)
    elif in_channels > colours:
        turns = torch.arange(in_channels) % colours
        tensors[stem] = weight[:, turns] / turns.bincount()[turns].view(-1, 1, 1)
    else:
        return []  # nobody knows which colours are left: the check of shapes refuses it
    return [stem]


def _check_names(model: Model, weights: Weights, missing: set[str], unexpected: set[str]) -> None:
    """Refuse weights of which a part would be left out silently, or which would leave a part of the model random."""
    if not missing and not unexpected:
        return
    problems = [
        f"{what} {first_few(sorted(names))}" for what, names in (("lacks", missing), ("also has", unexpected)) if names
    ]
    raise CheckpointError(
        f"{weights.source} {' and '.join(problems)}, unlike this model. "
        f"Likely cause: {_likely_cause(model, weights, missing | unexpected)}."
    )


def _likely_cause(model: Model, weights: Weights, names: set[str]) -> str:
    family = weights.family
    if family is None:
        return f"another kind of model; known are {', '.join(each.title for each in layouts.FAMILIES)}"
    name = family.recognise(weights.tensors)
    if name is not None and model.spec is not None and name != model.spec.name:
        return f"it is a {name}; choose that model, or leave it open"
    if any(each.endswith(".norm1.weight") for each in names):
        return "another number of blocks; choose a model of the same size"
    options = sorted({option for part, option in family.causes.items() if any(part in each for each in names)})
    return f"the option {' or '.join(options)} differs" if options else "another kind of model"
