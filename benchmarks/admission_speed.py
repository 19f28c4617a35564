"""Admission of photographs against merely decoding them, and against tools that look for some of the same defects.

    python benchmarks/admission_speed.py --data FOLDER [--rounds 5] [--camera 24] [--fastdup PYTHON]

Every contestant looks at all photographs below FOLDER with two workers, in its own process, taking turns:

* Pillow opens each file and decodes it in full to RGB, in two processes, and keeps nothing;
* `vitrail, first time` is `open_dataset`: every file decoded and hashed, exact and near duplicates, leaks, findings,
  and the split, with an empty cache; `vitrail, again` is the same with the cache of the time before;
* cleanvision looks for its nine issues (dark, light, blurry, duplicates and so on), imagededup for duplicates by its
  perceptual hash; fastdup is run where another interpreter that has it is named, because it needs an older numpy.

The same is done with photographs of 12 megapixels that are made of them. Wall time is told and processor time (of all
threads and child processes), which other work on the machine disturbs less. Needs Linux; cleanvision and imagededup
are left out where they are not installed (``pip install --no-deps imagededup``, whose torch is another).
"""

import argparse
import importlib.util
import io
import logging
import multiprocessing
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

from alternate import Contestant, Turn, save, table, take_turns
from photographs import make_camera_photographs

WORKERS = 2
SPEED, CPU_SPEED = "images/s", "images per second of processor time"
FASTDUP = """
import sys, time, fastdup
begin = time.perf_counter()
fastdup.create(work_dir=sys.argv[2], input_dir=sys.argv[1]).run(num_threads=2, overwrite=True, print_summary=False)
print("seconds", time.perf_counter() - begin)
"""


def decode(path: str) -> int:
    """Decode one file as Pillow's users do."""
    from PIL import Image

    with Image.open(path) as image:
        return image.convert("RGB").width


def timed(work: Callable[[], float | None], num_images: int) -> Turn:
    """Return a turn that does the work; where that returns seconds, they are its wall time."""

    def turn() -> dict[str, float]:
        before, begin = processor_s(), time.perf_counter()
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            told = work()
        wall_s = time.perf_counter() - begin if told is None else told
        return {SPEED: num_images / wall_s, CPU_SPEED: num_images / (processor_s() - before), "images": num_images}

    return turn


def processor_s() -> float:
    """Return the processor time of this process and of its children that have ended."""
    usages = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def photographs(data: str) -> list[str]:
    """Return the files that are looked at."""
    return sorted(str(path) for path in Path(data).rglob("*.jpg") if path.is_file())


def build_pillow(data: str) -> Turn:
    """Return a turn that decodes all files in two new processes."""
    paths = photographs(data)
    decode(paths[0])

    def work() -> None:
        with ProcessPoolExecutor(WORKERS) as pool:
            assert all(width > 0 for width in pool.map(decode, paths, chunksize=max(1, min(16, len(paths) // 8))))

    return timed(work, len(paths))


def build_vitrail(data: str, again: bool) -> Turn:
    """Return a turn that admits all files, with what was found before or without."""
    import torch

    from vitrail.config import DataConfig
    from vitrail.data import open_dataset

    torch.set_num_threads(1)

    def work() -> None:
        assert sum(map(len, open_dataset(data, DataConfig()).splits.values())) > 0

    def work_anew() -> None:
        with tempfile.TemporaryDirectory() as cache:
            os.environ["XDG_CACHE_HOME"] = cache
            work()

    if again:
        os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(dir=os.environ["VITRAIL_BENCHMARK"])
        work()
    return timed(work if again else work_anew, len(photographs(data)))


def build_cleanvision(data: str) -> Turn:
    """Return a turn of cleanvision's default issues."""
    from cleanvision import Imagelab

    multiprocessing.set_start_method("fork", force=True)  # as its users have it; spawned workers would import it anew

    def work() -> None:
        Imagelab(data_path=data, verbose=False).find_issues(n_jobs=WORKERS, verbose=False)

    return timed(work, len(photographs(data)))


def build_imagededup(data: str) -> Turn:
    """Return a turn of imagededup's perceptual hash with its default distance."""
    from peers import make_torchvision_importable

    make_torchvision_importable()
    multiprocessing.set_start_method("fork", force=True)  # a new interpreter could not import torchvision
    from imagededup.methods import PHash

    logging.disable(logging.INFO)

    def work() -> None:
        method = PHash(verbose=False)
        codes = method.encode_images(image_dir=data, recursive=True, num_enc_workers=WORKERS)
        method.find_duplicates(encoding_map=codes, num_dist_workers=WORKERS)

    return timed(work, len(photographs(data)))


def build_fastdup(data: str, python: str) -> Turn:
    """Return a turn of fastdup in another interpreter, whose start does not count as wall time."""

    def work() -> float:
        with tempfile.TemporaryDirectory() as folder:
            command = [python, "-c", FASTDUP, data, folder]
            told = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        return float(told.rsplit("seconds", 1)[1])

    return timed(work, len(photographs(data)))


def contestants(data: str, fastdup: str | None) -> dict[str, Contestant]:
    """Return those that are installed."""
    found = {
        "Pillow, decodes only": Contestant(build_pillow, {"data": data}),
        "vitrail, first time": Contestant(build_vitrail, {"data": data, "again": False}),
        "vitrail, again": Contestant(build_vitrail, {"data": data, "again": True}),
    }
    for name, build in (("cleanvision", build_cleanvision), ("imagededup", build_imagededup)):
        if importlib.util.find_spec(name):
            found[name] = Contestant(build, {"data": data})
        else:
            print(f"{name} is not installed.", file=sys.stderr)
    if fastdup is not None:
        found["fastdup"] = Contestant(build_fastdup, {"data": data, "python": fastdup})
    return found


def main() -> None:
    """Run, print the tables, keep the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with a folder of photographs per class")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--camera", type=int, default=24, help="how many photographs of 12 megapixels to make")
    parser.add_argument("--fastdup", help="a Python interpreter that has fastdup")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    content = {}
    with tempfile.TemporaryDirectory() as folder:
        os.environ["VITRAIL_BENCHMARK"] = folder  # inherited by the contestants, for what they have to keep
        sources = {"as they are": options.data}
        if options.camera:
            sources["12 megapixels"] = make_camera_photographs(options.data, Path(folder) / "camera", options.camera)
        for name, source in sources.items():
            figures = take_turns(contestants(str(source), options.fastdup), options.rounds)
            content[name] = figures
            print(f"\n{figures['vitrail, first time'][0]['images']} photographs, {name}, two workers.")
            for speed in (SPEED, CPU_SPEED):
                print("\n" + table(name, figures, "vitrail, first time", speed))
                print("\n" + table(name, figures, "vitrail, again", speed))
    save(options.out, "admission_speed", {"workers": WORKERS, "photographs": content})


if __name__ == "__main__":
    main()
