"""Does a teacher help? The same student with and without one, several seeds, same split and recipe.

    python benchmarks/distillation.py --data FOLDER [--student mobilevit_xxs] [--teacher vit_tiny_patch16]

FOLDER holds images in folders, one per class or train, val and test folders of these; "digits" is built in. For each
seed the teacher is trained on the same split as the students, so it has not seen the images that measure them. Every
finished run is kept in results/distillation.json and not trained again, so the script can be stopped and started; the
teachers' runs stay in --work. Prints mean test accuracy over the seeds, and the paired difference to the student that
learnt from the labels alone with a 95 % t interval over the seeds.
"""

import argparse
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

from alternate import machine
from scipy.stats import t as student_t

ARMS: dict[str, dict[str, Any]] = {
    "labels alone": {},
    "soft": {},
    "hard": {"distill": "hard"},
    "soft, features": {"distill_features": 1.0},
    "soft, kept": {"distill_cache": 10},
}
"""What each arm adds to the recipe; all but the first have the teacher."""
PLAIN = "labels alone"
TEACHER = "teacher"


def run_one(options: argparse.Namespace, arm: str, seed: int) -> dict[str, float]:
    """Train once and return the test accuracy and the time of the training."""
    import vitrail

    recipe = {"seed": seed, "workers": 1, "quiet": True, "image_size": options.image_size, "augment": options.augment}
    if arm == TEACHER:
        name = teacher_name(options, seed)
        recipe |= {"model": options.teacher, "epochs": options.teacher_epochs, "out": options.work, "name": name}
        return _outcome(vitrail.train(options.data, **recipe))
    recipe |= {"model": options.student, "epochs": options.epochs, **ARMS[arm]}
    if arm != PLAIN:
        recipe["teacher"] = str(options.work / "train" / teacher_name(options, seed))
    with tempfile.TemporaryDirectory() as out:
        return _outcome(vitrail.train(options.data, out=out, **recipe))


def teacher_name(options: argparse.Namespace, seed: int) -> str:
    """Return the name of the folder of a teacher's run."""
    size = f"_{options.image_size}px" if options.image_size else ""
    return f"{Path(options.data).name}_{options.teacher}{size}_{options.teacher_epochs}_epochs_seed{seed}"


def _outcome(result: Any) -> dict[str, float]:
    measured = result.metrics.get("test") or result.metrics["val"]
    return {
        "accuracy": measured.accuracy.value,
        "num_images": measured.num_images,
        "elapsed_s": round(result.elapsed_s, 1),
    }


def summary(trials: list[dict[str, Any]]) -> str:
    """Return a table of what was trained on one set of images with one recipe."""
    found: dict[str, dict[int, float]] = {arm: {} for arm in (TEACHER, *ARMS)}
    for trial in trials:
        found[trial["arm"]][trial["seed"]] = 100 * trial["accuracy"]
    header = f"| arm | seeds | test accuracy, mean (sd) | minus {PLAIN}, 95 % interval |"
    lines = [header, "|---|---|---|---|"]
    for arm, by_seed in found.items():
        if not by_seed:
            continue
        values = list(by_seed.values())
        spread = f" ({statistics.stdev(values):.1f})" if len(values) > 1 else ""
        pairs = [by_seed[seed] - found[PLAIN][seed] for seed in by_seed if seed in found[PLAIN]]
        versus = interval(pairs) if arm != PLAIN else ""
        lines.append(f"| {arm} | {len(values)} | {statistics.mean(values):.1f} %{spread} | {versus} |")
    return "\n".join(lines)


def interval(differences: list[float]) -> str:
    """Return the mean of paired differences with its 95 % t interval; nothing for fewer than two."""
    if len(differences) < 2:
        return ""
    mean, num = statistics.mean(differences), len(differences)
    half = float(student_t.ppf(0.975, num - 1)) * statistics.stdev(differences) / num**0.5
    return f"{mean:+.1f} [{mean - half:+.1f}, {mean + half:+.1f}]"


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--student", default="mobilevit_xxs")
    parser.add_argument("--teacher", default="vit_tiny_patch16", help="name of a model")
    parser.add_argument("--image-size", type=int, help="of both; default: by the images")
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--teacher-epochs", type=int, default=60)
    parser.add_argument("--augment", default="medium")
    parser.add_argument("--arms", nargs="+", default=[PLAIN, "soft", "hard"], choices=list(ARMS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--threads", type=int, help="of torch; several data sets can then run side by side")
    parser.add_argument("--work", type=Path, default=Path("runs/distillation"), help="folder of the teachers' runs")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "distillation.json")
    return parser.parse_args()


def main() -> None:
    """Run what is missing, then print the table."""
    options = _parse()
    if options.threads:
        import torch

        torch.set_num_threads(options.threads)
    names = ("student", "teacher", "image_size", "epochs", "teacher_epochs", "augment")
    recipe = {"data": Path(options.data).name, **{name: getattr(options, name) for name in names}}
    trials = json.loads(options.out.read_text())["trials"] if options.out.exists() else []
    done = {(trial["arm"], trial["seed"]) for trial in trials if trial["recipe"] == recipe}
    for seed in options.seeds:
        for arm in (TEACHER, *options.arms):
            if (arm, seed) in done:
                continue
            trials.append({"recipe": recipe, "arm": arm, "seed": seed, **run_one(options, arm, seed)})
            options.out.parent.mkdir(parents=True, exist_ok=True)
            document = {"benchmark": "distillation", "machine": machine(), "trials": trials}
            options.out.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
            print(trials[-1], flush=True)
    print(summary([trial for trial in trials if trial["recipe"] == recipe]))


if __name__ == "__main__":
    main()
