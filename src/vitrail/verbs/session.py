"""A training in progress: everything it needs, assembled from a configuration or from an interrupted run."""

import re
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Final

import torch
from torch import nn

from vitrail.config import Preprocess, TrainConfig
from vitrail.data import Dataset, EvalLoader, open_manifest
from vitrail.errors import ConfigError
from vitrail.evaluation.predict import TorchPredictor, collect
from vitrail.models import Model
from vitrail.models.checkpoint import save_checkpoint
from vitrail.models.pretrained import load_pretrained
from vitrail.optim import OPTIMIZERS, averaged_weights
from vitrail.reports import SweepPage, write_sweep_page
from vitrail.runtime.compile import compile_model
from vitrail.runtime.device import describe_machine, resolve_device
from vitrail.runtime.files import write_json
from vitrail.runtime.memory import keep_freed_memory
from vitrail.runtime.precision import Precision, choose_precision
from vitrail.training import (
    Ema,
    EpochMetrics,
    MetricsLog,
    Objective,
    RepeatingBatches,
    Run,
    StepReport,
    TrainPlan,
    TrainProgress,
    TrainState,
    decay_for,
    graceful_interrupt,
    steps,
)
from vitrail.verbs import plan, rate
from vitrail.verbs import teacher as teaching
from vitrail.verbs.admit import open_with_progress
from vitrail.verbs.kits import KITS
from vitrail.verbs.learner import make_learner, make_loader

EVAL_BATCH_SIZE: Final = 64

# A state is saved after an epoch when the last save is this old: short epochs do not spend their time on the disk,
# and a killed process loses no more than this and one epoch.
_SAVE_EVERY_S: Final = 30.0


@dataclass
class Session:
    """A training between its start and its end; its configuration has nothing left to decide."""

    run: Run
    config: TrainConfig
    dataset: Dataset
    preprocess: Preprocess
    device: torch.device
    precision: Precision
    state: TrainState
    objective: Objective
    notes: list[str]
    """What was chosen for the user, a sentence each."""
    caveats: list[str]
    """What makes the accuracies less than they seem, a sentence each."""

    @property
    def kept_model(self) -> nn.Module:
        """The weights that are evaluated and kept: the moving average where there is one."""
        return self.state.model if self.state.ema is None else self.state.ema.module

    def has_stopped_early(self) -> bool:
        """Whether validation has got no better for as long as one wanted to wait."""
        patience = self.config.patience
        return patience is not None and self.state.epochs_without_improvement >= patience

    def fit(self, progress: TrainProgress) -> bool:
        """Train to the end, or until somebody interrupts; return whether it was interrupted."""
        if self.has_stopped_early():
            return False
        config, state = self.config, self.state
        loader = make_loader(config, self.dataset, self.preprocess, self.device)
        validation = EvalLoader(
            self.dataset.splits["val"], self.preprocess, EVAL_BATCH_SIZE, workers=config.workers, cache=config.cache
        )
        period = config.distill_cache
        batches = RepeatingBatches(loader, period) if isinstance(period, int) else loader
        network = self.objective.network(state.model)
        forward, note = compile_model(network, config.compile, self.device, config.time_budget_s)
        progress.say(note)
        log = MetricsLog(self.run.metrics_path, resume_epoch=state.epoch)
        train_plan = _train_plan(config)
        saved_at = time.monotonic()
        with graceful_interrupt() as stop:
            for report in steps(state, self.objective, batches, train_plan, self.precision, forward=forward, stop=stop):
                progress.step(report)
                # An epoch that has ended is measured even if somebody wants to stop: resumed, it would not be.
                measured = report.epoch_end or train_plan.is_over(state)
                if measured:
                    with averaged_weights(state.optimizer):
                        self._validate(report, validation, log, progress)
                late = measured and time.monotonic() - saved_at > _SAVE_EVERY_S
                if report.last or late or self.has_stopped_early():
                    state.save(self.run.state_path)
                    saved_at = time.monotonic()
                if self.has_stopped_early():
                    progress.say(f"Validation got no better in {config.patience} epochs: stopped early.")
                    break
        return stop.requested

    def _validate(self, report: StepReport, loader: EvalLoader, log: MetricsLog, progress: TrainProgress) -> None:
        """Measure on the validation images, leave a row in the log, and keep the weights if they are the best."""
        classes = self.dataset.classes
        predictor = TorchPredictor(self.kept_model, classes, self.preprocess, self.device, self.precision)
        outputs = collect(predictor, loader)
        kit = KITS[self.dataset.task]
        scores = kit.epoch_scores(kit.measure(outputs.logits, outputs.labels, classes, None))
        row = EpochMetrics(
            epoch=report.epoch,
            step=report.step,
            lr=report.lr,
            train_loss=report.epoch_loss,
            train_accuracy=report.epoch_accuracy,
            val_loss=scores.loss,
            val_accuracy=scores.accuracy,
            val_map=scores.map,
            images_per_s=report.images_per_s,
            wait_share=report.wait_share,
            elapsed_s=self.state.elapsed_s,
        )
        log.append(row)
        progress.epoch(row)
        if self.state.record(scores.best_by, report.epoch):
            assert isinstance(self.kept_model, Model)
            save_checkpoint(
                self.run.model_path,
                self.kept_model,
                classes=classes,
                preprocess=self.preprocess,
                task=self.dataset.task,
            )


