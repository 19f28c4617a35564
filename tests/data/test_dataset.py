"""From a folder to a dataset: what is found, refused, divided and written down."""

import csv
import errno
import os
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vitrail.config import DataConfig
from vitrail.data import Dataset, open_dataset, open_evaluation_set, open_manifest, read_manifest
from vitrail.errors import DataError, StorageError


def picture(path: Path, seed: int = 0, size: tuple[int, int] = (12, 10)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), np.uint8)).save(path)


def pictures(root: Path, **counts: int) -> Path:
    """Make ``counts[label]`` pictures in each folder; "__" in a name stands for "/"."""
    for label, count in counts.items():
        for number in range(count):
            file = f"{label.replace('__', '/')}/{number:03d}.png"
            picture(root / file, zlib.crc32(file.encode()))
    return root


def labels_by_path(dataset: Dataset) -> dict[str, str]:
    return {
        path: dataset.classes[label]
        for split in dataset.splits.values()
        for path, label in zip(split.paths, split.labels, strict=True)
    }


def test_a_class_that_val_lacks_does_not_shift_the_labels_of_the_others(tmp_path: Path) -> None:
    # timm numbers each split's folders on its own, so that here "cat" is 2 in train and 1 in val.
    pictures(tmp_path, train__ant=3, train__bee=3, train__cat=3, val__ant=2, val__cat=2, test__cat=1)
    dataset = open_dataset(tmp_path, DataConfig())
    assert dataset.classes == ("ant", "bee", "cat")
    assert all(split.classes == dataset.classes for split in dataset.splits.values())
    assert dataset.splits["val"].labels.tolist() == [0, 0, 2, 2]
    assert dataset.splits["test"].labels.tolist() == [2]
    assert all(label in path for path, label in labels_by_path(dataset).items())


def test_a_flat_folder_is_divided_by_the_shares_of_every_class(tmp_path: Path) -> None:
    pictures(tmp_path, big=40, small=10, tiny=2)
    dataset = open_dataset(tmp_path, DataConfig(val_fraction=0.1, test_fraction=0.2))
    counts = {name: np.bincount(split.labels, minlength=3).tolist() for name, split in dataset.splits.items()}
    assert counts == {"train": [28, 7, 1], "val": [4, 1, 1], "test": [8, 2, 0]}
    assert sorted(labels_by_path(dataset)) == sorted(record.path for record in dataset.records)


def test_the_division_depends_on_seed_and_paths_alone(tmp_path: Path) -> None:
    first, second = (pictures(tmp_path / name, a=30, b=30) for name in ("one", "two"))
    val = open_dataset(first, DataConfig()).splits["val"].paths
    assert open_dataset(second, DataConfig()).splits["val"].paths == val
    assert open_dataset(first, DataConfig(seed=1)).splits["val"].paths != val
    for number in range(3):
        picture(second / "a" / f"new{number}.png", seed=number)
    after = open_dataset(second, DataConfig()).splits["val"].paths
    assert len(set(val) - set(after)) <= 1


@pytest.mark.parametrize(("val", "test"), [("val", "test"), ("Validation", "TESTING"), ("valid", "Test")])
def test_the_folders_of_the_splits_go_by_several_names(tmp_path: Path, val: str, test: str) -> None:
    pictures(tmp_path, **{"Train__a": 3, "Train__b": 3, f"{val}__a": 1, f"{val}__b": 1, f"{test}__a": 2})
    dataset = open_dataset(tmp_path, DataConfig())
    assert {name: len(split) for name, split in dataset.splits.items()} == {"train": 6, "val": 2, "test": 2}


def test_a_missing_val_is_taken_from_train_and_a_missing_test_stays_missing(tmp_path: Path) -> None:
    pictures(tmp_path, train__a=10, train__b=10)
    dataset = open_dataset(tmp_path, DataConfig())
    assert {name: len(split) for name, split in dataset.splits.items()} == {"train": 18, "val": 2}
    pictures(tmp_path, test__a=4, test__b=1)
    assert len(open_dataset(tmp_path, DataConfig()).splits["test"]) == 5


def test_a_class_that_only_val_shows_is_refused(tmp_path: Path) -> None:
    pictures(tmp_path, train__a=3, train__b=3, val__a=1, val__zebra=1)
    with pytest.raises(DataError, match="no usable picture in train: zebra"):
        open_dataset(tmp_path, DataConfig())


def test_two_folders_for_one_split_are_refused(tmp_path: Path) -> None:
    pictures(tmp_path, train__a=2, train__b=2, val__a=1, valid__a=1)
    with pytest.raises(DataError, match="val and valid, which both mean val"):
        open_dataset(tmp_path, DataConfig())


