"""Checkpoints: one .safetensors file that rebuilds a model, and weights of others brought into ours.

Our file holds the tensors under timm's names and, in the metadata entry "vitrail", a JSON object: "format", "spec" (how
to build the model), "classes", "preprocess", "calibration", and "sha256" over all of these and the tensors. No pickle
is ever read.
"""

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import torch
from torch import Tensor

from vitrail.config import Preprocess
from vitrail.errors import CheckpointError, ConfigError
from vitrail.layers.embed import Grid, resample_position_embedding
from vitrail.models import Model, ModelSpec, create_model
from vitrail.models.layouts import Description, Layout, describe, to_native
from vitrail.models.vit import VisionTransformer
from vitrail.models.weights import WEIGHTS_NAME, check_fit, find_weights, first_few, read_tensors
from vitrail.runtime.tensors import write_tensors

_METADATA_KEY: Final = "vitrail"
_FORMAT: Final = 1

_HEAD: Final = ("head.weight", "head.bias")

_IGNORED: Final = ("pooler.", "head_dist.", "embeddings.mask_token", "decoder.")
"""Beginnings of names in others' files that take no part in the logits of a ViT."""

_CAUSES: Final = {
    ".local.": "local",
    "fusion.": "fusion",
    "cls_token": "class_token",
    "reg_token": "num_registers",
    "pos_embed": "position",
    "attn_pool.": "pool",
    "fc_norm.": "pool",
    ".q_norm.": "qk_norm",
    ".k_norm.": "qk_norm",
    ".ls1.": "layer_scale",
    ".ls2.": "layer_scale",
    "qkv.bias": "qkv_bias",
}
"""Parts of names, and the option of a ViT that decides whether it has them."""


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """What one of our own files holds."""

    model: Model
    """On the CPU, in evaluation mode."""
    classes: tuple[str, ...] | None = None
    """Names of the outputs of the head, in their order."""
    preprocess: Preprocess | None = None
    """How images are prepared for it."""
    calibration: dict[str, Any] | None = None
    """What was fitted after training, such as the temperature."""


@dataclass(frozen=True, kw_only=True)
class LoadReport:
    """What came of loading weights into a model; every tensor of the model and of the file is in one of the lists."""

    source: str
    """The file that was read."""
    layout: Layout
    """Whose names the file uses."""
    loaded: tuple[str, ...]
    """Tensors of the model that were loaded, resized ones too."""
    resized: tuple[str, ...] = ()
    """Those that were resampled to the model's grid of patches, or summed to its one channel."""
    reinitialised: tuple[str, ...] = ()
    """Tensors of the head, which keep the model's own values, because the classes differ or the file has no head."""
    missing: tuple[str, ...] = ()
    """Tensors of local enhancement and fusion, which keep the model's own values, because the file has none."""
    unexpected: tuple[str, ...] = ()
    """Tensors of the file that the model has no place for."""
    classes: tuple[str, ...] | None = None
    """Names of the file's classes, where known."""
    preprocess: Preprocess | None = None
    """How images were prepared for the weights, where known."""

    def summary(self) -> str:
        """Return a few lines for a person."""
        lines = [f"Loaded {len(self.loaded)} tensors from {self.source} (layout: {self.layout})."]
        for what, names in (
            ("Resized to this model", self.resized),
            ("Fresh, because the classes differ", self.reinitialised),
            ("Fresh, because the file has none", self.missing),
            ("Left out", self.unexpected),
        ):
            if names:
                lines.append(f"{what}: {first_few(names)}.")
        return "\n".join(lines)


def save_checkpoint(
    path: str | Path,
    model: Model,
    *,
    classes: Sequence[str] | None = None,
    preprocess: Preprocess | None = None,
    calibration: dict[str, Any] | None = None,
    layout: Literal["vitrail", "timm"] = "vitrail",
) -> None:
    """Write a model to one .safetensors file, whole or not at all.

    Args:
        path: the file, such as ``run/model.safetensors``.
        model: one that `create_model` built.
        classes: names of its outputs in their order.
        preprocess: how images are prepared for it.
        calibration: plain values that JSON can hold.
        layout: "vitrail" for a file that `load_checkpoint` rebuilds the model from; "timm" for tensors alone, which
            timm's model of the same shape loads.

    Raises:
        ConfigError: if the model cannot be rebuilt, the classes are not as many as its outputs, or the layout cannot
            hold the model.
        StorageError: if the file cannot be written.
    """
    if model.spec is None:
        raise ConfigError("The model was not built by create_model, so its file could not rebuild it.")
    if classes is not None and len(classes) != model.num_classes:
        raise ConfigError(f"There are {len(classes)} names of classes for a model with {model.num_classes} outputs.")
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    metadata = {"format": "pt"}
    if layout == "timm":
        _check_timm_can_hold(model)
    else:
        header = {
            "format": _FORMAT,
            "spec": model.spec.to_dict(),
            "classes": None if classes is None else list(classes),
            "preprocess": None if preprocess is None else preprocess.to_dict(),
            "calibration": calibration,
        }
        header = json.loads(json.dumps(header, allow_nan=False))  # as it will be read: lists for tuples
        metadata[_METADATA_KEY] = json.dumps({**header, "sha256": _fingerprint(header, tensors)})
    write_tensors(Path(path), tensors, metadata)


