"""Arrays as sources: idx files, archives of numpy, and what shapes, values and labels in them mean."""

import gzip
import io
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from views import refusal

from vitrail.config import DataConfig
from vitrail.data import Dataset, open_dataset, open_evaluation_set, open_manifest
from vitrail.data.sources import open_source

NUM = 30
SHARED = Path(__file__).parents[3] / "shared" / "data"

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (NUM, 9, 7), np.uint8)
COLOUR = RNG.integers(0, 256, (NUM, 9, 7, 3), np.uint8)
LABELS = np.arange(NUM) % 3


def write_idx(path: Path, values: np.ndarray, code: int = 8) -> Path:
    header = struct.pack(">BBBB", 0, 0, code, values.ndim) + struct.pack(f">{values.ndim}I", *values.shape)
    data = header + values.tobytes()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def write_mnist(folder: Path, suffix: str = "", prefix: str = "", join: str = "-") -> Path:
    folder.mkdir(exist_ok=True)
    for split, part in (("train", slice(0, 20)), ("t10k", slice(20, None))):
        write_idx(folder / f"{prefix}{split}-images{join}idx3-ubyte{suffix}", GREY[part])
        write_idx(folder / f"{prefix}{split}-labels{join}idx1-ubyte{suffix}", LABELS[part].astype(np.uint8))
    return folder


def decoded(dataset: Dataset, path: str) -> np.ndarray:
    pictures = next(iter(dataset.splits.values())).pictures
    return np.asarray(pictures.open(path, None))


def labels(dataset: Dataset) -> dict[str, str]:
    return {
        path: dataset.classes[label]
        for split in dataset.splits.values()
        for path, label in zip(split.paths, split.labels, strict=True)
    }


def saved(path: Path, *, compressed: bool = False, **arrays: Any) -> Path:
    (np.savez_compressed if compressed else np.savez)(path, **{name: np.asarray(a) for name, a in arrays.items()})
    return path


@pytest.mark.parametrize(
    ("suffix", "prefix", "join"), [("", "", "-"), (".gz", "", "-"), ("", "", "."), (".gz", "emnist-letters-", "-")]
)
def test_idx_files_are_divided_as_their_names_say(tmp_path: Path, suffix: str, prefix: str, join: str) -> None:
    folder = write_mnist(tmp_path / "set", suffix, prefix, join)
    dataset = open_dataset(folder)
    assert dataset.name == (prefix.strip("-") or "set")
    assert {name: len(split) for name, split in dataset.splits.items()} == {"train": 17, "val": 3, "test": 10}
    assert dataset.classes == ("0", "1", "2")
    for number in range(NUM):
        name, row = ("train", number) if number < 20 else ("t10k", number - 20)
        path = f"{prefix}{name}-images{join}idx3-ubyte/{row:05}"
        assert np.array_equal(decoded(dataset, path), np.stack([GREY[number]] * 3, axis=-1))
        assert labels(dataset)[path] == str(LABELS[number])
    dataset.write_manifest(tmp_path / "m.csv")
    assert open_manifest(tmp_path / "m.csv", folder).records == dataset.records
    assert open_dataset(tmp_path / "m.csv", DataConfig(root=str(folder))).records == dataset.records


def test_plain_and_packed_idx_files_give_the_same_paths(tmp_path: Path) -> None:
    plain, packed = write_mnist(tmp_path / "plain"), write_mnist(tmp_path / "packed", ".gz")
    assert open_dataset(plain).records == open_dataset(packed).records
    write_mnist(plain, ".gz")
    for path in plain.glob("*.gz"):
        path.write_bytes(b"damaged, but not needed")
    assert open_dataset(plain).records == open_dataset(packed).records


def test_of_several_sets_in_a_folder_one_is_named_by_a_file(tmp_path: Path) -> None:
    write_mnist(tmp_path / "set", ".gz", "emnist-letters-")
    folder = write_mnist(tmp_path / "set", "", "emnist-digits-")
    assert "has files of several sets: emnist-digits, emnist-letters. Name an image file" in refusal(folder)
    dataset = open_dataset(folder / "emnist-letters-train-images-idx3-ubyte.gz")
    assert dataset.name == "emnist-letters"
    assert len(labels(dataset)) == NUM


def cut(data: bytes) -> bytes:
    return data[:-5]


