"""Loading training images on one core: vitrail, torchvision and timm in turn.

    python benchmarks/data_loading.py --data FOLDER [--rounds 5] [--camera 64]

FOLDER holds one folder of photographs per class. Every contestant gives batches of 32 images of 224 pixels, float32,
normalised, on one and the same core, in its own process and without worker processes.

The first table is the same work for all: decode, crop at random (0.08 to 1 of the area, proportions 3:4 to 4:3), resize
(bilinear, antialiased), flip half of them, normalise. `vitrail, cache` reads pictures that an earlier epoch decoded, as
`vitrail train` does where they fit into memory. `Pillow` only decodes. The second table is each library's own stronger
augmentation, which is not the same work: the loaders as their users get them. The third is the first again with
photographs of 12 megapixels, which are made of those in FOLDER.

vitrail calls `keep_freed_memory` first, as its verb `train` does. It also decodes every file once before the first
epoch, to leave broken ones out; that is not counted here. torchvision appears with its transforms on Pillow's images
and on tensors, timm with and without its prefetcher, which then normalises whole batches. All of them decode with
Pillow: torchvision's own decoder does not load beside a CPU build of torch. Needs Linux and the extra `peers`.
"""

import argparse
import itertools
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from alternate import Contestant, Turn, save, table, take_turns
from photographs import make_camera_photographs

BATCH, IMAGE = 32, 224
CROP_SCALE, CROP_RATIO = (0.08, 1.0), (3 / 4, 4 / 3)
MEAN = STD = (0.5, 0.5, 0.5)
JITTER = 0.4  # timm's default; given to torchvision, which has none
SPEED, CPU_SPEED = "images/s", "images per second of processor time"

Epoch = Callable[[], Iterator[Any]]
"""Begins an epoch and gives its batches: float32 tensors (B, 3, H, W)."""


def vitrail_loader(data: Path, policy: str, cache: str) -> Epoch:
    """Return vitrail's loader with a policy of its own, or with the crop and the flip alone."""
    from vitrail.config import Preprocess
    from vitrail.data import AugmentPolicy, TrainLoader, augment_policy
    from vitrail.data.dataset import open_evaluation_set
    from vitrail.runtime.memory import keep_freed_memory

    keep_freed_memory()
    classes = sorted(path.name for path in data.iterdir() if path.is_dir())
    split = open_evaluation_set(data, classes).splits["test"]  # undivided: all pictures are in one split
    crop_flip = AugmentPolicy(crop_scale=CROP_SCALE, crop_ratio=CROP_RATIO, flip_rate=0.5)
    augment = crop_flip if policy == "crop, flip" else augment_policy(policy)
    preprocess = Preprocess(image_size=(IMAGE, IMAGE), mean=MEAN, std=STD)
    loader = TrainLoader(split, preprocess, augment, BATCH, seed=0, cache=cache)
    epochs = itertools.count()
    return lambda: (batch.images for batch in loader.epoch(next(epochs)))


def torchvision_loader(data: Path, on: str, jitter: float) -> Epoch:
    """Return torchvision's folder and transforms behind torch's loader; ``on`` is "pillow" or "tensors"."""
    from peers import make_torchvision_importable

    make_torchvision_importable()
    import torch
    from torchvision.datasets import ImageFolder
    from torchvision.transforms import v2

    steps = [
        v2.RandomResizedCrop(IMAGE, scale=CROP_SCALE, ratio=CROP_RATIO, antialias=True),
        v2.RandomHorizontalFlip(),
        *([v2.ColorJitter(jitter, jitter, jitter)] if jitter else []),
    ]
    steps.insert(0 if on == "tensors" else len(steps), v2.ToImage())
    steps += [v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)]
    folder = ImageFolder(data, v2.Compose(steps))
    loader = torch.utils.data.DataLoader(folder, BATCH, shuffle=True, drop_last=True, num_workers=0)
    return lambda: (images for images, _ in loader)


def timm_loader(data: Path, prefetcher: bool, jitter: float | None) -> Epoch:
    """Return timm's standard loader."""
    from peers import make_torchvision_importable

    make_torchvision_importable()
    import torch
    from timm.data import create_dataset, create_loader

    loader = create_loader(
        create_dataset("", root=str(data)),
        input_size=(3, IMAGE, IMAGE),
        batch_size=BATCH,
        is_training=True,
        scale=CROP_SCALE,
        ratio=CROP_RATIO,
        color_jitter=jitter,
        interpolation="bilinear",
        mean=MEAN,
        std=STD,
        num_workers=0,
        device=torch.device("cpu"),
        use_prefetcher=prefetcher,
    )
    return lambda: (images for images, _ in loader)


