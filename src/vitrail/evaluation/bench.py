"""Things that take time, side by side: each in a process of its own, taking turns, with the noise of the machine.

One process per contestant, because memory allocators, thread pools and matrix libraries are set for a whole process.
One turn each per round, in an order that rotates, because a machine drifts: the ratio within a round holds where
absolute times do not.
"""

import json
import queue
import statistics
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from typing import Any, Final

NOISY: Final = 0.1
"""Variation of the probe above which times are not to be trusted."""

BUSY: Final = 0.5
"""Load average per core before the measurement above which others were at work."""

_POLL_S = 0.1

Answer = dict[str, Any]
Stop = Callable[[], bool]


class WorkerError(Exception):
    """A contestant cannot take part; the message is one sentence for the user."""


class Worker:
    """A process that answers questions, one line of JSON each: first the one it is built by, then one per turn.

    Args:
        module: what the process runs; see `vitrail.verbs.contestant`.
        stop: asked while waiting for an answer.
    """

    def __init__(self, module: str, stop: Stop = lambda: False) -> None:
        self._stop = stop
        self._errors = tempfile.TemporaryFile(mode="w+", encoding="utf-8", errors="replace")  # noqa: SIM115 - to the end
        # A session of its own: Ctrl-C reaches the parent alone, which ends its workers in order.
        self._process = subprocess.Popen(
            [sys.executable, "-m", module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            encoding="utf-8",
            start_new_session=True,
        )
        self._lines: queue.Queue[str] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def ask(self, **question: Any) -> Answer:
        """Return the answer to one question.

        Raises:
            WorkerError: if the process says why it cannot answer, or ends.
            KeyboardInterrupt: if ``stop`` says so while it is waited for.
        """
        assert self._process.stdin is not None
        with suppress(OSError):  # a process that has ended is noticed below
            self._process.stdin.write(json.dumps(question) + "\n")
            self._process.stdin.flush()
        while True:
            if self._stop():
                raise KeyboardInterrupt
            with suppress(queue.Empty):
                line = self._lines.get(timeout=_POLL_S)
                break
        if not line:
            raise WorkerError(f"its process ended with code {self._process.wait()}{self._last_words()}")
        answer: Answer = json.loads(line)
        if "failed" in answer:
            raise WorkerError(answer["failed"])
        return answer

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._errors):
            with suppress(OSError):  # what was still to be written to it
                stream.close()  # type: ignore[union-attr]  # it is a pipe

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put(line)
        self._lines.put("")

    def _last_words(self) -> str:
        self._errors.seek(0)
        lines = [line.strip() for line in self._errors if line.strip()]
        return f": {lines[-1]}" if lines else ""


@contextmanager
def workers(module: str, stop: Stop = lambda: False) -> Iterator[Callable[[], Worker]]:
    """Give a function that starts a `Worker`; all of them end with the block."""
    started: list[Worker] = []

    def start() -> Worker:
        started.append(Worker(module, stop))
        return started[-1]

    try:
        yield start
    finally:
        for worker in started:
            worker.close()


@dataclass(frozen=True)
class Turn:
    """What one contestant measured in one turn."""

    p50_ms: float
    p90_ms: float
    num_runs: int


@dataclass(frozen=True, kw_only=True)
class Spread:
    """A figure over the rounds."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """Return the median, the lowest and the highest of one value per round."""
        return cls(median=statistics.median(values), low=min(values), high=max(values))


@dataclass(frozen=True, kw_only=True)
class BenchRow:
    """One model in one setting."""

    model: str
    runtime: str
    precision: str
    threads: int
    batch_size: int
    p50_ms: Spread
    """Median time of one batch; its median, lowest and highest over the rounds."""
    p90_ms: float
    """Nine batches of ten were at least as fast; median over the rounds."""
    images_per_s: float
    """Batch size over the median time."""
    memory_bytes: int | None
    """Most memory beyond that of the process without the model; on a GPU what PyTorch allocated; None if unknown."""
    peak_share: float | None
    """Multiply-adds in a second, as a share of PyTorch's in a large matrix product of this precision and threads."""
    speedup: Spread | None
    """Times faster than the first model in the same setting, over the rounds; None where that was not measured."""
    num_rounds: int
    num_runs: int
    """Batches that were timed, over all rounds."""


@dataclass(frozen=True, kw_only=True)
class Noise:
    """How steady the machine was: one small matrix product, timed before every turn of the measurement."""

    probe_ms: Spread
    variation: float
    """Coefficient of variation (standard deviation over mean) of the probe."""
    load_before: float | None
    """Load average of the last minute; None where the system does not tell."""
    load_after: float | None
    """The same at the end, the measurement's own load included."""
    cores: int

    @property
    def warning(self) -> str | None:
        """One sentence if the times are not to be trusted."""
        busy = self.load_before is not None and self.load_before > BUSY * self.cores
        if self.variation <= NOISY and not busy:
            return None
        signs = [f"the same small matrix product took {self.probe_ms.low:.2f} to {self.probe_ms.high:.2f} ms"]
        if busy:
            signs.append(f"the load average was {self.load_before:.1f} on {self.cores} cores before it began")
        return (
            f"The machine was not at rest: {', and '.join(signs)}. Trust the ratios more than the times, and measure "
            "again when nothing else runs."
        )

    def to_dict(self) -> dict[str, Any]:
        """Return plain data that JSON can hold."""
        return {**asdict(self), "warning": self.warning}


def measure_noise(probes_ms: Sequence[float], load_before: float | None, load_after: float | None, cores: int) -> Noise:
    """Summarise the times of a probe.

    Args:
        probes_ms: at least one.
        load_before: load average before the measurement.
        load_after: and after it.
        cores: processor cores that the measurement may use.
    """
    mean = statistics.fmean(probes_ms)
    return Noise(
        probe_ms=Spread.of(probes_ms),
        variation=statistics.pstdev(probes_ms) / mean if mean else 0.0,
        load_before=load_before,
        load_after=load_after,
        cores=cores,
    )


def rotated(contestants: Sequence[str], number: int) -> list[str]:
    """Return the order of round ``number``: each begins as often as the others."""
    first = number % max(1, len(contestants))
    return [*contestants[first:], *contestants[:first]]


def speed_ratios(reference: Mapping[int, Turn], turns: Mapping[int, Turn]) -> Spread | None:
    """Return how many times faster than the reference something was, by the medians of the same rounds.

    Args:
        reference: by round.
        turns: by round.
    """
    ratios = [reference[number].p50_ms / turns[number].p50_ms for number in turns if number in reference]
    return Spread.of(ratios) if ratios else None
