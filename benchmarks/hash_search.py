"""Search for near duplicates among generated hashes: time, memory, and whether all planted neighbours are found.

    python benchmarks/hash_search.py [--sizes 125000 250000 500000 1000000]

The hashes are random numbers of 64 bits; one in a hundred gets a neighbour that differs in 1 to 8 random bits. Each
size runs in a process of its own, so that its peak of memory is its own; the time is that of the processor. Random
hashes are the friendly case: those of photographs share bits, which `planted_defects.py` shows on real ones.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from alternate import save

SIZES = (125_000, 250_000, 500_000, 1_000_000)
PLANTED_SHARE = 0.01


def generate(size: int) -> tuple[np.ndarray, int]:
    """Return random hashes, uint64 (size,), of which the last are neighbours of the first, and how many these are."""
    from vitrail.data.hashes import RADIUS

    rng = np.random.default_rng(size)
    hashes = rng.integers(0, 2**64, size, np.uint64)
    num_planted = int(size * PLANTED_SHARE)
    # A random choice of bits, 1 to 8 of them, is changed.
    distance = rng.integers(1, RADIUS + 1, num_planted)
    bits = np.argsort(rng.random((num_planted, 64)), axis=1)[:, :RADIUS].astype(np.uint64)
    kept = np.arange(RADIUS) < distance[:, None]
    changes = np.where(kept, np.left_shift(np.uint64(1), bits), np.uint64(0))
    hashes[-num_planted:] = hashes[:num_planted] ^ np.bitwise_xor.reduce(changes, axis=1)
    return hashes, num_planted


def measure(size: int) -> dict[str, float]:
    """Search ``size`` hashes for neighbours of one another."""
    from vitrail.data.hashes import near_pairs

    hashes, num_planted = generate(size)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started_at = time.process_time()
    pairs = near_pairs(hashes, hashes)
    processor_s = time.process_time() - started_at
    codes = pairs[:, 0] * size + pairs[:, 1]
    wanted = np.arange(num_planted) * size + np.arange(size - num_planted, size)
    return {
        "hashes": size,
        "processor_s": processor_s,
        "us_per_hash": 1e6 * processor_s / size,
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "of_it_before_mib": before / 1024,
        "planted": num_planted,
        "found": int(np.isin(wanted, codes).sum()),
        "other_pairs": int((pairs[:, 0] < pairs[:, 1]).sum()) - num_planted,
    }


def main() -> None:
    """Run each size, print the table, keep the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=list(SIZES))
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one is not None:
        print(json.dumps(measure(options.one)))
        return
    rows = []
    print("| hashes | processor seconds | microseconds each | peak MiB | planted | found | chance pairs |")
    print("|---:|---:|---:|---:|---:|---:|---:|")
    for size in options.sizes:
        command = [sys.executable, __file__, "--one", str(size)]
        row = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        rows.append(row)
        cells = (f"{size:,}", f"{row['processor_s']:.1f}", f"{row['us_per_hash']:.1f}", f"{row['peak_mib']:.0f}")
        print("| " + " | ".join((*cells, f"{row['planted']:,}", f"{row['found']:,}", f"{row['other_pairs']}")) + " |")
    save(options.out, "hash_search", {"rows": rows})


if __name__ == "__main__":
    main()
