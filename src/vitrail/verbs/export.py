"""`vitrail export`: a bundle whose model was proven to give the answers of the trained one, or nothing."""

import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from vitrail.config import ExportConfig, Preprocess, from_options
from vitrail.data import EvalLoader, Split, display_name
from vitrail.errors import ConfigError
from vitrail.runtime.files import free_path
from vitrail.shipping.bundle import ProofBatch, export_bundle
from vitrail.shipping.executorch import refuse_unsupported
from vitrail.shipping.parity import Parity, Tolerance
from vitrail.verbs.evaluate import choose_split
from vitrail.verbs.target import open_target

_BATCH_SIZE = 32


@dataclass(frozen=True, kw_only=True)
class Export:
    """A bundle, and the proof of it."""

    path: Path
    """The bundle's folder."""
    parity: Parity
    """How the exported model's answers compare with the trained one's, on every validation image."""
    executorch: Parity | None = None
    """The same of the program for phones, where there is one."""


def export(target: str | Path, **options: Any) -> Export:
    """Export a model and prove it on real images; beyond the tolerance nothing is left.

    Args:
        target: a run, or a checkpoint together with ``data``.
        options: the other fields of `vitrail.config.ExportConfig`, as the flags of ``vitrail export``.

    Raises:
        ParityError: if the exported model does not answer like the trained one.
        ConfigError: for an option or value that is not allowed.
        MissingExtraError: if the format needs a library that is not installed.
        DataError: if the images cannot be used.
        CheckpointError: if the weights cannot be used.
    """
    return _export(from_options(ExportConfig, {"target": str(target), **options}))


def run(config: ExportConfig) -> int:
    """Serve the command line."""
    exported = _export(config)
    path = display_name(exported.path)
    program = f"in ExecuTorch {exported.executorch.summary()}\n" if exported.executorch else ""
    Console(highlight=False).print(
        f"{exported.parity.summary()}\n{program}"
        f"bundle   {path}\nCheck it where it will run:  vitrail check {shlex.quote(path)}",
        markup=False,
        soft_wrap=True,
    )
    return 0


def _export(config: ExportConfig) -> Export:
    target = open_target(config.target, device="cpu")
    if target.checkpoint is None:
        raise ConfigError(f"{config.target} is a bundle already. Name the run it was exported from.")
    predictor = target.predictor
    if config.format == "executorch":
        refuse_unsupported(predictor.preprocess)  # before the images are read
    dataset = target.dataset() if config.data is None else target.open_images(config.data, config)
    split = choose_split(dataset, None, preferred=("val", "test"))
    folder = free_path(Path(config.out) / "export" / (config.name or target.name))
    parities = export_bundle(
        target.checkpoint.model,
        folder,
        classes=predictor.classes,
        preprocess=predictor.preprocess,
        batches=_batches(split, predictor.preprocess),
        task=target.task,
        calibration=target.calibration.to_dict() if target.calibration else None,
        tolerance=Tolerance(logits=config.tolerance),
        source=target.name,
        format=config.format,
    )
    return Export(path=folder, parity=parities["onnx"], executorch=parities.get("executorch"))


def _batches(split: Split, preprocess: Preprocess) -> Iterator[ProofBatch]:
    for batch in EvalLoader(split, preprocess, _BATCH_SIZE, cache="off"):
        yield batch.pixels, batch.labels, [display_name(split.paths[index]) for index in batch.indices.tolist()]
