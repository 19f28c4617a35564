"""A bundle: the folder that is shipped, made only of an exported model that proved to answer like the trained one.

Axes: N images, B of them in a batch, H and W height and width in pixels, C classes.
"""

import copy
import hashlib
import importlib.metadata
import inspect
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from vitrail.config import Preprocess, TaskName
from vitrail.errors import BundleError, ConfigError, ParityError
from vitrail.evaluation.predict import Predictor, TorchPredictor
from vitrail.runtime.device import cpu_name
from vitrail.runtime.files import atomic_folder, write_json, write_text
from vitrail.shipping import check, check_program
from vitrail.shipping.executorch import export_executorch, open_program
from vitrail.shipping.onnx import INPUT_NAME, OPSET, export_onnx
from vitrail.shipping.parity import Parity, Tolerance, compare
from vitrail.shipping.predictor import RUNTIME, open_session, run_logits
from vitrail.shipping.readme import bundle_readme
from vitrail.shipping.readout import Readout
from vitrail.shipping.verify import verify_bundle
from vitrail.version import __version__

Labels = NDArray[Any]
"""The class of each image, int ``(B,)``; or whether each class is there, bool ``(B, C)``."""

ProofBatch = tuple[NDArray[Any], Labels | None, Sequence[str]]
"""Images ``(B, H, W, channels)``, prepared, their labels where known, their paths."""

ExportFormat = Literal["onnx", "executorch"]
"""Of `vitrail.config.ExportConfig`."""

MODEL: Final = "model.onnx"
MAX_GOLDEN_IMAGES: Final = 16
MAX_GOLDEN_BYTES: Final = 64 * 2**20
NUM_LISTED: Final = 5
"""Images that an error message names."""

_FILES: Final[dict[ExportFormat, str]] = {"onnx": MODEL, "executorch": check_program.PROGRAM}
_Answering = Callable[[NDArray[Any]], NDArray[np.float32]]


def export_bundle(
    model: nn.Module,
    folder: Path,
    *,
    classes: Sequence[str],
    preprocess: Preprocess,
    batches: Iterable[ProofBatch],
    task: TaskName = "classification",
    calibration: Mapping[str, Any] | None = None,
    tolerance: Tolerance | None = None,
    source: str | None = None,
    format: ExportFormat = "onnx",
) -> dict[ExportFormat, Parity]:
    """Export ``model``, prove it on all images of ``batches`` and write the bundle ``folder``, or nothing.

    The exported file is run by onnxruntime, the model by PyTorch in float32 on the CPU, on the same bytes; so is the
    program of the format "executorch", by its own runtime. Beyond the tolerance nothing is left. Up to 16 of the images
    go into the bundle as golden vectors, and are so given away.

    Args:
        model: takes normalised images ``(B, 3, H, W)``, or of other channels, and gives logits ``(B, C)``.
        folder: the new bundle; must not exist.
        classes: names of the classes in the order of the logits.
        preprocess: how the images of ``batches`` were prepared.
        batches: real images that the model was not trained on; the validation split.
        task: what the logits mean.
        calibration: "temperature" (default 1) and, where known, "reject_threshold", or with several labels "thresholds"
            (default 0.5); kept as it is.
        tolerance: how far the logits may differ.
        source: name of the run that the model comes from.
        format: "executorch" puts a program for phones beside the ONNX file.

    Returns:
        How the exported files compared with ``model``.

    Raises:
        ParityError: if the exported model does not answer like ``model``.
        ConfigError: if ``folder`` exists, or classes, temperature or type of pixels do not suit.
        MissingExtraError: if the program needs executorch, which is not installed.
        StorageError: if the disk is full or the folder cannot be written.
    """
    _refuse_unwritable(Path(folder), classes)
    tolerance = tolerance or Tolerance()
    readout = Readout.of(task, calibration or {}, len(classes))
    calibration = {"temperature": readout.temperature, **(calibration or {})}
    if task == "multilabel":
        calibration["thresholds"] = list(readout.thresholds)
    reference = TorchPredictor(copy.deepcopy(model).cpu().float(), tuple(classes), preprocess)
    with atomic_folder(Path(folder)) as temporary:
        export_onnx(model, temporary / MODEL, preprocess=preprocess, classes=classes, readout=readout)
        exported: dict[ExportFormat, _Answering] = {"onnx": partial(run_logits, open_session(temporary / MODEL))}
        program: dict[str, Any] = {}
        if format == "executorch":
            path = temporary / check_program.PROGRAM
            program = _describe_program(export_executorch(model, path, preprocess=preprocess, readout=readout))
            exported[format] = open_program(path, preprocess).logits
        answers = _collect_answers(batches, reference, exported, num_classes=len(classes))
        parities = {
            name: compare(answers.reference, logits, answers.labels, answers.paths, readout)
            for name, logits in answers.exported.items()
        }
        _refuse_other_answers(parities, tolerance, classes)
        parity = parities["onnx"]
        description = {
            **_identity(source, task),
            "classes": list(classes),
            "preprocess": preprocess.to_dict(),
            "calibration": calibration,
            **_interface(preprocess, num_classes=len(classes)),
            "golden": {"file": "golden.npz", "num_images": len(answers.golden_images)},
            "verification": _verification(parity, tolerance),
        }
        if program:
            description["executorch"] = {**program, "parity": parities["executorch"].to_dict()}
        write_bundle(temporary, description, np.stack(answers.golden_images), np.stack(answers.golden_logits))
        _prove(temporary)
    return parities


