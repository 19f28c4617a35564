"""Compare things that take time: each in its own process, taking turns, with ratios and their spread.

One process per contestant, because memory allocators, thread pools and matrix libraries are set for a whole process.
One turn each per round, because a shared machine drifts: the ratio within a round holds where absolute times do not.
"""

import json
import multiprocessing
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

Turn = Callable[..., dict[str, float]]
"""Runs the work once, or the part of it that its arguments name; returns named figures, the higher the better."""


@dataclass(frozen=True)
class Contestant:
    """How to build one contestant inside its own process."""

    build: Callable[..., Turn]
    """Importable function; it returns the callable that one turn runs."""
    arguments: Mapping[str, Any]


def take_turns(contestants: Mapping[str, Contestant], rounds: int, *, warm_up: int = 1) -> dict[str, list[dict]]:
    """Run every contestant once per round, in an order that turns, and return its figures round by round."""
    with started(contestants) as pipes:
        return rounds_of(pipes, rounds, warm_up=warm_up)


@contextmanager
def started(contestants: Mapping[str, Contestant]) -> Iterator[dict[str, Connection]]:
    """Start a process for each contestant, wait until all are built, and end them with the block."""
    context = multiprocessing.get_context("spawn")
    workers: dict[str, tuple[Any, Connection]] = {}
    try:
        for name, contestant in contestants.items():
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(theirs, contestant))
            process.start()
            workers[name] = (process, ours)
            _receive(name, ours)  # built
        yield {name: pipe for name, (_, pipe) in workers.items()}
    finally:
        for process, pipe in workers.values():
            pipe.close()
            process.terminate()


def rounds_of(
    pipes: Mapping[str, Connection], rounds: int, *, warm_up: int = 1, parts: Sequence[tuple] = ((),)
) -> dict[str, list[dict]]:
    """Run every contestant that is `started` once per round, in an order that turns; return its figures by round.

    With several ``parts``, which are arguments of a turn, all contestants do the first before any does the second: what
    is compared lies closer together.
    """
    figures: dict[str, list[dict]] = {name: [] for name in pipes}
    names = list(pipes)
    for number in range(warm_up + rounds):
        results: dict[str, dict] = {name: {} for name in names}
        for part in parts:
            for name in names[number % len(names) :] + names[: number % len(names)]:
                pipes[name].send(part)
                results[name] |= _receive(name, pipes[name])
        if number >= warm_up:
            for name in names:
                figures[name].append(results[name])
        print(f"  round {number + 1 - warm_up} of {rounds}", flush=True)
    return figures


def ratios(ours: list[dict], theirs: list[dict], key: str) -> tuple[float, float, float]:
    """Return the median, lowest and highest ratio ours / theirs over the rounds."""
    pairs = [mine[key] / other[key] for mine, other in zip(ours, theirs, strict=True)]
    return statistics.median(pairs), min(pairs), max(pairs)


def table(title: str, figures: Mapping[str, list[dict]], ours: str, key: str) -> str:
    """Return a Markdown table: each contestant's figure and our ratio to it, with the lowest and highest."""
    lines = [f"| {title} | {key} (median) | {ours} / it, median [lowest, highest] |", "|---|---|---|"]
    for name, rounds in figures.items():
        value = statistics.median(turn[key] for turn in rounds)
        middle, low, high = ratios(figures[ours], rounds, key)
        versus = "" if name == ours else f"{middle:.2f} [{low:.2f}, {high:.2f}]"
        lines.append(f"| {name} | {value:.1f} | {versus} |")
    return "\n".join(lines)


def machine() -> dict[str, Any]:
    """Return what the numbers were measured on."""
    info = Path("/proc/cpuinfo").read_text(encoding="utf-8") if Path("/proc/cpuinfo").exists() else ""
    model = next((line.split(":")[1].strip() for line in info.splitlines() if line.startswith("model name")), "")
    flags = next((line for line in info.splitlines() if line.startswith("flags")), "").split()
    return {
        "cpu": model or platform.processor(),
        "cores": os.cpu_count(),
        "matrix_instructions": sorted({"avx2", "avx512f", "avx512_bf16", "amx_bf16", "avx512_vnni"} & set(flags)),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
    }


def gemm_peak_gflops(dtype: Any, size: int = 2048, repeats: int = 5) -> float:
    """Return the best rate of one square matrix product in billions of operations per second (2 per multiply-add)."""
    import torch

    a, b = torch.randn(size, size, dtype=dtype), torch.randn(size, size, dtype=dtype)
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        a @ b
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best / 1e9


def save(path: Path, name: str, content: Any) -> None:
    """Write the figures beside the script, with the machine."""
    path.mkdir(parents=True, exist_ok=True)
    document = {"benchmark": name, "machine": machine(), "measured_on": time.strftime("%Y-%m-%d"), **content}
    (path / f"{name}.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def _serve(pipe: Connection, contestant: Contestant) -> None:
    try:
        turn = contestant.build(**contestant.arguments)
        pipe.send(("ok", {}))
        while True:
            pipe.send(("ok", turn(*pipe.recv())))
    except EOFError:
        pass
    except Exception as error:  # noqa: BLE001  whatever went wrong over there is told here
        pipe.send(("failed", repr(error)))


def _receive(name: str, pipe: Connection) -> dict[str, float]:
    status, value = pipe.recv()
    if status != "ok":
        raise RuntimeError(f"{name}: {value}")
    return value
