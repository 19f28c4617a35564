"""What the choices for several labels per image do to mAP: the loss summed or averaged over classes, label smoothing.

    python benchmarks/multilabel_images.py --data cifar10 [--seeds 3] [--epochs 15] [--out FOLDER]

FOLDER has train and test folders with one folder of pictures per class. Pictures are laid on a grey ground of noise in
a grid of two by two, none to three on each, so that an image shows any number of classes; no picture is used for
both training and test. `vitrail.train` learns the same images with each arm and seed; arms are compared by the mAP on
the test images, paired by seed. It goes on where it was stopped.
"""

import argparse
import csv
import json
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from alternate import save
from PIL import Image
from scipy.stats import t as student

import vitrail
from vitrail.tasks import multilabel

GRID, TILE = 2, 32
MOST = 3
ARMS: dict[str, dict[str, object]] = {
    "default": {},
    "mean over the classes": {"mean": True},
    "label smoothing 0.1": {"label_smoothing": 0.1},
    "class weights balanced": {"class_weights": "balanced"},
}


def make(data: Path, root: Path, num: dict[str, int]) -> Path:
    """Lay pictures together and write a table of the images; return it."""
    table = root / "mosaics.csv"
    if table.exists():
        return table
    rows = [("path", "labels", "split")]
    for split, count in num.items():
        (root / split).mkdir(parents=True, exist_ok=True)
        pictures = sorted((data / split).glob("*/*"))
        random = np.random.default_rng(len(split))
        for number in range(count):
            pixels = random.integers(100, 150, (GRID * TILE, GRID * TILE, 3)).astype(np.uint8)
            chosen = random.choice(len(pictures), random.integers(0, MOST + 1), replace=False)
            places = random.permutation(GRID * GRID)
            for picture, place in zip(chosen, places, strict=False):
                y, x = divmod(int(place), GRID)
                tile = Image.open(pictures[picture]).convert("RGB").resize((TILE, TILE))
                pixels[y * TILE : (y + 1) * TILE, x * TILE : (x + 1) * TILE] = np.asarray(tile)
            path = f"{split}/{number:05}.png"
            Image.fromarray(pixels).save(root / path)
            rows.append((path, ";".join(sorted({pictures[each].parent.name for each in chosen})), split))
    with table.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)
    return table


@contextmanager
def averaged(mean: bool) -> Iterator[None]:
    """Take the mean of the loss over the classes rather than the sum, if asked for."""
    with mock.patch.object(multilabel, "_mean_over_images", torch.mean) if mean else nullcontext():
        yield


def run(table: Path, arm: str, seed: int, epochs: int, out: Path) -> dict[str, object]:
    """Train once and return what was measured."""
    options = dict(ARMS[arm])
    with averaged(bool(options.pop("mean", False))):
        result = vitrail.train(
            table,
            **{"label_separator": ";", "model": "lucarne_xs", "duplicates": "off", "batch_size": 64, **options},
            epochs=epochs,
            seed=seed,
            out=out,
            quiet=True,
        )
    if result.interrupted:
        raise KeyboardInterrupt
    metrics = result.metrics["test"]
    return {
        "arm": arm,
        "seed": seed,
        "map": metrics.mean_average_precision.value,
        "macro_f1": metrics.macro_f1.value,
        "calibration_error": metrics.calibration_error,
        "minutes": round(result.elapsed_s / 60, 2),
    }


def summary(trials: list[dict[str, object]]) -> str:
    """Return a table: means, and the gain over the default in mAP with its paired 95 % interval."""
    scores = {(trial["arm"], trial["seed"]): trial for trial in trials}
    lines = ["| arm | seeds | mAP | macro F1 | calibration error | mAP gained |", "|---|---|---|---|---|---|"]
    for arm in ARMS:
        own = [trial for trial in trials if trial["arm"] == arm]
        if not own:
            continue
        means = [100 * np.mean([trial[name] for trial in own]) for name in ("map", "macro_f1", "calibration_error")]
        gained = [
            100 * (trial["map"] - scores["default", trial["seed"]]["map"])
            for trial in own
            if ("default", trial["seed"]) in scores
        ]
        told = ""
        if arm != "default" and len(gained) > 1:
            half = student.ppf(0.975, len(gained) - 1) * np.std(gained, ddof=1) / len(gained) ** 0.5
            told = f"{np.mean(gained):+.1f} [{np.mean(gained) - half:+.1f}, {np.mean(gained) + half:+.1f}]"
        lines.append(f"| {arm} | {len(own)} | {' | '.join(f'{mean:.1f} %' for mean in means)} | {told} |")
    return "\n".join(lines)


def main() -> None:
    """Print a table and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--out", type=Path, default=Path("runs/multilabel_images"))
    parser.add_argument("--save", type=Path, metavar="FOLDER")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    table = make(options.data, options.out / "images", {"train": options.images, "test": options.images // 4})
    log = options.out / "trials.jsonl"
    trials = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    done = {(trial["arm"], trial["seed"]) for trial in trials}
    for seed in range(options.seeds):
        for arm in ARMS:
            if (arm, seed) not in done:
                trials.append(run(table, arm, seed, options.epochs, options.out))
                with log.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(trials[-1]) + "\n")
    print(summary(trials))
    if options.save:
        figures = {"epochs": options.epochs, "images": options.images, "trials": trials}
        save(options.save, "multilabel_images", figures)


if __name__ == "__main__":
    main()
