"""How many bytes of state do optimizers keep per parameter, and how much memory does a process need that trains?

    python benchmarks/optimizer_memory.py [--models vit_small_patch16 vit_base_patch16] [--batch 4]

Every contestant trains in its own process: forward, backward, the optimizer's step, and a second forward and backward
pass beside the state. State: the bytes of all its tensors. Peak: the most memory that the process held meanwhile, with
weights, gradients, activations of the batch and what the step needs for the moment, but without Python and torch, which
are subtracted as they were before the model was built. Linux only.
"""

import argparse
import multiprocessing
from pathlib import Path

from alternate import save

CONTESTANTS = {
    "adamw": ("adamw", {}),
    "sgd, momentum 0.9": ("sgd", {}),
    "lion": ("lion", {}),
    "muon (torch) + adamw": ("muon", {}),
    "adafactor (torch), no momentum": ("adafactor", {}),
    "muon8, fp32": ("muon8", {"momentum_dtype": "fp32"}),
    "muon8, bf16": ("muon8", {"momentum_dtype": "bf16"}),
    "muon8, int8 (the default)": ("muon8", {}),
    "muon8, int8, gradients released": ("muon8", {"release_gradients": True}),
}


def measure(model_name: str, name: str, options: dict, batch: int) -> dict[str, int]:
    """Return the bytes of the state and of the process's peak, and the number of parameters."""
    import torch
    import torch.nn.functional as F

    import vitrail
    from vitrail.optim import create_optimizer
    from vitrail.runtime.memory import forget_peak_memory, keep_freed_memory, peak_memory_bytes, resident_memory_bytes
    from vitrail.runtime.precision import choose_precision

    torch.set_num_threads(1)
    torch.manual_seed(0)
    keep_freed_memory()
    precision = choose_precision("auto", torch.device("cpu"))
    before = resident_memory_bytes()
    forget_peak_memory()
    model = vitrail.create_model(model_name, num_classes=1000)
    images, labels = torch.randn(batch, 3, 224, 224), torch.randint(1000, (batch,))
    optimizer = create_optimizer(model, name, lr=1e-4, weight_decay=0.0, **options)
    for step in range(2):
        with precision.autocast():
            logits = model(images)
        F.cross_entropy(logits.float(), labels).backward()
        if step == 0:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
    values = [value for state in optimizer.state.values() for value in state.values()]
    return {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "state_bytes": sum(value.nbytes for value in values if isinstance(value, torch.Tensor)),
        "peak_bytes": peak_memory_bytes() - before,
    }


def main() -> None:
    """Measure, print the table, keep the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["vit_small_patch16", "vit_base_patch16"])
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    results: dict[str, dict] = {}
    for model in options.models:
        results[model] = {}
        for label, (name, extra) in CONTESTANTS.items():
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                results[model][label] = pool.apply(measure, (model, name, extra, options.batch))
            print(f"{model}, {label}: {results[model][label]}", flush=True)
    heads = (f"{model}, bytes per parameter | state, MB | peak, MB" for model in results)
    print(f"| optimizer | {' | '.join(heads)} |")
    print("|---|" + "---|---|---|" * len(results))
    for label in CONTESTANTS:
        cells = []
        for found in results.values():
            own = found[label]
            cells.append(f"{own['state_bytes'] / own['parameters']:.2f} | {own['state_bytes'] / 1e6:.0f}")
            cells.append(f"{own['peak_bytes'] / 1e6:.0f}")
        print(f"| {label} | {' | '.join(cells)} |")
    save(options.out, "optimizer_memory", {"batch": options.batch, "results": results})


if __name__ == "__main__":
    main()
