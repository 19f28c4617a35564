"""The share of a training that a ViT-tiny at 224 pixels waits for images.

    python benchmarks/waiting.py --data FOLDER [--images 320] [--camera 64] [--epochs 2]

FOLDER holds one folder of photographs per class. `vitrail train` learns from some of them, and from photographs of 12
megapixels that are made of them, with and without its cache; the share is the one that it writes into metrics.csv. The
first epoch decodes every photograph; with the cache the later ones need not. An epoch begins with a batch that nothing
hides, so few images make the share larger than many do: as many of 12 megapixels as fill one batch of 32 are the worst
case. What the loader's threads take from the model's is no waiting: it shows in the images per second.
"""

import argparse
import tempfile
from pathlib import Path

from alternate import save
from photographs import make_camera_photographs

OPTIONS = {"model": "vit_tiny_patch16", "image_size": 224, "batch_size": 32, "duplicates": "off", "test_fraction": 0.0}


def some_of(data: Path, folder: Path, num: int) -> Path:
    """Link ``num`` photographs below ``folder``, as many of every class as can be; return it."""
    classes = sorted(path for path in data.iterdir() if path.is_dir())
    for label in classes:
        (folder / label.name).mkdir(parents=True)
        for path in sorted(label.iterdir())[: num // len(classes)]:
            (folder / label.name / path.name).symlink_to(path.resolve())
    return folder


def train(source: Path, cache: str, epochs: int) -> list[dict[str, float]]:
    """Return what a training tells of each epoch."""
    import vitrail
    from vitrail.training import Run, read_metrics

    with tempfile.TemporaryDirectory() as folder:
        run = vitrail.train(source, epochs=epochs, cache=cache, out=folder, optimizer="adamw", quiet=True, **OPTIONS)
        rows = read_metrics(Run(run.path).metrics_path)
    return [{"wait_share": row.wait_share, "images_per_s": row.images_per_s} for row in rows]


def main() -> None:
    """Train on each source, print the table, keep the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with one folder of photographs per class")
    parser.add_argument("--images", type=int, default=320)
    parser.add_argument("--camera", type=int, default=64, help="how many photographs of 12 megapixels to make")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    rows = []
    print("| photographs | cache | epoch | waiting for images | images/s |\n|---|---|---:|---:|---:|")
    with tempfile.TemporaryDirectory() as folder:
        sources = {"as they are": some_of(options.data, Path(folder) / "some", options.images)}
        sources["12 megapixels"] = make_camera_photographs(options.data, Path(folder) / "camera", options.camera)
        for name, source in sources.items():
            for cache in ("on", "off"):
                for epoch, found in enumerate(train(source, cache, options.epochs), start=1):
                    rows.append({"photographs": name, "cache": cache, "epoch": epoch, **found})
                    share, speed = found["wait_share"], found["images_per_s"]
                    print(f"| {name} | {cache} | {epoch} | {share:.1%} | {speed:.1f} |", flush=True)
    content = {"images": options.images, "camera": options.camera, "options": OPTIONS, "rows": rows}
    save(options.out, "waiting", content)


if __name__ == "__main__":
    main()