def write_bundle(
    folder: Path, description: Mapping[str, Any], golden_images: NDArray[Any], golden_logits: NDArray[np.float32]
) -> None:
    """Write everything that belongs beside the models in ``folder``; the checksums of all files come last.

    Args:
        folder: holds model.onnx already, and model.pte where ``description`` has a program.
        description: becomes bundle.json.
        golden_images: prepared images ``(N, H, W, channels)``.
        golden_logits: the trained model's answers to them ``(N, C)``.
    """
    write_json(folder / "bundle.json", description)
    write_text(folder / "labels.txt", "".join(f"{name}\n" for name in description["classes"]))
    write_text(folder / "README.md", bundle_readme(description))
    write_text(folder / "check.py", inspect.getsource(check))
    if "executorch" in description:
        write_text(folder / "check_program.py", inspect.getsource(check_program))
    np.savez_compressed(folder / "golden.npz", images=golden_images, logits=golden_logits)
    sums = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}
    write_text(folder / check.CHECKSUMS, "".join(f"{checksum}  {name}\n" for name, checksum in sums.items()))


@dataclass
class _Answers:
    """What all models said to all images, and the images that are kept as golden vectors."""

    reference: NDArray[np.float32]
    exported: dict[ExportFormat, NDArray[np.float32]]
    labels: Labels | None
    paths: list[str]
    golden_images: list[NDArray[Any]]
    golden_logits: list[NDArray[np.float32]]


