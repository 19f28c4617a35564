"""`vitrail evaluate`: how good a run, a bundle or a checkpoint is on a split or on another folder of images."""

import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from vitrail.config import EvaluateConfig, SplitName, TaskName, from_options
from vitrail.data import Dataset, Split, display_name
from vitrail.errors import ConfigError
from vitrail.evaluation.cost import model_cost
from vitrail.evaluation.metrics import Metrics
from vitrail.evaluation.multilabel import MultiLabelMetrics
from vitrail.reports import Command, RunReport, write_report
from vitrail.runtime.device import describe_machine
from vitrail.runtime.files import write_json
from vitrail.training import Run
from vitrail.verbs import assess
from vitrail.verbs.kits import KITS
from vitrail.verbs.target import Target, open_target


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What was measured, and where it is kept."""

    path: Path
    """The folder of the evaluation, with its report and every answer."""
    split: SplitName
    task: TaskName
    metrics: Metrics | MultiLabelMetrics
    """Of one label per image, or of several."""


def evaluate(target: str | Path, **options: Any) -> Evaluation:
    """Measure a run, a bundle or a checkpoint.

    Args:
        target: what is measured.
        options: the other fields of `vitrail.config.EvaluateConfig`, as the flags of ``vitrail evaluate``.

    Raises:
        ConfigError: for an option or value that is not allowed, or a split that is not there.
        DataError: if the images cannot be used.
        CheckpointError: if the weights cannot be used.
    """
    return _evaluate(from_options(EvaluateConfig, {"target": str(target), **options}))


def run(config: EvaluateConfig) -> int:
    """Serve the command line."""
    evaluation = _evaluate(config)
    console = Console(highlight=False)
    console.print(KITS[evaluation.task].table(evaluation.metrics, f"{config.target} on {evaluation.split}"))
    console.print(f"report   {display_name(Run(evaluation.path).report_path)}", markup=False, soft_wrap=True)
    return 0


def _evaluate(config: EvaluateConfig) -> Evaluation:
    target = open_target(config.target, device=config.device, precision=config.precision)
    dataset = target.dataset() if config.data is None else target.open_images(config.data, config)
    split = choose_split(dataset, config.split)
    assessment = assess.assess(target.predictor, split, batch_size=config.batch_size, calibration=target.calibration)
    folder = Run.create(config.out, "evaluate", config.name or f"{target.name}-{split.name}")
    with folder.removed_on_error():
        folder.write_config(config)
        write_json(folder.environment_path, describe_machine())
        write_json(folder.evaluation_path, {split.name: assessment.metrics.to_dict()})
        assess.write_answers(folder.predictions_path, assessment, target.calibration)
        write_report(folder.report_path, _report(config, target, dataset, assessment, folder))
    return Evaluation(path=folder.path, split=split.name, task=split.task, metrics=assessment.metrics)


def choose_split(dataset: Dataset, name: SplitName | None, preferred: Sequence[SplitName] = ("test", "val")) -> Split:
    """Return the split called ``name``, or the first of ``preferred`` that there is.

    Raises:
        ConfigError: if there is no such split.
    """
    known = list(dataset.splits)
    if name is None:
        return dataset.splits[next((split for split in preferred if split in known), known[0])]
    if name not in known:
        raise ConfigError(f"{dataset.name} has no split {name!r}. It has: {', '.join(known)}.")
    return dataset.splits[name]


def _report(
    config: EvaluateConfig, target: Target, dataset: Dataset, assessment: assess.Assessment, folder: Run
) -> RunReport:
    model, preprocess = target.checkpoint.model if target.checkpoint else None, target.predictor.preprocess
    return RunReport(
        title=display_name(folder.path.name),
        model=model.spec.name if model and model.spec else f"{target.kind} {target.name}",
        split=assessment.split.name,
        metrics=assessment.metrics,
        created_at=assess.now(),
        data=assess.summarise_data(dataset),
        errors=KITS[assessment.split.task].worst_errors(
            assessment.split, assessment.outputs, target.predictor.preprocess, target.calibration
        ),
        calibration=target.calibration,
        cost=None if model is None else model_cost(model, preprocess.image_size, preprocess.num_channels),
        caveats=(*assess.data_caveats(dataset, assessment), *_own_split_caveats(config, assessment)),
        commands=(Command("Label new images", f"vitrail predict {shlex.quote(display_name(config.target))} IMAGES"),),
        config=asdict(config),
        environment=describe_machine(),
    )


def _own_split_caveats(config: EvaluateConfig, assessment: assess.Assessment) -> tuple[str, ...]:
    """Return what is to be said of a run's own images that had a part in its training."""
    part = {"train": "The model was trained on these images", "val": "The weights were chosen on these images"}
    if config.data is not None or assessment.split.name not in part:
        return ()
    return (f"{part[assessment.split.name]}, so the scores on others are lower.",)
