"""Copies are found however they were changed, nothing else is, and what follows for the splits."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageFilter

from vitrail.config import DataConfig
from vitrail.data import Dataset, open_dataset, open_manifest, read_manifest
from vitrail.data.duplicates import group_numbers
from vitrail.data.hashes import RADIUS, near_pairs, num_different_bits, perceptual_hashes
from vitrail.data.images import open_image, squash
from vitrail.data.similarity import similarity
from vitrail.errors import ConfigError, DataError

SIDE = 120


def scene(seed: int, side: int = SIDE) -> Image.Image:
    """Return soft shapes with some texture: as unlike any other scene as photographs are."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (7, 7, 3), np.uint8)).resize((side, side), Image.Resampling.BICUBIC)
    texture = Image.fromarray(rng.integers(0, 256, (side, side, 3), np.uint8)).filter(ImageFilter.GaussianBlur(2))
    return Image.blend(coarse, texture, 0.3)


def keep(image: Image.Image, path: Path, quality: int = 95) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **({"quality": quality} if path.suffix == ".jpg" else {}))


def flat(root: Path, num: int = 20) -> Path:
    """Make two classes of different scenes."""
    for place, label in enumerate("ab"):
        for number in range(num):
            keep(scene(1000 * place + number), root / label / f"{number:03}.jpg")
    return root


def divided(root: Path) -> Path:
    for start, split in enumerate(("train", "val", "test")):
        for place, label in enumerate("ab"):
            for number in range(4):
                keep(scene(100 * start + 10 * place + number), root / split / label / f"{number}.jpg")
    return root


def found(dataset: Dataset) -> dict[tuple[str, str], str]:
    return {(pair.first, pair.second): pair.kind for pair in dataset.findings.pairs}


def brute_force(queries: np.ndarray, hashes: np.ndarray, radius: int) -> list[tuple[int, int]]:
    distance = np.array([[(int(a) ^ int(b)).bit_count() for b in hashes] for a in queries])
    return [tuple(pair) for pair in np.argwhere(distance <= radius).tolist()]


@pytest.mark.parametrize("radius", [0, 3, 5, RADIUS])
def test_the_search_finds_what_comparing_each_with_each_finds(radius: int) -> None:
    rng = np.random.default_rng(radius)
    hashes = np.unique(rng.integers(0, 2**64, 150, np.uint64))
    flips = (rng.random((300, 64)) < rng.uniform(0, 0.25, (300, 1))) @ (2.0 ** np.arange(64)).astype(object)
    queries = hashes[rng.integers(0, len(hashes), 300)] ^ np.array(flips.tolist(), np.uint64)
    expected = brute_force(queries, hashes, radius)
    assert 5 < len(expected) < 300
    assert [tuple(pair) for pair in near_pairs(queries, hashes, radius).tolist()] == expected


def test_the_search_has_no_trouble_with_nothing_and_with_full_bands() -> None:
    assert near_pairs(np.empty(0, np.uint64), np.empty(0, np.uint64)).shape == (0, 2)
    # All share two bands, so that each is compared with each in them.
    hashes = np.arange(3000, dtype=np.uint64)
    expected = sum(number.bit_count() <= RADIUS for number in range(4096))
    assert np.all(num_different_bits(hashes[:1], hashes) == [number.bit_count() for number in range(3000)])
    pairs = near_pairs(hashes[:1], hashes)
    assert len(pairs) == sum(number.bit_count() <= RADIUS for number in range(3000)) < expected


def test_hashes_of_parts_are_those_of_pictures_that_were_cut() -> None:
    thumbs = np.stack(
        [np.asarray(scene(seed, 96).convert("L").resize((24, 24), Image.Resampling.BOX)) for seed in range(40)]
    )
    cuts = [
        scene(seed, 96).convert("L").crop((0, 6, 96, 96)).resize((24, 24), Image.Resampling.BOX) for seed in range(40)
    ]
    cut = perceptual_hashes(np.stack([np.asarray(each) for each in cuts]))
    with_view = num_different_bits(perceptual_hashes(thumbs, (0.0625, 1.0, 0.0, 1.0)), cut)
    without = num_different_bits(perceptual_hashes(thumbs), cut)
    # Seen: 2.2 and 11.3 bits on average.
    assert with_view.mean() < 4 < without.mean()


