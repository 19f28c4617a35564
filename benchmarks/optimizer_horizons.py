"""How many steps, and how much time, does each optimizer need to reach an accuracy? The smallest horizon that does.

    python benchmarks/optimizer_horizons.py tune   --task fashion --data-root FOLDER [--settings 12]
    python benchmarks/optimizer_horizons.py search --task fashion --data-root FOLDER [--seeds 0 1 2 3 4]
    python benchmarks/optimizer_horizons.py fixed  --task fashion --data-root FOLDER --steps 300 --arms adamw muon8 ...
    python benchmarks/optimizer_horizons.py table  [--task fashion]
    python benchmarks/optimizer_horizons.py plot   --picture FILE.png      needs matplotlib

A horizon is the length of a whole training, with its own warm-up and its own cosine to zero: how early a run passes a
target says mostly how long its schedule is, so each length is a training of its own. The lengths stand on a grid of
factors of 1.2. Tasks are those of optimizer_tasks.py.

* tune: as many settings for every optimizer, drawn by a seeded low-discrepancy sequence over rate, decay and warm-up.
  All are trained for the shortest of the task's lengths, the best third of them for the next, and so on. Judged on
  validation images taken from the training images; the test images are not touched. The setting that is best at the
  longest is used; the table says whether it lies near an edge of its range.
* search: for every seed, walks along the grid to a length that reaches the target on the test images while the next
  shorter one does not. It starts where the seeds before it ended. Optimizers take turns from seed to seed.
* fixed: trains arms for one length, to compare accuracy at equal steps; arms are the optimizers and the variants of
  Muon8 in ARMS, which have its tuned setting.
* pretrain: trains a task with AdamW for --steps and saves the weights that another task starts from.
* table: draws the tables from the trials. The smallest horizon is the one at which 4 of 5 seeds (80 %) were there.
  Ratios to AdamW are paired by seed: geometric mean with a 95 % bootstrap interval over the seeds.

Every finished training is kept in results/optimizer_horizons/TASK.jsonl at once, failures too, and is not trained
again. Time is that of the training steps alone, without loading, augmentation, evaluation and the first 20 steps, as
the clock's and as the processor's time; on a machine that does other things the processor's is the one to read.
"""

import argparse
import dataclasses
import json
import math
import statistics
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from alternate import machine
from scipy.stats import qmc
from scipy.stats import t as student_t

GRID = 1.2
FIRST_HORIZON = 60
OPTIMIZERS: dict[str, dict[str, tuple[float, float]]] = {
    # Ranges of the rate and of the decay; both are searched on a logarithmic scale.
    "adamw": {"lr": (3e-4, 2e-2), "weight_decay": (0.005, 0.5)},
    "muon8": {"lr": (1e-3, 6e-2), "weight_decay": (0.005, 0.5)},
    "sgd": {"lr": (1e-2, 1.0), "weight_decay": (1e-5, 1e-3)},
    "muon": {"lr": (1e-3, 6e-2), "weight_decay": (0.005, 0.5)},
    "lion": {"lr": (3e-5, 2e-3), "weight_decay": (0.05, 5.0)},
    "schedule-free": {"lr": (6e-4, 4e-2), "weight_decay": (0.005, 0.5)},
    "adafactor": {"lr": (3e-3, 2e-1), "weight_decay": (5e-4, 5e-2)},
    "muon8, finetune": {"lr": (3e-4, 3e-2), "weight_decay": (0.005, 0.5)},
}
COLOURS = {
    "adamw": "#555555",
    "muon8": "#c0392b",
    "sgd": "#2980b9",
    "muon": "#27ae60",
    "lion": "#8e44ad",
    "schedule-free": "#d68910",
    "adafactor": "#16a085",
}
WARMUP = (0.02, 0.3)
BASELINE = "adamw"
PRETRAINING = {"lr": 2e-3, "weight_decay": 0.05, "warmup": 0.1}
ARMS: dict[str, tuple[str, dict[str, Any]]] = {
    **{name: (name, {}) for name in OPTIMIZERS},
    "adamw, beta2 0.99": ("adamw", {"betas": (0.9, 0.99)}),
    "adamw, beta2 0.95": ("adamw", {"betas": (0.9, 0.95)}),
    "momentum in bf16": ("muon8", {"momentum_dtype": "bf16"}),
    "momentum in fp32": ("muon8", {"momentum_dtype": "fp32"}),
    "no row variance": ("muon8", {"row_variance": False}),
    # What Muon8 does since this arm was found to be no worse. In the trials that are kept every other arm of Muon8
    # decayed only those weights of matrices that the step moved towards zero anyway.
    "decay everywhere": ("muon8", {}),
    "qkv as one matrix": ("muon8", {"qkv": "fused"}),
    "qkv by heads": ("muon8", {"qkv": "heads"}),
    "3 Newton-Schulz steps": ("muon8", {"newton_schulz_steps": 3}),
    "4 Newton-Schulz steps": ("muon8", {"newton_schulz_steps": 4}),
    "6 Newton-Schulz steps": ("muon8", {"newton_schulz_steps": 6}),
    "head as a matrix": ("muon8", {"roles": {"head.weight": "matrix"}}),
    "patches by AdamW": ("muon8", {"roles": {"patch_embed.proj.weight": "vector"}}),
    "convolutions by AdamW": ("muon8", {"roles": {"every convolution": "vector"}}),
}
"""Optimizer and further options of each arm."""


