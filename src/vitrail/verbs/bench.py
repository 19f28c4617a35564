"""`vitrail bench`: how fast models are on this machine, side by side, and how far the numbers can be trusted."""

import itertools
import os
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from rich.console import Console

from vitrail.config import BenchConfig, from_options
from vitrail.errors import INTERRUPTED, ConfigError, VitrailError, lookup
from vitrail.evaluation.bench import BenchRow, Noise, Spread, Turn, WorkerError, measure_noise, speed_ratios, workers
from vitrail.evaluation.cost import build_on_meta, model_cost
from vitrail.models import MODELS, create_model
from vitrail.options import parse_duration
from vitrail.runtime.device import describe_machine, resolve_device
from vitrail.runtime.files import write_json, write_text
from vitrail.shipping.predictor import OnnxPredictor, is_bundle
from vitrail.training import Run
from vitrail.training.interrupt import graceful_interrupt
from vitrail.verbs.benchtable import print_table, to_markdown
from vitrail.verbs.contestant import open_model
from vitrail.verbs.rounds import Cell, Contestant, Measurement, peak_name, processor_cores

_MODULE: Final = "vitrail.verbs.contestant"


@dataclass(frozen=True)
class BenchResult:
    """What was measured, and where it is kept."""

    path: Path
    """The folder with bench.json and bench.md."""
    rows: tuple[BenchRow, ...]
    noise: Noise
    skipped: tuple[str, ...]
    """What was left out, each with its reason."""
    interrupted: bool
    """Whether it was stopped before the last round."""

    def to_dict(self) -> dict[str, Any]:
        """Return plain data that JSON can hold."""
        return {
            "rows": [asdict(each) for each in self.rows],
            "noise": self.noise.to_dict(),
            "skipped": list(self.skipped),
            "interrupted": self.interrupted,
        }


def bench(*models: str | Path, **options: Any) -> BenchResult:
    """Measure how fast models are on this machine, taking turns.

    Args:
        models: names of `list_models`, runs, checkpoints or bundles; the others are compared with the first.
        options: the other fields of `vitrail.config.BenchConfig`, as the flags of ``vitrail bench``.

    Raises:
        ConfigError: for an option or value that is not allowed, an unknown model, or settings of which none can be run.
        CheckpointError: if the weights cannot be used.
        BundleError: if a bundle is incomplete.
        KeyboardInterrupt: if it was interrupted before anything was measured.
    """
    lists = {"batch_size", "threads", "runtimes", "precision"}
    given = {
        key: (value,) if key in lists and isinstance(value, int | str) else value for key, value in options.items()
    }
    return _bench(from_options(BenchConfig, {"models": tuple(map(str, models)), **given}))


def run(config: BenchConfig) -> int:
    """Serve the command line: 0, or 130 when it was interrupted with something measured."""
    result = _bench(config)
    print_table(result.rows, Console(highlight=False))
    for sentence in (*result.skipped, *([result.noise.warning] if result.noise.warning else [])):
        sys.stderr.write(f"vitrail: {sentence}\n")
    Console(highlight=False).print(f"measured {result.path / 'bench.md'}", markup=False, soft_wrap=True)
    if result.interrupted:
        sys.stderr.write("vitrail: interrupted; what was measured until then is kept.\n")
        return INTERRUPTED
    return 0


def _bench(config: BenchConfig) -> BenchResult:
    if config.time_budget is not None:
        parse_duration(config.time_budget)  # before anything is begun
    device = str(resolve_device(config.device))
    contestants, skipped = _plan(config, device)
    if not contestants:
        raise ConfigError(f"Nothing can be measured. {' '.join(skipped)}".rstrip())
    folder = Run.create(config.out, "bench", config.name or Path(contestants[0].target).name)
    load_before = _load()
    with folder.removed_on_error(), graceful_interrupt() as stop, workers(_MODULE, stop) as start:
        measurement = Measurement(config, device, contestants, skipped, start)
        interrupted = False
        try:
            measurement.run()
        except KeyboardInterrupt:
            interrupted = True
        except WorkerError as error:
            raise VitrailError(f"The machine's own speed could not be measured: {error}.") from error
        rows = _rows(measurement)
        if not rows and interrupted:
            raise KeyboardInterrupt
        if not rows:
            raise VitrailError(f"Nothing could be measured. {' '.join(skipped)}")
        noise = measure_noise(measurement.probes_ms, load_before, _load(), processor_cores())
        result = BenchResult(folder.path, rows, noise, tuple(skipped), interrupted)
        folder.write_config(config)
        write_json(folder.environment_path, describe_machine())
        write_json(folder.path / "bench.json", {**result.to_dict(), "peak_macs_per_s": measurement.peaks})
        write_text(folder.path / "bench.md", to_markdown(rows, noise, skipped))
    return result


