"""A million rows of a manifest in memory: duplicates among generated hashes, the split, writing, reading.

    python benchmarks/manifest_scale.py [--sizes 250000 1000000]

Each size runs in a process of its own. The rows are those of pictures in 1,000 classes, with random hashes of 64 bits,
of which one in a hundred has a neighbour that differs in 1 to 8 bits. What `vitrail data` does with them is done: near
hashes are found, the pictures divided so that neighbours stay together, the manifest written and read again, and the
splits made of it. Told are the processor time and the peak of memory after each step, that of Python and the libraries
included; a second process only reads the manifest and makes the splits, as every other verb does.

Pictures are not decoded or compared here. While they are, admission holds more of each: its small grey picture, hashes
and the key of its file, which are counted as `with inspections`, without any limit that they would have to keep.
"""

import argparse
import hashlib
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from alternate import save
from hash_search import generate

SIZES = (250_000, 1_000_000)
CLASSES = 1000
PARTS = ("write", "read", "inspect")


class Steps:
    """Notes processor time and the peak of memory at the end of each step."""

    def __init__(self) -> None:
        self.rows: dict[str, dict[str, float]] = {}
        self._begin = time.process_time()
        self.end("start")

    def end(self, name: str) -> None:
        """Close a step."""
        peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        self.rows[name] = {"processor_s": time.process_time() - self._begin, "peak_mib": peak_mib}
        self._begin = time.process_time()


def make_rows(hashes: np.ndarray) -> list:
    """Return the records of pictures that have these hashes."""
    from vitrail.data.records import Record

    classes = [f"class {number:04}" for number in range(CLASSES)]
    return [
        Record(
            path=f"{classes[number % CLASSES]}/picture-{number:09}.jpg",
            label=classes[number % CLASSES],
            sha256=hashlib.sha256(phash.to_bytes(8)).hexdigest(),
            width=640,
            height=480,
            phash=f"{phash:016x}",
        )
        for number, phash in enumerate(hashes.tolist())
    ]


def write(size: int, manifest: Path) -> dict[str, dict[str, float]]:
    """Make the rows, divide them and write the manifest."""
    from dataclasses import replace

    from vitrail.data.duplicates import group_numbers
    from vitrail.data.hashes import near_pairs
    from vitrail.data.records import write_manifest
    from vitrail.data.split import stratified_split

    steps = Steps()
    hashes, planted = generate(size)
    records = make_rows(hashes)
    steps.end("rows made")
    pairs = near_pairs(hashes, hashes)
    pairs = pairs[pairs[:, 0] < pairs[:, 1]]
    assert len(pairs) >= planted
    steps.end("duplicates found")
    units = group_numbers(size, pairs).tolist()
    paths, labels = [record.path for record in records], [record.label for record in records]
    splits = stratified_split(paths, labels, seed=0, val_fraction=0.1, test_fraction=0.2, groups=units)
    for place, split in enumerate(splits):
        records[place] = replace(records[place], split=split)
    steps.end("divided")
    write_manifest(manifest, records)
    steps.end("written")
    return steps.rows


def inspect(size: int) -> dict[str, dict[str, float]]:
    """Hold what admission holds of each file, as it is once everything was inspected."""
    from vitrail.data.images import THUMB_SIDE, Inspection
    from vitrail.data.inspections import FileKey

    steps = Steps()
    hashes, _ = generate(size)
    records = make_rows(hashes)
    rng = np.random.default_rng(0)
    kept = {
        record.path: (
            FileKey(20_000 + number, 10**18 + number, 10**18 + number, number),
            Inspection(
                width=record.width,
                height=record.height,
                sha256=record.sha256,
                pixels=rng.bytes(16),
                thumb=rng.bytes(THUMB_SIDE**2),
                colour=(128, 128),
                format="JPEG",
                mode="RGB",
                animated=False,
            ),
        )
        for number, record in enumerate(records)
    }
    assert len(kept) == size
    steps.end("with inspections")
    return steps.rows


def read(manifest: Path) -> dict[str, dict[str, float]]:
    """Make the dataset of the manifest, as every verb does that is given a run."""
    from vitrail.data import open_manifest

    steps = Steps()
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "class").mkdir()
        dataset = open_manifest(manifest, folder)
    assert len(dataset.classes) == CLASSES
    steps.end("read and split")
    return steps.rows


def measure(size: int) -> dict[str, object]:
    """Run both processes."""
    with tempfile.TemporaryDirectory() as folder:
        manifest = Path(folder) / "manifest.csv"
        steps = {}
        for part in PARTS:
            command = [sys.executable, __file__, "--part", part, "--sizes", str(size), "--manifest", str(manifest)]
            steps[part] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        return {"rows": size, "bytes_of_manifest": manifest.stat().st_size, **steps}


def main() -> None:
    """Run each size, print the table, keep the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=list(SIZES))
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    parser.add_argument("--manifest", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part is not None:
        size = options.sizes[0]
        done = {"write": lambda: write(size, options.manifest), "read": lambda: read(options.manifest)}
        print(json.dumps(done.get(options.part, lambda: inspect(size))()))
        return
    found = [measure(size) for size in options.sizes]
    print("| rows | process | step | processor seconds | peak MiB |\n|---:|---|---|---:|---:|")
    for each in found:
        for part in PARTS:
            for step, row in each[part].items():
                print(f"| {each['rows']:,} | {part} | {step} | {row['processor_s']:.1f} | {row['peak_mib']:.0f} |")
    save(options.out, "manifest_scale", {"classes": CLASSES, "sizes": found})


if __name__ == "__main__":
    main()
