"""The rounds of `vitrail bench`: contestants are built, take their turns, and leave when they fail."""

import itertools
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from vitrail.config import BenchConfig
from vitrail.evaluation.bench import Turn, Worker, WorkerError, rotated
from vitrail.options import parse_duration
from vitrail.shipping.predictor import is_bundle

_TURN_S: Final = 0.5
_SHORTEST_TURN_S: Final = 0.1

Cell = tuple[int, int]
"""Threads and batch size."""


@dataclass
class Contestant:
    """A model in a runtime, its process, and what it measured in each cell."""

    label: str
    runtime: str
    precision: str
    target: str
    """As the user named it."""
    image_size: tuple[int, int]
    macs: int | None
    is_reference: bool
    """Whether the others are compared with it."""
    worker: Worker | None = None
    turns: dict[Cell, dict[int, Turn]] = field(default_factory=dict)
    """By cell and round."""
    memory: dict[Cell, int] = field(default_factory=dict)
    """Bytes."""

    @property
    def title(self) -> str:
        """How it is called in a sentence."""
        return f"{self.label}, {self.runtime}, {self.precision}"


class Measurement:
    """The rounds: builds the contestants, lets them take turns and keeps what they measured."""

    def __init__(
        self,
        config: BenchConfig,
        device: str,
        contestants: list[Contestant],
        skipped: list[str],
        start: Callable[[], Worker],
    ) -> None:
        self.config = config
        self.contestants = contestants
        self.skipped = skipped
        self.peaks: dict[str, float] = {}
        self.probes_ms: list[float] = []
        self._device = device
        self._start = start
        self._began_at = time.monotonic()
        threads = config.threads or ((1, processor_cores()) if device == "cpu" else (processor_cores(),))
        # Small batches first: where the peak of the memory cannot be forgotten, it is still theirs.
        self.cells: list[Cell] = list(itertools.product(dict.fromkeys(threads), sorted(set(config.batch_size))))
        self._scratch = tempfile.TemporaryDirectory(prefix="vitrail-bench-")

    def run(self) -> None:
        """Build everything, then measure round by round; the first one is thrown away.

        Raises:
            KeyboardInterrupt: if it was stopped; what was measured until then is there.
            WorkerError: if the probe of the machine fails.
        """
        total = len(self.contestants) * (1 + len(self.cells) * (self.config.rounds + 1))
        with self._scratch, _progress(total, quiet=self.config.quiet) as tell:
            for each in list(self.contestants):
                tell(f"building {each.title}")
                self._attempt(each, partial(self._build, each))
            if not self.contestants:
                return
            probe = self._start()
            probe.ask(job="probe", device=self._device, threads=max(threads for threads, _ in self.cells))
            self._measure_peaks(probe)
            limit_s = self._turn_s()
            for number in range(self.config.rounds + 1):
                if number > 1 and self._left_s() < 0:
                    break
                for each, cell in self._order(number):
                    tell(f"round {number} of {self.config.rounds}" if number else "warming up")
                    self.probes_ms.append(probe.ask()["probe_ms"])
                    self._attempt(each, partial(self._turn, each, cell, number, limit_s))

    def _measure_peaks(self, probe: Worker) -> None:
        precisions = dict.fromkeys(each.precision for each in self.contestants if each.precision != "int8")
        for precision, threads in itertools.product(precisions, dict.fromkeys(threads for threads, _ in self.cells)):
            answer = probe.ask(precision=precision, threads=threads)
            self.peaks[peak_name(precision, threads)] = answer["macs_per_s"]

    def _order(self, number: int) -> Iterator[tuple[Contestant, tuple[int, int]]]:
        """Yield who measures what in a round: setting by setting, beginning with another contestant each time."""
        by_title = {each.title: each for each in self.contestants}
        for cell in self.cells:
            for title in rotated(list(by_title), number):
                if by_title[title] in self.contestants:  # not left out meanwhile
                    yield by_title[title], cell

    def _attempt(self, each: Contestant, act: Callable[[], None]) -> None:
        try:
            act()
        except WorkerError as error:
            self.skipped.append(f"{each.title} was left out: {str(error).rstrip('.')}.")
            self.contestants.remove(each)
            if each.worker is not None:
                each.worker.close()

    def _build(self, each: Contestant) -> None:
        sized = None if Path(each.target).exists() else self.config.image_size
        each.worker = self._start()
        if not each.runtime.startswith("onnx"):
            each.worker.ask(
                job="torch",
                target=each.target,
                runtime=each.runtime,
                precision=each.precision,
                device=self._device,
                image_size=sized,
            )
            return
        each.worker.ask(job="onnx", path=str(self._onnx_file(each, sized)), image_size=each.image_size)

    def _onnx_file(self, each: Contestant, image_size: int | None) -> Path:
        """Return the file that onnxruntime opens, written by processes that end before anything is measured."""
        folder = Path(self._scratch.name) / str(self.config.models.index(each.target))
        folder.mkdir(exist_ok=True)
        plain = Path(each.target) / "model.onnx" if is_bundle(each.target) else folder / "model.onnx"
        if not plain.exists():
            self._ask_once(job="export", target=each.target, path=str(plain), image_size=image_size)
        if each.runtime == "onnx":
            return plain
        quantized = folder / "int8.onnx"
        self._ask_once(job="quantize", path=str(plain), quantized_path=str(quantized))
        return quantized

    def _ask_once(self, **question: Any) -> None:
        worker = self._start()
        worker.ask(**question)
        worker.close()

    def _turn(self, each: Contestant, cell: tuple[int, int], number: int, limit_s: float) -> None:
        assert each.worker is not None
        threads, batch_size = cell
        answer = each.worker.ask(threads=threads, batch_size=batch_size, limit_s=limit_s)
        if number == 0:
            if answer["memory_bytes"] is not None:
                each.memory[cell] = answer["memory_bytes"]
            return
        turn = Turn(answer["p50_ms"], answer["p90_ms"], answer["num_runs"])
        each.turns.setdefault(cell, {})[number] = turn

    def _left_s(self) -> float:
        if self.config.time_budget is None:
            return float("inf")
        return parse_duration(self.config.time_budget) - (time.monotonic() - self._began_at)

    def _turn_s(self) -> float:
        num_turns = len(self.cells) * len(self.contestants) * (self.config.rounds + 1)
        return min(_TURN_S, max(_SHORTEST_TURN_S, self._left_s() / max(1, num_turns)))


def processor_cores() -> int:
    """Return how many processor cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def peak_name(precision: str, threads: int) -> str:
    """Return what a measured peak is called in bench.json."""
    return f"{precision}, {threads} threads"


@contextmanager
def _progress(total: int, *, quiet: bool) -> Iterator[Callable[[str], None]]:
    """Give a function that says what is done next; shown with the time left on the standard error."""
    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=quiet) as progress:
        task = progress.add_task("starting", total=total)
        steps = itertools.count()
        yield lambda text: progress.update(task, description=text, completed=next(steps))