@pytest.mark.parametrize(
    ("suffix", "damage", "says"),
    [
        ("", cut, "has not the 1,260 bytes that its header tells"),
        ("", lambda data: data + b"x", "has not the 1,260 bytes"),
        ("", lambda data: data[:6], "is cut short in its header"),
        ("", lambda data: b"\x89PNG" + data[4:], "does not begin as an idx file does"),
        ("", lambda data: b"", "does not begin as an idx file does"),
        (".gz", cut, "cannot be read"),
        (".gz", lambda data: data[:40] + bytes(20) + data[60:], "cannot be read"),
        (".gz", lambda data: gzip.compress(gzip.decompress(data)[:-1]), "has not the 1,260 bytes"),
        (".gz", lambda data: gzip.compress(struct.pack(">BBBB3I", 0, 0, 8, 3, 2**31, 2**20, 2**20)), "of memory, and"),
    ],
)
def test_damaged_idx_files_get_one_sentence(
    tmp_path: Path, suffix: str, damage: Callable[[bytes], bytes], says: str
) -> None:
    path = write_mnist(tmp_path / "set", suffix) / f"train-images-idx3-ubyte{suffix}"
    path.write_bytes(damage(path.read_bytes()))
    assert says in refusal(tmp_path / "set")


def test_idx_files_without_their_labels_are_refused(tmp_path: Path) -> None:
    folder = write_mnist(tmp_path / "set")
    (folder / "train-labels-idx1-ubyte").unlink()
    assert "train-images-idx3-ubyte has no labels beside it" in refusal(folder)
    write_idx(folder / "train-labels-idx1-ubyte", LABELS[:19].astype(np.uint8))
    assert "has 20 pictures, and its labels the shape (19,)" in refusal(folder)


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize(
    ("names", "sizes"),
    [
        (("x_train", "y_train", "x_test", "y_test"), {"train": 17, "val": 3, "test": 10}),
        (("train_images", "train_labels", "val_images", "val_labels"), {"train": 20, "val": 10}),
        (("X-Train", "targets.train", "imgs_testing", "Testing_Class"), {"train": 17, "val": 3, "test": 10}),
    ],
)
def test_archives_are_read_by_the_names_of_their_arrays(
    tmp_path: Path, names: tuple[str, ...], sizes: dict[str, int], compressed: bool
) -> None:
    arrays = dict(zip(names, (COLOUR[:20], LABELS[:20, None], COLOUR[20:], LABELS[20:, None]), strict=True))
    path = saved(tmp_path / "set.npz", compressed=compressed, **arrays, extra=[1, 2])
    dataset = open_dataset(path)
    assert {name: len(split) for name, split in dataset.splits.items()} == sizes
    assert (dataset.name, dict(dataset.ignored)) == ("set", {"other arrays": 1})
    for number in (0, 7, 19):
        assert np.array_equal(decoded(dataset, f"{names[0]}/{number:05}"), COLOUR[number])
        assert labels(dataset)[f"{names[0]}/{number:05}"] == str(LABELS[number])
    dataset.write_manifest(tmp_path / "m.csv")
    assert open_manifest(tmp_path / "m.csv", path).records == dataset.records


def test_an_archive_that_names_no_splits_is_divided(tmp_path: Path) -> None:
    names = np.array(["cat", "dog", "emu"])
    dataset = open_dataset(saved(tmp_path / "s.npz", images=GREY, labels=LABELS, class_names=names))
    assert {name: len(split) for name, split in dataset.splits.items()} == {"train": 21, "val": 3, "test": 6}
    assert labels(dataset) == {f"images/{i:05}": names[LABELS[i]] for i in range(NUM)}
    assert dataset.traits.flip
    texts = open_dataset(saved(tmp_path / "t.npz", x=GREY, y=names[LABELS]))
    assert texts.classes == dataset.classes
    assert open_dataset(saved(tmp_path / "b.npz", x=GREY, y=names[LABELS].astype("S"))).classes == dataset.classes
    assert list(open_evaluation_set(tmp_path / "s.npz", names.tolist()).splits) == ["test"]


def test_pixels_that_are_not_compressed_stay_on_the_disk(tmp_path: Path) -> None:
    def pixels(path: Path) -> np.ndarray:
        return open_source(path).pictures.blocks["images"].pixels  # type: ignore[attr-defined]

    stored = pixels(saved(tmp_path / "s.npz", images=np.asfortranarray(COLOUR), labels=LABELS))
    assert isinstance(stored, np.memmap)
    assert np.array_equal(stored, COLOUR)
    assert not isinstance(pixels(saved(tmp_path / "c.npz", compressed=True, images=COLOUR, labels=LABELS)), np.memmap)


