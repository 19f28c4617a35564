"""What does a training step cost with Muon8, against fused AdamW and against torch's own Muon?

    python benchmarks/optimizer_overhead.py [--model vit_tiny_patch16] [--batch 64] [--precision fp32 bf16] [--rounds 5]

Every contestant trains the same model on the same random batch, in its own process, taking turns. Rows: the optimizer's
step alone and the whole training step, in steps per second. Orthogonalising costs about 4.2 * width / (images * tokens)
of the model's own operations, so small batches of few tokens pay most; the last line tells where this run was. On a
CUDA GPU (--device cuda) the clock stops after the device is done.
"""

import argparse
import time
from pathlib import Path

from alternate import Contestant, Turn, save, table, take_turns

CONTESTANTS = {
    "muon8": ("muon8", {}),
    "muon8, fp32 momentum": ("muon8", {"momentum_dtype": "fp32"}),
    "muon8, finetune": ("muon8", {"mode": "finetune"}),
    "adamw, fused": ("adamw", {"fused": True}),
    "muon (torch) + adamw": ("muon", {}),
}


def build(name: str, given: dict, options: dict) -> Turn:
    """Return a turn: some training steps, the optimizer's part timed by itself."""
    import torch
    from torch import nn

    import vitrail
    from vitrail.optim import create_optimizer
    from vitrail.runtime.memory import keep_freed_memory
    from vitrail.runtime.precision import choose_precision

    torch.set_num_threads(options["threads"])
    torch.manual_seed(0)
    device = torch.device(options["device"])
    keep_freed_memory()
    precision = choose_precision(options["precision"], device)
    model = vitrail.create_model(options["model"], num_classes=100, image_size=options["image_size"]).to(device)
    model.train()
    images = torch.randn(options["batch"], 3, options["image_size"], options["image_size"], device=device)
    labels = torch.randint(100, (options["batch"],), device=device)
    optimizer = create_optimizer(model, name, lr=1e-4, weight_decay=0.05, **given)

    def now() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    def turn() -> dict[str, float]:
        spent = whole = 0.0
        for _ in range(options["steps"]):
            start = now()
            with precision.autocast():
                logits = model(images)
            nn.functional.cross_entropy(logits.float(), labels).backward()
            ready = now()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            done = now()
            spent, whole = spent + done - ready, whole + done - start
        return {"step": options["steps"] / spent, "all": options["steps"] / whole, "share": spent / whole}

    return turn


def main() -> None:
    """Run, print the tables, keep the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="vit_tiny_patch16")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--precision", nargs="+", default=["fp32", "bf16"])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=2, help="training steps in one turn")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    import statistics

    import vitrail

    model = vitrail.create_model(options.model, image_size=options.image_size)
    tokens = (options.image_size // model.patch_embed.patch_size[0]) ** 2 + 1
    given = {key: value for key, value in vars(options).items() if key not in {"precision", "rounds", "out"}}
    results = {}
    for precision in options.precision:
        contestants = {
            label: Contestant(build, {"name": name, "given": extra, "options": {**given, "precision": precision}})
            for label, (name, extra) in CONTESTANTS.items()
        }
        figures = take_turns(contestants, options.rounds)
        for key in ("step", "all"):
            print("\n" + table(f"{precision}, {key}", figures, "muon8", key))
        for label, turns in figures.items():
            print(f"{label}: {statistics.median(turn['share'] for turn in turns):.1%} of its training step")
        results[precision] = figures
    ratio = options.batch * tokens / model.num_features
    print(f"\nimages * tokens = {ratio:.0f} * width")
    save(options.out, "optimizer_overhead", {**given, "images_tokens_per_width": ratio, "results": results})


if __name__ == "__main__":
    main()
