"""Plant known defects among clean photographs and count which of them admission finds.

    python benchmarks/planted_defects.py --data flowers5 [--copies 60] [--seed 0]

FOLDER has train, val and test folders with one folder of photographs per class. Copies of training pictures are planted
in train, val and test: exact ones (the bytes, the bytes with a comment, the pixels as PNG), near ones (resized, encoded
again at quality 30 to 90, cut by up to 3 or 5 % on each side, brighter or darker, all of it together), mirrored ones,
and copies under another label; files that are broken or other than their name says; pictures made nearly black, nearly
white, flat, narrow or small; a class of six pictures, one that only train shows, and one that is spelt in two ways.

Recall is the share of planted things that are found, precision the share of found things that were planted. Two pairs
and a triple of flowers5 are copies by themselves, seen with the naked eye (`NATURAL`): they count as neither. A leak is
false if the picture that was dropped has no copy in a senior split. The clean pictures are also admitted alone. What is
told of the size, brightness and so on of a clean picture counts as right. `admission_speed.py` measures the speed.
"""

import argparse
import io
import os
import random
import re
import shutil
import tempfile
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

from alternate import save
from PIL import Image, ImageEnhance

from vitrail.config import DataConfig
from vitrail.data import Dataset, open_dataset

NATURAL = (
    ("4608559939_3487bf3b62_n", "4609166128_b7ed49b40b_m", "4609168052_3d4e1d3804_n"),
    ("14741866338_bdc8bfc8d5_n", "14925398301_55a180f919_n"),
)
"""Photographs of flowers5 that are versions of one another: a rose in two tones and in grey, a sunflower twice."""

Change = Callable[[Path, random.Random], tuple[bytes, str]]


def jpeg(image: Image.Image, quality: int = 90) -> tuple[bytes, str]:
    """Return an image as JPEG, and the ending of its name."""
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=quality)
    return stream.getvalue(), ".jpg"


def png(image: Image.Image) -> tuple[bytes, str]:
    """Return an image as PNG, and the ending of its name."""
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue(), ".png"


def with_comment(data: bytes) -> bytes:
    """Return a JPEG file with a comment put into it: other bytes, the same pixels."""
    return data[:2] + b"\xff\xfe\x00\x0ethis is it." + b"\0" + data[2:]


def cut(image: Image.Image, most: float, rng: random.Random) -> Image.Image:
    """Return an image without up to ``most`` of its sides at each edge."""
    left, top, right, bottom = (rng.uniform(0, most) for _ in range(4))
    width, height = image.size
    return image.crop(
        (round(left * width), round(top * height), width - round(right * width), height - round(bottom * height))
    )


def resized(image: Image.Image, scale: float) -> Image.Image:
    """Return an image of other size, at least 64 pixels on each side."""
    return image.resize([max(64, round(side * scale)) for side in image.size], Image.Resampling.BICUBIC)


def everything(image: Image.Image, rng: random.Random) -> Image.Image:
    """Return an image that was cut a little, resized and made brighter or darker."""
    return ImageEnhance.Brightness(resized(cut(image, 0.03, rng), rng.uniform(0.5, 1.2))).enhance(rng.uniform(0.8, 1.2))


def opened(path: Path) -> Image.Image:
    """Return a file's picture in RGB."""
    with Image.open(path) as image:
        return image.convert("RGB")