def test_encoded_pictures_are_cut_out_by_their_offsets(tmp_path: Path) -> None:
    files = []
    for picture in COLOUR:
        file = io.BytesIO()
        Image.fromarray(picture).save(file, "PNG")
        files.append(np.frombuffer(file.getvalue(), np.uint8))
    files[4] = files[4][:30]
    offsets = np.cumsum([0, *map(len, files)])
    arrays = {"train_png": np.concatenate(files), "train_offsets": offsets, "y_train": LABELS}
    dataset = open_dataset(saved(tmp_path / "s.npz", **arrays))
    assert [path for path, _ in dataset.refused] == ["train_png/00004"]
    assert np.array_equal(decoded(dataset, "train_png/00029"), COLOUR[29])
    for wrong in (offsets[::-1], offsets + 1, offsets - 1, offsets.astype(float), offsets[:, None]):
        assert "The offsets of train_png do not fit" in refusal(
            saved(tmp_path / "w.npz", **{**arrays, "train_offsets": wrong})
        )
    del arrays["train_offsets"]
    assert "has train_png without offsets" in refusal(saved(tmp_path / "w.npz", **arrays))


@pytest.mark.parametrize(
    ("images", "expected"),
    [
        (COLOUR.transpose(0, 3, 1, 2), COLOUR),
        (GREY[..., None], np.stack([GREY] * 3, axis=-1)),
        (GREY > 127, np.stack([np.where(GREY > 127, 255, 0)] * 3, axis=-1)),
        (COLOUR.astype(np.int64), COLOUR),
        (COLOUR / 255, COLOUR),
        (COLOUR.astype(np.float32), COLOUR),
        (GREY.astype(np.uint16) * 257, np.stack([GREY] * 3, axis=-1)),
        (np.concatenate([COLOUR, np.full((NUM, 9, 7, 1), 255, np.uint8)], axis=-1), COLOUR),
        (np.concatenate([COLOUR, np.zeros((NUM, 9, 7, 1), np.uint8)], axis=-1), np.full_like(COLOUR, 255)),
    ],
)
def test_arrays_of_every_kind_become_rgb_by_one_rule(tmp_path: Path, images: np.ndarray, expected: np.ndarray) -> None:
    dataset = open_dataset(saved(tmp_path / "s.npz", images=images, labels=LABELS), DataConfig(duplicates="off"))
    assert np.array_equal(np.stack([decoded(dataset, f"images/{i:05}") for i in range(NUM)]), expected)


def test_floats_of_one_set_are_scaled_alike(tmp_path: Path) -> None:
    dark = np.where(COLOUR > 128, 1.0, 0.0)  # nothing above 1, though the others go to 255
    arrays = {"x_train": COLOUR.astype(np.float32), "y_train": LABELS, "x_test": dark, "y_test": LABELS}
    dataset = open_dataset(saved(tmp_path / "s.npz", **arrays), DataConfig(duplicates="off"))
    assert decoded(dataset, "x_test/00000").max() == 1


@pytest.mark.parametrize(
    ("images", "reason"),
    [
        ((COLOUR - 127.5) / 64, "its values go from"),
        (np.full((NUM, 4, 4), np.nan), "its values go from nan to nan"),
        (COLOUR.astype(np.int32) * 2, "arrays take 0 to 255"),
        (np.zeros((NUM, 5, 5, 9), np.uint8), "it has 9 channels; pictures have 1, 3 or 4"),
    ],
)
def test_values_without_an_agreed_meaning_are_refused(tmp_path: Path, images: np.ndarray, reason: str) -> None:
    assert reason in refusal(saved(tmp_path / "s.npz", images=images, labels=LABELS))


