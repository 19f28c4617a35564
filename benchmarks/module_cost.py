"""What local enhancement and multi-scale fusion cost: the parameters and multiply-adds they add to a ViT.

    python benchmarks/module_cost.py

Counted by `vitrail.evaluation.cost.model_cost`, attention's own products included, for a head of 10 classes. Nothing is
timed, so the numbers are the same on every machine.
"""

import argparse
from pathlib import Path

from alternate import save

import vitrail
from vitrail.evaluation.cost import model_cost

NUM_CLASSES = 10
MODELS = [
    (f"vit_{size}_patch{patch}", side) for patch, side in ((16, 224), (4, 32)) for size in ("micro", "tiny", "small")
]
ARMS = {"local": {"local": True}, "fusion": {"fusion": True}, "both": {"local": True, "fusion": True}}


def count(name: str, image_size: int, **options: bool) -> dict[str, int]:
    """Return the parameters and the multiply-adds for one image."""
    model = vitrail.create_model(name, num_classes=NUM_CLASSES, image_size=image_size, **options)
    cost = model_cost(model, (image_size, image_size))
    return {"parameters": cost.parameters, "macs": cost.macs}


def measure() -> list[dict]:
    """Return one row for each model and each arm."""
    rows = []
    for name, image_size in MODELS:
        plain = count(name, image_size)
        for arm, options in ARMS.items():
            cost = count(name, image_size, **options)
            added = {key: cost[key] - plain[key] for key in plain}
            rows.append({"model": name, "image_size": image_size, "arm": arm, "plain": plain, "added": added})
    return rows


def table(rows: list[dict]) -> str:
    """Return a Markdown table of what is added, and its share of the plain model."""
    lines = ["| model | pixels | module | parameters added | multiply-adds added |", "|---|---|---|---|---|"]
    for row in rows:
        parameters, macs = row["added"]["parameters"], row["added"]["macs"]
        of_parameters, of_macs = parameters / row["plain"]["parameters"], macs / row["plain"]["macs"]
        lines.append(
            f"| {row['model']} | {row['image_size']} | {row['arm']} | {parameters:,} ({of_parameters:.1%}) "
            f"| {macs / 1e6:.2f} M ({of_macs:.1%}) |"
        )
    return "\n".join(lines)


def main() -> None:
    """Count, print the table, keep the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    rows = measure()
    print(table(rows))
    save(options.out, "module_cost", {"num_classes": NUM_CLASSES, "rows": rows})


if __name__ == "__main__":
    main()