EXACT: dict[str, Change] = {
    "exact: same bytes": lambda path, _: (path.read_bytes(), ".jpg"),
    "exact: other bytes": lambda path, _: (with_comment(path.read_bytes()), ".jpg"),
    "exact: as PNG": lambda path, _: png(opened(path)),
}
NEAR: dict[str, Change] = {
    "near: resized": lambda path, rng: jpeg(resized(opened(path), rng.choice((0.4, 0.6, 0.8, 1.5)))),
    "near: quality 30 to 90": lambda path, rng: jpeg(opened(path), rng.randint(30, 90)),
    "near: cut up to 3 %": lambda path, rng: jpeg(cut(opened(path), 0.03, rng)),
    "near: cut up to 5 %": lambda path, rng: jpeg(cut(opened(path), 0.05, rng)),
    "near: brightness": lambda path, rng: jpeg(ImageEnhance.Brightness(opened(path)).enhance(rng.uniform(0.7, 1.3))),
    "near: all together": lambda path, rng: jpeg(everything(opened(path), rng), rng.randint(40, 90)),
}
MIRRORED: dict[str, Change] = {
    "mirrored": lambda path, rng: jpeg(opened(path).transpose(Image.Transpose.FLIP_LEFT_RIGHT), rng.randint(50, 90)),
}
BROKEN: dict[str, Callable[[bytes], bytes]] = {
    "broken: cut short": lambda data: data[: len(data) // 2],
    "broken: empty": lambda _: b"",
    "broken: text": lambda _: b"this is no picture",
    "broken: damaged header": lambda data: b"\0" * 64 + data[64:],
}
ODD: dict[str, Callable[[Image.Image], Image.Image]] = {
    "brightness: nearly black": lambda image: ImageEnhance.Brightness(image).enhance(0.03),
    "brightness: nearly white": lambda image: Image.blend(image, Image.new("RGB", image.size, "white"), 0.97),
    "contrast: flat": lambda image: Image.blend(image, Image.new("RGB", image.size, "gray"), 0.98),
    "proportions: 1 to 8": lambda image: image.resize((80, 640)),
    "size: 20 pixels": lambda image: image.resize((24, 20)),
}
"""What is made of a picture so that it lies far from the others; the first word is the kind of finding."""

CLASSES: dict[str, tuple[str, dict[str, int]]] = {
    "tiny class": ("tiny", {"orchid": 6}),
    "class in one split only": ("missing", {"orchid": 6, "lily": 40}),
    "label spelt twice": ("labels", {"Tulips ": 30}),
}
"""The kind of finding, and which classes are made of how many training pictures of others."""


class Plants:
    """A copy of a source, with what was planted in it."""

    def __init__(self, clean: Path, root: Path, seed: int) -> None:
        shutil.copytree(clean, root, ignore=shutil.ignore_patterns("*.csv"))
        self.root, self.rng = root, random.Random(seed)
        self.family: dict[str, str] = {
            path.relative_to(root).as_posix(): path.stem for path in root.rglob("*") if path.is_file()
        }
        for stems in NATURAL:
            self.family |= {path: stems[0] for path, stem in self.family.items() if stem in stems}
        self.originals = sorted(path for path in self.family if path.startswith("train/"))
        self.rng.shuffle(self.originals)
        self.classes = sorted(path.name for path in (root / "train").iterdir())
        self.planted: dict[str, list[str]] = defaultdict(list)
        self.leaks: set[str] = set()
        self.conflicts: set[str] = set()

    def copies(self, kind: str, change: Change, num: int) -> None:
        """Plant changed copies of training pictures: a third each in train, val and test."""
        for number in range(num):
            original = self.originals.pop()
            split, label = ("train", "val", "test")[number % 3], original.split("/")[1]
            if split == "train" and number % 2:
                label = self.rng.choice([each for each in self.classes if each != label])
            data, suffix = change(self.root / original, self.rng)
            path = f"{split}/{label}/planted-{len(self.family):05}{suffix}"
            (self.root / path).write_bytes(data)
            self.family[path] = self.family[original]
            self.planted[kind].append(path)
            if split != "train":
                self.leaks.add(path)
            if label != original.split("/")[1]:
                self.conflicts.add(path)

    def breakages(self, num: int) -> None:
        """Plant broken files, files with a wrong extension, and animations."""
        for kind, change in BROKEN.items():
            for _ in range(num):
                self._write(kind, change((self.root / self.originals[-1]).read_bytes()), ".jpg")
        for _ in range(num):
            self._write("wrong extension", self._noise("JPEG"), ".png")
            self._write("animated", self._noise("GIF"), ".gif")

    def oddities(self, num: int) -> None:
        """Make pictures dark, bright, flat, narrow or small, in their places."""
        for kind, change in ODD.items():
            for _ in range(num):
                path = self.originals.pop()
                data, _ = jpeg(change(opened(self.root / path)))
                (self.root / path).write_bytes(data)
                self.planted[kind].append(path)

    def new_classes(self) -> None:
        """Take training pictures out of their classes and make others of them."""
        for label, num in {label: num for _, labels in CLASSES.values() for label, num in labels.items()}.items():
            (self.root / "train" / label).mkdir()
            for _ in range(num):
                old = self.originals.pop()
                new = f"train/{label}/{old.rpartition('/')[2]}"
                (self.root / old).rename(self.root / new)
                self.family[new] = self.family.pop(old)

    def _write(self, kind: str, data: bytes, suffix: str) -> None:
        path = f"train/{self.rng.choice(self.classes)}/planted-{len(self.family):05}{suffix}"
        (self.root / path).write_bytes(data)
        self.family[path] = path
        self.planted[kind].append(path)

    def _noise(self, name: str) -> bytes:
        first, second = (Image.frombytes("RGB", (96, 96), self.rng.randbytes(96 * 96 * 3)) for _ in range(2))
        stream = io.BytesIO()
        more = {"save_all": True, "append_images": [second]} if name == "GIF" else {}
        first.save(stream, name, **more)
        return stream.getvalue()


def score(kind: str, planted: set[str], found: set[str], right: set[str] | None = None) -> dict[str, object]:
    """Return one row: how many were planted and found, recall and precision."""
    hits = planted & found
    good = hits if right is None else right
    return {
        "kind": kind,
        "planted": len(planted),
        "found": len(hits),
        "recall": len(hits) / len(planted) if planted else None,
        "reported": len(found),
        "precision": len(good) / len(found) if found else None,
    }


def evaluate_oddities(plants: Plants, dataset: Dataset, clean: Dataset) -> list[dict[str, object]]:
    """Compare what was told of sizes, brightness and classes; what is told of the clean pictures too is right."""
    rows = []
    told = {item.kind: item for item in dataset.findings.items}
    before = {item.kind: set(item.paths) for item in clean.findings.items}
    for kind, paths in plants.planted.items():
        word = kind.partition(":")[0]
        if kind in ODD:
            found = set(told[word].paths) if word in told else set()
            rows.append({**score(kind, set(paths), found), "reported": len(found & set(paths)), "precision": None})
    for word in dict.fromkeys(kind.partition(":")[0] for kind in ODD):
        found = set(told[word].paths) if word in told else set()
        planted = {path for kind in ODD for path in plants.planted[kind] if kind.startswith(word)}
        # What is nearly black is flat too, and the copies were resized and made brighter: nothing planted is wrong.
        right = found & ({path for paths in plants.planted.values() for path in paths} | before.get(word, set()))
        rows.append(score(f"all {word}", planted, found, right))
    for kind, (word, labels) in CLASSES.items():
        texts = " ".join(item.text for item in dataset.findings.items if item.kind == word)
        named = {label for label in dataset.classes if re.search(rf"(?<!\w){label}(?!\w)", texts)}
        expected = set(labels) | ({"tulips"} if word == "labels" else set())
        wrong_in_split = {"Tulips "} if word == "missing" else set()  # it is in train alone as well
        rows.append(score(kind, expected, named, named & (expected | wrong_in_split)))
    return rows


def evaluate(plants: Plants, dataset: Dataset) -> list[dict[str, object]]:
    """Compare what was found with what was planted."""
    findings, family, rows = dataset.findings, plants.family, []
    pairs = [(pair.kind, pair.first, pair.second, family[pair.first] == family[pair.second]) for pair in findings.pairs]
    touched = {path for _, first, second, same in pairs if same for path in (first, second)}
    for kind, paths in plants.planted.items():
        if kind.startswith(("exact", "near", "mirrored")):
            rows.append({**score(kind, set(paths), touched & set(paths)), "precision": None})
    for kind in ("exact", "near", "mirrored"):
        reported = [same for found_kind, *_, same in pairs if found_kind == kind]
        planted = {path for name, paths in plants.planted.items() if name.startswith(kind) for path in paths}
        of_kind = {path for found, *both, same in pairs if same and found == kind for path in both}
        precision = sum(reported) / len(reported) if reported else None
        rows.append(
            {**score(f"all {kind}", planted, planted & of_kind), "reported": len(reported), "precision": precision}
        )
    senior = {family[path] for path in family if path.startswith("train/")}
    reported = {leak.path for leak in findings.leaks}
    true = {path for path in reported if family[path] in senior or any(family[path] == s[0] for s in NATURAL)}
    rows.append(score("leaks", plants.leaks, reported, true))
    clash = {path for pair in findings.conflicts for path in (pair.first, pair.second)}
    right = {
        path
        for pair in findings.conflicts
        if family[pair.first] == family[pair.second]
        for path in (pair.first, pair.second)
    }
    rows.append(score("same picture, two labels", plants.conflicts, clash, right))
    broken = {path for name, paths in plants.planted.items() if name.startswith("broken") for path in paths}
    rows.append(score("broken files", broken, set(findings.refused)))
    for kind, word in (("wrong extension", "extension"), ("animated", "animated")):
        told = {path for item in findings.items if item.kind == word for path in item.paths}
        rows.append(score(kind, set(plants.planted[kind]), told))
    return rows


def main() -> None:
    """Plant, admit, print the tables, keep the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--copies", type=int, default=60, help="of each kind")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_CACHE_HOME"] = f"{folder}/cache"
        plants = Plants(options.data, Path(folder) / "planted", options.seed)
        for kind, change in (EXACT | NEAR | MIRRORED).items():
            plants.copies(kind, change, options.copies)
        plants.breakages(options.copies // 6)
        plants.oddities(options.copies // 6)
        plants.new_classes()
        planted, clean_set = (open_dataset(each, DataConfig(mirrored=True)) for each in (plants.root, options.data))
        rows = [*evaluate(plants, planted), *evaluate_oddities(plants, planted, clean_set)]
    clean = clean_set.findings
    print("| kind | planted | found | recall | reported | precision |\n|---|---:|---:|---:|---:|---:|")
    for row in rows:
        shares = {name: "" if row[name] is None else f"{row[name]:.3f}" for name in ("recall", "precision")}
        print(
            f"| {row['kind']} | {row['planted']} | {row['found']} | {shares['recall']} | {row['reported']} "
            f"| {shares['precision']} |"
        )
    natural = {stem for stems in NATURAL for stem in stems}
    alone = {"pairs": [(pair.first, pair.second) for pair in clean.pairs]}
    alone["leaks"] = [(leak.path, leak.of) for leak in clean.leaks]
    content: dict[str, object] = {"rows": rows}
    for what, found in alone.items():
        false = sum(not {Path(path).stem for path in both} <= natural for both in found)
        content |= {f"clean_{what}": len(found), f"clean_false_{what}": false}
        print(f"\nClean pictures alone: {len(found)} {what}, {false} of them false.")
    save(options.out, "planted_defects", content)


if __name__ == "__main__":
    main()