def test_broken_files_are_listed_with_their_reason_and_left_out(tmp_path: Path) -> None:
    pictures(tmp_path, a=4, b=4)
    (tmp_path / "a" / "text.jpg").write_text("no picture")
    (tmp_path / "a" / "empty.png").touch()
    (tmp_path / "a" / "gone.png").symlink_to("nowhere.png")
    (tmp_path / "b" / "phone.HEIC").write_bytes(b"...")
    seen: list[tuple[int, int]] = []
    dataset = open_dataset(tmp_path, DataConfig(), progress=lambda done, total: seen.append((done, total)))
    assert [path for path, _ in dataset.refused] == ["a/empty.png", "a/gone.png", "a/text.jpg", "b/phone.HEIC"]
    reasons = [reason for _, reason in dataset.refused]
    assert all(word in reason for word, reason in zip(("empty", "no such", "formats", "convert"), reasons, strict=True))
    assert len(labels_by_path(dataset)) == 8
    assert seen == [(done, 12) for done in range(1, 13)]


def test_what_is_hidden_or_no_picture_is_ignored_and_counted(tmp_path: Path) -> None:
    pictures(tmp_path, a=3, b=3, **{".ipynb_checkpoints": 2, "__MACOSX": 0})
    picture(tmp_path / "a" / "._001.png")
    picture(tmp_path / "a" / ".ipynb_checkpoints" / "001-checkpoint.png")
    (tmp_path / "__MACOSX").mkdir()
    (tmp_path / "a" / ".DS_Store").touch()
    (tmp_path / "a" / "notes.txt").touch()
    (tmp_path / "LICENSE").touch()
    dataset = open_dataset(tmp_path, DataConfig())
    assert dataset.classes == ("a", "b")
    assert len(labels_by_path(dataset)) == 6
    assert dataset.refused == []
    assert dict(dataset.ignored) == {"hidden": 5, "files outside class folders": 1, ".txt files": 1}


def test_odd_trees_are_read_to_their_end(tmp_path: Path) -> None:
    pictures(tmp_path, a=2, b=2)
    picture(tmp_path / "a" / "deep" / "er" / "x.PNG")
    picture(tmp_path / "a" / "folder.jpg" / "y.png")
    (tmp_path / "a" / "deep" / "loop").symlink_to(tmp_path / "a")
    (tmp_path / "b" / "self").symlink_to(tmp_path / "b" / "self")
    (tmp_path / "b" / "up").symlink_to("..")  # would show the pictures of a as b
    (tmp_path / "b" / "everything").symlink_to("/")
    os.mkfifo(tmp_path / "b" / "pipe.jpg")
    picture(tmp_path / "b" / "with space\nand break.png")
    dataset = open_dataset(tmp_path, DataConfig())
    used = labels_by_path(dataset)
    assert {"a/deep/er/x.PNG", "a/folder.jpg/y.png", "b/with space\nand break.png"} < set(used)
    assert len(used) == 7
    assert dict(dataset.refused)["b/pipe.jpg"] == "it is not a regular file"
    assert dataset.ignored["links to folders around or seen before"] == 3