def test_a_part_laid_over_its_whole_fits_and_another_picture_does_not() -> None:
    whole = [scene(seed, 256).convert("L") for seed in range(12)]
    part = [image.crop((10, 5, 250, 256)).point(lambda value: int(0.8 * value)) for image in whole]
    one, other = (
        np.stack([np.asarray(image.resize((64, 64), Image.Resampling.BOX)) for image in each]) for each in (whole, part)
    )
    assert similarity(one, other).min() > 0.97  # Seen: 0.990
    assert similarity(other, one).min() > 0.97
    assert similarity(one, np.roll(other, 1, axis=0)).max() < 0.8  # Seen: 0.5
    assert similarity(np.full_like(one, 7), other).tolist() == [0.0] * 12


def changed(name: str) -> tuple[Image.Image, str, int]:
    image = scene(3)
    return {
        "smaller": (image.resize((70, 70)), ".jpg", 90),
        "compressed": (image, ".jpg", 30),
        "brighter": (ImageEnhance.Brightness(image).enhance(1.2), ".jpg", 90),
        "cut": (image.crop((4, 2, 117, 118)), ".jpg", 90),
        "as PNG": (image, ".png", 0),
    }[name]


@pytest.mark.parametrize("name", ["smaller", "compressed", "brighter", "cut", "as PNG"])
def test_a_changed_copy_is_found_and_stays_in_the_split_of_its_original(tmp_path: Path, name: str) -> None:
    root = flat(tmp_path)
    image, suffix, quality = changed(name)
    keep(image, root / "a" / f"copy{suffix}", quality)
    for seed in range(3):
        dataset = open_dataset(root, DataConfig(seed=seed))
        assert found(dataset) == {("a/003.jpg", f"a/copy{suffix}"): "near"}
        homes = [
            name
            for name, split in dataset.splits.items()
            for path in split.paths
            if path in ("a/003.jpg", f"a/copy{suffix}")
        ]
        assert len(homes) == 2
        assert len(set(homes)) == 1
    assert found(open_dataset(root, DataConfig(duplicates="exact"))) == {}
    assert dataset.records[-1].duplicate_of == ""
    assert {record.path: record.duplicate_of for record in dataset.records}[f"a/copy{suffix}"] == "a/003.jpg"


def test_equal_pixels_in_other_bytes_are_exact_copies(tmp_path: Path) -> None:
    root = flat(tmp_path)
    data = (root / "a" / "000.jpg").read_bytes()
    (root / "b" / "comment.jpg").write_bytes(data[:2] + b"\xff\xfe\x00\x04hi" + data[2:])
    with Image.open(root / "b" / "001.jpg") as image:
        keep(image.convert("RGB"), root / "b" / "lossless.png")
    dataset = open_dataset(root, DataConfig(duplicates="near"))
    assert found(dataset) == {("a/000.jpg", "b/comment.jpg"): "exact", ("b/001.jpg", "b/lossless.png"): "exact"}
    assert [pair.labels for pair in dataset.findings.conflicts] == [("a", "b")]


