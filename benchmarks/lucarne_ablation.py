"""What does each choice in Lucarne-XS earn, and what does it cost? The model with one choice changed, seeds paired.

    python benchmarks/lucarne_ablation.py train --data-root FOLDER [--seeds 0 1 2 3] [--arms ...]
    python benchmarks/lucarne_ablation.py latency [--rounds 15]
    python benchmarks/lucarne_ablation.py table          prints the table of what was measured

FOLDER holds `cifar10` with cifar10_jpeg.npz. Its images are enlarged to 48 pixels: at 32, the last two grids of the
model have 2 x 2 and 1 x 1 positions, and attention has nothing to choose from.

* train: all arms with the same images in the same order, the same number of steps and the same setting: what tuning of
  AdamW found for Lucarne-XS (optimizer_horizons.py, task cifar-mobile), so that a variant which wants another rate is
  somewhat underrated. Every finished run is kept in results/lucarne_ablation.json and not trained again.
* latency: parameters and multiply-adds at 224 pixels and 1000 classes, and the time of one image in onnxruntime, fp32
  on one thread, as onnx_latency.py tells.

The table gives differences in test accuracy to Lucarne-XS, paired by seed, with a 95 % t interval over the seeds, and
ratios to its latency and to the processor time of its training steps.
"""

import argparse
import itertools
import json
import logging
import math
import os
import statistics
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from alternate import machine
from scipy.stats import t as student

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from torch import Tensor, nn

from vitrail.layers.conv import ConvNorm
from vitrail.models.lucarne import SHAPES, AttentionBlock, ConvBlock, Lucarne, LucarneOptions

RESULTS = Path(__file__).parent / "results" / "lucarne_ablation.json"
BASE = "Lucarne-XS"
IMAGE_SIZE = 48
STEPS = 400
PHONE_SIZE = 224
SETTING = {"lr": 6.28e-3, "weight_decay": 0.05, "warmup": 0.04}
XS = SHAPES["xs"]

Change = Callable[[Lucarne], None]


