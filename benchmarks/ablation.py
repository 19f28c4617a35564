"""Do local enhancement and multi-scale fusion help? Each switched on and off, several seeds, same split and recipe.

    python benchmarks/ablation.py --data-root FOLDER [--seeds 0 1 2]

FOLDER holds `cifar10` (5,000 training and 1,000 test images in folders) and `flowers5` (840, 180 and 180). Every
finished run is kept in results/ablation.json and not trained again, so the script can be stopped and started. Prints
mean test accuracy over the seeds, and the paired difference to the plain ViT with a 95 % t interval over the seeds.
"""

import argparse
import json
import statistics
import tempfile
from pathlib import Path

from alternate import machine
from scipy.stats import t as student

COMMON = {"batch_size": 32, "lr": 1e-3, "augment": "light", "flip": True, "workers": 1, "quiet": True}
RECIPES = {
    "cifar10": {"model": "vit_micro_patch4", "image_size": 32, "epochs": 12, **COMMON, "batch_size": 64},
    "flowers5": {"model": "vit_micro_patch8", "image_size": 64, "epochs": 60, **COMMON},
}
ARMS = {"plain": {}, "local": {"local": True}, "fusion": {"fusion": True}, "both": {"local": True, "fusion": True}}


def run_one(data: Path, arm: str, recipe: dict, seed: int) -> dict:
    """Train once and return the test accuracy."""
    import vitrail

    with tempfile.TemporaryDirectory() as out:
        result = vitrail.train(str(data), seed=seed, out=out, optimizer="adamw", **recipe, **ARMS[arm])
        test = result.metrics["test"]
        return {"accuracy": test.accuracy.value, "num_images": test.num_images}


def summary(trials: list[dict]) -> str:
    """Return the table of both data sets."""
    lines = ["| data | arm | seeds | test accuracy, mean (sd) | minus plain, 95 % interval |", "|---|---|---|---|---|"]
    for dataset in RECIPES:
        found = {
            arm: {t["seed"]: 100 * t["accuracy"] for t in trials if t["dataset"] == dataset and t["arm"] == arm}
            for arm in ARMS
        }
        for arm, by_seed in found.items():
            if len(by_seed) < 2:
                continue
            values = list(by_seed.values())
            mean, spread = statistics.mean(values), statistics.stdev(values)
            pairs = [by_seed[seed] - found["plain"][seed] for seed in by_seed if seed in found["plain"]]
            versus = ""
            if arm != "plain" and len(pairs) > 1:
                half = student.ppf(0.975, len(pairs) - 1) * statistics.stdev(pairs) / len(pairs) ** 0.5
                gain = statistics.mean(pairs)
                versus = f"{gain:+.1f} [{gain - half:+.1f}, {gain + half:+.1f}]"
            lines.append(f"| {dataset} | {arm} | {len(values)} | {mean:.1f} % ({spread:.1f}) | {versus} |")
    return "\n".join(lines)


def main() -> None:
    """Run what is missing, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--datasets", nargs="+", default=list(RECIPES))
    parser.add_argument("--threads", type=int, help="of torch; several data sets can then run side by side")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "ablation.json")
    options = parser.parse_args()
    if options.threads:
        import torch

        torch.set_num_threads(options.threads)
    trials = json.loads(options.out.read_text())["trials"] if options.out.exists() else []
    done = {(trial["dataset"], trial["arm"], trial["seed"]) for trial in trials}
    for seed in options.seeds:
        for dataset in options.datasets:
            for arm in ARMS:
                if (dataset, arm, seed) in done:
                    continue
                outcome = run_one(options.data_root / dataset, arm, RECIPES[dataset], seed)
                trials.append({"dataset": dataset, "arm": arm, "seed": seed, **outcome})
                options.out.parent.mkdir(parents=True, exist_ok=True)
                document = {"benchmark": "ablation", "machine": machine(), "recipes": RECIPES, "trials": trials}
                options.out.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
                print(trials[-1], flush=True)
    print(summary(trials))


if __name__ == "__main__":
    main()
