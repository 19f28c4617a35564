"""From how many validation images on a class deserves a threshold of its own.

    python benchmarks/multilabel_thresholds.py [--repeats 100] [--save benchmarks/results]

Logits of 20 classes are drawn as a model would give them that ranks some classes better than others: rare and common
classes (a twelfth of the images on average), with probabilities that are right or, per class, shifted by a normal
deviate of 0.7 in the logit, as class weights and forgotten labels do. Thresholds are chosen on a validation set and F1
is measured on 6,000 other images. The rules: 0.5 for all; one common threshold with the highest micro F1; one for each
class with its highest F1; and that only for classes with at least so many validation images, the common one else.
"""

import argparse
from pathlib import Path

import numpy as np
from alternate import save

from vitrail.evaluation.thresholds import best_threshold

NUM_CLASSES = 20
MEAN_SHARE = 1 / 12
NUM_TEST = 6000
RULES = {"0.5": None, "common": np.inf, "own": 1, "own from 5": 5, "own from 10": 10, "own from 20": 20}
"""Validation images of a class from which its threshold is its own; None where no threshold is chosen at all."""


class World:
    """How often classes are there, how well they are told apart, and how wrong their probabilities are."""

    def __init__(self, rng: np.random.Generator, shift: float) -> None:
        self.rng = rng
        self.share = np.clip(rng.lognormal(np.log(MEAN_SHARE) - 0.32, 0.8, NUM_CLASSES), 0.01, 0.6)
        self.distance = rng.uniform(1, 4, NUM_CLASSES)
        self.shift = shift * rng.normal(size=NUM_CLASSES)

    def draw(self, num: int) -> tuple[np.ndarray, np.ndarray]:
        """Return probabilities and labels of that many images."""
        labels = self.rng.random((num, NUM_CLASSES)) < self.share
        evidence = self.rng.normal(size=labels.shape) + labels * self.distance
        prior = np.log(self.share / (1 - self.share))
        logits = self.distance * evidence - self.distance**2 / 2 + prior + self.shift
        return 1 / (1 + np.exp(-logits)), labels


def thresholds(table: np.ndarray, labels: np.ndarray, fewest: float | None) -> np.ndarray:
    """Return the threshold of each class by a rule of `RULES`."""
    if fewest is None:
        return np.full(NUM_CLASSES, 0.5)
    common = best_threshold(table.ravel(), labels.ravel())
    enough = labels.sum(axis=0) >= fewest
    return np.array([best_threshold(table[:, k], labels[:, k]) if own else common for k, own in enumerate(enough)])


def f1(table: np.ndarray, labels: np.ndarray, limits: np.ndarray) -> tuple[float, float]:
    """Return macro and micro F1."""
    given = table >= limits
    hits, either = (labels & given).sum(axis=0), labels.sum(axis=0) + given.sum(axis=0)
    return float(np.mean(2 * hits / np.maximum(either, 1))), float(2 * hits.sum() / either.sum())


def measure(shift: float, mean_support: int, repeats: int) -> dict[str, tuple[float, float]]:
    """Return by rule macro and micro F1, the means over worlds."""
    scores: dict[str, list[tuple[float, float]]] = {rule: [] for rule in RULES}
    for seed in range(repeats):
        world = World(np.random.default_rng(seed), shift)
        chosen_on, measured_on = world.draw(round(mean_support / MEAN_SHARE)), world.draw(NUM_TEST)
        for rule, fewest in RULES.items():
            scores[rule].append(f1(*measured_on, thresholds(*chosen_on, fewest)))
    return {rule: tuple(np.mean(rows, axis=0).round(4).tolist()) for rule, rows in scores.items()}


def main() -> None:
    """Print a table and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=100)
    parser.add_argument("--save", type=Path, metavar="FOLDER")
    options = parser.parse_args()
    rows = []
    print(f"| shift | validation images of a class | {' | '.join(f'{rule}: macro, micro' for rule in RULES)} |")
    print("|---|---|" + "---|" * len(RULES))
    for shift in (0.0, 0.7):
        for mean_support in (3, 10, 20, 40, 100):
            scores = measure(shift, mean_support, options.repeats)
            rows.append({"shift": shift, "mean_support": mean_support, "f1": scores})
            cells = " | ".join(f"{macro:.3f}, {micro:.3f}" for macro, micro in scores.values())
            print(f"| {shift} | {mean_support} | {cells} |", flush=True)
    if options.save:
        save(options.save, "multilabel_thresholds", {"repeats": options.repeats, "rows": rows})


if __name__ == "__main__":
    main()
