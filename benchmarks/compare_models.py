"""Which model learns most in equal time? One from-scratch recipe, an equal budget of CPU time, one core each.

    python benchmarks/compare_models.py --data-root FOLDER [--datasets cifar10 flowers5] [--seeds 0] [--minutes 3]
    python benchmarks/compare_models.py --table        prints the tables from what was measured

FOLDER holds `cifar10` with cifar10_jpeg.npz (all 50,000 training and 10,000 test images as JPEG bytes) and `flowers5`
(840, 180 and 180 photographs in folders). Every finished run is kept in results/compare_models.json and not trained
again, so the script can be stopped and started, and two of them can share the work by --datasets or --arms.

The budget counts the CPU time of the process, its loader included, and not the clock on the wall: other jobs on the
machine then take nothing from any model.
"""

import argparse
import csv
import json
import os
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from alternate import machine

os.environ.setdefault("OMP_NUM_THREADS", "1")

RECIPE = {"lr": 2e-3, "augment": "light", "flip": True, "workers": 1, "quiet": True, "epochs": 10_000}
DATASETS = {
    "cifar10": {"image_size": 64, "batch_size": 64},
    "flowers5": {"image_size": 128, "batch_size": 32},
}
PATCH = {"cifar10": 8, "flowers5": 16}
ARMS = {
    # Plain ViTs learn more slowly with the rate that suits the others: 43 % with it in a first look.
    "ViT-micro": {"model": "vit_micro_patch{patch}", "lr": 1e-3},
    "ViT-micro, local and fusion": {"model": "vit_micro_patch{patch}", "lr": 1e-3, "local": True, "fusion": True},
    "MobileViT-XXS": {"model": "mobilevit_xxs"},
    "MobileViT-XS": {"model": "mobilevit_xs"},
    "MobileViTv2-0.5": {"model": "mobilevitv2_050"},
    "MoCoViT 0.5": {"model": "mocovit_050"},
    "MoCoViT 1.0": {"model": "mocovit_100"},
    "Lucarne-XS": {"model": "lucarne_xs"},
    "Lucarne-S": {"model": "lucarne_s"},
    "MobileNetV3-small": {"model": "mobilenetv3_small_100"},
    "ResNet-18": {"model": "resnet18"},
}
RESULTS = Path(__file__).parent / "results" / "compare_models.json"


def unpack_cifar10(archive: Path, folder: Path) -> Path:
    """Write every JPEG of the archive to FOLDER/SPLIT/CLASS, once."""
    if (folder / "complete").exists():
        return folder / "images"
    data = np.load(archive)
    names = [str(name) for name in data["class_names"]]
    for split in ("train", "test"):
        content, starts = data[f"{split}_jpeg"].tobytes(), data[f"{split}_offsets"]
        for index, label in enumerate(data[f"y_{split}"]):
            path = folder / "images" / split / names[label] / f"{index:05d}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content[starts[index] : starts[index + 1]])
    (folder / "complete").touch()
    return folder / "images"


def run_one(source: Path, dataset: str, arm: str, seed: int, minutes: float) -> dict:
    """Train once within the budget; return the test accuracy and what was spent."""
    import vitrail
    from vitrail.evaluation.cost import model_cost
    from vitrail.training import window

    window.time = SimpleNamespace(perf_counter=time.process_time)
    choice = {**ARMS[arm], "model": ARMS[arm]["model"].format(patch=PATCH[dataset])}
    with tempfile.TemporaryDirectory() as out:
        options = {**RECIPE, **DATASETS[dataset], **choice, "time_budget": f"{round(60 * minutes)}s"}
        result = vitrail.train(str(source), seed=seed, out=out, **options)
        with (result.path / "metrics.csv").open(newline="", encoding="utf-8") as file:
            steps = int(list(csv.DictReader(file))[-1]["step"])
        cost = model_cost(vitrail.load_checkpoint(result.path).model, (DATASETS[dataset]["image_size"],) * 2)
    test = result.metrics["test"]
    return {
        "accuracy": test.accuracy.value,
        "low": test.accuracy.low,
        "high": test.accuracy.high,
        "num_images": test.num_images,
        "steps": steps,
        "images_seen": steps * DATASETS[dataset]["batch_size"],
        "parameters": cost.parameters,
        "macs": cost.macs,
    }


def summary(trials: list[dict]) -> str:
    """Return a table for each data set, the most accurate model first."""
    lines: list[str] = []
    for dataset, recipe in DATASETS.items():
        chosen = [trial for trial in trials if trial["dataset"] == dataset]
        if not chosen:
            continue
        minutes, size = chosen[0]["minutes"], recipe["image_size"]
        lines += [
            f"\n{dataset}, {size} pixels, {minutes:g} minutes of one core:\n",
            "| model | parameters | multiply-adds | images seen | test accuracy [95 %] | seeds |",
            "|---|---|---|---|---|---|",
        ]
        by_arm = {arm: [trial for trial in chosen if trial["arm"] == arm] for arm in ARMS}
        order = sorted((arm for arm in ARMS if by_arm[arm]), key=lambda arm: -mean(by_arm[arm], "accuracy"))
        for arm in order:
            found = by_arm[arm]
            lines.append(
                f"| {arm} | {found[0]['parameters'] / 1e6:.2f} M | {found[0]['macs'] / 1e6:.0f} M "
                f"| {mean(found, 'images_seen') / 1e3:.0f} k | {mean(found, 'accuracy'):.1%} "
                f"[{mean(found, 'low'):.1%}, {mean(found, 'high'):.1%}] | {len(found)} |"
            )
    return "\n".join(lines)


def mean(trials: list[dict], key: str) -> float:
    """Return the mean of a figure over the seeds."""
    return float(np.mean([trial[key] for trial in trials]))


def main() -> None:
    """Run what is missing, then print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", type=Path)
    parser.add_argument("--datasets", nargs="+", default=list(DATASETS), choices=DATASETS)
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=ARMS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--minutes", type=float, default=3)
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "vitrail-compare")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--table", action="store_true")
    options = parser.parse_args()
    if not options.table:
        measure(options)
    print(summary(read_trials(options.out)))


def read_trials(path: Path) -> list[dict]:
    """Return the finished runs."""
    return json.loads(path.read_text())["trials"] if path.exists() else []


def measure(options: argparse.Namespace) -> None:
    """Train every arm on every data set that has no result yet."""
    import torch

    torch.set_num_threads(1)
    for seed in options.seeds:
        for arm in options.arms:
            for dataset in options.datasets:
                done = {(t["dataset"], t["arm"], t["seed"], t["minutes"]) for t in read_trials(options.out)}
                if (dataset, arm, seed, options.minutes) in done:
                    continue
                source = options.data_root / dataset
                if dataset == "cifar10":
                    source = unpack_cifar10(source / "cifar10_jpeg.npz", options.work / "cifar10")
                outcome = run_one(source, dataset, arm, seed, options.minutes)
                trial = {"dataset": dataset, "arm": arm, "seed": seed, "minutes": options.minutes, **outcome}
                # Read again: another process may have finished a run meanwhile.
                trials = [*read_trials(options.out), trial]
                document = {"benchmark": "compare_models", "machine": machine(), "recipe": RECIPE, "trials": trials}
                options.out.parent.mkdir(parents=True, exist_ok=True)
                options.out.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
                print(trial, flush=True)


if __name__ == "__main__":
    main()