def _plan(config: BenchConfig, device: str) -> tuple[list[Contestant], list[str]]:
    """Return who takes part, and one sentence for each who cannot."""
    contestants: list[Contestant] = []
    skipped: list[str] = []
    labels: dict[str, int] = {}
    for target in config.models:
        size, macs = _describe(target, config.image_size)
        labels[target] = labels.get(target, 0) + 1
        label = target if labels[target] == 1 else f"{target} ({labels[target]})"
        for runtime, precision in _settings(config):
            each = Contestant(label, runtime, precision, target, size, macs, is_reference=label == config.models[0])
            reason = _why_not(each, device)
            if reason:
                skipped.append(f"{each.title} was left out: {reason}.")
            else:
                contestants.append(each)
    return contestants, skipped


def _settings(config: BenchConfig) -> list[tuple[str, str]]:
    """Return every runtime with its precisions, each pair once; onnxruntime has but one."""
    own = {"onnx": ("fp32",), "onnx-int8": ("int8",)}
    pairs = [(runtime, each) for runtime in config.runtimes for each in own.get(runtime, config.precision)]
    return list(dict.fromkeys(pairs))


def _describe(target: str, image_size: int | None) -> tuple[tuple[int, int], int | None]:
    """Return a target's image size and its multiply-adds, which a bundle does not tell.

    Raises:
        ConfigError: if there is no such model, nor such a file.
    """
    if is_bundle(target):
        return OnnxPredictor(target).preprocess.image_size, None
    if Path(target).exists():
        trained, preprocess = open_model(target, None)
        return preprocess.image_size, model_cost(trained, preprocess.image_size, preprocess.num_channels).macs
    if os.sep in target or target.endswith(".safetensors"):
        raise ConfigError(f"There is no run, bundle or checkpoint {target}.")
    try:
        model = build_on_meta(lambda: create_model(target, image_size=image_size))
    except ConfigError:
        lookup(MODELS, target, "model")  # if it is the name, say so
        raise
    return model.image_size, model_cost(model, model.image_size).macs


def _why_not(each: Contestant, device: str) -> str | None:
    is_onnx = each.runtime.startswith("onnx")
    if is_onnx and device != "cpu":
        return f"onnxruntime is measured on the CPU, and the device is {device}"
    if not is_onnx and is_bundle(each.target):
        return "a bundle runs in onnxruntime alone"
    return None


def _rows(measurement: Measurement) -> tuple[BenchRow, ...]:
    """Return every setting in which something was measured, the models of one setting next to one another."""
    rows: list[BenchRow] = []
    settings = dict.fromkeys((each.runtime, each.precision) for each in measurement.contestants)
    for setting, cell in itertools.product(settings, measurement.cells):
        group = [each for each in measurement.contestants if (each.runtime, each.precision) == setting]
        reference = next((each.turns.get(cell, {}) for each in group if each.is_reference), {})
        rows += [_row(each, cell, reference, measurement.peaks) for each in group if each.turns.get(cell)]
    return tuple(rows)


def _row(each: Contestant, cell: Cell, reference: Mapping[int, Turn], peaks: Mapping[str, float]) -> BenchRow:
    turns, (threads, batch_size) = each.turns[cell], cell
    p50_ms = Spread.of([turn.p50_ms for turn in turns.values()])
    images_per_s = 1e3 * batch_size / p50_ms.median
    peak = peaks.get(peak_name(each.precision, threads))
    return BenchRow(
        model=each.label,
        runtime=each.runtime,
        precision=each.precision,
        threads=threads,
        batch_size=batch_size,
        p50_ms=p50_ms,
        p90_ms=Spread.of([turn.p90_ms for turn in turns.values()]).median,
        images_per_s=images_per_s,
        memory_bytes=each.memory.get(cell),
        peak_share=each.macs * images_per_s / peak if each.macs and peak else None,
        speedup=speed_ratios(reference, turns),
        num_rounds=len(turns),
        num_runs=sum(turn.num_runs for turn in turns.values()),
    )


def _load() -> float | None:
    """Return the load average of the last minute, where the system has one."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None
