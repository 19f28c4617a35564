"""Models of other libraries, timm's and transformers', as models of vitrail.

The libraries are imported when such a model is asked for, and never before: neither is needed for anything else.
"""

import importlib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, Final

from torch import Tensor, nn

from vitrail.errors import CheckpointError, ConfigError, MissingExtraError
from vitrail.models.contract import Model
from vitrail.models.weights import CONFIG_NAME, HUB_PREFIX, find_weights

TIMM: Final = "timm:"
TRANSFORMERS: Final = "transformers:"
GUEST_IMAGE_SIZE: Final = 224
"""Side in pixels where nothing else tells."""


class Guest(Model):
    """An image classifier of another library: ``model``, without its last linear layer, and that layer as ``head``.

    Args:
        network: maps images (B, C, H, W) to logits, or to something that has them as ``logits``.
        own_head: name of its last linear layer.
        image_size: height and width in pixels.

    Raises:
        ConfigError: if it has no convolution that sees the image, or no linear layer at its end.
    """

    def __init__(self, network: nn.Module, own_head: str, image_size: tuple[int, int]) -> None:
        super().__init__()
        head = network.get_submodule(own_head)
        stem = next((name for name, part in network.named_modules() if isinstance(part, nn.Conv2d)), None)
        if stem is None or not isinstance(head, nn.Linear):
            raise ConfigError(
                f"{type(network).__name__} has no {'convolution at its start' if stem is None else 'linear head'}, so "
                "vitrail cannot train it. Choose another model."
            )
        self.stem_name = f"model.{stem}"  # type: ignore[misc]  # the one family where each model has its own
        self.own_head = own_head
        self.num_classes, self.num_features = head.out_features, head.in_features
        self.image_size = image_size
        self.feature_info = []
        network.set_submodule(own_head, nn.Identity())
        self.model = network
        self.head: nn.Module = head

    def intermediates(self, images: Tensor) -> Iterator[tuple[str, Tensor]]:
        """Yield "pooled" (B, num_features), the only intermediate that all libraries have."""
        answer = self.model(images)
        pooled = getattr(answer, "logits", answer)  # of the identity in the head's place
        yield "pooled", pooled

    def layer_groups(self) -> list[tuple[str, ...]]:
        """Return beginnings of the parameters' names in the order in which the library registers them.

        A numbered layer is a group. What comes before the first belongs to the first convolution's group, what comes
        after the last to the head's.
        """
        prefixes: dict[str, None] = {}
        for name, _ in self.model.named_parameters(prefix="model"):
            numbered = re.match(r".*?\.\d+\.", name)
            prefixes[numbered[0] if numbered else name] = None
        ordered = list(prefixes)
        numbers = [index for index, prefix in enumerate(ordered) if prefix.endswith(".")] or [len(ordered)]
        stem = next(index for index, prefix in enumerate(ordered) if f"{self.stem_name}.weight".startswith(prefix))
        start, end = max(numbers[0], stem + 1), max(numbers[-1], stem) + 1
        middle = [(prefix,) for prefix in ordered[start:end]]
        return [tuple(ordered[:start]), *middle, (*ordered[end:], "head.")]

    def no_weight_decay(self) -> set[str]:
        """Return what the library exempts."""
        exempt = getattr(self.model, "no_weight_decay", set)
        names = {f"model.{name}" for name in exempt()} if callable(exempt) else set()
        return {name for name, _ in self.named_parameters() if name in names}

    def from_own_names(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return tensors under the library's names as those of this module."""
        head = f"{self.own_head}."
        return {
            f"head.{name.removeprefix(head)}" if name.startswith(head) else f"model.{name}": tensor
            for name, tensor in tensors.items()
        }


def is_guest(name: str) -> bool:
    """Return whether a name is that of another library's model."""
    return name.startswith((TIMM, TRANSFORMERS))


def build_guest(
    name: str, *, num_classes: int, image_size: tuple[int, int], in_channels: int = 3, **options: Any
) -> Guest:
    """Build a model of another library with fresh weights, without a download.

    Args:
        name: ``timm:NAME`` or ``transformers:NAME``.
        num_classes: outputs of the head; 0 for none.
        image_size: height and width in pixels; a model without an image size of its own takes any.
        in_channels: channels of the image.
        options: for timm, arguments of its ``create_model``; for transformers "config", the values of its
            configuration. Stochastic depth ("drop_path") reaches the models that have it.

    Raises:
        MissingExtraError: if the library does not import.
        ConfigError: if it does not build the model.
    """
    drop_path = options.pop("drop_path", 0.0)
    make = _build_timm if name.startswith(TIMM) else _build_transformers
    try:
        guest = make(name, max(1, num_classes), image_size, in_channels, drop_path, options)
    except (AttributeError, ArithmeticError, LookupError, RuntimeError, TypeError, ValueError, OSError) as error:
        if isinstance(error, ConfigError):
            raise
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ConfigError(f"{name} cannot be built: {reason}") from error
    if num_classes == 0:
        guest.reset_head(0)
    return guest


def transformers_folder(name: str) -> Path:
    """Return the folder that ``transformers:NAME`` means: NAME, or the hub's files of that name in the local cache.

    Raises:
        CheckpointError: if there is no such folder with config.json and model.safetensors, and no such name.
    """
    source = name.removeprefix(TRANSFORMERS)
    folder = find_weights(source if Path(source).exists() else f"{HUB_PREFIX}{source}").parent
    if not (folder / CONFIG_NAME).is_file():
        raise CheckpointError(f"{folder} has no {CONFIG_NAME}, so transformers cannot tell which model it holds.")
    return folder


def transformers_config(name: str) -> dict[str, Any]:
    """Return the values of a transformers model's configuration: its type and sizes, without names of labels.

    Raises:
        MissingExtraError: if transformers does not import.
        CheckpointError: if there is no such model, or transformers does not know its kind.
    """
    library = _import("transformers", name)
    folder = transformers_folder(name)
    try:
        config = library.AutoConfig.from_pretrained(folder)
    except (LookupError, OSError, TypeError, ValueError) as error:
        raise CheckpointError(f"transformers cannot read {folder / CONFIG_NAME}: {error}") from error
    values = {**config.to_diff_dict(), "num_labels": config.num_labels}
    return {key: value for key, value in values.items() if key not in {"id2label", "label2id", "architectures"}}


def transformers_tensors(name: str) -> dict[str, Tensor]:
    """Return the weights of a transformers model under the names that it has in memory; no pickle is read.

    Raises:
        MissingExtraError: if transformers does not import.
        CheckpointError: if there is no such model or its weights do not fit its configuration.
    """
    library = _import("transformers", name)
    folder = transformers_folder(name)
    try:
        model = library.AutoModelForImageClassification.from_pretrained(folder, use_safetensors=True)
    except (LookupError, OSError, RuntimeError, TypeError, ValueError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise CheckpointError(f"transformers cannot load {folder}: {reason}") from error
    return dict(model.state_dict())


def _build_timm(
    name: str, num_classes: int, image_size: tuple[int, int], in_channels: int, drop_path: float, options: Any
) -> Guest:
    timm = _import("timm", name)
    given = {"num_classes": num_classes, "in_chans": in_channels, **options}
    if drop_path:
        given["drop_path_rate"] = drop_path
    try:
        network = timm.create_model(name.removeprefix(TIMM), pretrained=False, img_size=image_size, **given)
    except TypeError:  # convolutional models take any size and no such argument
        network = timm.create_model(name.removeprefix(TIMM), pretrained=False, **given)
    head = getattr(network, "default_cfg", {}).get("classifier")
    return Guest(network, head if isinstance(head, str) else _last_linear(network, num_classes), image_size)


def _build_transformers(
    name: str, num_classes: int, image_size: tuple[int, int], in_channels: int, drop_path: float, options: Any
) -> Guest:
    library = _import("transformers", name)
    values = {**(options.get("config") or transformers_config(name))}
    values.update({"num_labels": num_classes, "num_channels": in_channels})
    config = library.AutoConfig.for_model(values.pop("model_type"), **values)
    if hasattr(config, "image_size"):
        height, width = image_size
        config.image_size = height if height == width else list(image_size)
    if hasattr(config, "drop_path_rate"):
        config.drop_path_rate = drop_path
    network = library.AutoModelForImageClassification.from_config(config)
    return Guest(network.train(), _last_linear(network, num_classes), image_size)


def _last_linear(network: nn.Module, num_classes: int) -> str:
    """Return the name of the linear layer that gives the logits."""
    for name, part in reversed(list(network.named_modules())):
        if isinstance(part, nn.Linear) and part.out_features == num_classes:
            return str(name)
    raise ConfigError(f"{type(network).__name__} has no linear head, so vitrail cannot train it. Choose another model.")


def _import(library: str, name: str) -> ModuleType:
    try:
        return importlib.import_module(library)
    # A library whose own libraries do not fit this torch fails with whatever they raise.
    except (ImportError, RuntimeError, OSError, AttributeError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise MissingExtraError(
            f"{name} needs {library}, which does not import here ({reason}). Install it with pip install "
            f"'vitrail[peers]', with a torchvision made for your torch, or choose a name of `vitrail models`."
        ) from error
