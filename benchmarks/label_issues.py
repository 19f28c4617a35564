"""Swap 5 % of the labels and count how many of the first hundred that are suspected were swapped.

    python benchmarks/label_issues.py --data cifar10=FOLDER flowers5=FOLDER [--seeds 0 1 2] [--trained]
    python benchmarks/label_issues.py --table        prints the table from what was measured

A FOLDER holds one folder of images per class. Of 5 % of the images the label becomes another one, each of the others
with the same chance. What `vitrail data FOLDER --label-folds 5` does then looks for them: features of patches, a linear
classifier that judges each fifth after learning the others, and cleanlab, which orders by the probability of the given
label. The same answers are also ordered by cleanlab's other scores. With ``--trained`` so are the answers of a
Lucarne-XS that is trained anew for each fold, each time for the same processor time (first seed alone).

Where fewer than a hundred labels were swapped, as many as were swapped are looked at. By chance 5 % would be right.
Finished trials and folds are kept, so the script can be stopped and started.
"""

import argparse
import json
import os
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from alternate import machine

os.environ.setdefault("OMP_NUM_THREADS", "1")

SHARE, FOLDS, FIRST = 0.05, 5, 100
SCORES = ("self_confidence", "normalized_margin", "confidence_weighted_entropy")
TRAINED = {"model": "lucarne_xs", "lr": 2e-3, "augment": "light", "batch_size": 64, "epochs": 10_000}
IMAGE_SIZE = {"cifar10": 64}
LARGEST_IMAGE_SIZE = 128
RESULTS = Path(__file__).parent / "results" / "label_issues.json"


def read_images(folder: Path):
    """Return all images below a folder as one split, with their own labels."""
    from vitrail.data import open_evaluation_set

    return open_evaluation_set(folder, sorted(path.name for path in folder.iterdir() if path.is_dir())).splits["test"]


def swap(labels: np.ndarray, num_classes: int, seed: int) -> np.ndarray:
    """Return the labels with `SHARE` of them changed to another."""
    rng = np.random.default_rng(seed)
    chosen = rng.permutation(len(labels))[: round(SHARE * len(labels))]
    given = labels.copy()
    given[chosen] = (labels[chosen] + rng.integers(1, num_classes, len(chosen))) % num_classes
    return given


def patch_answers(images, given: np.ndarray, seed: int) -> tuple[np.ndarray, float]:
    """Return the answers of the verb's quick model, and the processor time of everything."""
    from vitrail.data.labels import assign_folds, out_of_fold
    from vitrail.verbs.labelcheck import patch_features

    begin = time.process_time()
    folds = assign_folds(given, np.arange(len(given)), FOLDS, seed=seed)
    answers = out_of_fold(patch_features(images, seed), given, folds, len(images.classes))
    return answers, time.process_time() - begin


def trained_answers(
    name: str, images, given: np.ndarray, seed: int, seconds: int, work: Path
) -> tuple[np.ndarray, float]:
    """Return the answers of a network that is trained on the other folds; each fold is kept in ``work``."""
    from vitrail.data.labels import assign_folds

    folds = assign_folds(given, np.arange(len(given)), FOLDS, seed=seed)
    answers, spent_s = np.zeros((len(given), len(images.classes))), 0.0
    for fold in range(FOLDS):
        kept = work / f"{name}-{seed}-{seconds}-{fold}.npz"
        if not kept.exists():
            begin = time.process_time()
            table = train_and_ask(name, images, given, folds == fold, seconds, seed)
            np.savez(kept, table=table, spent_s=time.process_time() - begin)
        content = np.load(kept)
        answers[folds == fold], spent_s = content["table"], spent_s + float(content["spent_s"])
    return answers, spent_s


def train_and_ask(name: str, images, given: np.ndarray, asked: np.ndarray, seconds: int, seed: int) -> np.ndarray:
    """Train on the images that are not asked about, and return the probabilities of those that are."""
    import vitrail
    from vitrail.data import EvalLoader, Split
    from vitrail.evaluation.calibration import probabilities
    from vitrail.evaluation.predict import collect
    from vitrail.training import window
    from vitrail.verbs.target import open_target

    window.time = SimpleNamespace(perf_counter=time.process_time)  # the budget is processor time
    size = IMAGE_SIZE.get(name, LARGEST_IMAGE_SIZE)
    options = {**TRAINED, "image_size": size, "workers": 1, "quiet": True, "duplicates": "off", "test_fraction": 0.0}
    with tempfile.TemporaryDirectory() as folder:
        for row in np.flatnonzero(~asked).tolist():
            link = Path(folder) / "images" / images.classes[given[row]] / f"{row:06}{Path(images.paths[row]).suffix}"
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(images.pictures.root / images.paths[row])
        run = vitrail.train(f"{folder}/images", out=folder, time_budget=f"{seconds}s", seed=seed, **options)
        predictor = open_target(run.path).predictor
        part = Split(
            name="test",
            classes=images.classes,
            paths=[path for path, wanted in zip(images.paths, asked, strict=True) if wanted],
            labels=given[asked],
            sizes=images.sizes[asked],
            pictures=images.pictures,
        )
        return probabilities(collect(predictor, EvalLoader(part, predictor.preprocess, 64)).logits)


