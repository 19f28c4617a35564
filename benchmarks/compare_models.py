"""Which model learns most in equal time? One from-scratch recipe, an equal budget of CPU time, one core each.

    python benchmarks/compare_models.py --data-root FOLDER [--datasets cifar10 flowers5] [--seeds 0] [--minutes 3]
    python benchmarks/compare_models.py --latency [--rounds 15]      times one image of each in onnxruntime
    python benchmarks/compare_models.py --table        prints the tables from what was measured

FOLDER holds `cifar10` with cifar10_jpeg.npz (all 50,000 training and 10,000 test images as JPEG bytes) and `flowers5`
(840, 180 and 180 photographs in folders). Every finished run is kept in results/compare_models.json and not trained
again, so the script can be stopped and started, and two of them can share the work by --datasets or --arms.

The budget counts the CPU time of the process, its loader included, and not the clock on the wall: other jobs on the
machine then take nothing from any model. Latency is that of one image at the data set's size, fp32, on one thread,
measured as onnx_latency.py tells.
"""

import argparse
import csv
import json
import logging
import os
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx_latency
from alternate import machine

os.environ.setdefault("OMP_NUM_THREADS", "1")

RECIPE = {
    "optimizer": "adamw",
    "lr": 2e-3,
    "augment": "light",
    "flip": True,
    "workers": 1,
    "quiet": True,
    "epochs": 10_000,
}
DATASETS = {
    "cifar10": {"image_size": 64, "batch_size": 64},
    "flowers5": {"image_size": 128, "batch_size": 32},
}
NUM_CLASSES = {"cifar10": 10, "flowers5": 5}
REFERENCE = "Lucarne-S"
PATCH = {"cifar10": 8, "flowers5": 16}
ARMS = {
    # Plain ViTs learn more slowly with the rate that suits the others: 43 % with it in a first look.
    "ViT-micro": {"model": "vit_micro_patch{patch}", "lr": 1e-3},
    "ViT-micro, local and fusion": {"model": "vit_micro_patch{patch}", "lr": 1e-3, "local": True, "fusion": True},
    "ViT-micro, Muon8": {"model": "vit_micro_patch{patch}", "optimizer": "muon8", "lr": None},
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


def measure_latency(options: argparse.Namespace) -> None:
    """Time one image of every arm at the size of each data set, all in turns."""
    import vitrail

    logging.disable(logging.WARNING)
    for dataset in options.datasets:
        size = DATASETS[dataset]["image_size"]
        with tempfile.TemporaryDirectory() as folder:
            # An arm that another optimizer trains is the network of the arm without it.
            networks = [arm for arm, choice in ARMS.items() if "optimizer" not in choice]
            paths = {arm: Path(folder) / f"{number}.onnx" for number, arm in enumerate(networks)}
            for arm, path in paths.items():
                choice = {key: value for key, value in ARMS[arm].items() if key not in {"lr", "model"}}
                name = ARMS[arm]["model"].format(patch=PATCH[dataset])
                onnx_latency.export(
                    vitrail.create_model(name, num_classes=NUM_CLASSES[dataset], image_size=size, **choice), path, size
                )
            bursts = onnx_latency.measure(paths, 1, options.rounds)
        by_arm = {arm: [burst.ms for burst in found] for arm, found in bursts.items()}
        keep(options.out, latency={**read(options.out)["latency"], dataset: by_arm})


def summary(document: dict) -> str:
    """Return a table for each data set, the most accurate model first."""
    trials, lines = document["trials"], []
    for dataset, recipe in DATASETS.items():
        chosen = [trial for trial in trials if trial["dataset"] == dataset]
        if not chosen:
            continue
        minutes, size = chosen[0]["minutes"], recipe["image_size"]
        lines += [
            f"\n{dataset}, {size} pixels, {minutes:g} minutes of one core:\n",
            f"| model | parameters | multiply-adds | latency, ms | it / {REFERENCE}, median [95 %] | images seen "
            "| test accuracy [95 %] | seeds |",
            "|---|---|---|---|---|---|---|---|",
        ]
        by_arm = {arm: [trial for trial in chosen if trial["arm"] == arm] for arm in ARMS}
        order = sorted((arm for arm in ARMS if by_arm[arm]), key=lambda arm: -mean(by_arm[arm], "accuracy"))
        for arm in order:
            found = by_arm[arm]
            size = f"{found[0]['parameters'] / 1e6:.2f} M | {found[0]['macs'] / 1e6:.0f} M"
            lines.append(
                f"| {arm} | {size} | {latency_cells(document['latency'].get(dataset, {}), arm)} "
                f"| {mean(found, 'images_seen') / 1e3:.0f} k | {mean(found, 'accuracy'):.1%} "
                f"[{mean(found, 'low'):.1%}, {mean(found, 'high'):.1%}] | {len(found)} |"
            )
    return "\n".join(lines)


def latency_cells(by_arm: dict[str, list[float | None]], arm: str) -> str:
    """Return two cells: milliseconds, and the ratio to the reference."""
    if arm not in by_arm:
        return " | "
    ms = onnx_latency.median_ms(by_arm[arm])
    versus = "" if arm == REFERENCE else onnx_latency.show(onnx_latency.ratio(by_arm[arm], by_arm[REFERENCE]))
    return f"{'' if ms is None else f'{ms:.2f}'} | {versus}"


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
    parser.add_argument("--latency", action="store_true")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--table", action="store_true")
    options = parser.parse_args()
    if options.latency:
        measure_latency(options)
    elif not options.table:
        measure(options)
    print(summary(read(options.out)))


def read(path: Path) -> dict:
    """Return what was measured: "trials", and "latency" by data set and arm."""
    empty: dict = {"trials": [], "latency": {}}
    return empty | (json.loads(path.read_text(encoding="utf-8")) if path.exists() else {})


def keep(path: Path, **changed: object) -> None:
    """Write parts anew."""
    # Read again: another process may have finished something meanwhile.
    document = {"benchmark": "compare_models", "machine": machine(), "recipe": RECIPE, **read(path), **changed}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def measure(options: argparse.Namespace) -> None:
    """Train every arm on every data set that has no result yet."""
    import torch

    torch.set_num_threads(1)
    for seed in options.seeds:
        for arm in options.arms:
            for dataset in options.datasets:
                done = {(t["dataset"], t["arm"], t["seed"], t["minutes"]) for t in read(options.out)["trials"]}
                if (dataset, arm, seed, options.minutes) in done:
                    continue
                source = options.data_root / dataset
                if dataset == "cifar10":
                    source = unpack_cifar10(source / "cifar10_jpeg.npz", options.work / "cifar10")
                outcome = run_one(source, dataset, arm, seed, options.minutes)
                trial = {"dataset": dataset, "arm": arm, "seed": seed, "minutes": options.minutes, **outcome}
                keep(options.out, trials=[*read(options.out)["trials"], trial])
                print(trial, flush=True)


if __name__ == "__main__":
    main()