def test_labels_become_the_names_of_classes(tmp_path: Path) -> None:
    def named(values: Any, **more: Any) -> dict[str, str]:
        dataset = open_dataset(saved(tmp_path / "s.npz", images=GREY, labels=values, **more))
        assert all(reason == "it has no label" for _, reason in dataset.refused)
        return labels(dataset)

    numbers = {f"images/{i:05}": str(LABELS[i]) for i in range(NUM)}
    assert named(np.eye(3)[LABELS]) == named(LABELS.astype(np.float32)) == named(LABELS.astype(np.int8)) == numbers
    missing = np.where(np.arange(NUM) == 5, -1, LABELS)
    assert named(missing) == {path: label for path, label in numbers.items() if path != "images/00005"}
    assert named(LABELS == 0)["images/00000"] == "1"


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        ({"a": GREY, "b": LABELS}, "has no arrays of images with their labels. Usual are x_train, y_train"),
        ({"a": GREY, "b": LABELS}, "It has: a, b."),
        ({"images": GREY, "train_labels": LABELS}, "has no arrays of images with their labels"),
        ({"images": GREY, "x": GREY, "labels": LABELS}, "has the arrays images and x, and one of them alone"),
        ({"images": GREY, "png": GREY, "labels": LABELS}, "has the arrays images and png, and one of them alone"),
        ({"images": GREY, "labels": LABELS[:-1]}, "has 30 pictures, and its labels the shape (29,)"),
        ({"images": GREY, "labels": LABELS + 0.5}, "The labels of images are not whole, such as 0.5"),
        ({"images": GREY, "labels": np.ones((NUM, 3), int)}, "rows with other than a single 1"),
        ({"images": GREY, "labels": LABELS, "class_names": ["a", "b"]}, "has the label 2, and there are names for 2"),
        ({"images": GREY, "labels": LABELS, "class_names": ["a", "b", "b"]}, "no row of different texts"),
        ({"images": GREY.reshape(NUM, -1), "labels": LABELS}, "has the shape (30, 63)"),
        ({"images": GREY[:0], "labels": LABELS[:0]}, "its arrays are empty"),
        ({"images": GREY[:, :0], "labels": LABELS}, "has the shape (30, 0, 7)"),
    ],
)
def test_archives_that_tell_no_images_get_one_sentence(tmp_path: Path, arrays: dict[str, Any], says: str) -> None:
    assert says in refusal(saved(tmp_path / "s.npz", **arrays))


def test_no_pickle_and_no_damage_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.savez(tmp_path / "s.npz", allow_pickle=True, images=GREY, labels=np.array([{}] * NUM, object))
    assert "labels.npy of" in refusal(tmp_path / "s.npz")
    assert "holds Python objects" in refusal(tmp_path / "s.npz")
    saved(tmp_path / "c.npz", compressed=True, images=GREY, labels=LABELS)
    data = (tmp_path / "c.npz").read_bytes()
    for number, damaged in enumerate((b"", b"no zip", data[: len(data) // 2], data[:300] + bytes(99) + data[399:])):
        (tmp_path / f"{number}.npz").write_bytes(damaged)
        assert "cannot be read" in refusal(tmp_path / f"{number}.npz")
    with zipfile.ZipFile(tmp_path / "lie.npz", "w") as archive:
        for name, values in (("images.npy", GREY), ("labels.npy", LABELS)):
            file = io.BytesIO()
            np.save(file, values)
            archive.writestr(name, file.getvalue() + b"more")
    assert "has not the size that its header tells" in refusal(tmp_path / "lie.npz")
    monkeypatch.setattr("vitrail.data.sources.arrays.available_memory_bytes", lambda: 1000)
    assert "Keep it uncompressed, so that it can stay on the disk" in refusal(tmp_path / "c.npz")
    assert len(labels(open_dataset(saved(tmp_path / "u.npz", images=GREY, labels=LABELS)))) == NUM


def test_a_table_labels_the_pictures_of_an_archive_anew(tmp_path: Path) -> None:
    archive = saved(tmp_path / "s.npz", images=GREY, labels=np.ones((NUM, 3), int))
    rows = [f"images/{i:05},{i % 2},{i % 3 % 2}" for i in range(NUM)]
    (tmp_path / "t.csv").write_text("\n".join(["path,fur,wings", *rows]))
    dataset = open_dataset(tmp_path / "t.csv", DataConfig(root=str(archive), label_columns=("fur", "wings")))
    assert dataset.task == "multilabel"
    assert np.array_equal(decoded(dataset, "images/00007")[..., 0], GREY[7])


def test_an_archive_that_changed_is_looked_at_again(tmp_path: Path) -> None:
    def hashes(images: np.ndarray) -> set[str]:
        return {r.sha256 for r in open_dataset(saved(tmp_path / "s.npz", images=images, labels=LABELS)).records}

    assert hashes(GREY) == hashes(GREY)
    assert not hashes(GREY) & hashes(255 - GREY)


@pytest.mark.skipif(not SHARED.is_dir(), reason=f"{SHARED} is not there")
def test_published_sets_are_read_as_they_are(tmp_path: Path) -> None:
    listing = open_source(SHARED / "fashion_mnist").list(None)
    assert [sum(record.split == split for record in listing.records) for split in ("train", "test")] == [60000, 10000]
    source = open_source(SHARED / "cifar10" / "cifar10_jpeg.npz")
    records = source.list(None).records
    assert len(records) == 60000
    assert len({record.label for record in records}) == 10
    assert source.pictures.open(records[-1].path, None).size == (32, 32)
