"""`vitrail models`: what can be trained, what each costs, and what the literature says of it."""

import csv
import io
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from fnmatch import fnmatch
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from vitrail.config import ModelsConfig, from_options
from vitrail.errors import ConfigError, did_you_mean
from vitrail.evaluation.cost import build_on_meta, model_cost
from vitrail.models import MODELS, create_model, list_models
from vitrail.options import parse_count
from vitrail.reports.html import quantity


@dataclass(frozen=True, kw_only=True)
class ModelSummary:
    """What is known of a model before it is trained; counts are for 1000 classes."""

    name: str
    image_size: int
    """Side in pixels that the counts belong to."""
    parameters: int
    macs: int
    """Multiply-adds of one image."""
    activations: int
    """Numbers that convolutions, linear layers and attention's products put out for one image."""
    published_top1: float | None
    """Accuracy on ImageNet-1k in percent, trained on it alone and without a teacher; None where nobody tells."""
    published_image_size: int | None
    """Side in pixels that the accuracy belongs to."""
    source: str
    """Where the accuracy is printed."""


def describe_models(*patterns: str, **options: Any) -> list[ModelSummary]:
    """Return what each model costs, and its published accuracy.

    Args:
        patterns: only names that match one of these, such as "vit_tiny*". Default: all.
        options: ``max_params``, ``max_macs``, ``image_size`` and ``sort`` of `vitrail.config.ModelsConfig`.

    Returns:
        One entry per model. With ``image_size``, models that cannot take that size are left out.

    Raises:
        ConfigError: for an option or value that is not allowed, patterns that no model matches, or an ``image_size``
            that none of them takes.
    """
    return _describe(from_options(ModelsConfig, {"patterns": patterns, **options}))[0]


def run(config: ModelsConfig) -> int:
    """Serve the command line: the table, and a sentence on models that cannot take the image size."""
    summaries, refused = _describe(config)
    if config.format == "table":
        _print_table(summaries)
    elif config.format == "json":
        sys.stdout.write(json.dumps([asdict(each) for each in summaries], indent=2) + "\n")
    else:
        sys.stdout.write(_csv(summaries))
    if refused:
        sys.stderr.write(f"vitrail: left out, as they do not take {config.image_size} pixels: {', '.join(refused)}.\n")
    return 0


def _describe(config: ModelsConfig) -> tuple[list[ModelSummary], list[str]]:
    """Return the models that fit, and the names of those that cannot take the image size."""
    patterns = config.patterns or ("*",)
    names = [name for name in list_models() if any(fnmatch(name, pattern) for pattern in patterns)]
    if not names:
        hint = did_you_mean(patterns[0], list_models())
        raise ConfigError(f"No model matches {' or '.join(patterns)}.{hint} `vitrail models` lists all of them.")
    summaries, refused = [], {}
    for name in names:
        try:
            summaries.append(_summarise(name, config.image_size))
        except ConfigError as error:
            refused[name] = error
    if not summaries:
        raise next(iter(refused.values()))
    limits = (config.max_params, config.max_macs)
    params, macs = (float("inf") if limit is None else parse_count(limit) for limit in limits)
    chosen = [each for each in summaries if each.parameters <= params and each.macs <= macs]
    return _sorted(chosen, config.sort), list(refused)


def _summarise(name: str, image_size: int | None) -> ModelSummary:
    model = build_on_meta(lambda: create_model(name, image_size=image_size))
    cost, published = model_cost(model, model.image_size), MODELS[name].published
    return ModelSummary(
        name=name,
        image_size=model.image_size[0],
        parameters=cost.parameters,
        macs=cost.macs,
        activations=cost.activations,
        published_top1=published.top1,
        published_image_size=None if published.top1 is None else published.image_size,
        source="" if published.top1 is None else published.source,
    )


def _sorted(summaries: list[ModelSummary], order: str) -> list[ModelSummary]:
    if order == "name":
        return sorted(summaries, key=lambda each: each.name)
    if order == "params":
        return sorted(summaries, key=lambda each: each.parameters)
    if order == "macs":
        return sorted(summaries, key=lambda each: each.macs)
    if order == "accuracy":  # those without one last
        return sorted(summaries, key=lambda each: -(each.published_top1 or 0.0))
    return summaries


def _print_table(summaries: Sequence[ModelSummary]) -> None:
    table = Table(title="Models, 1000 classes", title_justify="left", box=SIMPLE_HEAD)
    table.add_column("model", no_wrap=True)
    for column in ("pixels", "parameters", "MACs", "outputs", "top 1"):
        table.add_column(column, justify="right", no_wrap=column == "top 1")
    sources = list(dict.fromkeys(each.source for each in summaries if each.source))
    for each in summaries:
        accuracy = ""
        if each.published_top1 is not None:
            size = "" if each.published_image_size == each.image_size else f" at {each.published_image_size}"
            accuracy = f"{each.published_top1:.1f} %{size} [{sources.index(each.source) + 1}]"
        table.add_row(
            each.name,
            str(each.image_size),
            f"{each.parameters / 1e6:.2f} M",
            quantity(each.macs),
            f"{each.activations / 1e6:.1f} M",
            accuracy.replace("[", r"\["),
        )
    console = Console(highlight=False)
    console.print(table)
    if sources:
        console.print(
            "MACs: multiply-adds of one image. Outputs: numbers its layers put out. "
            "Top 1: published accuracy on ImageNet-1k, no other images and no teacher."
        )
    for number, source in enumerate(sources, start=1):
        console.print(f"[{number}] {source}", markup=False, soft_wrap=True)


def _csv(summaries: Sequence[ModelSummary]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, [each.name for each in fields(ModelSummary)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(each) for each in summaries)
    return text.getvalue()