def start(config: TrainConfig) -> Session:
    """Look at the images, decide what the configuration left open, and make the run's folder.

    Raises:
        DataError: if the images cannot be used.
        ConfigError: if a choice does not fit the others.
        CheckpointError: if the pretrained weights cannot be used.
    """
    device = resolve_device(config.device)
    dataset = open_with_progress(config.source, config, quiet=config.quiet)
    config = KITS[dataset.task].complete(config)
    teacher = teaching.open_teacher(config, dataset, device)
    torch.manual_seed(config.seed)
    model, preprocess, config, notes = _build(config, dataset)
    notes += plan.mirror_note(config, dataset)
    model.place(device)
    config = plan.complete(config, model, dataset, device, _try_step(model, preprocess, device, teacher))
    config = teaching.choose_cache(config, dataset, model, teacher)
    config, sweep = rate.find_rate(config, dataset, preprocess, model, teacher)
    notes += rate.describe(config, model, sweep)
    run = Run.create(config.out, "train", config.name or re.sub(r"[^\w.-]+", "-", config.model))
    config = replace(config, name=run.path.name)
    with run.removed_on_error():
        run.write_config(config)
        run.write_labels(dataset.classes)
        run.write_preprocess(preprocess)
        dataset.write_manifest(run.manifest_path)
        write_json(run.environment_path, describe_machine())
        if sweep is not None:
            told = f"{config.model} on {dataset.name}, {config.optimizer}, batch {config.batch_size}"
            write_sweep_page(run.rates_path, SweepPage(title=run.path.name, subtitle=told, **asdict(sweep)))
        return _assemble(run, config, dataset, preprocess, model, device, notes, teacher)


def resume(run: Run) -> Session:
    """Take up an interrupted run where it was saved, with the configuration it was started with.

    Raises:
        DataError: if the run's files or images are no longer there.
        CheckpointError: if its saved state is missing or damaged.
    """
    config = run.read_config(TrainConfig)
    device = resolve_device(config.device)
    preprocess = run.read_preprocess()
    dataset = open_manifest(run.manifest_path, config.source, config, preprocess=preprocess)
    model = plan.build_model(config, preprocess.image_size, len(dataset.classes)).place(device)
    teacher = teaching.open_teacher(config, dataset, device)
    session = _assemble(run, config, dataset, preprocess, model, device, [], teacher)
    session.state.load(run.state_path)
    for torn in run.path.glob(".*.tmp"):  # what a process was writing when it was killed
        torn.unlink(missing_ok=True)
    return session


def _build(config: TrainConfig, dataset: Dataset) -> tuple[Model, Preprocess, TrainConfig, list[str]]:
    """Create the model, with its pretrained weights, and say how images are prepared for it."""
    config = plan.like_pretrained(config)
    name = plan.AUTO_MODEL if config.model == "auto" else config.model
    size = config.image_size or plan.choose_image_size(dataset, name)
    config = replace(config, model=name, image_size=size)
    model = plan.build_model(config, (size, size), len(dataset.classes))
    notes, known = plan.describe_channels(dataset), None
    if config.pretrained is not None:
        loaded = load_pretrained(model, config.pretrained, classes=dataset.classes)
        notes, known = [loaded.summary(), *notes], loaded.preprocess
    return model, plan.choose_preprocess(config, dataset, (size, size), known), config, notes


def _assemble(
    run: Run,
    config: TrainConfig,
    dataset: Dataset,
    preprocess: Preprocess,
    model: Model,
    device: torch.device,
    notes: list[str],
    teacher: teaching.OpenTeacher | None,
) -> Session:
    if "val" not in dataset.splits or "train" not in dataset.splits:
        raise ConfigError(f"{config.source} has no images to train and to validate on.")
    keep_freed_memory()
    precision = choose_precision(config.precision, device, convolutional=model.channels_last)
    assert isinstance(config.lr, int | float), "the configuration is complete"
    assert config.batch_size is not None, "the configuration is complete"
    state, objective = make_learner(config, dataset, preprocess, model, teacher, precision, config.lr)
    num_batches = max(1, len(dataset.splits["train"]) // config.batch_size)
    state.ema = Ema(model, decay_for(_train_plan(config).total_steps(num_batches))) if config.ema else None
    return Session(
        run=run,
        config=config,
        dataset=dataset,
        preprocess=preprocess,
        device=device,
        precision=precision,
        state=state,
        objective=objective,
        notes=[*notes, *teaching.describe(config, teacher), *teaching.caveats(teacher), precision.note],
        caveats=teaching.caveats(teacher),
    )


def _train_plan(config: TrainConfig) -> TrainPlan:
    return TrainPlan(
        epochs=config.epochs,
        time_budget_s=config.time_budget_s,
        warmup=config.warmup,
        final_lr=1.0 if OPTIMIZERS[config.optimizer].averages else 0.0,
        accumulate=config.accumulate,
        grad_clip=config.grad_clip,
        head_first=config.head_first,
    )


def _try_step(
    model: Model, preprocess: Preprocess, device: torch.device, teacher: teaching.OpenTeacher | None
) -> Callable[[int], None]:
    """Return a function that does what a training step keeps in memory, for a number of images, and forgets it."""

    def try_step(num_images: int) -> None:
        images = torch.zeros(num_images, preprocess.num_channels, *preprocess.image_size, device=device)
        model.train()
        logits = model(images)
        if teacher is not None:
            teaching.try_answers(teacher, num_images)
        logits.sum().backward()
        model.zero_grad(set_to_none=True)

    return try_step
