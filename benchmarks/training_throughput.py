"""Training a ViT-tiny at 224 pixels on this machine: vitrail, timm and transformers in turn.

    python benchmarks/training_throughput.py [--precision fp32 bf16] [--rounds 5]

Every contestant trains the same architecture on the same random batch with fused AdamW, in its own process. Rows:
forward, backward, optimizer step and all of them together, in images per second, with our ratio to each peer, and the
share of the matrix-product rate that this machine reaches in that precision. Needs the extra `peers`.
"""

import argparse
import time
from pathlib import Path

from alternate import Contestant, Turn, gemm_peak_gflops, save, table, take_turns
from same_models import CLASSES, create, logits_of

BATCH, IMAGE = 32, 224
GMAC_PER_IMAGE = 1.2535  # one forward pass, attention's own products included; backward costs twice as much


def build(library: str, precision: str, threads: int, steps: int) -> Turn:
    """Return a turn: some training steps, each phase timed."""
    import torch
    from torch import nn

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    images, labels = torch.randn(BATCH, 3, IMAGE, IMAGE), torch.randint(CLASSES, (BATCH,))
    if library == "vitrail":
        import vitrail
        from vitrail.optim import create_optimizer
        from vitrail.runtime.memory import keep_freed_memory
        from vitrail.runtime.precision import choose_precision

        keep_freed_memory()
        chosen = choose_precision(precision, torch.device("cpu"))
        model = vitrail.create_model("vit_tiny_patch16", num_classes=CLASSES)
        optimizer = create_optimizer(model, "adamw", lr=1e-4, weight_decay=0.05)
        images = images.contiguous(memory_format=torch.channels_last)
        autocast = chosen.autocast
    else:
        model = create(library, "vit_tiny_patch16", IMAGE)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.05, fused=True)

        def autocast() -> torch.autocast:
            return torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16")

    model.train()

    def turn() -> dict[str, float]:
        spent = {"forward": 0.0, "backward": 0.0, "step": 0.0}
        for _ in range(steps):
            start = time.perf_counter()
            with autocast():
                logits = model(images)
            loss = nn.functional.cross_entropy(logits_of(logits).float(), labels)
            forwarded = time.perf_counter()
            loss.backward()
            backwarded = time.perf_counter()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            done = time.perf_counter()
            spent["forward"] += forwarded - start
            spent["backward"] += backwarded - forwarded
            spent["step"] += done - backwarded
        images_done = BATCH * steps
        rates = {phase: images_done / seconds for phase, seconds in spent.items()}
        return {**rates, "all": images_done / sum(spent.values())}

    return turn


def main() -> None:
    """Run, print the tables, keep the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--precision", nargs="+", default=["fp32", "bf16"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=4, help="training steps in one turn")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    import torch

    results = {}
    for precision in options.precision:
        arguments = {"precision": precision, "threads": options.threads, "steps": options.steps}
        contestants = {
            library: Contestant(build, {"library": library, **arguments})
            for library in ("vitrail", "timm", "transformers")
        }
        figures = take_turns(contestants, options.rounds)
        peak = gemm_peak_gflops(torch.float32 if precision == "fp32" else torch.bfloat16)
        for phase in ("forward", "backward", "step", "all"):
            print("\n" + table(f"{precision}, {phase}", figures, "vitrail", phase))
        best = max(turn["all"] for turn in figures["vitrail"])
        share = best * GMAC_PER_IMAGE * 2 * 3 / peak
        print(f"\nvitrail's best {best:.1f} images/s = {share:.0%} of torch.mm's {peak:.0f} GFLOP/s in {precision}\n")
        results[precision] = {"figures": figures, "gemm_peak_gflops": peak, "share_of_peak": share}
    save(options.out, "training_throughput", {"batch": BATCH, "steps": options.steps, "results": results})


if __name__ == "__main__":
    main()
