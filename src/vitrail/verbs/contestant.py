"""One contestant of `vitrail bench` in its own process: ``python -m vitrail.verbs.contestant``.

It reads one line of JSON per question from the standard input and answers each with one line. The first question says
what it is (see `_JOBS`); later ones are its turns.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Final

import numpy as np
import torch
from torch import nn

from vitrail.config import Preprocess
from vitrail.errors import VitrailError
from vitrail.evaluation.cost import measure_latency
from vitrail.layers.conv import fold
from vitrail.models import Model, create_model
from vitrail.models.checkpoint import load_checkpoint
from vitrail.runtime.memory import forget_peak_memory, peak_memory_bytes, resident_memory_bytes
from vitrail.runtime.precision import choose_precision
from vitrail.training import Run, is_run

Question = dict[str, Any]
Answer = dict[str, Any]
Turn = Callable[[Question], Answer]

_MIN_WARMUP: Final = 2
_MAX_RUNS: Final = 100_000
_PROBE_SIZE: Final = 384
_PEAK_SIZE: Final = 1536


def open_model(target: str, image_size: int | None) -> tuple[Model, Preprocess]:
    """Return a model by name with fresh weights, or that of a run or checkpoint, and how its images are prepared."""
    path = Path(target)
    if not path.exists():
        model = create_model(target, image_size=image_size)
        return model, Preprocess(image_size=model.image_size)
    checkpoint = load_checkpoint(Run(path).model_path if is_run(path) else path)
    return checkpoint.model, checkpoint.preprocess or Preprocess(image_size=checkpoint.model.image_size)


def main() -> int:
    """Answer until nobody asks any more."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print must not get between the answers

    def answer(content: Answer) -> None:
        answers.write(json.dumps(content) + "\n")
        answers.flush()

    def tell(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        sys.__excepthook__(kind, error, trace)
        said = str(error) if isinstance(error, VitrailError) else f"{kind.__name__}: {error}"
        answer({"failed": next(iter(said.splitlines()), said)})

    sys.excepthook = tell
    questions = map(json.loads, sys.stdin)
    first = next(questions, None)
    if first is None:
        return 0
    turn, built = _JOBS[first.pop("job")](**first)
    answer(built)
    for question in questions:
        answer(turn(question))
    return 0


def _export(target: str, path: str, image_size: int | None) -> tuple[Turn, Answer]:
    """Write the ONNX file that the contestants open: here, so that their memory is not the exporter's."""
    from vitrail.shipping.onnx import export_onnx

    model, preprocess = open_model(target, image_size)
    export_onnx(fold(model), Path(path), preprocess=preprocess, classes=[str(n) for n in range(model.num_classes)])
    return _never, {}


def _quantize(path: str, quantized_path: str) -> tuple[Turn, Answer]:
    """Write an ONNX file whose matrix products are in int8: weights signed, activations unsigned, scaled as they come.

    Only MatMul and Gemm: with convolutions too, onnxruntime is slower than in fp32. Signed activations are slow.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantize_dynamic(path, quantized_path, op_types_to_quantize=["MatMul", "Gemm"], weight_type=QuantType.QInt8)
    return _never, {}


def _onnx(path: str, image_size: list[int]) -> tuple[Turn, Answer]:
    from vitrail.shipping.predictor import open_session, run_logits

    before = resident_memory_bytes()
    sessions: dict[int, Any] = {}

    def turn(question: Question) -> Answer:
        threads = question["threads"]
        if threads not in sessions:
            sessions.clear()  # one at a time, for the memory
            sessions[threads] = open_session(Path(path), threads=threads)
        session = sessions[threads]
        pixels = _random_pixels(session, (question["batch_size"], *image_size))
        return _measure(lambda: run_logits(session, pixels), question, before, torch.device("cpu"))

    return turn, {}


def _random_pixels(session: Any, shape: tuple[int, ...]) -> np.ndarray:
    """Return images (B, H, W, C) of the channels and the type that a model takes."""
    given, rng = session.get_inputs()[0], np.random.default_rng(0)
    shape = (*shape, given.shape[3])
    if given.type == "tensor(float)":
        return rng.random(shape, dtype=np.float32)
    dtype = np.uint16 if given.type == "tensor(uint16)" else np.uint8
    return rng.integers(0, np.iinfo(dtype).max, shape, dtype=dtype, endpoint=True)


def _torch(target: str, runtime: str, precision: str, device: str, image_size: int | None) -> tuple[Turn, Answer]:
    where = torch.device(device)
    before = resident_memory_bytes()
    original, preprocess = open_model(target, image_size)
    chosen = choose_precision(precision, where, convolutional=original.channels_last)
    layout = torch.channels_last if original.channels_last else torch.contiguous_format
    model: nn.Module = fold(original).to(where)
    model.to(memory_format=layout)  # type: ignore[call-overload]  # its stubs lack this
    del original
    run: Callable[[torch.Tensor], torch.Tensor] = model
    if runtime == "compiled":
        # Each batch size and number of threads is compiled for itself, as it would be where only one is used.
        torch._dynamo.config.recompile_limit = 1024  # noqa: SLF001 - the documented place of the setting
        run = torch.compile(model, dynamic=False)

    def turn(question: Question) -> Answer:
        torch.set_num_threads(question["threads"])
        shape = (question["batch_size"], preprocess.num_channels, *preprocess.image_size)
        images = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(where, memory_format=layout)

        @torch.inference_mode()
        def once() -> None:
            with chosen.autocast():
                run(images)
            _wait_for(where)

        return _measure(once, question, before, where)

    return turn, {"note": chosen.note}


def _measure(once: Callable[[], object], question: Question, before: int, device: torch.device) -> Answer:
    """Warm up and measure one batch size at one number of threads, and the memory it takes."""
    forget_peak_memory()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    once()  # whatever happens only once, such as compiling, is no part of the time limit
    latency = measure_latency(
        once,
        num_warmup=_MIN_WARMUP,
        num_runs=_MAX_RUNS,
        time_limit_s=question["limit_s"],
        threads=question["threads"],
    )
    peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else peak_memory_bytes() - before
    return {
        "p50_ms": latency.p50_ms,
        "p90_ms": latency.p90_ms,
        "num_runs": latency.num_runs,
        "memory_bytes": peak if peak > 0 else None,
    }


def _wait_for(device: torch.device) -> None:
    """Wait until a device that works on its own has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def _probe(device: str, threads: int) -> tuple[Turn, Answer]:
    """Time matrix products: small ones on the CPU with ``threads``, or large ones in the setting of a contestant.

    Of the small ones the mean is told, which everything else on the machine lengthens; of the large ones the fastest.
    """
    where = torch.device(device)
    choose_precision("fp32", where)

    def turn(question: Question) -> Answer:
        if "precision" not in question:
            torch.set_num_threads(threads)
            times = _time_products(torch.randn(_PROBE_SIZE, _PROBE_SIZE), torch.device("cpu"), 20)
            return {"probe_ms": 1e3 * float(np.mean(times))}
        torch.set_num_threads(question["threads"])
        dtype = torch.bfloat16 if question["precision"] == "bf16" else torch.float32
        times = _time_products(torch.randn(_PEAK_SIZE, _PEAK_SIZE).to(where, dtype), where, 5)
        return {"macs_per_s": _PEAK_SIZE**3 / min(times)}

    return turn, {}


def _time_products(matrix: torch.Tensor, device: torch.device, repeats: int) -> list[float]:
    times = []
    matrix @ matrix  # warms up
    _wait_for(device)
    for _ in range(repeats):
        start = time.perf_counter()
        matrix @ matrix
        _wait_for(device)
        times.append(time.perf_counter() - start)
    return times


def _never(_: Question) -> Answer:
    raise AssertionError("this job has no turns")


_JOBS: Final[dict[str, Callable[..., tuple[Turn, Answer]]]] = {
    "export": _export,
    "onnx": _onnx,
    "probe": _probe,
    "quantize": _quantize,
    "torch": _torch,
}

if __name__ == "__main__":
    sys.exit(main())
