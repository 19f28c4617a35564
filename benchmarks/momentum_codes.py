"""How much of a real momentum is left when it is kept in 8 bits? `vitrail.optim.quantize` chose its code by this.

    python benchmarks/momentum_codes.py --fashion-mnist FOLDER [--steps 150]

Trains a small ViT on Fashion-MNIST with AdamW (FOLDER holds the original idx.gz files) and, beside it, lets every code
keep the running mean (beta 0.95) of the same gradients, rounded anew in every step. Then, over all matrices of two
blocks, median and worst of:

* error: distance to the exact momentum, relative to its norm;
* cosine: between the orthogonalised Nesterov updates from the rounded and from the exact momentum;
* descent: inner product of that update with the gradient of 5,120 other images, divided by that of the exact one. Above
  1 the rounded momentum descends more steeply. Directions that are rounding noise change the cosine, and not this.
"""

import argparse
import gzip
import math
import statistics
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from alternate import save
from torch import Tensor, nn

import vitrail
from vitrail.optim.blocks import BLOCK
from vitrail.optim.newton_schulz import orthogonalize
from vitrail.optim.quantize import dequantize, quantize

BETA, BATCH = 0.95, 64
Code = Callable[[Tensor], Tensor]


def load_fashion_mnist(folder: Path, split: str) -> tuple[Tensor, Tensor]:
    """Return images (N, 1, 28, 28) from about -1 to 2 and labels (N,) of "train" or "t10k"."""
    pixels = gzip.decompress((folder / f"{split}-images-idx3-ubyte.gz").read_bytes())[16:]
    labels = gzip.decompress((folder / f"{split}-labels-idx1-ubyte.gz").read_bytes())[8:]
    images = torch.from_numpy(np.frombuffer(pixels, np.uint8).reshape(-1, 1, 28, 28).copy())
    return (images.float() / 255 - 0.286) / 0.353, torch.from_numpy(np.frombuffer(labels, np.uint8).astype(np.int64))


def codes() -> dict[str, Code]:
    """Return every code: it maps a matrix to what is left of it."""
    found: dict[str, Code] = {
        f"ours: linear, nearest, {BLOCK}": lambda x: dequantize(*quantize(x.reshape(-1, BLOCK))).view_as(x),
        "bf16": lambda x: x.bfloat16().float(),
    }
    for block in (64, 128, 256):
        for name, code in (("linear", _linear), ("square root", _square_root), ("mu-law 8", _mu_law)):
            found[f"{name}, nearest, {block}"] = _in_blocks(code, block)
    found["mu-law 255, nearest, 128"] = _in_blocks(lambda x: _mu_law(x, 255.0), 128)
    found["linear, stochastic, 128"] = _in_blocks(lambda x: torch.floor(x * 127 + torch.rand_like(x)) / 127, 128)
    found["linear, nearest, 128, 4 bits"] = _in_blocks(lambda x: torch.round(x * 7) / 7, 128)
    return found


def _in_blocks(code: Code, block: int) -> Code:
    """Let a code for numbers in [-1, 1] work on blocks with a bf16 scale each."""

    def apply(x: Tensor) -> Tensor:
        blocks = F.pad(x.reshape(-1), (0, -x.numel() % block)).view(-1, block)
        scale = blocks.abs().amax(dim=1, keepdim=True).bfloat16().float().clamp_min(1e-38)
        return (code((blocks / scale).clamp(-1, 1)) * scale).flatten()[: x.numel()].view_as(x)

    return apply


def _linear(x: Tensor) -> Tensor:
    return torch.round(x * 127) / 127


def _square_root(x: Tensor) -> Tensor:
    return x.sign() * (torch.round(x.abs().sqrt() * 127) / 127).square()


def _mu_law(x: Tensor, mu: float = 8.0) -> Tensor:
    rounded = torch.round(torch.log1p(mu * x.abs()) / math.log1p(mu) * 127) / 127
    return x.sign() * torch.expm1(rounded * math.log1p(mu)) / mu


class Momenta:
    """The running mean of some parameters' gradients, as one code keeps it."""

    def __init__(self, code: Code) -> None:
        self.code = code
        self.kept: dict[str, Tensor] = {}

    def update(self, gradients: dict[str, Tensor]) -> None:
        """Take in the gradients of a step."""
        for name, gradient in gradients.items():
            old = self.kept.get(name, torch.zeros_like(gradient))
            self.kept[name] = self.code(old.lerp(gradient, 1 - BETA))


def compare(exact: Momenta, other: Momenta, gradients: dict[str, Tensor], wanted: dict[str, Tensor]) -> dict:
    """Return errors, cosines and descents over all matrices."""
    found: dict[str, list[float]] = {"error": [], "cosine": [], "descent": []}
    for name, gradient in gradients.items():
        parts = 3 if "qkv" in name else 1
        columns = (exact.kept[name], other.kept[name], gradient, wanted[name])
        for best, rounded, own, steep in zip(*(tensor.chunk(parts) for tensor in columns), strict=True):
            found["error"].append(float((rounded - best).norm() / best.norm()))
            ideal, real = (orthogonalize(m.lerp(own, 1 - BETA)[None])[0].float() for m in (best, rounded))
            found["cosine"].append(float((ideal * real).sum() / ideal.norm() / real.norm()))
            found["descent"].append(float((real * steep).sum() / (ideal * steep).sum()))
    return found


def measure(folder: Path, steps: int) -> dict[str, dict]:
    """Train, and return every code's figures."""
    torch.manual_seed(0)
    images, labels = load_fashion_mnist(folder, "train")
    model = vitrail.create_model("vit_micro_patch4", num_classes=10, image_size=28, in_channels=1)
    watched = {n: p for n, p in model.named_parameters() if p.ndim == 2 and n.startswith(("blocks.0.", "blocks.4."))}
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    exact, kept = Momenta(lambda x: x), {name: Momenta(code) for name, code in codes().items()}

    def gradients(rows: Tensor) -> dict[str, Tensor]:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images[rows]), labels[rows]).backward()
        return {name: parameter.grad.clone() for name, parameter in watched.items()}

    for _ in range(steps):
        found = gradients(torch.randint(len(images) - 5120, (BATCH,)))
        for momenta in (exact, *kept.values()):
            momenta.update(found)
        optimizer.step()
    wanted = {name: torch.zeros_like(parameter) for name, parameter in watched.items()}
    for rows in torch.arange(len(images) - 5120, len(images)).split(256):
        for name, gradient in gradients(rows).items():
            wanted[name] += gradient
    last = gradients(torch.randint(len(images) - 5120, (BATCH,)))
    return {name: compare(exact, momenta, last, wanted) for name, momenta in kept.items()}


def table(results: dict[str, dict]) -> str:
    """Return the Markdown table: median (worst)."""
    lines = ["| code, rounding, block | error | cosine | descent |", "|---|---|---|---|"]
    for name, found in results.items():
        cells = [
            f"{statistics.median(found[key]):.4f} ({worst(found[key]):.4f})"
            for key, worst in (("error", max), ("cosine", min), ("descent", min))
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Measure, print the table, keep the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fashion-mnist", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    results = measure(options.fashion_mnist, options.steps)
    print(table(results))
    save(options.out, "momentum_codes", {"steps": options.steps, "batch": BATCH, "results": results})


if __name__ == "__main__":
    main()
