"""`vitrail train`: from a folder of images to a trained and measured model, in a folder that explains itself."""

import shlex
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from rich.console import Console

from vitrail.config import TrainConfig, from_options
from vitrail.data import TrainLoader, display_name, shown
from vitrail.errors import INTERRUPTED, ConfigError
from vitrail.evaluation.cost import Latency, measure_latency, model_cost
from vitrail.evaluation.kinds import AnyCalibration, Scores
from vitrail.evaluation.metrics import Metrics
from vitrail.evaluation.multilabel import MultiLabelMetrics
from vitrail.evaluation.predict import Predictor, TorchPredictor
from vitrail.layers.conv import fold
from vitrail.models.checkpoint import load_checkpoint, save_checkpoint
from vitrail.reports import Command, EpochRow, Picture, RunReport, write_report
from vitrail.runtime.device import describe_machine
from vitrail.runtime.files import write_json
from vitrail.runtime.precision import choose_precision
from vitrail.training import Run, TrainProgress, is_run, read_metrics
from vitrail.verbs import assess, plan
from vitrail.verbs.kits import KITS, Kit
from vitrail.verbs.session import EVAL_BATCH_SIZE, Session, resume, start

_NUM_AUGMENTED_SHOWN: Final = 12


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """What a training left."""

    path: Path
    """The run's folder."""
    metrics: Mapping[str, Metrics | MultiLabelMetrics]
    """By split, val and (where there is one) test, of the weights of the epoch that was best in validation."""
    elapsed_s: float
    """Time of the training, with the validation after each epoch."""
    interrupted: bool
    """Whether it was stopped; `resume` goes on with it."""

    @property
    def report_path(self) -> Path:
        """The page for people."""
        return Run(self.path).report_path


def train(source: str | Path, **options: Any) -> TrainResult:
    """Train a model on a source of images and measure it.

    Args:
        source: a folder with one folder of images per class, or with train, val and test folders of such; a table of
            paths and labels; a Hugging Face dataset; shards; idx files or an .npz archive; or "digits".
        options: the other fields of `vitrail.config.TrainConfig`, as the flags of ``vitrail train``.

    Raises:
        ConfigError: for an option or value that is not allowed.
        DataError: if the images cannot be used.
        CheckpointError: if weights to start from cannot be used.
        TrainingError: at the first loss that is not finite.
        StorageError: if the disk is full.
    """
    return _train(from_options(TrainConfig, {"source": str(source), **options}))


def run(config: TrainConfig) -> int:
    """Serve the command line: 0 when the training reached its end, 130 when it was interrupted."""
    return INTERRUPTED if _train(config).interrupted else 0


def _train(config: TrainConfig) -> TrainResult:
    console = Console(stderr=True, highlight=False, quiet=config.quiet)
    session = _open_session(config)
    console.print(_introduction(session), markup=False, soft_wrap=True)
    with TrainProgress(session.config.epochs, quiet=config.quiet, console=console) as progress:
        for note in session.notes:
            progress.say(note)
        interrupted = session.fit(progress)
    metrics: Mapping[str, Scores] = {}
    if not interrupted:
        try:
            metrics = conclude(session, console)
        except KeyboardInterrupt:  # the training is over and saved; a resumed run concludes again
            interrupted = True
    if interrupted:
        command = f"vitrail train {shlex.quote(display_name(session.run.path))} --resume"
        console.print(f"Interrupted; everything is saved. To go on: {command}", markup=False, soft_wrap=True)
    return TrainResult(
        path=session.run.path, metrics=metrics, elapsed_s=session.state.elapsed_s, interrupted=interrupted
    )


def _open_session(config: TrainConfig) -> Session:
    if config.resume:
        _refuse_changes(config)
        return resume(Run.open(config.source))
    if is_run(config.source):
        raise ConfigError(f"{config.source} is a run, not images. Add --resume to go on with it.")
    return start(config)


def _refuse_changes(config: TrainConfig) -> None:
    """Refuse what a resumed run would pass over in silence."""
    plain = TrainConfig(source=config.source, resume=True, quiet=config.quiet)
    changed = [name for name, value in asdict(config).items() if value != getattr(plain, name)]
    if changed:
        raise ConfigError(
            f"A resumed run keeps its own configuration, so {', '.join(changed)} cannot be given with resume. Leave it"
            " away, or start a new run, with `pretrained` to begin from these weights."
        )


def conclude(session: Session, console: Console) -> Mapping[str, Scores]:
    """Calibrate the kept weights, measure them on val and test, and write the report."""
    started_at = time.monotonic()
    checkpoint = load_checkpoint(session.run.model_path)
    model, classes = checkpoint.model.place(session.device), session.dataset.classes
    # As `evaluate` will measure it.
    precision = choose_precision("fp32", session.device, convolutional=model.channels_last)
    folded = fold(model).place(session.device)
    predictor = TorchPredictor(folded, classes, session.preprocess, session.device, precision)
    splits = session.dataset.splits
    answers = assess.assess(predictor, splits["val"], batch_size=EVAL_BATCH_SIZE).outputs
    calibration = KITS[checkpoint.task].calibrate(answers.logits, answers.labels)
    save_checkpoint(
        session.run.model_path,
        checkpoint.model,
        classes=classes,
        preprocess=session.preprocess,
        task=checkpoint.task,
        calibration=calibration.to_dict(),
    )
    assessments = {
        name: assess.assess(predictor, splits[name], batch_size=EVAL_BATCH_SIZE, calibration=calibration)
        for name in ("val", "test")
        if name in splits
    }
    metrics: dict[str, Scores] = {name: assessment.metrics for name, assessment in assessments.items()}
    write_json(session.run.evaluation_path, {name: measured.to_dict() for name, measured in metrics.items()})
    page = _report(session, list(assessments.values())[-1], predictor, calibration, time.monotonic() - started_at)
    write_report(session.run.report_path, page)
    console.print(_summary(session.run, KITS[checkpoint.task], metrics), markup=False, soft_wrap=True)
    return metrics