@dataclass
class _GoldenPicker:
    """Keeps the first images of each class, equally many, so that a sorted split does not fill all places with one."""

    num_classes: int
    images: list[NDArray[Any]] = field(default_factory=list)
    logits: list[NDArray[np.float32]] = field(default_factory=list)
    seen: Counter[int] = field(default_factory=Counter)

    def offer(self, image: NDArray[Any], logits: NDArray[np.float32], labels: Sequence[int] | None) -> None:
        """Take the image where one of its labels has a place left; None where they are not known.

        Of several labels per image, no label is one of its own.
        """
        places = max(1, min(MAX_GOLDEN_IMAGES, MAX_GOLDEN_BYTES // image.nbytes))
        places_per_class = places if labels is None else max(1, places // self.num_classes)
        keys = labels or [-1]
        if len(self.images) < places and any(self.seen[key] < places_per_class for key in keys):
            self.seen.update(keys)
            self.images.append(image.copy())
            self.logits.append(logits.copy())


def _collect_answers(
    batches: Iterable[ProofBatch],
    reference: Predictor,
    exported: Mapping[ExportFormat, _Answering],
    *,
    num_classes: int,
) -> _Answers:
    golden = _GoldenPicker(num_classes)
    ours, labels = [], []
    theirs: dict[ExportFormat, list[NDArray[np.float32]]] = {name: [] for name in exported}
    paths: list[str] = []
    for pixels, batch_labels, batch_paths in batches:
        ours.append(reference.logits(pixels))
        for name, answer in exported.items():
            theirs[name].append(answer(pixels))
        paths.extend(batch_paths)
        if batch_labels is not None:
            labels.append(batch_labels)
        for index, image in enumerate(pixels):
            golden.offer(image, ours[-1][index], None if batch_labels is None else _places(batch_labels[index]))
    if not paths:
        raise ParityError("There is no image to prove the exported model on; give a split that has images.")
    return _Answers(
        reference=np.concatenate(ours),
        exported={name: np.concatenate(logits) for name, logits in theirs.items()},
        labels=np.concatenate(labels) if labels else None,
        paths=paths,
        golden_images=golden.images,
        golden_logits=golden.logits,
    )


def _places(label: Any) -> list[int]:
    """Return the classes of one image, by one of `Labels`."""
    places: list[int] = np.flatnonzero(label).tolist() if np.ndim(label) else [int(label)]
    return places


def _refuse_unwritable(folder: Path, classes: Sequence[str]) -> None:
    if folder.exists():
        raise ConfigError(f"{folder} exists and is not overwritten; give the bundle another name.")
    for name in classes:
        is_text = name.encode("utf-8", "ignore").decode("utf-8") == name  # a file system may give names that are not
        if not is_text or "\n" in name or "\r" in name:
            raise ConfigError(f"The class name {name!a} cannot be one line of labels.txt; rename the class.")


def _refuse_other_answers(
    parities: Mapping[ExportFormat, Parity], tolerance: Tolerance, classes: Sequence[str]
) -> None:
    for name, parity in parities.items():
        verdict = parity.verdict(tolerance)
        if not verdict.passed:
            raise ParityError(_refusal(_FILES[name], parity, verdict.reasons, classes))


def _refusal(file: str, parity: Parity, reasons: Sequence[str], classes: Sequence[str]) -> str:
    sentences = [f"The exported {file} does not answer like the trained one; nothing was written.", *reasons]
    if parity.differences:
        listed = [
            f"{item.path} ({_named(item.reference_labels, classes)} became {_named(item.exported_labels, classes)})"
            for item in parity.differences[:NUM_LISTED]
        ]
        more = len(parity.differences) - len(listed)
        sentences.append(f"Images: {', '.join(listed)}{f' and {more} more' if more else ''}.")
    return " ".join(sentences)


def _named(labels: Sequence[int], classes: Sequence[str]) -> str:
    return " and ".join(classes[index] for index in labels) or "no label"


def _identity(source: str | None, task: TaskName) -> dict[str, Any]:
    return {
        "format": check.FORMAT,
        "task": task,
        "source": source,
        "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {"vitrail": __version__, "torch": str(torch.__version__), "numpy": np.__version__},
    }


def _interface(preprocess: Preprocess, *, num_classes: int) -> dict[str, Any]:
    meaning = "RGB, values 0 to 255" if preprocess.channels is None else "the picture's channels as they are"
    return {
        "model": {"file": MODEL, "opset": OPSET},
        "input": {
            "name": INPUT_NAME,
            "dtype": preprocess.pixel_type,
            "shape": ["batch", *preprocess.image_size, preprocess.num_channels],
            "meaning": f"{meaning}, resized as preprocess tells; normalised inside the model",
        },
        "outputs": [
            {"name": "logits", "dtype": "float32", "shape": ["batch", num_classes]},
            {"name": "probabilities", "dtype": "float32", "shape": ["batch", num_classes]},
        ],
    }


def _describe_program(left: Mapping[str, int]) -> dict[str, Any]:
    return {
        "file": check_program.PROGRAM,
        "method": check_program.METHOD,
        "batch": 1,
        "runtime": f"executorch {importlib.metadata.version('executorch')}",
        "operators_left_by_xnnpack": dict(left),
    }


def _verification(parity: Parity, tolerance: Tolerance) -> dict[str, Any]:
    return {
        "logit_limit": tolerance.limit(parity.logit_std),
        "tolerance": tolerance.logits,
        "runtime": RUNTIME,
        "machine": cpu_name(),
        "parity": parity.to_dict(),
    }


def _prove(folder: Path) -> None:
    """Check the finished bundle as its user will."""
    result = verify_bundle(folder)
    if not result.ok:
        failed = result.checks[-1]
        raise BundleError(f"The bundle failed its own check and was not kept: {failed.name}: {failed.detail}")