SAME_WORK: dict[str, Callable[[Path], Epoch]] = {
    "vitrail": partial(vitrail_loader, policy="crop, flip", cache="off"),
    "vitrail, cache": partial(vitrail_loader, policy="crop, flip", cache="on"),
    "torchvision on Pillow": partial(torchvision_loader, on="pillow", jitter=0.0),
    "torchvision on tensors": partial(torchvision_loader, on="tensors", jitter=0.0),
    "timm": partial(timm_loader, prefetcher=False, jitter=None),
    "timm, prefetcher": partial(timm_loader, prefetcher=True, jitter=None),
}
STRONGER: dict[str, Callable[[Path], Epoch]] = {
    "vitrail medium": partial(vitrail_loader, policy="medium", cache="off"),
    "vitrail medium, cache": partial(vitrail_loader, policy="medium", cache="on"),
    "torchvision on Pillow, ColorJitter 0.4": partial(torchvision_loader, on="pillow", jitter=JITTER),
    "torchvision on tensors, ColorJitter 0.4": partial(torchvision_loader, on="tensors", jitter=JITTER),
    "timm, its color jitter 0.4": partial(timm_loader, prefetcher=False, jitter=JITTER),
    "timm, prefetcher, its color jitter 0.4": partial(timm_loader, prefetcher=True, jitter=JITTER),
}
TABLES: dict[str, tuple[str, dict[str, Callable[[Path], Epoch]], tuple[str, ...]]] = {
    "same_work": ("decode, crop, flip, normalise", SAME_WORK, ("vitrail", "vitrail, cache")),
    "stronger": ("stronger, not the same work", STRONGER, ("vitrail medium", "vitrail medium, cache")),
    "camera": ("the first, of 12 megapixels", SAME_WORK, ("vitrail", "vitrail, cache")),
}
"""Title, contestants, and which of them are ours. Each table has a file of results of its own."""


def build(contestant: str, data: str, core: int) -> Turn:
    """Return a turn: one epoch, of which every batch is looked at."""
    os.sched_setaffinity(0, {core})
    import torch

    torch.set_num_threads(1)
    torch.manual_seed(0)
    begin = (SAME_WORK | STRONGER)[contestant](Path(data))
    check_values(next(begin()))

    def turn() -> dict[str, float]:
        num_images, start, processor_start = 0, time.perf_counter(), time.process_time()
        for images in begin():
            assert images.shape == (BATCH, 3, IMAGE, IMAGE)
            assert images.dtype == torch.float32
            num_images += len(images)
        return rates(num_images, start, processor_start)

    return turn


def rates(num_images: int, start: float, processor_start: float) -> dict[str, float]:
    """Return the speeds since two clocks, the wall's and the processor's, showed these times."""
    wall_s, processor_s = time.perf_counter() - start, time.process_time() - processor_start
    return {SPEED: num_images / wall_s, CPU_SPEED: num_images / processor_s, "images": num_images}


def check_values(images: Any) -> None:
    """Refuse images that are not normalised to [-1, 1], or that show nothing."""
    low, high, spread = float(images.min()), float(images.max()), float(images.std())
    assert -1.001 < low < -0.8, low
    assert 0.8 < high < 1.001, high
    assert spread > 0.2, spread


def build_pillow(data: str, core: int) -> Turn:
    """Return a turn: decode every file, and nothing else."""
    os.sched_setaffinity(0, {core})
    from PIL import Image

    paths = sorted(path for path in Path(data).rglob("*") if path.is_file())

    def turn() -> dict[str, float]:
        start, processor_start = time.perf_counter(), time.process_time()
        for path in paths:
            with Image.open(path) as image:
                image.convert("RGB")
        return rates(len(paths), start, processor_start)

    return turn


def compare(title: str, group: dict[str, Any], ours: tuple[str, ...], place: dict[str, Any], rounds: int) -> Any:
    """Let a group take turns, print its tables and return its figures."""
    contestants = {name: Contestant(build, {"contestant": name, **place}) for name in group}
    if group is SAME_WORK:
        contestants["Pillow, decodes only"] = Contestant(build_pillow, place)
    figures = take_turns(contestants, rounds)
    num_images = {turn["images"] for name in group for turn in figures[name]}
    assert len(num_images) == 1, num_images
    print(f"\n{int(num_images.pop())} images an epoch, batches of {BATCH}, {IMAGE} pixels, one core.")
    for name, speed in itertools.product(ours, (SPEED, CPU_SPEED)):
        print("\n" + table(title, figures, name, speed))
    return figures


def main() -> None:
    """Run, print the tables, keep the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with one folder of photographs per class")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--camera", type=int, default=64, help="how many photographs of 12 megapixels to make")
    parser.add_argument("--tables", nargs="+", choices=TABLES, default=list(TABLES), help="which to measure; all")
    parser.add_argument("--core", type=int, default=max(os.sched_getaffinity(0)))
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    place = {"data": str(options.data), "core": options.core}
    for name in options.tables:
        title, group, ours = TABLES[name]
        with tempfile.TemporaryDirectory() as folder:
            if name == "camera":
                place["data"] = str(make_camera_photographs(options.data, Path(folder), options.camera))
            figures = compare(title, group, ours, place, options.rounds)
        save(options.out, f"data_loading_{name}", {"batch": BATCH, "image": IMAGE, "figures": figures})


if __name__ == "__main__":
    main()
