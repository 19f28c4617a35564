"""The core of attention on a CPU: three plain operations against PyTorch's fused kernel.

    python benchmarks/attention.py [--threads 1] [--rounds 11]

For bfloat16, float32 through MKL and float32 through oneDNN (where `vitrail.runtime.precision` uses it), at the lengths
of a ViT at 32 pixels with patch 4, at 224 and at 384 with patch 16; forwards, and forwards and backwards. The batch is
chosen so that every length is about the same work. Both forms take turns in one process, so a ratio compares them under
the same allocator and thread pool. `vitrail.layers.attention.attend` chooses by what this shows.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from alternate import ratios, save
from torch import Tensor

from vitrail.runtime.precision import choose_precision, onednn_multiplies_fp32

HEADS, HEAD_DIM = 3, 64
LENGTHS = (65, 197, 577)
REFERENCE_BATCH, REFERENCE_LENGTH = 32, 197
REPEATS = 5
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 4e-2}

Core = Callable[[Tensor, Tensor, Tensor], Tensor]


def explicit(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Return attention as `attend` writes it out."""
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
    return scores.softmax(dim=-1) @ v


FORMS: dict[str, Core] = {"explicit": explicit, "fused": F.scaled_dot_product_attention}


def compare(num_tokens: int, dtype: torch.dtype, backward: bool, rounds: int) -> dict[str, list[dict]]:
    """Return runs per second of both forms, round by round."""
    batch = max(1, round(REFERENCE_BATCH * (REFERENCE_LENGTH / num_tokens) ** 2))
    shape = (batch, HEADS, num_tokens, HEAD_DIM)
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(shape, generator=generator).to(dtype).requires_grad_(backward) for _ in range(3))
    upstream = torch.randn(shape, generator=generator).to(dtype)
    with torch.no_grad():
        difference = float((explicit(q, k, v) - F.scaled_dot_product_attention(q, k, v)).abs().max())
    assert difference < TOLERANCE[dtype], difference

    def run(form: Core) -> dict[str, float]:
        start = time.perf_counter()
        for _ in range(REPEATS):
            out = form(q, k, v)
            if backward:
                torch.autograd.grad(out, (q, k, v), upstream)
        return {"runs/s": REPEATS / (time.perf_counter() - start)}

    figures: dict[str, list[dict]] = {name: [] for name in FORMS}
    for number in range(rounds + 1):
        for name in list(FORMS)[:: 1 if number % 2 else -1]:
            result = run(FORMS[name])
            if number:  # the first round warms up
                figures[name].append(result)
    return figures


def measure(label: str, dtype: torch.dtype, rounds: int) -> list[dict]:
    """Compare at every length and print each as a row of the table."""
    rows = []
    for num_tokens in LENGTHS:
        for backward in (False, True):
            figures = compare(num_tokens, dtype, backward, rounds)
            middle, low, high = ratios(figures["explicit"], figures["fused"], "runs/s")
            direction = "forward and backward" if backward else "forward"
            print(f"| {label} | {num_tokens} | {direction} | {middle:.2f} [{low:.2f}, {high:.2f}] |", flush=True)
            rows.append({"numbers": label, "tokens": num_tokens, "pass": direction, "figures": figures})
    return rows


def main() -> None:
    """Run, print the table, keep the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print("| numbers | tokens | pass | speed of explicit / fused, median [lowest, highest] |\n|---|---|---|---|")
    rows = measure("bf16", torch.bfloat16, options.rounds)
    rows += measure("fp32, MKL", torch.float32, options.rounds)
    choose_precision("fp32", torch.device("cpu"))  # goes over to oneDNN for the rest of the process, where it helps
    if onednn_multiplies_fp32():
        rows += measure("fp32, oneDNN", torch.float32, options.rounds)
    else:
        print("\nvitrail leaves fp32 with PyTorch's own choice on this CPU: no rows for oneDNN.")
    save(options.out, "attention", {"heads": HEADS, "head_dim": HEAD_DIM, "threads": options.threads, "rows": rows})


if __name__ == "__main__":
    main()
