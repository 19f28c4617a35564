"""How many steps, and how much time, does each optimizer need to reach an accuracy? The smallest horizon that does.

    python benchmarks/optimizer_horizons.py tune  --data fashion_mnist --data-root FOLDER [--trials 12]
    python benchmarks/optimizer_horizons.py run   --data fashion_mnist --data-root FOLDER [--seeds 0 1 2 3 4]
    python benchmarks/optimizer_horizons.py table --data fashion_mnist

A horizon is the length of a whole training, with its own warm-up and its own cosine to zero: how early a run passes a
target says mostly how long its schedule is, so each length is a training of its own. The lengths stand on a grid of
factors of 1.25.

* tune: as many trials for every optimizer, at two horizons (--tune-steps), drawn by a seeded low-discrepancy sequence
  over rate, decay and warm-up. Judged on validation images taken from the training images; the test images are not
  touched. The best trial of each optimizer is used; the table says whether it lies near an edge of its range.
* run: for every seed, trains at rising horizons until --beyond of them in a row reach the target on the test images.
  Initial weights, order and augmentation are functions of seed and step, the same for every optimizer; optimizers take
  turns within a horizon.
* table: draws the tables anew from the trials. The smallest horizon is the one at which at least 4 of 5 seeds (80 %)
  reach the target. Ratios to AdamW are paired by seed, with a 95 % bootstrap interval over the seeds.

Every finished training is kept in results/optimizer_horizons.json at once, failures too, and is not trained again.
Time is that of the training steps alone, without evaluation and without the first 20 steps, as the clock and as the
processor's time. FOLDER of fashion_mnist holds the four idx.gz files, that of cifar10 cifar10_jpeg.npz.
"""

import argparse
import gzip
import io
import json
import math
import statistics
import time
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from alternate import machine
from scipy.stats import qmc
from torch import Tensor, nn

import vitrail
from vitrail.optim import create_optimizer, warmup_cosine
from vitrail.runtime.precision import choose_precision

GRID = 1.25
UNTIMED_STEPS = 20
OPTIMIZERS: dict[str, dict] = {
    # Ranges of the rate and of the decay; both are searched on a logarithmic scale.
    "adamw": {"lr": (3e-4, 1e-2), "weight_decay": (0.005, 0.5)},
    "muon8": {"lr": (6e-4, 2e-2), "weight_decay": (0.005, 0.5)},
    "muon": {"lr": (6e-4, 2e-2), "weight_decay": (0.005, 0.5)},
    "lion": {"lr": (3e-5, 1e-3), "weight_decay": (0.05, 5.0)},
    "sgd": {"lr": (1e-2, 1.0), "weight_decay": (1e-5, 1e-3)},
}
WARMUP = (0.02, 0.25)


@dataclass(frozen=True)
class Task:
    """A data set with its model and its target."""

    model: str
    image_size: int
    channels: int
    target: float
    """Accuracy on the test images, in [0, 1]."""
    batch: int = 256
    flip: bool = True
    shift: int = 2
    """Largest random shift in pixels."""
    num_validation: int = 5000


TASKS = {
    "fashion_mnist": Task("vit_micro_patch4", 28, 1, target=0.90),
    "cifar10": Task("vit_micro_patch4", 32, 3, target=0.75, shift=4),
}


