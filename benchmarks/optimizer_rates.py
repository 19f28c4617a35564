"""Which learning rate suits Muon8 at which width, what does `--lr find` suggest, and what do the defaults give?

    python benchmarks/optimizer_rates.py widths --data-root FOLDER [--widths 64 256] [--steps 120]
    python benchmarks/optimizer_rates.py find   --data-root FOLDER [--optimizers adamw muon8 sgd]
    python benchmarks/optimizer_rates.py defaults [--seeds 0 1 2]

* widths: trains the ViT of the task "fashion" (optimizer_tasks.py) at several widths and rates, with one seed, 10 %
  warm-up, a decay of 0.05 and a cosine to zero, and judges by the validation images held out of the training. Updates
  of Muon8 have the RMS of AdamW's, so their largest singular value grows with the square root of the width; where that
  value is what a network bears, the best rate falls with it. `vitrail.optim.default_lr` is chosen by this.
* find: does the sweep of `vitrail train --lr find` with two seeds and compares its suggestions with the best rates of
  optimizer_horizons.py, which tried twelve settings of each optimizer at growing lengths.
* defaults: `vitrail train digits` with a ViT of width 128, twelve epochs, and everything else as it is by default, for
  each optimizer; accuracy on the test images.

What was done is kept in results/optimizer_rates.json and not done again.
"""

import argparse
import json
import math
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import optimizer_horizons as horizons
import optimizer_tasks as tasks
import torch
import torch.nn.functional as F
from alternate import machine, save
from torch import Tensor, nn

import vitrail
from vitrail.optim import OPTIMIZERS, default_lr
from vitrail.runtime.memory import keep_freed_memory
from vitrail.runtime.precision import choose_precision
from vitrail.training import TrainState
from vitrail.training.sweep import SPAN, SweepPlan, sweep_rates

NAME = "optimizer_rates"
RATES = (0.005, 0.01, 0.02, 0.04, 0.08)
SEED = 99
SWEEP_SEEDS = (99, 7)
DEFAULTS = {"model": "vit_micro_patch4", "image_size": 16, "epochs": 12, "batch_size": 64}
DEFAULTS |= {"device": "cpu", "workers": 1, "quiet": True}


@dataclass
class Batch:
    """Images and targets (B, classes)."""

    images: Tensor
    targets: Tensor