def points(optimizer_name: str, num: int) -> list[dict[str, float]]:
    """Return the first settings to try: Halton points of a fixed seed over rate, decay and warm-up."""
    ranges = {**OPTIMIZERS[optimizer_name], "warmup": WARMUP}
    drawn = qmc.Halton(len(ranges), seed=0).random(num)
    values = [
        [low * (high / low) ** float(x) for x, (low, high) in zip(point, ranges.values(), strict=True)]
        for point in drawn
    ]
    return [{key: float(f"{value:.4g}") for key, value in zip(ranges, row, strict=True)} for row in values]


def horizon(place: int) -> int:
    """Return the steps of a place on the grid."""
    return round(FIRST_HORIZON * GRID**place)


class Trials:
    """All trainings of a task that were done, a line of JSON each, after a line that tells where they were done.

    Args:
        path: file that holds them.
        precision: of those to come.
    """

    def __init__(self, path: Path, precision: str = "fp32") -> None:
        self.path = path
        self.here = {"task": path.stem, "machine": machine(), "precision": precision}
        self.places: list[dict] = []
        # Each with "place": where it was done, as a number that is the same wherever times may be compared.
        self.all: list[dict] = []
        for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
            read = json.loads(line)
            if "task" in read:
                self.places.append(read)
            else:
                self.all.append({**read, "place": self.places.index(self.places[-1])})

    def find(self, **wanted: Any) -> list[dict]:
        """Return those with these values."""
        return [trial for trial in self.all if all(trial.get(key) == value for key, value in wanted.items())]

    def add(self, trial: dict) -> dict:
        """Keep one more, in the file too, and return it."""
        trial = {key: round(value, 5) if isinstance(value, float) else value for key, value in trial.items()}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            if not self.places or self.places[-1] != self.here:
                self.places.append(self.here)
                file.write(json.dumps(self.here) + "\n")
            file.write(json.dumps(trial) + "\n")
        print(trial, flush=True)
        self.all.append({**trial, "place": self.places.index(self.here)})
        return self.all[-1]


def best(trials: Trials, optimizer_name: str) -> tuple[int, dict[str, float]] | None:
    """Return number and setting of the trial with the best validation accuracy among the longest."""
    found = trials.find(kind="tune", arm=optimizer_name)
    longest = max((trial["steps"] for trial in found), default=0)
    last = [trial for trial in found if trial["steps"] == longest]
    if len({trial["steps"] for trial in found}) < 2:
        return None
    number = max(last, key=lambda trial: trial["val"])["number"]
    return number, points(optimizer_name, number + 1)[number]