@dataclass(frozen=True)
class Images:
    """Images (N, C, H, W) as bytes, and labels (N,)."""

    pixels: Tensor
    labels: Tensor

    def take(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return some images as floats of about -2 to 2, and their labels."""
        return (self.pixels[rows].float() / 255 - 0.45) / 0.25, self.labels[rows]


def load(name: str, folder: Path, device: torch.device) -> dict[str, Images]:
    """Return the images of "train", "val" (the same ones every time) and "test"."""
    read = _read_idx if name == "fashion_mnist" else _read_jpeg
    order = torch.randperm(len(read(folder, "train")[1]), generator=torch.Generator().manual_seed(0))
    splits = {}
    pixels, labels = (torch.from_numpy(values) for values in read(folder, "train"))
    held = TASKS[name].num_validation
    for split, rows in (("val", order[:held]), ("train", order[held:])):
        splits[split] = Images(pixels[rows].to(device), labels[rows].to(device))
    pixels, labels = (torch.from_numpy(values).to(device) for values in read(folder, "test"))
    return {**splits, "test": Images(pixels, labels)}


def _read_idx(folder: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    prefix = "train" if split == "train" else "t10k"
    pixels = gzip.decompress((folder / f"{prefix}-images-idx3-ubyte.gz").read_bytes())[16:]
    labels = gzip.decompress((folder / f"{prefix}-labels-idx1-ubyte.gz").read_bytes())[8:]
    images = np.frombuffer(pixels, np.uint8).reshape(-1, 1, 28, 28).copy()
    return images, np.frombuffer(labels, np.uint8).astype(np.int64)


def _read_jpeg(folder: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    from PIL import Image

    with np.load(folder / "cifar10_jpeg.npz") as file:
        data, offsets, labels = (file[name] for name in (f"{split}_jpeg", f"{split}_offsets", f"y_{split}"))
    files = (data[start:end].tobytes() for start, end in pairwise(offsets))
    images = np.stack([np.asarray(Image.open(io.BytesIO(file)).convert("RGB")) for file in files])
    return images.transpose(0, 3, 1, 2).copy(), labels.astype(np.int64)


def augment(images: Tensor, task: Task, generator: torch.Generator) -> Tensor:
    """Flip and shift each image by itself."""
    count, _, height, width = images.shape
    if task.flip:
        flipped = torch.rand(count, generator=generator) < 0.5
        images = torch.where(flipped.to(images.device)[:, None, None, None], images.flip(-1), images)
    shift = task.shift
    padded = F.pad(images, (shift,) * 4, mode="reflect")
    top, left = (torch.randint(2 * shift + 1, (count, 1), generator=generator) for _ in range(2))
    rows = (top + torch.arange(height))[:, None, :, None].to(images.device)
    columns = (left + torch.arange(width))[:, None, None, :].to(images.device)
    return padded[torch.arange(count, device=images.device)[:, None, None, None],
                  torch.arange(images.shape[1], device=images.device)[None, :, None, None], rows, columns]  # fmt: skip


def train(name: str, optimizer_name: str, setting: dict, steps: int, seed: int, data: dict, where: dict) -> dict:
    """Train once and return the accuracies at the end, the last loss and the time of the steps."""
    task, device = TASKS[name], torch.device(where["device"])
    precision = choose_precision(where["precision"], device)
    torch.manual_seed(seed)
    model = vitrail.create_model(
        task.model, num_classes=10, image_size=task.image_size, in_channels=task.channels, pool="mean"
    ).to(device)
    optimizer = create_optimizer(model, optimizer_name, lr=setting["lr"], weight_decay=setting["weight_decay"])
    clock = [0.0, 0.0]
    loss = torch.zeros(())
    for step in range(steps):
        generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
        rows = torch.randint(len(data["train"].labels), (task.batch,), generator=generator)
        images, labels = data["train"].take(rows.to(device))
        images = augment(images, task, generator)
        before = _now(device)
        for group in optimizer.param_groups:
            group["lr"] = setting["lr"] * warmup_cosine((step + 0.5) / steps, setting["warmup"])
        with precision.autocast():
            logits = model(images)
        loss = nn.functional.cross_entropy(logits.float(), labels, label_smoothing=0.1)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if step >= UNTIMED_STEPS:
            clock = [total + end - start for total, end, start in zip(clock, _now(device), before, strict=True)]
        if step % 50 == 0 and not math.isfinite(loss.item()):
            break
    share = steps / max(1, steps - UNTIMED_STEPS)
    accuracies = {split: accuracy(model, data[split], precision) for split in where["splits"]}
    return {"loss": loss.item(), "wall_s": clock[0] * share, "process_s": clock[1] * share, **accuracies}


def _now(device: torch.device) -> tuple[float, float]:
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter(), time.process_time()


@torch.no_grad()
def accuracy(model: nn.Module, images: Images, precision) -> float:
    """Return the share of images that are classified rightly."""
    model.eval()
    right = 0
    for rows in torch.arange(len(images.labels), device=images.labels.device).split(1000):
        inputs, labels = images.take(rows)
        with precision.autocast():
            right += int((model(inputs).argmax(dim=1) == labels).sum())
    return right / len(images.labels)


def settings(optimizer_name: str, trials: int) -> list[dict]:
    """Return the settings to try: Halton points of a fixed seed over rate, decay and warm-up."""
    ranges = [OPTIMIZERS[optimizer_name]["lr"], OPTIMIZERS[optimizer_name]["weight_decay"], WARMUP]
    points = qmc.Halton(3, seed=0).random(trials)
    values = [
        [low * (high / low) ** float(x) for x, (low, high) in zip(point, ranges, strict=True)] for point in points
    ]
    return [dict(zip(("lr", "weight_decay", "warmup"), value, strict=True)) for value in values]


class Trials:
    """All trainings that were done, in a file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.all: list[dict] = json.loads(path.read_text(encoding="utf-8"))["trials"] if path.exists() else []

    def find(self, **wanted) -> list[dict]:
        """Return those with these values."""
        return [trial for trial in self.all if all(trial.get(key) == value for key, value in wanted.items())]

    def add(self, trial: dict) -> None:
        """Keep one more, in the file too."""
        self.all.append(trial)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        document = {"benchmark": "optimizer_horizons", "machine": machine(), "trials": self.all}
        temporary = self.path.with_suffix(".tmp")
        temporary.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
        temporary.replace(self.path)
        print({key: value for key, value in trial.items() if key != "setting"}, flush=True)


def best(trials: Trials, data: str, optimizer_name: str) -> dict | None:
    """Return the setting with the highest mean validation accuracy over the horizons it was tried at."""
    found = trials.find(kind="tune", data=data, optimizer=optimizer_name)
    numbers = {trial["number"] for trial in found}
    if not numbers:
        return None
    mean = {n: statistics.mean(trial["val"] for trial in found if trial["number"] == n) for n in numbers}
    return next(trial["setting"] for trial in found if trial["number"] == max(numbers, key=mean.__getitem__))


def tune(trials: Trials, options: argparse.Namespace, data: dict) -> None:
    """Do the trials that are missing; optimizers take turns."""
    where = {"device": options.device, "precision": options.precision, "splits": ["val"]}
    for number in range(options.trials):
        for steps in options.tune_steps:
            for name in options.optimizers:
                key = {"kind": "tune", "data": options.data, "optimizer": name, "number": number, "steps": steps}
                if not trials.find(**key):
                    # A fixed number of points, so that more trials later go on with the same sequence.
                    setting = settings(name, 256)[number]
                    trials.add(
                        {**key, "setting": setting, **train(options.data, name, setting, steps, 99, data, where)}
                    )


def run(trials: Trials, options: argparse.Namespace, data: dict) -> None:
    """Train at rising horizons until each optimizer and seed has reached the target often enough."""
    where = {"device": options.device, "precision": options.precision, "splits": ["test"]}
    target = options.target or TASKS[options.data].target
    horizons = [round(options.first_horizon * GRID**n) for n in range(options.horizons)]
    chosen = {name: best(trials, options.data, name) for name in options.optimizers}
    missing = [name for name, setting in chosen.items() if setting is None]
    if missing:
        raise SystemExit(f"Not tuned yet: {', '.join(missing)}. Give `tune` first.")
    for steps in horizons:
        for seed in options.seeds:
            for name in options.optimizers:
                done = trials.find(kind="run", data=options.data, optimizer=name, seed=seed)
                last = sorted((t for t in done if t["steps"] < steps), key=lambda t: t["steps"])[-options.beyond :]
                is_over = len(last) == options.beyond and all(trial["test"] >= target for trial in last)
                if is_over or any(trial["steps"] == steps for trial in done):
                    continue
                outcome = train(options.data, name, chosen[name], steps, seed, data, where)
                key = {"kind": "run", "data": options.data, "optimizer": name, "seed": seed, "steps": steps}
                trials.add({**key, "setting": chosen[name], **outcome})


def first_hits(trials: Trials, data: str, name: str, target: float) -> dict[int, dict]:
    """Return, by seed, the shortest training that reached the target; seeds that never did are left out."""
    hits: dict[int, dict] = {}
    for trial in sorted(trials.find(kind="run", data=data, optimizer=name), key=lambda trial: trial["steps"]):
        if trial["test"] >= target:
            hits.setdefault(trial["seed"], trial)
    return hits


def smallest_horizon(trials: Trials, data: str, name: str, target: float) -> int | None:
    """Return the fewest steps at which at least 80 % of the seeds that were trained so long, or less, were there."""
    found = trials.find(kind="run", data=data, optimizer=name)
    hits = first_hits(trials, data, name, target)
    seeds = {trial["seed"] for trial in found}
    for steps in sorted({trial["steps"] for trial in found}):
        if sum(hit["steps"] <= steps for hit in hits.values()) >= 0.8 * len(seeds):
            return steps
    return None


def ratio(ours: dict[int, dict], theirs: dict[int, dict], key: str) -> tuple[float, float, float] | None:
    """Return the geometric mean of ours / theirs over the seeds that both have, and its 95 % bootstrap interval."""
    logs = np.array([math.log(ours[seed][key] / theirs[seed][key]) for seed in sorted(ours.keys() & theirs.keys())])
    if len(logs) < 2:
        return None
    draws = np.random.default_rng(0).choice(logs, (10_000, len(logs))).mean(axis=1)
    return math.exp(logs.mean()), math.exp(np.quantile(draws, 0.025)), math.exp(np.quantile(draws, 0.975))


def tables(trials: Trials, data: str, target: float) -> str:
    """Return the table of the horizons and that of the tuning."""
    lines = [
        f"| {data}, {target:.0%} | seeds that reached it | smallest horizon, steps | steps / adamw | time / adamw |",
        "|---|---|---|---|---|",
    ]
    adamw = first_hits(trials, data, "adamw", target)
    for name in OPTIMIZERS:
        seeds = {trial["seed"] for trial in trials.find(kind="run", data=data, optimizer=name)}
        if not seeds:
            continue
        hits = first_hits(trials, data, name, target)
        found = [None if name == "adamw" else ratio(hits, adamw, key) for key in ("steps", "wall_s")]
        cells = ["" if each is None else f"{each[0]:.2f} [{each[1]:.2f}, {each[2]:.2f}]" for each in found]
        horizon = smallest_horizon(trials, data, name, target) or "none"
        lines.append(f"| {name} | {len(hits)} of {len(seeds)} | {horizon} | {cells[0]} | {cells[1]} |")
    lines += ["", "| tuning | trials | best val | rate | decay | warm-up | at an edge | trials within 1 % |"]
    lines.append("|---|---|---|---|---|---|---|---|")
    for name, ranges in OPTIMIZERS.items():
        found, chosen = trials.find(kind="tune", data=data, optimizer=name), best(trials, data, name)
        if chosen is None:
            continue
        top = max(trial["val"] for trial in found)
        spans = {**ranges, "warmup": WARMUP}
        places = {key: math.log(chosen[key] / low) / math.log(high / low) for key, (low, high) in spans.items()}
        edges = ", ".join(key for key, place in places.items() if not 0.1 <= place <= 0.9)
        close = sum(trial["val"] >= top - 0.01 for trial in found)
        values = f"{chosen['lr']:.2g} | {chosen['weight_decay']:.2g} | {chosen['warmup']:.0%}"
        lines.append(f"| {name} | {len(found)} | {top:.1%} | {values} | {edges or 'no'} | {close} |")
    return "\n".join(lines)


def main() -> None:
    """Do what is asked and missing, then print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["tune", "run", "table"])
    parser.add_argument("--data", choices=list(TASKS), default="fashion_mnist")
    parser.add_argument("--data-root", type=Path)
    parser.add_argument("--optimizers", nargs="+", choices=list(OPTIMIZERS), default=list(OPTIMIZERS))
    parser.add_argument("--trials", type=int, default=12, help="settings of each optimizer, at each of --tune-steps")
    parser.add_argument("--tune-steps", type=int, nargs="+", default=[300, 900])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--first-horizon", type=int, default=200, help=f"steps, more than {UNTIMED_STEPS}")
    parser.add_argument("--horizons", type=int, default=14)
    parser.add_argument("--beyond", type=int, default=1, help="horizons in a row that must reach the target")
    parser.add_argument("--target", type=float, help="accuracy in [0, 1]; default: that of the data set")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "optimizer_horizons.json")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    trials = Trials(options.out)
    if options.what != "table":
        if options.data_root is None:
            parser.error("--data-root is needed to train")
        data = load(options.data, options.data_root, torch.device(options.device))
        {"tune": tune, "run": run}[options.what](trials, options, data)
    print(tables(trials, options.data, options.target or TASKS[options.data].target))


if __name__ == "__main__":
    main()
