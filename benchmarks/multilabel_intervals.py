"""How often the intervals of the multi-label scores cover the true value.

    python benchmarks/multilabel_intervals.py [--repeats 1000] [--save benchmarks/results]

Answers to n images are drawn many times, with classes of a given share, scores that tell them apart more or less, and
images that are hard for all classes at once. The true value is that of very many images. Ideally 95 % of the intervals
hold it.
"""

import argparse
from pathlib import Path

import numpy as np
from alternate import save

from vitrail.evaluation.multilabel import MultiLabelMetrics, multilabel_metrics

SCORES = ("mean_average_precision", "macro_f1", "micro_f1", "hamming_loss", "exact_match")
NUM_TRUE = 100_000
WORLDS = (
    # images, classes, share of each class, distance of the scores, hardness of images
    (60, 1, 0.2, 2, 0),
    (100, 4, 0.3, 3, 0),
    (100, 4, 0.3, 3, 1),
    (200, 10, 0.1, 4, 1),
    (300, 20, 0.05, 3, 0),
    (300, 20, 0.05, 1, 0),
    (1000, 20, 0.02, 2, 0.5),
    (100, 10, 0.02, 2, 0),
)


def measure(rng: np.random.Generator, num: int, world: tuple[float, ...]) -> MultiLabelMetrics:
    """Return the scores of so many images of a world."""
    _, num_classes, share, distance, hardness = world
    labels = rng.random((num, int(num_classes))) < share
    hard = hardness * rng.normal(size=(num, 1))
    logits = rng.normal(size=labels.shape) + np.where(labels, distance + hard, -hard) - distance / 2
    return multilabel_metrics(logits, labels, tuple(map(str, range(int(num_classes)))))


def coverage(world: tuple[float, ...], repeats: int) -> dict[str, float]:
    """Return by score the share of intervals that hold the true value."""
    rng = np.random.default_rng(0)
    truth = measure(rng, NUM_TRUE, world)
    covered = dict.fromkeys(SCORES, 0)
    defined = dict.fromkeys(SCORES, 0)
    for _ in range(repeats):
        found = measure(rng, int(world[0]), world)
        for name in SCORES:
            estimate = getattr(found, name)
            if estimate.defined:
                defined[name] += 1
                covered[name] += estimate.low <= getattr(truth, name).value <= estimate.high
    return {name: round(covered[name] / defined[name], 3) for name in SCORES}


def main() -> None:
    """Print a table and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=1000)
    parser.add_argument("--save", type=Path, metavar="FOLDER")
    options = parser.parse_args()
    rows = []
    print(f"| images | classes | share | distance | hardness | {' | '.join(SCORES)} |")
    print("|---|---|---|---|---|" + "---|" * len(SCORES))
    for world in WORLDS:
        found = coverage(world, options.repeats)
        rows.append({"world": world, "coverage": found})
        print(
            f"| {' | '.join(map(str, world))} | {' | '.join(f'{share:.1%}' for share in found.values())} |", flush=True
        )
    if options.save:
        save(options.save, "multilabel_intervals", {"repeats": options.repeats, "rows": rows})


if __name__ == "__main__":
    main()