class Study:
    """Trains what is missing of one task."""

    def __init__(self, options: argparse.Namespace) -> None:
        import torch
        from optimizer_tasks import TASKS, Place, load

        from vitrail.runtime.memory import keep_freed_memory
        from vitrail.runtime.precision import choose_precision

        if options.threads:
            torch.set_num_threads(options.threads)
        keep_freed_memory()
        device = torch.device(options.device)
        self.options, self.task = options, TASKS[options.task]
        if self.task.before is not None:
            if options.weights is None:
                raise SystemExit(f"Give --weights: what `pretrain --task {self.task.before}` saved.")
            self.task = dataclasses.replace(self.task, weights=options.weights)
        self.place = Place(device, choose_precision(options.precision, device))
        precision = "bf16" if self.place.precision.dtype == torch.bfloat16 else "fp32"
        self.trials = Trials(options.out / f"{options.task}.jsonl", precision)
        self.data = load(self.task, options.data_root, device)

    def train(self, key: dict, optimizer_name: str, setting: dict, split: str) -> dict:
        """Do one training unless it was done."""
        from optimizer_tasks import accuracy, train

        found = self.trials.find(**key)
        if found:
            return found[0]
        model, outcome = train(self.task, optimizer_name, setting, key["steps"], key["seed"], self.data, self.place)
        score = accuracy(model, self.data[split], self.place)
        return self.trials.add({**key, **outcome, split: score if math.isfinite(outcome["loss"]) else 0.0})

    def tune(self) -> None:
        """Try the settings that were not tried; optimizers take turns."""
        kept = {name: list(range(self.options.settings)) for name in self.options.arms}
        for rung, steps in enumerate(self.task.tune_steps):
            num = -(-self.options.settings // 3**rung)
            for place in range(num):
                for name in self.options.arms:
                    self._try(name, kept[name][place], steps)
            for name in self.options.arms:
                tried = self.trials.find(kind="tune", arm=name, steps=steps)
                among = [trial for trial in tried if trial["number"] in kept[name][:num]]
                kept[name] = [trial["number"] for trial in sorted(among, key=lambda trial: -trial["val"])]

    def _try(self, name: str, number: int, steps: int) -> None:
        key = {"kind": "tune", "arm": name, "number": number, "steps": steps, "seed": 99}
        self.train(key, name, points(name, number + 1)[number], "val")

    def run(self, arm: str, seed: int, steps: int) -> dict:
        """Train an arm with its optimizer's tuned setting."""
        name, extra = ARMS[arm]
        chosen = best(self.trials, name)
        if chosen is None:
            raise SystemExit(f"{name} is not tuned yet. Give `tune` first.")
        number, setting = chosen
        key = {"kind": "run", "arm": arm, "number": number, "steps": steps, "seed": seed}
        return self.train(key, name, {**setting, **extra}, "test")

    def search(self, target: float) -> None:
        """Find each seed's smallest horizon, beginning where the seeds before it ended."""
        starts = dict(zip(self.options.arms, self.options.start, strict=True))
        for seed in self.options.seeds:
            for arm in self.options.arms:

                def reaches(place: int, arm: str = arm, seed: int = seed) -> bool:
                    return self.run(arm, seed, horizon(place))["test"] >= target

                starts[arm] = walk(reaches, starts[arm], self.options.last)

    def pretrain(self) -> None:
        """Train with AdamW and save the weights."""
        from optimizer_tasks import accuracy, train
        from safetensors.torch import save_file

        model, _ = train(self.task, BASELINE, PRETRAINING, self.options.steps, 0, self.data, self.place)
        save_file(model.state_dict(), self.options.weights)
        print(f"test accuracy {accuracy(model, self.data['test'], self.place):.1%}")

    def fixed(self) -> None:
        """Train every arm and seed for the same number of steps."""
        for seed in self.options.seeds:
            for arm in self.options.arms:
                self.run(arm, seed, self.options.steps)


def walk(reaches: Callable[[int], bool], start: int, last: int) -> int:
    """Return a place of the grid that reaches the target while the one before it does not, or ``last``."""
    place = min(start, last)
    if reaches(place):
        while place > 0 and reaches(place - 1):
            place -= 1
        return place
    while place < last:
        place += 1
        if reaches(place):
            break
    return place


def first_hits(trials: Iterable[dict], target: float) -> dict[int, dict]:
    """Return, by seed, the shortest training that reached the target; seeds that never did are left out."""
    hits: dict[int, dict] = {}
    for trial in sorted(trials, key=lambda trial: trial["steps"]):
        if trial["test"] >= target:
            hits.setdefault(trial["seed"], trial)
    return hits


def smallest_horizon(trials: list[dict], target: float) -> int | None:
    """Return the fewest steps at which at least 80 % of the seeds that were trained so long, or less, were there."""
    hits = first_hits(trials, target)
    num_seeds = len({trial["seed"] for trial in trials})
    for steps in sorted({trial["steps"] for trial in trials}):
        if sum(hit["steps"] <= steps for hit in hits.values()) >= 0.8 * num_seeds:
            return steps
    return None


def ratio(ours: dict[int, dict], theirs: dict[int, dict], key: str) -> tuple[float, float, float] | None:
    """Return the geometric mean of ours / theirs over the seeds that both have, and its 95 % bootstrap interval.

    Times are compared where both were taken on the same machine in the same precision.
    """
    shared = sorted(ours.keys() & theirs.keys())
    if key != "steps":
        shared = [seed for seed in shared if ours[seed].get("place") == theirs[seed].get("place")]
    logs = np.array([math.log(ours[seed][key] / theirs[seed][key]) for seed in shared])
    if len(logs) < 2:
        return None
    draws = np.random.default_rng(0).choice(logs, (10_000, len(logs))).mean(axis=1)
    return math.exp(logs.mean()), math.exp(np.quantile(draws, 0.025)), math.exp(np.quantile(draws, 0.975))


def horizons_table(trials: Trials, task: str, target: float) -> str:
    """Return how long each optimizer had to be trained, against AdamW."""
    lines = [
        f"| {task}, {target:.0%} | seeds that reached it | smallest horizon, steps | steps / adamw "
        "| processor time / adamw |",
        "|---|---|---|---|---|",
    ]
    baseline = trials.find(kind="run", arm=BASELINE)
    if len({trial["steps"] for trial in baseline}) < 2:
        return f"{task}: no search for the smallest horizon yet."
    adamw = first_hits(baseline, target)
    for name in OPTIMIZERS:
        runs = trials.find(kind="run", arm=name)
        hits = first_hits(runs, target)
        if not runs:
            continue
        found = [None if name == BASELINE else ratio(hits, adamw, key) for key in ("steps", "process_s")]
        cells = ["" if each is None else f"{each[0]:.2f} [{each[1]:.2f}, {each[2]:.2f}]" for each in found]
        seeds = f"{len(hits)} of {len({trial['seed'] for trial in runs})}"
        longest = max(trial["steps"] for trial in runs)
        steps = smallest_horizon(runs, target) or f"more than {longest}"
        lines.append(f"| {name} | {seeds} | {steps} | {cells[0]} | {cells[1]} |")
    return "\n".join(lines)


def fixed_table(trials: Trials, task: str, reference: str) -> str:
    """Return the accuracies at equal steps, and their differences to an arm, paired by seed, with t intervals."""
    lines = [f"| {task}, equal steps | steps | seeds | test accuracy | minus {reference} |", "|---|---|---|---|---|"]
    by_steps: dict[int, dict[str, dict[int, float]]] = {}
    for trial in trials.find(kind="run"):
        by_steps.setdefault(trial["steps"], {}).setdefault(trial["arm"], {})[trial["seed"]] = trial["test"]
    for steps, arms in sorted(by_steps.items()):
        other = arms.get(reference, {})
        for arm in ARMS:
            values = arms.get(arm, {})
            shared = sorted(values.keys() & other.keys())
            if len(shared) < 3 or len(arms) < 2:
                continue
            if arm == reference:
                lines.append(f"| {arm} | {steps} | {len(shared)} | {statistics.mean(values.values()):.1%} | |")
                continue
            differences = [100 * (values[seed] - other[seed]) for seed in shared]
            mean, half = statistics.mean(differences), half_width(differences)
            average = statistics.mean(values[seed] for seed in shared)
            interval = f"{mean:+.1f} [{mean - half:+.1f}, {mean + half:+.1f}]"
            lines.append(f"| {arm} | {steps} | {len(shared)} | {average:.1%} | {interval} |")
    return "\n".join(lines)


def half_width(values: list[float]) -> float:
    """Return half the width of the 95 % t interval of a mean."""
    return float(student_t.ppf(0.975, len(values) - 1)) * statistics.stdev(values) / math.sqrt(len(values))


def tuning_table(trials: Trials, task: str) -> str:
    """Return what the search found for each optimizer, and whether it lies near an edge of its range."""
    lines = [
        f"| {task}, tuning | settings, trainings | best val | rate | decay | warm-up | in the outer 5 % of "
        "| settings within 1 % |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, ranges in OPTIMIZERS.items():
        found, chosen = trials.find(kind="tune", arm=name), best(trials, name)
        if chosen is None:
            continue
        longest = max(trial["steps"] for trial in found)
        values = [trial["val"] for trial in found if trial["steps"] == longest]
        spans, setting = {**ranges, "warmup": WARMUP}, chosen[1]
        places = {key: math.log(setting[key] / low) / math.log(high / low) for key, (low, high) in spans.items()}
        edges = ", ".join(key for key, place in places.items() if not 0.05 <= place <= 0.95)
        close = sum(value >= max(values) - 0.01 for value in values)
        shown = f"{setting['lr']:.2g} | {setting['weight_decay']:.2g} | {setting['warmup']:.0%}"
        num = f"{len({trial['number'] for trial in found})}, {len(found)}"
        lines.append(f"| {name} | {num} | {max(values):.1%} | {shown} | {edges or 'none'} | {close} |")
    return "\n".join(lines)


def plot(files: list[Path], targets: dict[str, float], picture: Path) -> None:
    """Draw, for every task with trainings of several lengths, their accuracy over the length."""
    files = [path for path in files if len({run["steps"] for run in Trials(path).find(kind="run", arm=BASELINE)}) > 1]
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    columns = min(3, len(files))
    rows = -(-len(files) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(4 * columns, 3.2 * rows), squeeze=False)
    for axis in axes.flat[len(files) :]:
        axis.remove()
    for axis, path in zip(axes.flat, files, strict=False):
        trials = Trials(path)
        for name, colour in COLOURS.items():
            runs = trials.find(kind="run", arm=name)
            means = {
                steps: statistics.mean(run["test"] for run in runs if run["steps"] == steps)
                for steps in sorted({run["steps"] for run in runs})
            }
            axis.scatter(
                [run["steps"] for run in runs], [100 * run["test"] for run in runs], s=9, color=colour, alpha=0.5
            )
            axis.plot(
                list(means), [100 * value for value in means.values()], color=colour, label=name if runs else None
            )
        axis.axhline(100 * targets[path.stem], color="black", linewidth=0.8, linestyle=":")
        axis.set(title=path.stem, xlabel="steps of the whole training", ylabel="test accuracy, %", xscale="log")
        lengths = [run["steps"] for run in trials.find(kind="run")]
        ticks = [
            steps for steps in (150, 200, 300, 450, 700, 1000, 2000, 4000) if min(lengths) <= steps <= max(lengths)
        ]
        axis.set_xticks(ticks, [str(steps) for steps in ticks])
        axis.minorticks_off()
        axis.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(picture, dpi=110)


def main() -> None:
    """Do what is asked and missing, then print the tables."""
    folder = Path(__file__).parent / "results" / "optimizer_horizons"
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["tune", "search", "fixed", "pretrain", "table", "plot"])
    parser.add_argument("--task", help="default for table and plot: all that were begun")
    parser.add_argument("--data-root", type=Path, help="holds fashion_mnist and cifar10")
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=["adamw", "muon8", "sgd"])
    parser.add_argument("--settings", type=int, default=12, help="of each optimizer")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument(
        "--start", type=int, nargs="+", help="of each arm: place on the grid where the first seed begins"
    )
    parser.add_argument("--last", type=int, default=20, help="place on the grid after which an optimizer is given up")
    parser.add_argument("--steps", type=int, help="of fixed and pretrain")
    parser.add_argument("--weights", type=Path, help="where pretrain saves them, and where fashion-finetune finds them")
    parser.add_argument("--reference", choices=list(ARMS), default="muon8", help="of the table of equal steps")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--picture", type=Path)
    parser.add_argument("--out", type=Path, default=folder)
    options = parser.parse_args()
    from optimizer_tasks import TASKS

    targets = {name: task.target for name, task in TASKS.items()}
    if options.what in {"table", "plot"}:
        files = [path for name in TASKS if (path := options.out / f"{name}.jsonl").exists()]
        files = [path for path in files if options.task in {None, path.stem}]
    else:
        if options.task not in TASKS or options.data_root is None:
            parser.error(f"give --data-root, and --task as one of {', '.join(TASKS)}")
        files = [options.out / f"{options.task}.jsonl"]
        options.start = options.start or [8] * len(options.arms)
        study = Study(options)
        work = {"tune": study.tune, "fixed": study.fixed, "pretrain": study.pretrain}
        work.get(options.what, lambda: study.search(targets[options.task]))()
    if options.what == "plot":
        plot(files, targets, options.picture or options.out / "horizons.png")
        return
    for path in files:
        trials = Trials(path)
        for text in (
            horizons_table(trials, path.stem, targets[path.stem]),
            fixed_table(trials, path.stem, options.reference),
            tuning_table(trials, path.stem),
        ):
            print(text, end="\n\n")


if __name__ == "__main__":
    main()
