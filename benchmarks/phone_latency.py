"""How long does one image take in onnxruntime? Phone-class models at their published sizes, fp32 and int8, in turns.

    python benchmarks/phone_latency.py [--models lucarne_s mocovit_100 ...] [--rounds 20]

Each model is folded and exported as `vitrail export` does, then made int8 in the two ways that onnxruntime offers:
"dynamic" (matrix products only; convolutions stay fp32) and "static" (convolutions too, scales from random images:
the time does not depend on them, the accuracy would). All sessions take turns in one process, a few calls each per
round; the median and the tenth percentile over all calls are printed, and the ratio to the first model by round.
"""

import argparse
import logging
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from alternate import save
from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_dynamic, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

from vitrail.config import Preprocess
from vitrail.layers.conv import fold
from vitrail.models import MODELS, create_model
from vitrail.shipping.onnx import export_onnx

DEFAULT = ["lucarne_s", "lucarne_xs", "mocovit_100", "mobilevit_xs", "mobilevit_xxs", "mobilevitv2_050",
           "ghostnet_100", "mobilenetv3_small_100", "mobilenetv3_large_100", "resnet18"]  # fmt: skip
KINDS = ("fp32", "int8 dynamic", "int8 static")
CALLS = 5


class RandomImages(CalibrationDataReader):
    """A few random pictures to calibrate with."""

    def __init__(self, size: int) -> None:
        generator = np.random.default_rng(0)
        self.batches = iter(generator.integers(0, 256, (4, 1, size, size, 3), dtype=np.uint8))

    def get_next(self) -> dict | None:
        """Return the next input, or None at the end."""
        images = next(self.batches, None)
        return None if images is None else {"images": images}


def write_graphs(name: str, folder: Path) -> dict[str, Path]:
    """Export one model in each kind."""
    size = MODELS[name].image_size
    torch.manual_seed(0)
    model = fold(create_model(name))
    paths = {kind: folder / f"{name} {kind}.onnx" for kind in KINDS}
    classes = [f"class {number}" for number in range(1000)]
    export_onnx(model, paths["fp32"], preprocess=Preprocess(image_size=(size, size)), classes=classes)
    prepared = folder / f"{name} prepared.onnx"
    quant_pre_process(paths["fp32"], prepared)
    quantize_dynamic(
        prepared, paths["int8 dynamic"], weight_type=QuantType.QInt8, op_types_to_quantize=["MatMul", "Gemm"]
    )
    quantize_static(
        prepared,
        paths["int8 static"],
        RandomImages(size),
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        per_channel=True,
        op_types_to_quantize=["Conv", "MatMul", "Gemm"],
    )
    return paths


def open_session(path: Path, threads: int) -> onnxruntime.InferenceSession:
    """Open a graph for that many threads."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def measure(paths: dict[str, Path], threads: int, rounds: int) -> dict[str, list[list[float]]]:
    """Return the milliseconds of every call, round by round, for each graph."""
    sessions = {name: open_session(path, threads) for name, path in paths.items()}
    inputs = {name: {"images": np.zeros((1, *session.get_inputs()[0].shape[1:]), np.uint8)}
              for name, session in sessions.items()}  # fmt: skip
    taken: dict[str, list[list[float]]] = {name: [] for name in sessions}
    for number in range(rounds + 1):
        for name, session in sessions.items():
            calls = []
            for _ in range(CALLS):
                started_at = time.perf_counter()
                session.run(["logits"], inputs[name])
                calls.append(1e3 * (time.perf_counter() - started_at))
            if number:  # the first round warms up
                taken[name].append(calls)
    return taken


def table(kind: str, threads: int, taken: dict[str, list[list[float]]]) -> str:
    """Return the figures of one kind and number of threads, with the ratio of each model to the first."""
    first = [min(calls) for calls in next(iter(taken.values()))]
    lines = [
        f"\n{kind}, {threads} thread{'s' if threads > 1 else ''}\n",
        "| model | ms, median | ms, fastest tenth | it / first, median [lowest, highest] |",
        "|---|---|---|---|",
    ]
    for name, rounds in taken.items():
        calls = [call for each in rounds for call in each]
        ratios = [min(each) / base for each, base in zip(rounds, first, strict=True)]
        spread = f"{statistics.median(ratios):.2f} [{min(ratios):.2f}, {max(ratios):.2f}]"
        lines.append(f"| {name} | {statistics.median(calls):.2f} | {np.percentile(calls, 10):.2f} | {spread} |")
    return "\n".join(lines)


def main() -> None:
    """Export, measure, print and keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=DEFAULT, choices=list(MODELS))
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    figures = []
    with tempfile.TemporaryDirectory() as folder:
        graphs = {name: write_graphs(name, Path(folder)) for name in options.models}
        for threads in options.threads:
            for kind in KINDS:
                taken = measure({name: paths[kind] for name, paths in graphs.items()}, threads, options.rounds)
                print(table(kind, threads, taken), flush=True)
                figures += [
                    {"model": name, "image_size": MODELS[name].image_size, "kind": kind, "threads": threads,
                     "fastest_ms_by_round": [round(min(calls), 3) for calls in rounds],
                     "median_ms": round(statistics.median(call for each in rounds for call in each), 3)}
                    for name, rounds in taken.items()
                ]  # fmt: skip
    save(options.out, "phone_latency", {"figures": figures})


if __name__ == "__main__":
    main()