@dataclass
class Learning:
    """A task as the training loop wants it: batches, and the loss of its models."""

    task: tasks.Task
    data: tasks.Images
    seed: int

    def __len__(self) -> int:
        """Return more batches than a sweep has steps."""
        return 1000

    def epoch(self, _: int, start_batch: int = 0) -> Iterator[Batch]:
        """Return the batches."""
        for step in range(start_batch, len(self)):
            yield Batch(*tasks.batch_at(self.task, self.data, self.seed, step))

    def network(self, model: nn.Module) -> nn.Module:
        """Return the model as it is."""
        return model

    def loss(self, outputs: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the loss that the task's trainings have."""
        return F.cross_entropy(outputs.float(), batch.targets, label_smoothing=0.1), outputs

    def correct(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return which are right."""
        return logits.argmax(dim=1) == targets.argmax(dim=1)


def train_widths(options: argparse.Namespace, results: dict, place: tasks.Place) -> None:
    """Train what is missing."""
    task = tasks.TASKS["fashion"]
    data = tasks.load(task, options.data_root, place.device)
    for width in options.widths:
        tasks.NANO = replace(tasks.NANO, dim=width)
        for rate in options.rates:
            key = {"optimizer": "muon8", "width": width, "steps": options.steps, "lr": rate}
            if any(key.items() <= trial.items() for trial in results["widths"]):
                continue
            setting = {"lr": rate, "weight_decay": 0.05, "warmup": 0.1}
            model, outcome = tasks.train(task, "muon8", setting, options.steps, SEED, data, place)
            score = round(tasks.accuracy(model, data["val"], place), 4)
            results["widths"].append({**key, "val": score, "loss": round(outcome["loss"], 4), "on": machine()})
            save(options.out, NAME, results)


def find(options: argparse.Namespace, results: dict, place: tasks.Place) -> None:
    """Do the sweeps that are missing."""
    for name in options.tasks:
        task = tasks.TASKS[name]
        data = tasks.load(task, options.data_root, place.device)["train"]
        for optimizer, seed in product(options.optimizers, SWEEP_SEEDS):
            key = {"task": name, "optimizer": optimizer, "seed": seed}
            if any(key.items() <= trial.items() for trial in results["find"]):
                continue
            torch.manual_seed(seed)
            model, entry = tasks.make_model(task, data).to(place.device), OPTIMIZERS[optimizer]
            highest = default_lr(optimizer, task.batch, False, tasks.NANO.dim) * math.sqrt(SPAN)
            setting = {"lr": highest, "weight_decay": entry.weight_decay}
            state = TrainState(model=model, optimizer=tasks.make_optimizer(optimizer, model, setting))
            learning = Learning(task, data, seed)
            seen = sweep_rates(state, learning, learning, SweepPlan(time_budget_s=None, epochs=1), place.precision)
            results["find"].append({**key, "suggestion": seen.suggestion, "steps": len(seen.rates), "on": machine()})
            save(options.out, NAME, results)


def train_defaults(options: argparse.Namespace, results: dict) -> None:
    """Train what is missing."""
    for seed in options.seeds:
        for optimizer in options.optimizers:
            key = {"optimizer": optimizer, "seed": seed}
            if any(key.items() <= trial.items() for trial in results["defaults"]):
                continue
            with tempfile.TemporaryDirectory() as folder:
                run = vitrail.train("digits", **DEFAULTS, optimizer=optimizer, seed=seed, out=folder)
                lr = json.loads((run.path / "config.json").read_text(encoding="utf-8"))["lr"]
            results["defaults"].append({**key, "lr": lr, "test": run.metrics["test"].accuracy.value, "on": machine()})
            save(options.out, NAME, results)


def defaults_table(trials: list[dict]) -> str:
    """Return a Markdown table: test accuracy of each seed."""
    lines = ["| optimizer | default rate | test accuracy by seed |", "|---|---|---|"]
    for name in dict.fromkeys(trial["optimizer"] for trial in trials):
        own = [trial for trial in trials if trial["optimizer"] == name]
        cells = ", ".join(f"{trial['test']:.1%}" for trial in own)
        lines.append(f"| {name} | {own[0]['lr']:.2g} | {cells} |")
    return "\n".join(lines)


def widths_table(trials: list[dict]) -> str:
    """Return a Markdown table: validation accuracy by width and rate."""
    rates = sorted({trial["lr"] for trial in trials})
    lines = [f"| steps, width | {' | '.join(f'{rate:g}' for rate in rates)} |", "|---|" + "---|" * len(rates)]
    for kind in sorted({(trial["steps"], trial["width"]) for trial in trials}):
        own = {trial["lr"]: trial["val"] for trial in trials if (trial["steps"], trial["width"]) == kind}
        cells = [f"{own[rate]:.1%}" if rate in own else "" for rate in rates]
        lines.append(f"| {kind[0]}, {kind[1]} | {' | '.join(cells)} |")
    return "\n".join(lines)


def find_table(found: list[dict], folder: Path) -> str:
    """Return a Markdown table: the suggestion beside the rate that a search found."""
    lines = ["| task | optimizer | `--lr find` | best of the search | default |", "|---|---|---|---|---|"]
    for task, optimizer in dict.fromkeys((trial["task"], trial["optimizer"]) for trial in found):
        own = [trial["suggestion"] for trial in found if (trial["task"], trial["optimizer"]) == (task, optimizer)]
        chosen = horizons.best(horizons.Trials(folder / "optimizer_horizons" / f"{task}.jsonl"), optimizer)
        best = "" if chosen is None else f"{chosen[1]['lr']:.2g}"
        default = default_lr(optimizer, tasks.TASKS[task].batch, False, tasks.NANO.dim)
        suggested = ", ".join("none" if each is None else f"{each:.2g}" for each in own)
        lines.append(f"| {task} | {optimizer} | {suggested} | {best} | {default:.2g} |")
    return "\n".join(lines)


def main() -> None:
    """Do what is missing, print the table, keep the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("widths", "find", "defaults"))
    parser.add_argument("--data-root", type=Path)
    parser.add_argument("--widths", nargs="+", type=int, default=[64, 256])
    parser.add_argument("--rates", nargs="+", type=float, default=list(RATES))
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--optimizers", nargs="+", default=["adamw", "muon8", "sgd"])
    parser.add_argument("--tasks", nargs="+", default=["fashion", "cifar", "fashion-few"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    keep_freed_memory()
    device = torch.device("cpu")
    place = tasks.Place(device, choose_precision("auto", device))
    file = options.out / f"{NAME}.json"
    results: dict = {"widths": [], "find": [], "defaults": []}
    if file.exists():
        kept = json.loads(file.read_text(encoding="utf-8"))
        results = {key: kept.get(key, []) for key in results}
    if options.what == "widths":
        train_widths(options, results, place)
        print(widths_table(results["widths"]))
    elif options.what == "defaults":
        train_defaults(options, results)
        print(defaults_table(results["defaults"]))
    else:
        find(options, results, place)
        print(find_table(results["find"], Path(__file__).parent / "results"))


if __name__ == "__main__":
    main()