def load_checkpoint(path: str | Path) -> Checkpoint:
    """Rebuild the model that `save_checkpoint` wrote.

    Args:
        path: the file, or the folder that has it as model.safetensors.

    Raises:
        CheckpointError: if the file is missing, damaged, changed since it was written, or not ours.
    """
    file = find_weights(path)
    tensors, metadata = read_tensors(file)
    header = _read_header(metadata, tensors, file)
    if header is None:
        raise CheckpointError(
            f"{file} holds weights alone, not how to build their model. Create the model and use load_pretrained."
        )
    # Without memory at first, so that a forged description cannot claim any amount of it.
    model = _build_on_meta(header, file)
    expected = model.state_dict()
    if expected.keys() != tensors.keys():
        different = first_few(sorted(expected.keys() ^ tensors.keys()))
        raise CheckpointError(
            f"{file} does not hold the tensors of the model it describes; they differ in {different}."
        )
    check_fit(tensors, expected, file)
    assert {name for name, _ in model.named_buffers()} <= expected.keys(), "a buffer outside the state has no value"
    model.to_empty(device="cpu")
    model.load_state_dict(tensors)
    model.eval()
    described = _own_description(header, model, file)
    return Checkpoint(
        model=model,
        classes=described.classes,
        preprocess=described.preprocess,
        calibration=header.get("calibration"),
    )


def read_spec(source: str | Path) -> ModelSpec | None:
    """Return how to build the model of our own file, or None for a file of others, which does not say.

    Raises:
        CheckpointError: if the file is missing, damaged or changed since it was written.
    """
    file = find_weights(source)
    tensors, metadata = read_tensors(file)
    header = _read_header(metadata, tensors, file)
    return None if header is None else _build_on_meta(header, file).spec


def load_pretrained(model: Model, source: str | Path, *, classes: Sequence[str] | None = None) -> LoadReport:
    """Load weights of the same architecture into a ViT, from our own files, timm's or Hugging Face's.

    Learned positions are resampled to the model's grid, a patch projection of colour images is summed for a model of
    one channel, and the head is left as it is when the classes differ. The model is changed only if everything fits.

    Args:
        model: a ViT that `create_model` built.
        source: a run, a .safetensors file, a folder of Hugging Face's layout, or ``hf-hub:org/name``.
        classes: names of the model's outputs; where the file's are known and others, its head is not taken over.

    Raises:
        CheckpointError: if the weights are missing, damaged, of a kind that is not loaded or of another architecture.
        ConfigError: if the model is no ViT.
    """
    if not isinstance(model, VisionTransformer):
        raise ConfigError(f"load_pretrained takes a vision transformer, not {type(model).__name__}.")
    file = find_weights(source)
    tensors, metadata = read_tensors(file)
    header = _read_header(metadata, tensors, file)
    layout, tensors = to_native(tensors, file)
    if header is not None:
        layout, described = "vitrail", _own_description(header, _build_on_meta(header, file), file)
    else:
        described = describe(file.parent) if file.name == WEIGHTS_NAME else Description()
    heads = model.shape.heads
    if described.heads not in {None, heads}:
        raise CheckpointError(f"{file} is of a model with {described.heads} attention heads; this one has {heads}.")

    expected = model.state_dict()
    unexpected = _take_out(tensors, (name for name in tensors if name.startswith(_IGNORED)))
    head_fits = tensors.get(_HEAD[0], torch.empty(0)).shape[:1] == (model.num_classes,)
    if not head_fits or (classes and described.classes and tuple(classes) != described.classes):
        unexpected += _take_out(tensors, _HEAD)
    resized = _resize(tensors, model, described, file)
    absent = [name for name in expected if name not in tensors]
    missing = [name for name in absent if ".local." in name or name.startswith("fusion.")]
    reinitialised = [name for name in absent if name in _HEAD]
    _check_names(file, set(absent) - set(missing) - set(reinitialised), tensors.keys() - expected.keys())
    check_fit(tensors, expected, file)
    model.load_state_dict(tensors, strict=False)
    return LoadReport(
        source=str(file),
        layout=layout,
        loaded=tuple(name for name in expected if name in tensors),
        resized=tuple(resized),
        reinitialised=tuple(reinitialised),
        missing=tuple(missing),
        unexpected=tuple(unexpected),
        classes=described.classes,
        preprocess=described.preprocess,
    )