def _report(
    session: Session,
    assessment: assess.Assessment,
    predictor: Predictor,
    calibration: AnyCalibration,
    conclude_s: float,
) -> RunReport:
    config, state = session.config, session.state
    best_epoch = None if state.best_epoch is None else state.best_epoch + 1
    caveats = [*session.caveats, *assess.data_caveats(session.dataset, assessment)]
    if assessment.split.name == "val":
        caveats.append("There are no test images. The weights were chosen on these, so the scores are a little high.")
    return RunReport(
        title=display_name(session.run.path.name),
        model=config.model,
        split=assessment.split.name,
        metrics=assessment.metrics,
        created_at=assess.now(),
        data=assess.summarise_data(session.dataset),
        history=tuple(
            EpochRow(
                epoch=row.epoch + 1,
                train_loss=row.train_loss,
                val_loss=row.val_loss,
                val_accuracy=row.val_accuracy,
                val_map=row.val_map,
                lr=row.lr,
                elapsed_s=row.elapsed_s,
            )
            for row in read_metrics(session.run.metrics_path)
        ),
        best_epoch=best_epoch,
        errors=KITS[assessment.split.task].worst_errors(
            assessment.split, assessment.outputs, session.preprocess, calibration
        ),
        augmented=_augmented(session),
        calibration=calibration,
        cost=model_cost(session.state.model, session.preprocess.image_size, session.preprocess.num_channels),
        latency=_latency(predictor),
        timings_s={"training": state.elapsed_s, "evaluation": conclude_s},
        details={"precision": session.precision.note, **_waiting(session.run)},
        caveats=tuple(caveats),
        commands=_commands(session.run),
        config=asdict(config),
        environment=describe_machine(),
    )


def _waiting(run: Run) -> dict[str, str]:
    """Tell how much of the time the model waited for images; the first epoch decodes what later ones may remember."""
    shares = [row.wait_share for row in read_metrics(run.metrics_path) if row.wait_share is not None]
    if not shares:
        return {}
    return {"waiting for images": f"{shares[0]:.1%} of the first epoch, {shares[-1]:.1%} of the last"}


def _augmented(session: Session) -> tuple[Picture, ...]:
    """Return some training images of the first epoch as the model saw them, made again."""
    loader = TrainLoader(
        session.dataset.splits["train"],
        session.preprocess,
        plan.choose_policy(session.config, session.dataset),
        min(_NUM_AUGMENTED_SHOWN, session.config.batch_size or 1),
        seed=session.config.seed,
        cache="off",
        balance=session.config.sampling == "balanced",
    )
    batch = next(loader.epoch(0))
    preprocess = session.preprocess
    mean, std = (np.array(values).reshape(-1, 1, 1) for values in (preprocess.mean, preprocess.std))
    values = (batch.images.numpy() * std + mean) * preprocess.peak
    if preprocess.pixel_type != "float32":
        values = np.clip(values, 0, preprocess.peak)
    pixels = values.astype(preprocess.pixel_type).transpose(0, 2, 3, 1)
    return tuple(np.asarray(shown(image)) for image in pixels)


def _latency(predictor: Predictor) -> Mapping[str, Latency]:
    """Return how long PyTorch takes for one image."""
    preprocess = predictor.preprocess
    pixels = np.zeros((1, *preprocess.image_size, preprocess.num_channels), preprocess.pixel_type)
    return {"PyTorch, fp32": measure_latency(lambda: predictor.logits(pixels), time_limit_s=5.0)}


def _commands(run: Run) -> tuple[Command, ...]:
    path = shlex.quote(display_name(run.path))
    return (
        Command("Label new images", f"vitrail predict {path} IMAGES"),
        Command("Measure on other images", f"vitrail evaluate {path} --data FOLDER"),
        Command("Make a proven bundle for other machines", f"vitrail export {path}"),
    )


def _introduction(session: Session) -> str:
    dataset, config = session.dataset, session.config
    counts = ", ".join(f"{len(split):,} {name}" for name, split in dataset.splits.items())
    refused = f"; {len(dataset.refused)} broken files left out" if dataset.refused else ""
    leaks = f"; {len(dataset.dropped)} of val or test left out, train has them too" if dataset.dropped else ""
    parameters = sum(parameter.numel() for parameter in session.state.model.parameters())
    length = f"{config.epochs} epochs" if config.epochs else f"time budget {config.time_budget}"
    return (
        f"images   {dataset.name}: {len(dataset.classes)} classes, {counts}{refused}{leaks}\n"
        f"model    {config.model}, {parameters / 1e6:.2f} M parameters, {config.image_size} pixels\n"
        f"training {length}, batch {config.batch_size}, {config.optimizer}, lr {config.lr:.2g}, on {session.device}\n"
        f"run      {display_name(session.run.path)}"
    )


def _summary(run: Run, kit: Kit[Any, Any], metrics: Mapping[str, Scores]) -> str:
    lines = []
    for name, measured in metrics.items():
        title, score = kit.headline(measured)
        told = "undefined"
        if score.value is not None:
            told = f"{score.value:.1%}  95 % interval [{score.low:.1%}, {score.high:.1%}]"
        lines.append(f"{name:<5}{title} {told}  of {measured.num_images:,} images")
    lines.append(f"report   {display_name(run.report_path)}")
    lines += [f"{command.purpose}:  {command.line}" for command in _commands(run)]
    return "\n".join(lines)