class ChannelNorm(nn.LayerNorm):
    """Layer norm over the channels of a map (B, C, H, W), at every position."""

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, C, H, W)."""
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def use_layer_norms(model: Lucarne) -> None:
    """Put a layer norm, started alike, in the place of every batch norm."""
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.BatchNorm2d):
            norm = ChannelNorm(module.num_features)
            norm.load_state_dict({"weight": module.weight, "bias": module.bias})
            model.set_submodule(name, norm)


def use_activation(kind: type[nn.Module]) -> Change:
    """Return a change to one activation in all stages; the ReLU of local enhancement stays."""

    def change(model: Lucarne) -> None:
        for name, module in list(model.named_modules()):
            if isinstance(module, nn.ReLU | nn.Hardswish):
                model.set_submodule(name, kind())

    return change


def use_kernel_5(model: Lucarne) -> None:
    """Let the depthwise convolutions of the convolution blocks see 5 x 5 positions."""
    for block in model.modules():
        if isinstance(block, ConvBlock):
            dim = block.depthwise.conv.out_channels
            block.depthwise = ConvNorm(dim, dim, 5, groups=dim)
    model.reset_parameters()


def attend_at_stride_8(model: Lucarne) -> None:
    """Put an attention block in the place of the last convolution block at stride 8."""
    width = XS.widths[1]
    model.blocks[1][-1] = AttentionBlock(width, 16, 2 * width, act=nn.ReLU, local=True)
    model.reset_parameters()


ARMS: dict[str, dict[str, Any]] = {
    BASE: {},
    "no local enhancement": {"options": {"local": False}},
    "no fusion": {"options": {"fusion": False}},
    "no attention, convolution blocks instead": {"options": {"attention": False}},
    "attention at stride 8 too": {"change": attend_at_stride_8},
    "layer norms": {"change": use_layer_norms},
    "depthwise 5 x 5": {"change": use_kernel_5},
    "ReLU everywhere": {"change": use_activation(nn.ReLU)},
    "expansion 2": {"shape": {"expansion": 2}},
    "expansion 4": {"shape": {"expansion": 4}},
    "hard swish everywhere": {"change": use_activation(nn.Hardswish)},
}
"""What each arm changes: options of the model, fields of its shape, or the model itself."""


def build(arm: str, *, num_classes: int, image_size: int) -> Lucarne:
    """Return the model of an arm, with fresh weights."""
    changes = ARMS[arm]
    options = LucarneOptions(num_classes=num_classes, image_size=image_size, **changes.get("options", {}))
    model = Lucarne(replace(XS, **changes.get("shape", {})), options)
    if "change" in changes:
        changes["change"](model)
    return model


def read(path: Path) -> dict[str, Any]:
    """Return what was measured: "trials", and "costs" by arm."""
    empty: dict[str, Any] = {"trials": [], "costs": {}}
    return empty | (json.loads(path.read_text(encoding="utf-8")) if path.exists() else {})


def keep(path: Path, **changed: Any) -> None:
    """Write parts anew, whole or not at all."""
    setting = {"image_size": IMAGE_SIZE, "steps": STEPS, "optimizer": "adamw", **SETTING}
    document = {"benchmark": "lucarne_ablation", "machine": machine(), "setting": setting, **read(path), **changed}
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".tmp")
    unfinished.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    unfinished.replace(path)


def train(options: argparse.Namespace) -> None:
    """Train what has no result yet, seed by seed."""
    from optimizer_tasks import TASKS, Place, accuracy, fit, load

    from vitrail.runtime.memory import keep_freed_memory
    from vitrail.runtime.precision import choose_precision

    torch.set_num_threads(1)
    keep_freed_memory()
    place = Place(torch.device("cpu"), choose_precision("auto", torch.device("cpu")))
    task = TASKS["cifar-mobile"]
    data = load(task, options.data_root, place.device)
    done = {(trial["arm"], trial["seed"]) for trial in read(options.out)["trials"]}
    for seed, arm in itertools.product(options.seeds, options.arms):
        if (arm, seed) in done:
            continue
        torch.manual_seed(seed)
        enlarge = nn.Upsample(IMAGE_SIZE, mode="bilinear", align_corners=False)
        lucarne = build(arm, num_classes=10, image_size=IMAGE_SIZE)
        model = nn.Sequential(enlarge, lucarne.to(memory_format=torch.channels_last))
        outcome = fit(model, task, "adamw", SETTING, STEPS, seed, data["train"], place)
        test = accuracy(model, data["test"], place) if math.isfinite(outcome["loss"]) else 0.0
        trial = {"arm": arm, "seed": seed, "test": test, **{key: round(value, 4) for key, value in outcome.items()}}
        # Read again: another process may have measured something meanwhile.
        keep(options.out, trials=[*read(options.out)["trials"], trial])
        print(trial, flush=True)


def measure_latency(options: argparse.Namespace) -> None:
    """Count what every arm costs at the size of a phone, export it, and let all take turns."""
    from onnx_latency import export, measure

    from vitrail.evaluation.cost import model_cost

    logging.disable(logging.WARNING)
    costs = {}
    with tempfile.TemporaryDirectory() as folder:
        paths = {arm: Path(folder) / f"{number}.onnx" for number, arm in enumerate(ARMS)}
        for arm, path in paths.items():
            model = build(arm, num_classes=1000, image_size=PHONE_SIZE)
            cost = model_cost(model, (PHONE_SIZE, PHONE_SIZE))
            costs[arm] = {"parameters": cost.parameters, "macs": cost.macs}
            export(model, path, PHONE_SIZE)
        keep(options.out, costs=costs)
        for arm, bursts in measure(paths, 1, options.rounds).items():
            costs[arm]["ms_by_round"] = [burst.ms for burst in bursts]
    keep(options.out, costs=costs)


def table(document: dict[str, Any]) -> str:
    """Return a row for each arm: what it costs, and its accuracy against the base."""
    from onnx_latency import ratio, show

    costs = document["costs"]
    lines = [
        "| | parameters | multiply-adds | latency / base [95 %] | training time / base | test accuracy "
        "| minus base, points [95 %] | seeds |",
        "|---|---|---|---|---|---|---|---|",
    ]
    by_arm = {arm: {t["seed"]: t for t in document["trials"] if t["arm"] == arm} for arm in ARMS}
    for arm, trials in by_arm.items():
        if not trials:
            continue
        cost, base = costs.get(arm), by_arm[BASE]
        pairs = [(trial, base[seed]) for seed, trial in trials.items() if seed in base]
        size = f"{cost['parameters'] / 1e6:.3f} M | {cost['macs'] / 1e6:.0f} M" if cost else " | "
        speed = time = versus = ""
        if arm != BASE and pairs:
            if cost and "ms_by_round" in cost:
                speed = show(ratio(cost["ms_by_round"], costs[BASE]["ms_by_round"]))
            time = f"{statistics.median(ours['process_s'] / its['process_s'] for ours, its in pairs):.2f}"
            versus = interval([100 * (ours["test"] - its["test"]) for ours, its in pairs])
        accuracy = statistics.mean(trial["test"] for trial in trials.values())
        lines.append(f"| {arm} | {size} | {speed} | {time} | {accuracy:.1%} | {versus} | {len(trials)} |")
    return "\n".join(lines)


def interval(gains: list[float]) -> str:
    """Return the mean of paired differences, with its 95 % t interval if there are several."""
    mean = statistics.mean(gains)
    if len(gains) < 2:
        return f"{mean:+.1f}"
    half = student.ppf(0.975, len(gains) - 1) * statistics.stdev(gains) / len(gains) ** 0.5
    return f"{mean:+.1f} [{mean - half:+.1f}, {mean + half:+.1f}]"


def main() -> None:
    """Do what was asked, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["train", "latency", "table"])
    parser.add_argument("--data-root", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3])
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=ARMS)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    if options.what == "train":
        train(options)
    elif options.what == "latency":
        measure_latency(options)
    print(table(read(options.out)))


if __name__ == "__main__":
    main()
