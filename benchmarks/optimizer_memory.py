"""How many bytes of state do optimizers keep per parameter? Counted over the real state after one real step.

python benchmarks/optimizer_memory.py [--models vit_small_patch16 vit_base_patch16]
"""

import argparse
from pathlib import Path

import torch
from alternate import save

import vitrail
from vitrail.optim import create_optimizer

CONTESTANTS = {
    "adamw": ("adamw", {}),
    "sgd, momentum 0.9": ("sgd", {}),
    "lion": ("lion", {}),
    "muon (torch) + adamw": ("muon", {}),
    "adafactor (torch), no momentum": ("adafactor", {}),
    "muon8, fp32": ("muon8", {"momentum_dtype": "fp32"}),
    "muon8, bf16": ("muon8", {"momentum_dtype": "bf16"}),
    "muon8, int8 (the default)": ("muon8", {}),
}


def state_bytes(model: torch.nn.Module, name: str, options: dict) -> int:
    """Return the bytes of all tensors in the optimizer's state after a step with gradients of noise."""
    optimizer = create_optimizer(model, name, lr=1e-4, weight_decay=0.0, **options)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter) * 1e-4
    optimizer.step()
    values = [value for state in optimizer.state.values() for value in state.values()]
    return sum(value.nbytes for value in values if isinstance(value, torch.Tensor))


def main() -> None:
    """Count, print the table, keep the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["vit_small_patch16", "vit_base_patch16"])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    results: dict[str, dict] = {}
    for name in options.models:
        model = vitrail.create_model(name, num_classes=1000)
        size = sum(parameter.numel() for parameter in model.parameters())
        counted = {label: state_bytes(model, *contestant) for label, contestant in CONTESTANTS.items()}
        results[name] = {"parameters": size, "state_bytes": counted}
    print("| optimizer | " + " | ".join(f"{name}, bytes per parameter | MB" for name in results) + " |")
    print("|---|" + "---|---|" * len(results))
    for label in CONTESTANTS:
        cells = []
        for found in results.values():
            count = found["state_bytes"][label]
            cells += [f"{count / found['parameters']:.2f}", f"{count / 1e6:.0f}"]
        print(f"| {label} | " + " | ".join(cells) + " |")
    save(options.out, "optimizer_memory", {"results": results})


if __name__ == "__main__":
    main()
