"""What does Muon8's step add to a training step with fused AdamW? And torch's own Muon?

    python benchmarks/optimizer_overhead.py [--setups vit-tiny-224 lucarne-32] [--precision bf16 fp32] [--rounds 5]

Every round trains one step of the setup's model on random images and then lets every optimizer take its step with the
same gradients, each on weights and states of its own, in an order that turns. Overhead: what an optimizer's step takes
longer than fused AdamW's, as a share of the whole training step with fused AdamW. Orthogonalising costs about
3.6 * width / (images * tokens) of the model's own operations, so images * tokens / width tells how much to expect.

On a CPU the clock is the processor's time of this process, which other work beside it changes little; so take one
thread. On a GPU (--device cuda) it is time by the clock, read after the device is done. A setup that was measured
before keeps its place in the results, with its machine, until it is measured anew.
"""

import argparse
import copy
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from alternate import machine, save
from torch import nn

import vitrail
from vitrail.optim import create_optimizer
from vitrail.runtime.memory import keep_freed_memory
from vitrail.runtime.precision import Precision, choose_precision

OPTIMIZERS = {
    "adamw, fused": ("adamw", {}),
    "muon8": ("muon8", {}),
    "muon8, 4 Newton-Schulz steps": ("muon8", {"newton_schulz_steps": 4}),
    "muon8, finetune": ("muon8", {"mode": "finetune"}),
    "muon (torch) + adamw": ("muon", {}),
}
NAME = "optimizer_overhead"


@dataclass(frozen=True)
class Setup:
    """A model and a batch; images go through the model a few at a time where all of them would need much memory."""

    model: str
    image_size: int
    batch: int
    chunk: int
    options: tuple[tuple[str, int], ...] = ()


SETUPS = {
    "vit-tiny-224": Setup("vit_tiny_patch16", 224, 40, 20),
    "vit-small-224": Setup("vit_small_patch16", 224, 80, 20),
    "vit-tiny-32": Setup("vit_tiny_patch16", 32, 128, 128, (("patch_size", 4),)),
    "vit-tiny-32-large-batch": Setup("vit_tiny_patch16", 32, 256, 128, (("patch_size", 4),)),
    "vit-tiny-32-small-batch": Setup("vit_tiny_patch16", 32, 32, 32, (("patch_size", 4),)),
    "lucarne-32": Setup("lucarne_xs", 32, 64, 64),
    "lucarne-224": Setup("lucarne_xs", 224, 64, 32),
}


def images_tokens_per_width(setup: Setup, model: nn.Module) -> float | None:
    """Return images * tokens / width of a plain ViT."""
    patches = getattr(getattr(model, "patch_embed", None), "patch_size", None)
    if patches is None or not hasattr(model, "cls_token"):
        return None
    tokens = (setup.image_size // patches[0]) ** 2 + 1
    return setup.batch * tokens / model.num_features


def clock(device: torch.device) -> Callable[[], float]:
    """Return what tells the time in seconds."""

    def after_device() -> float:
        torch.cuda.synchronize()
        return time.perf_counter()

    return after_device if device.type == "cuda" else time.process_time


def measure(setup: Setup, precision: Precision, device: torch.device, rounds: int) -> tuple[list[dict], float | None]:
    """Return, round by round, the seconds of the model's passes and of each optimizer's step."""
    torch.manual_seed(0)
    model = vitrail.create_model(setup.model, num_classes=100, image_size=setup.image_size, **dict(setup.options))
    model.to(device).train()
    images = torch.randn(setup.chunk, 3, setup.image_size, setup.image_size, device=device)
    labels = torch.randint(100, (setup.chunk,), device=device)
    models = {label: copy.deepcopy(model) for label in OPTIMIZERS}
    optimizers = {
        label: create_optimizer(models[label], name, lr=1e-4, weight_decay=0.05, **options)
        for label, (name, options) in OPTIMIZERS.items()
    }
    now, labels_in_turn, found = clock(device), list(OPTIMIZERS), []
    for number in range(rounds + 1):
        start = now()
        for _ in range(setup.batch // setup.chunk):
            with precision.autocast():
                logits = model(images)
            F.cross_entropy(logits.float(), labels).backward()
        turn = {"passes": now() - start}
        for label in labels_in_turn[number % len(labels_in_turn) :] + labels_in_turn[: number % len(labels_in_turn)]:
            for ours, theirs in zip(models[label].parameters(), model.parameters(), strict=True):
                ours.grad = None if theirs.grad is None else theirs.grad.clone()
            start = now()
            optimizers[label].step()
            turn[label] = now() - start
            models[label].zero_grad()
        model.zero_grad()
        if number:  # the first one warms up
            found.append(turn)
    return found, images_tokens_per_width(setup, model)


def overheads(turns: list[dict], label: str, base: str = "adamw, fused") -> list[float]:
    """Return what the optimizer adds in each round, as a share of the training step with ``base``."""
    return [(turn[label] - turn[base]) / (turn["passes"] + turn[base]) for turn in turns]


def table(results: dict) -> str:
    """Return a Markdown table: what each optimizer adds, median [lowest, highest]."""
    labels = list(OPTIMIZERS)[1:]
    lines = [
        f"| setup | processor | precision | images x tokens / width | with AdamW, s | {' | '.join(labels)} |",
        f"|---|---|---|---|---|{'---|' * len(labels)}",
    ]
    for found in results.values():
        turns = found["rounds"]
        whole = statistics.median(turn["passes"] + turn["adamw, fused"] for turn in turns)
        cells = []
        for label in labels:
            shares = overheads(turns, label)
            cells.append(f"{statistics.median(shares):.1%} [{min(shares):.1%}, {max(shares):.1%}]")
        tokens = found["images_tokens_per_width"]
        what = f"{found['model']}, {found['image_size']} px, batch {found['batch']}, {found['device']}"
        ratio = "" if tokens is None else f"{tokens:.0f}"
        processor = f"{found['on']['cpu']}, {found['on']['matrix_instructions'][-1]}"
        lines.append(f"| {what} | {processor} | {found['precision']} | {ratio} | {whole:.3g} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Run, print the table, keep the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--setups", nargs="+", default=list(SETUPS), choices=list(SETUPS))
    parser.add_argument("--precision", nargs="+", default=["bf16", "fp32"])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    keep_freed_memory()
    device = torch.device(options.device)
    file = options.out / f"{NAME}.json"
    results = json.loads(file.read_text(encoding="utf-8"))["results"] if file.exists() else {}
    for name in options.setups:
        for precision in options.precision:
            chosen = choose_precision(precision, device)
            turns, tokens = measure(SETUPS[name], chosen, device, options.rounds)
            setup = {key: getattr(SETUPS[name], key) for key in ("model", "image_size", "batch")}
            about = {"precision": precision, "device": device.type, "images_tokens_per_width": tokens}
            about |= {"on": machine(), "threads": options.threads}
            results[f"{name}, {precision}, {device.type}"] = {**setup, **about, "rounds": turns}
            save(options.out, NAME, {"results": results})
            print(f"{name}, {precision}", flush=True)
    print(table(results))


if __name__ == "__main__":
    main()
