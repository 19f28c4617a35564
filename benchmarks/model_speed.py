"""Our models against the same models of timm: equal answers first, then a training step and inference, taking turns.

    python benchmarks/model_speed.py [--models resnet18 mobilevit_xxs ...] [--precision fp32 bf16] [--rounds 5]

Both get the same weights (timm's names are ours) and the same random batch; the largest difference between their
logits is printed as a share of the largest logit. Then each trains (forward, backward, fused AdamW) and answers in its
own process. Ours run as `vitrail train` and `vitrail predict` run them, timm's as its users would: in its default
memory layout. The rows "timm, channels last" show what is left where timm is given our layout. Needs the extra `peers`.
"""

import argparse
import time
from pathlib import Path

from alternate import Contestant, Turn, save, table, take_turns

CLASSES = 100
SHARED = ("mobilevit_xxs", "mobilevitv2_050", "ghostnet_100", "mobilenetv3_small_100", "repvit_m0_9", "resnet18")


def create(library: str, name: str, image_size: int):
    """Return one model with fresh weights."""
    if library == "vitrail":
        import vitrail

        return vitrail.create_model(name, num_classes=CLASSES, image_size=image_size)
    from peers import make_torchvision_importable

    make_torchvision_importable()
    import timm

    one_head = {"distillation": False} if name.startswith("repvit") else {}
    return timm.create_model(name, num_classes=CLASSES, **one_head)


def largest_difference(name: str, image_size: int) -> float:
    """Return the largest difference of the logits for the same weights, as a share of the largest logit."""
    import torch

    torch.manual_seed(0)
    ours, theirs = create("vitrail", name, image_size).eval(), create("timm", name, image_size).eval()
    theirs.load_state_dict(ours.state_dict())
    images = torch.randn(2, 3, image_size, image_size)
    with torch.inference_mode():
        expected = theirs(images)
        return float((ours(images) - expected).abs().max() / expected.abs().max())


def build(library: str, name: str, image_size: int, batch: int, precision: str, threads: int, steps: int) -> Turn:
    """Return a turn: some training steps, then some forward passes in evaluation mode."""
    import torch

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    images, labels = torch.randn(batch, 3, image_size, image_size), torch.randint(CLASSES, (batch,))
    model = create(library.partition(",")[0], name, image_size)
    enabled = precision == "bf16"
    if library == "vitrail":
        from vitrail.runtime.memory import keep_freed_memory
        from vitrail.runtime.precision import choose_precision

        keep_freed_memory()
        choose_precision(precision, torch.device("cpu"))
        model = model.place(torch.device("cpu"))
    elif library.endswith("channels last"):
        model = model.to(memory_format=torch.channels_last)
        images = images.to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    def turn() -> dict[str, float]:
        model.train()
        started_at = time.perf_counter()
        for _ in range(steps):
            with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
                logits = model(images)
            torch.nn.functional.cross_entropy(logits.float(), labels).backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        trained_at = time.perf_counter()
        model.eval()
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            for _ in range(steps):
                model(images)
        done_at = time.perf_counter()
        return {
            "training": batch * steps / (trained_at - started_at),
            "inference": batch * steps / (done_at - trained_at),
        }

    return turn


def main() -> None:
    """Compare each model, print the tables, keep the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(SHARED))
    parser.add_argument("--precision", nargs="+", default=["fp32", "bf16"])
    parser.add_argument("--image-size", type=int, default=160)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--steps", type=int, default=2, help="training steps, and forward passes, in one turn")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    shape = {"image_size": options.image_size, "batch": options.batch}
    rest = {"threads": options.threads, "steps": options.steps}
    results: dict[str, dict] = {}
    for name in options.models:
        difference = largest_difference(name, options.image_size)
        print(f"\n{name}: the same weights give logits that differ by {difference:.1e} of the largest")
        results[name] = {"largest_difference": difference}
        for precision in options.precision:
            contestants = {
                library: Contestant(build, {"library": library, "name": name, "precision": precision, **shape, **rest})
                for library in ("vitrail", "timm", "timm, channels last")
            }
            figures = take_turns(contestants, options.rounds)
            for phase in ("training", "inference"):
                print("\n" + table(f"{name}, {precision}, {phase}", figures, "vitrail", phase))
            results[name][precision] = figures
            save(options.out, "model_speed", {**shape, **rest, "results": results})


if __name__ == "__main__":
    main()