def test_the_manifest_makes_the_same_dataset_again_with_any_file_name(tmp_path: Path) -> None:
    root = pictures(tmp_path / "source", a=5, b=5)
    odd = os.fsdecode(b'caf\xe9, "quoted"\r\nline.png')
    picture(root / "a" / "x.png")
    (root / "a" / "x.png").rename(root / "a" / odd)
    (root / "b" / "broken.png").write_bytes(b"?")
    first = open_dataset(root, DataConfig())
    first.write_manifest(tmp_path / "manifest.csv")
    second = open_manifest(tmp_path / "manifest.csv", root)
    assert second.records == first.records == read_manifest(tmp_path / "manifest.csv")
    assert second.classes == first.classes
    assert second.refused == first.refused
    assert any(record.path == f"a/{odd}" for record in second.records)
    for name, split in first.splits.items():
        assert split.paths == second.splits[name].paths
        assert np.array_equal(split.labels, second.splits[name].labels)
        assert np.array_equal(split.sizes, second.splits[name].sizes)
    index = next(i for i, path in enumerate(first.splits["train"].paths) if path.startswith("a/0"))
    assert second.splits["train"].decode(index).size == (12, 10)


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("path", "../secret.png", "stay below"),
        ("path", "/etc/passwd", "stay below"),
        ("split", "holdout", "train, val or test"),
        ("status", "refused", "train, val or test"),
        ("width", "-3", "whole pixels"),
    ],
)
def test_a_manifest_that_was_tampered_with_is_refused(tmp_path: Path, column: str, value: str, message: str) -> None:
    open_dataset(pictures(tmp_path / "source", a=2, b=2), DataConfig()).write_manifest(tmp_path / "m.csv")
    with (tmp_path / "m.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    lines[1][column] = value
    with (tmp_path / "m.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, lines[0])
        writer.writeheader()
        writer.writerows(lines)
    with pytest.raises(DataError, match=rf"row 3.*{message}"):
        open_manifest(tmp_path / "m.csv", tmp_path / "source")


def test_a_full_disk_leaves_no_half_manifest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = open_dataset(pictures(tmp_path / "source", a=2, b=2), DataConfig())

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match="disk is full"):
        dataset.write_manifest(tmp_path / "out" / "manifest.csv")
    assert list((tmp_path / "out").iterdir()) == []


def test_sources_that_nothing_can_be_trained_on_get_one_clear_sentence(tmp_path: Path) -> None:
    def refusal(path: Path) -> str:
        with pytest.raises(DataError) as caught:
            open_dataset(path, DataConfig())
        return str(caught.value)

    assert "Did you mean 'flowers'?" in refusal(pictures(tmp_path / "flowers", a=2, b=2).with_name("flower"))
    assert "is a file" in refusal(tmp_path / "flowers" / "a" / "000.png")
    (tmp_path / "empty").mkdir()
    assert "has no pictures in class folders" in refusal(tmp_path / "empty")
    picture(tmp_path / "loose" / "x.png")
    assert "one folder per class" in refusal(tmp_path / "loose")
    assert "one class only, a" in refusal(pictures(tmp_path / "single", a=5))
    assert "Each class needs at least 2 usable ones" in refusal(pictures(tmp_path / "few", a=5, b=1))
    broken = pictures(tmp_path / "broken", a=5)
    for label in ("a", "b"):
        (broken / label).mkdir(exist_ok=True)
        (broken / label / "x.png").write_bytes(b"?")
    assert "For example b/x.png: it is none of the formats" in refusal(broken)
    for path in (broken / "a").iterdir():
        path.write_bytes(b"?")
    assert "None of the 7 pictures" in refusal(broken)


def test_an_evaluation_set_takes_the_labels_of_the_model(tmp_path: Path) -> None:
    pictures(tmp_path, dog=2, cat=1)
    dataset = open_evaluation_set(tmp_path, ("zebra", "dog", "cat"))
    assert list(dataset.splits) == ["test"]
    assert dataset.splits["test"].labels.tolist() == [2, 1, 1]
    with pytest.raises(DataError, match=r"does not know: dog\. Did you mean 'dogs'\?"):
        open_evaluation_set(tmp_path, ("cat", "dogs"))


def test_the_digits_are_built_in(tmp_path: Path) -> None:
    dataset = open_dataset("digits", DataConfig())
    assert {name: len(split) for name, split in dataset.splits.items()} == {"train": 1259, "val": 179, "test": 359}
    assert dataset.classes == tuple("0123456789")
    assert not dataset.traits.flip
    train = dataset.splits["train"]
    assert train.paths[0].startswith("digits/")
    from sklearn.datasets import load_digits

    expected = load_digits()
    for index in (0, 100, 1000):
        number = int(train.paths[index].removeprefix("digits/"))
        assert np.abs(np.asarray(train.decode(index))[..., 1] * (16 / 255) - expected.images[number]).max() < 0.04
        assert train.labels[index] == expected.target[number]
    assert len({record.sha256 for record in dataset.records}) == 1797
    assert dataset.findings.pairs == ()
    dataset.write_manifest(tmp_path / "digits.csv")
    again = open_manifest(tmp_path / "digits.csv", "digits")
    assert again.splits["val"].paths == dataset.splits["val"].paths
    assert np.array_equal(again.splits["val"].decode(3), dataset.splits["val"].decode(3))


def test_a_manifest_tells_where_it_looks_for_its_pictures(tmp_path: Path) -> None:
    open_dataset(pictures(tmp_path / "flowers", a=2, b=2), DataConfig()).write_manifest(tmp_path / "m.csv")
    with pytest.raises(DataError, match=r"Did you mean 'flowers'\? .* The pictures of .*m\.csv are looked for there"):
        open_manifest(tmp_path / "m.csv", tmp_path / "flower")


def test_a_file_that_breaks_after_admission_is_named(tmp_path: Path) -> None:
    split = open_dataset(pictures(tmp_path, a=3, b=3), DataConfig()).splits["train"]
    (tmp_path / split.paths[0]).unlink()
    with pytest.raises(DataError, match=rf"{split.paths[0]} is not used: there is no such file\. It was whole"):
        split.decode(0)
