"""What a verb is pointed at: a run, a bundle or a checkpoint, each made into something that answers."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from vitrail.config import SourceConfig, TaskName, TrainConfig
from vitrail.data import Dataset, open_evaluation_set, open_manifest
from vitrail.errors import CheckpointError, ConfigError
from vitrail.evaluation.kinds import AnyCalibration
from vitrail.evaluation.predict import Predictor, TorchPredictor
from vitrail.layers.conv import fold
from vitrail.models.checkpoint import Checkpoint, load_checkpoint
from vitrail.runtime.device import resolve_device
from vitrail.runtime.precision import choose_precision
from vitrail.shipping.predictor import OnnxPredictor, is_bundle
from vitrail.training import Run, is_run
from vitrail.verbs.kits import KITS


@dataclass(frozen=True, kw_only=True)
class Target:
    """Something that answers, and where it comes from."""

    name: str
    kind: Literal["run", "bundle", "checkpoint"]
    predictor: Predictor
    task: TaskName
    calibration: AnyCalibration | None
    checkpoint: Checkpoint | None
    """The PyTorch model; None for a bundle."""
    run: Run | None
    """Whose images and configuration are known; None for all but a run."""

    def dataset(self) -> Dataset:
        """Return the images that the run was trained on, in the same splits.

        Raises:
            ConfigError: if the target is no run, so that nobody knows its images.
            DataError: if the images are no longer there.
        """
        if self.run is None:
            raise ConfigError(f"{self.name} is a {self.kind} and does not know its images. Name a folder with --data.")
        config, preprocess = self.run.read_config(TrainConfig), self.predictor.preprocess
        return open_manifest(self.run.manifest_path, config.source, config, preprocess=preprocess)

    def open_images(self, source: str, config: SourceConfig) -> Dataset:
        """Return other images, labelled with the target's classes and prepared as it takes them.

        Raises:
            DataError: if they cannot be used.
        """
        predictor = self.predictor
        return open_evaluation_set(source, predictor.classes, config, task=self.task, preprocess=predictor.preprocess)


def open_target(path: str | Path, *, device: str = "auto", precision: str = "fp32") -> Target:
    """Open a run, a bundle, or a checkpoint that vitrail wrote.

    Args:
        path: the folder or the .safetensors file.
        device: where a PyTorch model computes; a bundle computes on the CPU.
        precision: numbers of a PyTorch model's matrix products.

    Raises:
        CheckpointError: if the weights are missing, damaged or not ours.
        BundleError: if a bundle is incomplete.
        ConfigError: if the device is not there, or a bundle is to compute elsewhere than on the CPU.
    """
    path = Path(path)
    if is_bundle(path):
        if device not in {"auto", "cpu"} or precision == "bf16":
            raise ConfigError(f"{path} is a bundle, which computes on the CPU in fp32: leave device and precision out.")
        bundled = OnnxPredictor(path)
        return Target(
            name=path.resolve().name,
            kind="bundle",
            predictor=bundled,
            task=bundled.task,
            calibration=KITS[bundled.task].read_calibration(bundled.calibration),
            checkpoint=None,
            run=None,
        )
    run = Run(path) if is_run(path) else None
    if run is not None and not run.model_path.exists():
        todo = f"Finish it with `vitrail train {path} --resume`" if run.state_path.exists() else "Train anew"
        raise CheckpointError(f"{path} has no trained model yet. {todo}.")
    checkpoint = load_checkpoint(run.model_path if run else path)
    if checkpoint.classes is None or checkpoint.preprocess is None:
        raise CheckpointError(f"{path} does not tell its classes or its preprocessing, so its answers have no names.")
    where = resolve_device(device)
    model = checkpoint.model.place(where)
    predictor = TorchPredictor(
        fold(model).place(where),
        checkpoint.classes,
        checkpoint.preprocess,
        where,
        choose_precision(precision, where, convolutional=model.channels_last),
    )
    return Target(
        name=path.stem if run is None else path.resolve().name,
        kind="checkpoint" if run is None else "run",
        predictor=predictor,
        task=checkpoint.task,
        calibration=KITS[checkpoint.task].read_calibration(checkpoint.calibration or {}),
        checkpoint=checkpoint,
        run=run,
    )
