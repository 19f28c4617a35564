"""What does int8 do to the accuracy of trained models? Their own test images, fp32 and both int8 kinds of onnxruntime.

    python benchmarks/int8_accuracy.py RUN [RUN ...] [--examples 128]
    python benchmarks/int8_accuracy.py               prints the table of what was measured

A RUN is a folder that `vitrail train` wrote; its images have to be where they were. It is exported as `vitrail export`
does and made int8 as onnx_int8.py tells, with static scales from training images, evenly spaced over the classes.

The table gives test accuracy, the difference to fp32 over the same images with its 95 % interval (normal, of the paired
differences), and the share of images that keep their answer. Runs of one model are pooled: the interval covers the
images and says nothing of other trainings; every run's own figures are in results/int8_accuracy.json.
"""

import argparse
import json
import logging
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from alternate import save
from onnx_int8 import KINDS, quantize
from onnx_latency import open_session

RESULTS = Path(__file__).parent / "results"
BATCH = 100


def answers(path: Path, split: Any, preprocess: Any, threads: int) -> np.ndarray:
    """Return the class that a graph gives each image of a split."""
    from vitrail.data import EvalLoader

    session = open_session(path, threads)
    batches = EvalLoader(split, preprocess, BATCH, workers=threads, cache="off")
    return np.concatenate([session.run(["logits"], {"images": batch.pixels})[0].argmax(axis=1) for batch in batches])


def examples(split: Any, preprocess: Any, count: int) -> Iterator[np.ndarray]:
    """Yield images of a split, each (1, H, W, C), evenly spaced: paths are sorted, so over all classes."""
    from vitrail.data.images import prepare, side_needed

    for index in np.linspace(0, len(split) - 1, min(count, len(split))).astype(int).tolist():
        yield prepare(split.decode(index, side_needed(preprocess)), preprocess)[None]


def measure(run: str, num_examples: int, threads: int) -> list[dict[str, Any]]:
    """Return the figures of one run in every kind."""
    from vitrail.layers.conv import fold
    from vitrail.shipping.onnx import export_onnx
    from vitrail.verbs.target import open_target

    target = open_target(run, device="cpu")
    assert target.checkpoint is not None
    assert target.checkpoint.model.spec is not None
    preprocess, splits = target.predictor.preprocess, target.dataset().splits
    found: dict[str, np.ndarray] = {}
    with tempfile.TemporaryDirectory() as folder:
        paths = {kind: Path(folder) / f"{kind}.onnx" for kind in KINDS}
        export_onnx(
            fold(target.checkpoint.model), paths["fp32"], preprocess=preprocess, classes=target.predictor.classes
        )
        for kind in KINDS[1:]:
            quantize(paths["fp32"], kind, paths[kind], examples(splits["train"], preprocess, num_examples))
        sizes = {kind: path.stat().st_size for kind, path in paths.items()}
        for kind in KINDS:
            found[kind] = answers(paths[kind], splits["test"], preprocess, threads)
    labels = splits["test"].labels
    return [
        {
            "run": Path(run).name,
            "model": target.checkpoint.model.spec.name,
            "image_size": preprocess.image_size[0],
            "kind": kind,
            "num_images": len(labels),
            "num_correct": int((found[kind] == labels).sum()),
            "lost": int(((found["fp32"] == labels) & (found[kind] != labels)).sum()),
            "won": int(((found["fp32"] != labels) & (found[kind] == labels)).sum()),
            "num_kept": int((found[kind] == found["fp32"]).sum()),
            "bytes": sizes[kind],
        }
        for kind in KINDS
    ]


def table(figures: list[dict[str, Any]]) -> str:
    """Return the figures of each model and kind, its runs pooled."""
    lines = [
        "| model, pixels | kind | file | test accuracy | minus fp32, points [95 %] | answers kept | runs |",
        "|---|---|---|---|---|---|---|",
    ]
    for model, size in dict.fromkeys((each["model"], each["image_size"]) for each in figures):
        for kind in KINDS:
            chosen = [
                each for each in figures if (each["model"], each["image_size"], each["kind"]) == (model, size, kind)
            ]
            total, correct, lost, won, kept = (
                sum(each[key] for each in chosen) for key in ("num_images", "num_correct", "lost", "won", "num_kept")
            )
            gain, low, high = paired(lost, won, total)
            versus = "" if kind == "fp32" else f"{gain:+.2f} [{low:+.2f}, {high:+.2f}]"
            lines.append(
                f"| {model}, {size} | {kind} | {chosen[0]['bytes'] / 1e6:.2f} MB | {correct / total:.1%} | {versus} "
                f"| {kept / total:.1%} | {len(chosen)} |"
            )
    return "\n".join(lines)


def paired(lost: int, won: int, total: int) -> tuple[float, float, float]:
    """Return the gain in points, and its 95 % interval, from answers that became wrong and that became right."""
    gain = (won - lost) / total
    half = 1.96 * ((won + lost) / total - gain**2) ** 0.5 / total**0.5
    return 100 * gain, 100 * (gain - half), 100 * (gain + half)


def main() -> None:
    """Measure and keep, or print what was measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="*", metavar="RUN")
    parser.add_argument("--examples", type=int, default=128)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    path = options.out / "int8_accuracy.json"
    figures = json.loads(path.read_text(encoding="utf-8"))["figures"] if path.exists() else []
    logging.disable(logging.WARNING)
    for run in options.runs:
        new = measure(run, options.examples, options.threads)
        figures = [each for each in figures if each["run"] != new[0]["run"]] + new
        save(options.out, "int8_accuracy", {"examples": options.examples, "figures": figures})
    print(table(figures))


if __name__ == "__main__":
    main()
