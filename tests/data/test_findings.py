"""What is told of a set of images, and what is not."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vitrail.config import DataConfig
from vitrail.data import Finding, open_dataset
from vitrail.data.findings import robust_scores
from vitrail.data.images import ImageRefusedError, inspect_image
from vitrail.data.jpeg import MAX_SCANS


def picture(path: Path, seed: int, size: tuple[int, int] = (60, 50), level: float = 1.0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (*size, 3)) * level
    Image.fromarray(pixels.astype(np.uint8)).save(path)


def findings(root: Path) -> dict[str, Finding]:
    found = open_dataset(root, DataConfig()).findings
    assert json.dumps(found.to_dict())
    return {item.kind: item for item in found.items}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    for number in range(80):
        picture(tmp_path / "ab"[number % 2] / f"{number:02}.png", number, (60 + number % 7, 50 + number % 5))
    return tmp_path


def test_nothing_is_told_of_an_ordinary_source(source: Path) -> None:
    assert findings(source) == {}


def test_files_that_are_other_than_their_name_says_are_told_and_used(source: Path) -> None:
    with Image.open(source / "a" / "00.png") as image:
        image.save(source / "a" / "00.png", "JPEG")
    frames = [Image.fromarray(np.random.default_rng(n).integers(0, 256, (50, 60), np.uint8)) for n in (900, 901)]
    frames[0].save(source / "b" / "film.gif", save_all=True, append_images=frames[1:])
    frames[1].save(source / "b" / "grey.png")
    told = findings(source)
    assert told["extension"].paths == ("a/00.png",)
    assert "it is JPEG" in told["extension"].text
    assert told["animated"].paths == ("b/film.gif",)
    assert "b/grey.png" in told["channels"].paths


def test_outliers_are_told_by_what_is_unusual(source: Path) -> None:
    picture(source / "a" / "huge.png", 500, (900, 800))
    picture(source / "a" / "strip.png", 501, (300, 12))
    picture(source / "b" / "night.png", 502, level=0.1)
    told = findings(source)
    assert told["size"].paths == ("a/huge.png",)
    assert told["proportions"].paths == ("a/strip.png",)
    assert "b/night.png" in told["brightness"].paths
    assert {item.severity for item in told.values()} == {"note"}


def test_black_and_white_are_told_even_where_brightness_varies_widely(tmp_path: Path) -> None:
    for number, level in enumerate(np.random.default_rng(0).normal(0.85, 0.28, 80).clip(0.2, 1.6)):
        rng = np.random.default_rng(number)
        pixels = np.clip(rng.integers(0, 256, (12, 10, 3)) * level, 0, 255).astype(np.uint8)
        (tmp_path / "ab"[number % 2]).mkdir(exist_ok=True)
        Image.fromarray(pixels).resize((50, 60), Image.Resampling.NEAREST).save(
            tmp_path / "ab"[number % 2] / f"{number}.png"
        )
    assert "brightness" not in findings(tmp_path)
    Image.new("RGB", (50, 60), (2, 2, 2)).save(tmp_path / "a" / "lid on.png")
    Image.new("RGB", (50, 60), (254, 254, 254)).save(tmp_path / "b" / "burnt.png")
    told = findings(tmp_path)
    assert set(told["brightness"].paths) == {"a/lid on.png", "b/burnt.png"}
    assert set(told["contrast"].paths) == {"a/lid on.png", "b/burnt.png"}


def test_robust_scores_withstand_outliers_and_equal_values() -> None:
    rng = np.random.default_rng(0)
    values = np.concatenate([rng.normal(5, 2, 2000), np.full(200, 1e6)])
    assert np.abs(robust_scores(values)[:2000] - (values[:2000] - 5) / 2).max() < 0.9  # Seen: 0.6, at 3.5 deviations
    assert robust_scores(np.full(30, 4.0)).tolist() == [0] * 30
    assert robust_scores(np.array([4.0] * 99 + [5.0]))[-1] > 5


def test_classes_that_are_tiny_unequal_missing_or_spelt_alike_are_told(tmp_path: Path) -> None:
    for label, num in {"Rose": 150, "rose ": 3, "tulip": 60}.items():
        for number in range(num):
            picture(tmp_path / "train" / label / f"{number}.png", 1000 * len(label) + number)
    for number in range(3):
        picture(tmp_path / "val" / "tulip" / f"{number}.png", 10**6 + number)
    told = findings(tmp_path)
    assert told["labels"].text.startswith("The classes 'Rose', 'rose ' differ only by case or white space.")
    assert told["tiny"].text == "1 class with fewer than 20 training images: rose ."
    assert told["imbalance"].text.startswith("Rose has 150 training images, rose  3.")
    assert told["missing"].text.startswith("val shows no image of Rose, rose ;")
    assert {told[kind].severity for kind in ("labels", "tiny", "imbalance", "missing")} == {"warning"}


@pytest.mark.parametrize(("side", "num_scans"), [(64, MAX_SCANS + 1), (4000, 100)])
def test_a_jpeg_of_very_many_scans_is_refused_before_it_is_decoded(tmp_path: Path, side: int, num_scans: int) -> None:
    path = tmp_path / "x.jpg"
    Image.new("L", (side, side), 128).save(path, progressive=True)
    assert inspect_image(path).format == "JPEG"
    data = path.read_bytes()
    start = data.rindex(b"\xff\xda")
    path.write_bytes(data[:start] + data[start:-2] * num_scans + data[-2:])
    with pytest.raises(ImageRefusedError, match="scans"):
        inspect_image(path)


@pytest.mark.parametrize("progressive", [False, True])
def test_what_a_telephone_puts_into_a_jpeg_beside_the_picture_counts_as_no_scan(
    tmp_path: Path, progressive: bool
) -> None:
    path = tmp_path / "x.jpg"
    Image.new("RGB", (64, 64), "red").save(path, progressive=progressive)
    data, like_scans = path.read_bytes(), b"\xff\xda" * (MAX_SCANS + 1)
    preview = b"\xff\xe5" + (len(like_scans) + 2).to_bytes(2) + like_scans
    path.write_bytes(data[:2] + preview + data[2:] + b"a film" + like_scans)
    assert inspect_image(path).width == 64
