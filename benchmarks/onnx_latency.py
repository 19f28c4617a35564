"""How long one image takes in onnxruntime, on a machine that others may use too.

On one thread the figure is processor time: what a call takes by the clock if it is left alone. Others' work only
empties the caches. Seen, with 18 processes on two cores against none: 6 % more for Lucarne-S, 18 % more for MoCoViT.

On several threads only calls count during which no other process took a core: those in which this process got nearly
all the processor time that so many threads can use. onnxruntime's threads wait actively, so an undisturbed call uses
all of it. What disturbed calls take says what the others did.

Several threads hand work to each other after every layer, so it matters whether their cores share a cache. On a virtual
machine the host decides that, and changes its mind: on the one this was made on, a cache line took 0.12 us from core to
core and back in one minute and 0.46 us in the next, which turned the gain of a second thread into a loss. So a probe, a
chain of small matrix products on one thread and on all of them, is timed before and after every burst, and rounds are
told apart by it: cores "together", where the threads made the probe faster, and "apart". A phone's cores are together.

In every round a fresh process opens one model after the other, in an order that rotates, and times a burst of calls of
each; the round's figure of a model is the median of its first undisturbed calls. One session at a time, because the
waiting threads of another one take a core. Models are compared within a round: the median of the ratios, with the 95 %
interval of a median by order statistics (no assumption on how times are distributed).
"""

import multiprocessing
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

UNDISTURBED = 0.95
"""Share of the processor time of its threads that a call got when nobody disturbed it. Seen: 0.97 to 1."""
WARM_UP = 3
WANTED = 9
"""Calls that count, whose median is the figure of a round."""
NEEDED = 3
"""Fewer are no figure."""
LIMIT_S = 3.0
"""How long they are waited for."""
PROBE = (64, 128, 60)
"""Rows and columns of the probe's matrices, and how many products follow one another."""
TOGETHER = 1.2
"""Speed-up of the probe on two threads that tells the states apart. Seen: 0.80 to 0.85, and 1.49 to 1.66."""


@dataclass(frozen=True)
class Burst:
    """What the calls of one model in one round took."""

    ms: float | None
    """Median of the calls that count; None if there were too few."""
    num_calls: int
    num_undisturbed: int
    cores: str | None = None
    """"together", "apart", None if the probe did not tell; "one" for one thread."""


def time_burst(call: Callable[[], Any], threads: int, *, limit_s: float = LIMIT_S) -> Burst:
    """Call until enough calls count, at most for about ``limit_s``; the first ones only warm up."""
    for _ in range(WARM_UP):
        call()
    until, undisturbed, num_calls = time.perf_counter() + limit_s, [], 0
    while len(undisturbed) < WANTED and time.perf_counter() < until:
        num_calls += 1
        started_at, used = time.perf_counter(), time.process_time()
        call()
        used, ended_at = time.process_time() - used, time.perf_counter()
        if threads == 1:
            undisturbed.append(1e3 * used)
        elif used >= UNDISTURBED * threads * (ended_at - started_at):
            undisturbed.append(1e3 * (ended_at - started_at))
    ms = round(statistics.median(undisturbed), 4) if len(undisturbed) >= NEEDED else None
    return Burst(ms, num_calls, len(undisturbed))


def probe_graph() -> bytes:
    """Return the probe as an ONNX file."""
    import numpy as np
    from onnx import TensorProto, helper, numpy_helper

    rows, columns, depth = PROBE
    weight = np.full((columns, columns), 1 / columns, np.float32)
    nodes = [helper.make_node("MatMul", [f"x{index}", "weight"], [f"x{index + 1}"]) for index in range(depth)]
    first, last = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [rows, columns]) for name in ("x0", f"x{depth}")
    )
    graph = helper.make_graph(nodes, "probe", [first], [last], [numpy_helper.from_array(weight, "weight")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
    model.ir_version = 10
    content: bytes = model.SerializeToString()
    return content


def locate_cores(graph: bytes, threads: int) -> str | None:
    """Return "together" or "apart", or None if the machine was too busy to tell; "one" for one thread."""
    import numpy as np

    if threads == 1:
        return "one"
    values, taken = {"x0": np.ones(PROBE[:2], np.float32)}, []
    for number in (1, threads):
        session = open_session(graph, number)
        ms = time_burst(lambda session=session: session.run(None, values), number, limit_s=1.0).ms
        if ms is None:
            return None
        taken.append(ms)
    return "together" if taken[0] / taken[1] > TOGETHER else "apart"


def open_session(graph: Path | bytes, threads: int) -> Any:
    """Open a graph for that many threads."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


def one_round(graphs: Sequence[tuple[str, Path]], threads: int) -> dict[str, Burst]:
    """Time every graph once, one after the other."""
    import numpy as np

    probe, bursts = probe_graph(), {}
    before = locate_cores(probe, threads)
    for name, path in graphs:
        session = open_session(path, threads)
        pixels = {"images": np.zeros((1, *session.get_inputs()[0].shape[1:]), np.uint8)}
        burst = time_burst(lambda session=session, pixels=pixels: session.run(["logits"], pixels), threads)
        del session
        after = locate_cores(probe, threads)
        bursts[name] = replace(burst, cores=before if before == after else None)
        before = after
    return bursts


def measure(paths: Mapping[str, Path], threads: int, rounds: int) -> dict[str, list[Burst]]:
    """Return the bursts of every graph, round by round."""
    graphs, found = list(paths.items()), []
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(max_workers=1, mp_context=context, max_tasks_per_child=1) as pool:
        for number in range(rounds):
            first = number % len(graphs)
            found.append(pool.submit(one_round, graphs[first:] + graphs[:first], threads).result())
    return {name: [bursts[name] for bursts in found] for name in paths}


def export(model: Any, path: Path, image_size: int) -> None:
    """Write a model with fresh weights as `vitrail export` does: folded, bytes in."""
    from vitrail.config import Preprocess
    from vitrail.layers.conv import fold
    from vitrail.shipping.onnx import export_onnx

    classes = [f"class {number}" for number in range(model.num_classes)]
    export_onnx(fold(model), path, preprocess=Preprocess(image_size=(image_size, image_size)), classes=classes)


def median_ms(by_round: Sequence[float | None]) -> float | None:
    """Return the median over the rounds that have a figure."""
    known = [ms for ms in by_round if ms is not None]
    return statistics.median(known) if known else None


def ratio(theirs: Sequence[float | None], ours: Sequence[float | None]) -> tuple[float, float, float] | None:
    """Return the median of theirs / ours over the rounds with both, and its 95 % interval; None for under 6 rounds."""
    from scipy.stats import quantile_test

    pairs = [their / our for their, our in zip(theirs, ours, strict=True) if their is not None and our is not None]
    if len(pairs) < 6:  # of 5, not even lowest to highest holds the median with 95 %
        return None
    interval = quantile_test(pairs, p=0.5).confidence_interval(0.95)
    return statistics.median(pairs), float(interval.low), float(interval.high)


def show(found: tuple[float, float, float] | None) -> str:
    """Return a ratio with its interval."""
    return "undecided" if found is None else f"{found[0]:.2f} [{found[1]:.2f}, {found[2]:.2f}]"