def _check_timm_can_hold(model: Model) -> None:
    if not isinstance(model, VisionTransformer):
        raise ConfigError(f"The layout of timm is written for vision transformers only, not {type(model).__name__}.")
    options = model.options
    foreign = [f"{name}={getattr(options, name)!r}" for name in ("local", "fusion") if getattr(options, name)]
    if options.position != "learned":
        foreign.append(f"position={options.position!r}")
    if foreign:
        raise ConfigError(f"timm's ViT has no {', '.join(foreign)}; save this model in the layout 'vitrail'.")


def _fingerprint(header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 over the description and every tensor's name, type, shape and bytes."""
    digest = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _read_header(metadata: dict[str, str], tensors: dict[str, Tensor], path: Path) -> dict[str, Any] | None:
    """Return the description in our own file, verified, or None for a file of others."""
    if _METADATA_KEY not in metadata:
        return None
    try:
        header = json.loads(metadata[_METADATA_KEY])
        file_format, sha256 = header["format"], header.pop("sha256")
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"The description in {path} is damaged. Copy or download the file again.") from error
    if file_format != _FORMAT:
        raise CheckpointError(f"{path} has the format {file_format}; this vitrail reads {_FORMAT}. Upgrade vitrail.")
    if sha256 != _fingerprint(header, tensors):
        raise CheckpointError(f"{path} was changed or damaged after it was written. Copy or download it again.")
    return dict(header)


def _build_on_meta(header: dict[str, Any], path: Path) -> Model:
    try:
        with torch.device("meta"):
            return create_model(**ModelSpec.from_dict(header["spec"]).to_dict())
    # The description comes from a file, so its values can be of any type and size.
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path} describes a model that cannot be built: {error}") from error


def _own_description(header: dict[str, Any], model: Model, path: Path) -> Description:
    try:
        preprocess, classes = header["preprocess"], header["classes"]
        return Description(
            classes=None if classes is None else tuple(classes),
            preprocess=None if preprocess is None else Preprocess.from_dict(preprocess),
            image_size=model.image_size,
            heads=model.shape.heads if isinstance(model, VisionTransformer) else None,
        )
    except (LookupError, TypeError, ValueError) as error:
        raise CheckpointError(f"The description in {path} is damaged: {error}") from error


def _take_out(tensors: dict[str, Tensor], names: Iterable[str]) -> list[str]:
    """Remove the tensors of these names that are there; return their names."""
    return [name for name in list(names) if tensors.pop(name, None) is not None]


def _resize(tensors: dict[str, Tensor], model: VisionTransformer, described: Description, path: Path) -> list[str]:
    """Resample positions to the model's grid and sum colours for one channel, in place; return the names."""
    resized: list[str] = []
    patch, positions = tensors["patch_embed.proj.weight"], tensors.get("pos_embed")
    if patch.dim() != 4:
        return resized  # of another architecture: the check of shapes says so
    if model.patch_embed.in_channels == 1 < patch.shape[1]:
        tensors["patch_embed.proj.weight"] = patch.sum(dim=1, keepdim=True)
        resized.append("patch_embed.proj.weight")
    if positions is not None and model.pos_embed is not None and positions.dim() == 3:
        num_prefix = model.num_prefix if model.options.prefix_position else 0
        grid = _source_grid(positions.shape[1] - num_prefix, patch, described, path)
        if grid != model.grid:
            tensors["pos_embed"] = resample_position_embedding(positions, grid, model.grid, num_prefix)
            resized.append("pos_embed")
    return resized


def _source_grid(num_patches: int, patch: Tensor, described: Description, path: Path) -> Grid:
    """Return the grid that a file's positions were learned for: what its description says, else a square."""
    if described.image_size is not None:
        rows, columns = (side // size for side, size in zip(described.image_size, patch.shape[2:], strict=True))
        if rows * columns == num_patches:
            return rows, columns
    side = math.isqrt(max(0, num_patches))
    if side == 0 or side * side != num_patches:
        raise CheckpointError(
            f"{path} has positions for {num_patches} patches, which are no square, and does not say of what grid. "
            "Its number of prefix tokens may differ from this model's (options class_token, num_registers, "
            "prefix_position)."
        )
    return side, side


def _check_names(path: Path, missing: set[str], unexpected: set[str]) -> None:
    """Refuse weights of which a part would be left out silently, or which would leave a part of the model random."""
    if not missing and not unexpected:
        return
    problems = [
        f"{what} {first_few(sorted(names))}" for what, names in (("lacks", missing), ("also has", unexpected)) if names
    ]
    names = missing | unexpected
    options = sorted({option for part, option in _CAUSES.items() if any(part in name for name in names)})
    if any(name.endswith(".norm1.weight") for name in names):
        cause = "another number of blocks; choose a model of the same size"
    else:
        cause = f"the option {' or '.join(options)} differs" if options else "another kind of model"
    raise CheckpointError(f"{path} {' and '.join(problems)}, unlike this model. Likely cause: {cause}.")