def score(images, given: np.ndarray, answers: np.ndarray) -> dict[str, float]:
    """Return how good the answers are, and the precision of the first that each way of ordering names."""
    from cleanlab.filter import find_label_issues as cleanlab_issues

    from vitrail.data.labels import find_label_issues

    swapped = given != images.labels
    first = min(FIRST, int(swapped.sum()))
    issues = find_label_issues(given, answers)
    hits = issues.indices[:first][swapped[issues.indices[:first]]]
    right = issues.suggested[:first][swapped[issues.indices[:first]]] == images.labels[hits]
    ordered = {
        name: float(swapped[cleanlab_issues(given, answers, return_indices_ranked_by=name, n_jobs=1)[:first]].mean())
        for name in SCORES
    }
    return {
        "images": len(given),
        "swapped": int(swapped.sum()),
        "looked_at": first,
        "accuracy": float((answers.argmax(axis=1) == images.labels).mean()),
        "precision": float(swapped[issues.indices[:first]].mean()),
        "named": len(issues.indices),
        "recall_of_named": float(swapped[issues.indices].sum() / swapped.sum()),
        "suggestion_right": float(right.mean()) if len(right) else None,
        "precision_by_score": ordered,
    }


def table(trials: list[dict]) -> str:
    """Return the trials as a table, the mean over the seeds."""
    lines = [
        "| images | answers | processor time | right | precision among the first | by margin | by entropy | seeds |",
        "|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    for key in sorted({(trial["data"], trial["answers"]) for trial in trials}):
        found = [trial for trial in trials if (trial["data"], trial["answers"]) == key]
        mean = {name: np.mean([trial[name] for trial in found]) for name in ("spent_s", "accuracy", "precision")}
        margin, entropy = (np.mean([trial["precision_by_score"][name] for trial in found]) for name in SCORES[1:])
        lines.append(
            f"| {key[0]} | {key[1]} | {mean['spent_s']:.0f} s | {mean['accuracy']:.1%} | {mean['precision']:.2f} of "
            f"{found[0]['looked_at']} | {margin:.2f} | {entropy:.2f} | {len(found)} |"
        )
    return "\n".join(lines)


def read_trials(path: Path) -> list[dict]:
    """Return the finished trials."""
    return json.loads(path.read_text())["trials"] if path.exists() else []


def measure(options: argparse.Namespace) -> None:
    """Do every trial that has no result yet."""
    import torch

    torch.set_num_threads(1)
    options.work.mkdir(parents=True, exist_ok=True)
    for name, folder in options.data:
        images = read_images(folder)
        plans = [(seed, "patches") for seed in options.seeds]
        plans += [(options.seeds[0], f"Lucarne-XS, {options.seconds} s a fold")] if options.trained else []
        for seed, kind in plans:
            trials = read_trials(options.out)
            if any((t["data"], t["answers"], t["seed"]) == (name, kind, seed) for t in trials):
                continue
            given = swap(images.labels, len(images.classes), seed)
            if kind == "patches":
                answers, spent_s = patch_answers(images, given, seed)
            else:
                answers, spent_s = trained_answers(name, images, given, seed, options.seconds, options.work)
            trial = {"data": name, "answers": kind, "seed": seed, "spent_s": spent_s, **score(images, given, answers)}
            print(trial, flush=True)
            document = {"benchmark": "label_issues", "machine": machine(), "trials": [*trials, trial]}
            options.out.parent.mkdir(parents=True, exist_ok=True)
            options.out.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def named_folder(text: str) -> tuple[str, Path]:
    """Return the two parts of NAME=FOLDER."""
    name, _, folder = text.partition("=")
    return name, Path(folder)


def main() -> None:
    """Run what is missing, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=named_folder, nargs="+", default=[], metavar="NAME=FOLDER")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--trained", action="store_true", help="also train a network for each fold of the first seed")
    parser.add_argument("--seconds", type=int, default=60, help="processor time to train each fold")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "vitrail-labels")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--table", action="store_true")
    options = parser.parse_args()
    if not options.table:
        measure(options)
    print(table(read_trials(options.out)))


if __name__ == "__main__":
    main()