def test_jpegs_that_are_equal_only_when_reduced_are_not_exact(tmp_path: Path) -> None:
    root = flat(tmp_path, 4)
    for number, value in enumerate((64, 192)):  # a pattern within the blocks of 8 pixels, the same mean
        stripes = np.where(np.arange(960) % 2 == number, 128 - value // 2, 128 + value // 2).astype(np.uint8)
        keep(Image.fromarray(np.tile(stripes, (960, 1))), root / "a" / f"stripes{number}.jpg", 100)
    assert not found(open_dataset(root, DataConfig()))


def test_mirrored_copies_are_found_where_asked(tmp_path: Path) -> None:
    root = flat(tmp_path)
    keep(scene(3).transpose(Image.Transpose.FLIP_LEFT_RIGHT), root / "a" / "mirror.jpg", 80)
    assert found(open_dataset(root, DataConfig())) == {}
    assert found(open_dataset(root, DataConfig(mirrored=True))) == {("a/003.jpg", "a/mirror.jpg"): "mirrored"}
    with pytest.raises(ConfigError, match="mirrored looks for near duplicates"):
        DataConfig(mirrored=True, duplicates="exact")


def test_pictures_of_one_colour_and_small_noise_are_no_copies(tmp_path: Path) -> None:
    for place, label in enumerate("ab"):
        for number in range(12):
            keep(Image.new("RGB", (80, 80), (10 * number, 100 * place, 50)), tmp_path / label / f"{number}.png")
            rng = np.random.default_rng([place, number])
            keep(Image.fromarray(rng.integers(100, 140, (16, 16, 3), np.uint8)), tmp_path / label / f"n{number}.png")
    assert found(open_dataset(tmp_path, DataConfig())) == {}


def test_leaks_are_dropped_from_val_and_test_and_the_manifest_tells(tmp_path: Path) -> None:
    root = divided(tmp_path / "source")
    keep(scene(1).resize((90, 90)), root / "val" / "a" / "leak.jpg", 70)
    keep(scene(200), root / "val" / "a" / "of-test.jpg", 70)
    keep(scene(2), root / "test" / "b" / "leak.jpg", 70)
    dataset = open_dataset(root, DataConfig())
    leaks = {leak.path: (leak.of, leak.of_split) for leak in dataset.findings.leaks}
    assert leaks == {
        "val/a/leak.jpg": ("train/a/1.jpg", "train"),
        "val/a/of-test.jpg": ("test/a/0.jpg", "test"),
        "test/b/leak.jpg": ("train/a/2.jpg", "train"),
    }
    assert {name: len(split) for name, split in dataset.splits.items()} == {"train": 8, "val": 8, "test": 8}
    assert dataset.refused == []
    assert (
        dict(dataset.dropped)["val/a/leak.jpg"] == "it is nearly the same picture as train/a/1.jpg, which is in train"
    )
    dataset.write_manifest(tmp_path / "manifest.csv")
    again = open_manifest(tmp_path / "manifest.csv", root)
    assert again.records == dataset.records
    assert (again.refused, again.dropped) == (dataset.refused, dataset.dropped)
    kept = open_dataset(root, DataConfig(keep_leaks=True))
    assert {leak.path for leak in kept.findings.leaks if not leak.dropped} == set(leaks)
    assert len(kept.splits["val"]) == 10


def test_a_split_that_would_be_empty_is_refused(tmp_path: Path) -> None:
    root = divided(tmp_path)
    for path in (root / "val").rglob("*.jpg"):
        path.write_bytes((root / "train" / path.relative_to(root / "val")).read_bytes())
    with pytest.raises(DataError, match="Every picture of val is in another split too"):
        open_dataset(root, DataConfig())


def test_a_manifest_without_the_newer_columns_is_read(tmp_path: Path) -> None:
    dataset = open_dataset(flat(tmp_path / "source", 4), DataConfig())
    dataset.write_manifest(tmp_path / "m.csv")
    lines = (tmp_path / "m.csv").read_text().splitlines()
    (tmp_path / "old.csv").write_text("\n".join(line.rsplit(",", 3)[0] for line in lines))
    old, new = read_manifest(tmp_path / "old.csv"), read_manifest(tmp_path / "m.csv")
    assert [(record.path, record.split, record.sha256) for record in old] == [
        (record.path, record.split, record.sha256) for record in new
    ]
    assert all(len(record.phash) == 16 for record in new)


@pytest.mark.parametrize("pattern", [r"p(\d+)-", r"p(?P<group>\d+)-\d", r"p\d+"])
def test_groups_stay_together_and_the_shares_of_classes_are_kept(tmp_path: Path, pattern: str) -> None:
    for label, place in (("a", 0), ("b", 1)):
        for patient in range(30):
            for number in range(1 + (patient + place) % 4):
                keep(scene(10_000 * place + 10 * patient + number, 50), tmp_path / label / f"p{patient}-{number}.jpg")
    for seed in range(3):
        dataset = open_dataset(tmp_path, DataConfig(group_by=pattern, val_fraction=0.2, test_fraction=0.2, seed=seed))
        homes: dict[str, set[str]] = {}
        for name, split in dataset.splits.items():
            for path in split.paths:
                homes.setdefault(path.split("/p")[1].split("-")[0], set()).add(name)
            shares = np.bincount(split.labels, minlength=2) / 75
            # Seen: 0.04 at most.
            assert np.abs(shares - {"train": 0.6, "val": 0.2, "test": 0.2}[name]).max() < 0.07
        assert all(len(names) == 1 for names in homes.values())
        assert len({frozenset(names) for names in homes.values()}) == 3


def test_a_group_in_two_splits_is_a_leak(tmp_path: Path) -> None:
    root = divided(tmp_path)
    # The number in a file's name is its group, and each split has files 0 to 3 of both classes; val gets one more.
    keep(scene(999), root / "val" / "a" / "9.jpg")
    keep(scene(998), root / "test" / "a" / "8.jpg")
    dataset = open_dataset(root, DataConfig(group_by=r"(\d)\.jpg"))
    assert {leak.kind for leak in dataset.findings.leaks} == {"group"}
    assert [split.paths for split in dataset.splits.values()][1:] == [["val/a/9.jpg"], ["test/a/8.jpg"]]
    assert dict(dataset.dropped)["val/b/0.jpg"] == "it is of the same group as train/a/0.jpg, which is in train"
    assert len(open_dataset(root, DataConfig(group_by=r"(\d)\.jpg", keep_leaks=True)).splits["val"]) == 9


def test_a_pattern_that_a_path_lacks_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"group_by 'x\(\\\\d\)' is not found in 8 of 8 paths, such as a/000\.jpg"):
        open_dataset(flat(tmp_path, 4), DataConfig(group_by=r"x(\d)"))
    with pytest.raises(ConfigError, match="no regular expression"):
        DataConfig(group_by="(")


def test_a_class_that_is_one_group_cannot_be_divided(tmp_path: Path) -> None:
    root = flat(tmp_path, 4)
    for number in range(3):
        keep(scene(77), root / "c" / f"{number}.jpg", 70 + number)
    with pytest.raises(DataError, match=r"All pictures belong together .* in: c\."):
        open_dataset(root, DataConfig())
    assert len(open_dataset(root, DataConfig(keep_leaks=True)).classes) == 3


def test_many_copies_of_one_picture_take_no_time_of_pairs(tmp_path: Path) -> None:
    root = flat(tmp_path, 6)
    stream = io.BytesIO()
    scene(5000).save(stream, "PNG")
    for number in range(200):
        (root / "a" / f"same{number:03}.png").write_bytes(stream.getvalue())
    pairs = open_dataset(root, DataConfig()).findings.pairs
    assert len(pairs) == 199
    assert {pair.first for pair in pairs} == {"a/same000.png"}


def test_small_things_of_one_shape_are_no_copies_of_one_another(tmp_path: Path) -> None:
    """As the shirts of Fashion-MNIST: a bright shape before black, in which the little that differs is all there is."""
    rng = np.random.default_rng(0)
    for number in range(30):
        pixels = np.zeros((28, 28), np.uint8)
        pixels[4:25, 8:20] = rng.integers(170, 230, (21, 12))
        keep(Image.fromarray(pixels).convert("RGB"), tmp_path / "ab"[number % 2] / f"{number:02}.png")
        if number < 4:
            keep(Image.fromarray(pixels).convert("RGB"), tmp_path / "ab"[number % 2] / f"{number:02}x.jpg", 95)
    thumbs = np.stack([squash(open_image(path), 24)[..., 0] for path in sorted(tmp_path.glob("*/*.png"))])
    assert np.corrcoef(thumbs.reshape(30, -1)).min() > 0.985  # Seen: 0.988 to 0.993
    kinds = found(open_dataset(tmp_path, DataConfig()))
    assert set(kinds) == {(f"{'ab'[i % 2]}/{i:02}.png", f"{'ab'[i % 2]}/{i:02}x.jpg") for i in range(4)}


def test_groups_are_what_pairs_connect() -> None:
    assert group_numbers(6, [(0, 3), (3, 5), (1, 2)]).tolist() == [0, 1, 1, 0, 2, 0]
    assert group_numbers(2, []).tolist() == [0, 1]


def test_a_file_that_vanishes_before_it_is_compared_is_no_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = flat(tmp_path, 5)
    keep(scene(3).resize((80, 80)), root / "a" / "copy.jpg")
    from vitrail.data import dataset

    before = dataset.curate

    def curate(*arguments: object) -> object:
        (root / "a" / "copy.jpg").unlink()
        return before(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(dataset, "curate", curate)
    assert found(open_dataset(root, DataConfig())) == {}
