"""Shards as sources: what is read of tar archives, in which order, and what is refused."""

import gzip
import io
import json
import random
import shutil
import tarfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from views import labels, refusal, sizes

from vitrail.config import DataConfig, Preprocess, SourceConfig
from vitrail.data import Dataset, TrainLoader, augment_policy, open_dataset, open_evaluation_set, open_manifest
from vitrail.data.images import decode_bytes
from vitrail.data.sources import open_source, tarindex
from vitrail.data.sources.shards import expand
from vitrail.data.sources.tarindex import read_index
from vitrail.errors import ConfigError, DataError

NUM = 24

Files = Iterable[tuple[str | tarfile.TarInfo, bytes | str]]


def encoded(number: int, form: str = "PNG") -> bytes:
    file = io.BytesIO()
    pixels = np.random.default_rng(number).integers(0, 256, (10, 12, 3), np.uint8)
    Image.fromarray(pixels).save(file, form)
    return file.getvalue()


FILES = [encoded(number) for number in range(NUM)]


def write_tar(path: Path, files: Files, form: int = tarfile.PAX_FORMAT) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=form, errors="surrogateescape") as archive:
        for name, content in files:
            data = content.encode() if isinstance(content, str) else content
            member = tarfile.TarInfo(name) if isinstance(name, str) else name
            member.size = len(data) if member.isreg() else 0
            archive.addfile(member, io.BytesIO(data))
    return path


def samples(rows: Iterable[int], more: Callable[[int], dict[str, str]] | None = None) -> list[tuple[str, Any]]:
    """Return the files of some samples, in no order; sample i is of class "a" or "b", and its label in cls."""
    files: list[tuple[str, Any]] = []
    for row in rows:
        beside = {"cls": "ab"[row % 2]} if more is None else more(row)
        files += [(f"{row:04}.png", FILES[row]), *((f"{row:04}.{name}", text) for name, text in beside.items())]
    random.Random(0).shuffle(files)
    return files


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four shards of six samples, without splits."""
    for shard in range(4):
        write_tar(tmp_path / "set" / f"part-{shard:03}.tar", samples(range(6 * shard, 6 * shard + 6)))
    return tmp_path / "set"


def one(tmp_path: Path, more: Callable[[int], dict[str, str]]) -> Path:
    return write_tar(tmp_path / "one.tar", samples(range(NUM), more))


def pixels(dataset: Dataset, path: str) -> np.ndarray:
    return np.asarray(next(iter(dataset.splits.values())).pictures.open(path, None))


def test_shards_are_divided_and_read_where_they_lie(folder: Path, tmp_path: Path) -> None:
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    dataset = open_dataset(folder)
    assert (dataset.name, dataset.classes) == ("set", ("a", "b"))
    assert sum(sizes(dataset).values()) == NUM
    assert len(sizes(dataset)) == 3
    for row in range(NUM):
        path = f"part-{row // 6:03}.tar/{row:04}.png"
        assert labels(dataset)[path] == "ab"[row % 2]
        assert np.array_equal(pixels(dataset, path), np.asarray(decode_bytes(FILES[row], "")))
    dataset.write_manifest(tmp_path / "m.csv")
    assert open_manifest(tmp_path / "m.csv", folder).records == dataset.records
    assert open_dataset(tmp_path / "m.csv", DataConfig(root=str(folder))).records == dataset.records
    assert open_dataset(f"{folder}/part-{{000..003}}.tar").records == dataset.records
    assert open_dataset(f"{folder}/part-*.tar").records == dataset.records
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    single = open_dataset(folder / "part-000.tar", DataConfig(test_fraction=0))
    assert sizes(single) == {"train": 4, "val": 2}
    assert single.name == "part-000"


@pytest.mark.parametrize(
    "names",
    [
        ("train-000", "train-001", "val-000", "test-000"),
        ("flowers_Train_0", "flowers_Train_1", "flowers_valid_0", "flowers.testing.0"),
        ("train/0", "train/1", "validation/0", "test/0"),
    ],
)
def test_splits_are_told_by_the_folders_or_names_of_shards(tmp_path: Path, names: Sequence[str]) -> None:
    for number, name in enumerate(names):
        write_tar(tmp_path / "set" / f"{name}.tar", samples(range(6 * number, 6 * number + 6)))
    dataset = open_dataset(tmp_path / "set")
    assert sizes(dataset) == {"train": 12, "val": 6, "test": 6}
    assert f"{names[2]}.tar/0012.png" in dataset.splits["val"].paths
    anew = open_dataset(tmp_path / "set", DataConfig(split_column=""))
    assert set(anew.splits["val"].paths) != set(dataset.splits["val"].paths)
    evaluated = open_evaluation_set(tmp_path / "set", ("a", "b", "c"))
    assert sizes(evaluated) == sizes(dataset)
    # What is of no split is passed over and counted, as beside split folders.
    extra = "extra/0" if "/" in names[0] else "extra-0"
    write_tar(tmp_path / "set" / f"{extra}.tar", samples(range(6)))
    again = open_dataset(tmp_path / "set")
    assert again.records == dataset.records
    assert list(again.ignored.values()) == [1]


def test_braces_mean_what_they_mean_in_a_shell(folder: Path) -> None:
    assert expand("s-{8..11}.tar") == ["s-8.tar", "s-9.tar", "s-10.tar", "s-11.tar"]
    assert expand("{a,b}/{00..01}.tar") == ["a/00.tar", "a/01.tar", "b/00.tar", "b/01.tar"]
    assert "There is no shard" in refusal(f"{folder}/part-{{000..004}}.tar")
    assert "part-004.tar" in refusal(f"{folder}/part-{{000..004}}.tar")
    assert "means more than 100,000 shards" in refusal(f"{folder}/part-{{0..999999999999}}.tar")
    assert "means more than 100,000 shards" in refusal(f"{folder}/{{0..999}}-{{0..999}}.tar")
    assert "There is no file or folder" in refusal(f"{folder}/nothing.tar")


@pytest.mark.parametrize("workers", [1, 3])
def test_order_and_augmentation_are_those_of_a_folder_of_the_same_images(
    folder: Path, tmp_path: Path, workers: int
) -> None:
    for row, data in enumerate(FILES):
        path = tmp_path / "tree" / "ab"[row % 2] / f"part-{row // 6:03}.tar" / f"{row:04}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    with (tmp_path / "t.csv").open("w") as file:
        names = [(f"part-{row // 6:03}.tar/{row:04}.png", "ab"[row % 2]) for row in range(NUM)]
        file.writelines(["path,label\n", *(f"{name},{label}\n" for name, label in names)])
    for path in (tmp_path / "tree").glob("?/*/*.png"):
        shutil.copytree(path.parent, tmp_path / "flat" / path.parent.name, dirs_exist_ok=True)
    preprocess = Preprocess(image_size=(8, 8))
    batches = []
    for source, config in ((folder, {}), (tmp_path / "t.csv", {"root": str(tmp_path / "flat")})):
        split = open_dataset(source, DataConfig(**config)).splits["train"]
        loader = TrainLoader(split, preprocess, augment_policy("medium"), 4, seed=1, workers=workers, cache="off")
        whole = list(loader.epoch(2))
        rest = list(loader.epoch(2, start_batch=2))
        assert all(np.array_equal(one.images, other.images) for one, other in zip(whole[2:], rest, strict=True))
        batches.append([(batch.images.numpy(), batch.labels.numpy(), batch.indices) for batch in whole])
    for ours, theirs in zip(*batches, strict=True):
        assert all(np.array_equal(one, other) for one, other in zip(ours, theirs, strict=True))


def test_labels_come_from_cls_json_or_txt(tmp_path: Path) -> None:
    def everything(row: int) -> dict[str, str]:
        fields = {
            "label": "xy"[row % 2],
            "kind": "pq"[row % 2],
            "fold": "test" if row < 6 else "train",
            "group": row // 2,
        }
        return {"txt": f" {'mn'[row % 2]}\n", "json": json.dumps(fields), "cls": str(row % 2), "seg.txt": "s"}

    source = one(tmp_path, everything)
    dataset = open_dataset(source)
    assert dataset.classes == ("0", "1")
    assert set(dataset.splits["test"].paths) == {f"one.tar/{row:04}.png" for row in range(6)}
    for column, classes in (("label", ("x", "y")), ("kind", ("p", "q")), ("txt", ("m", "n")), ("cls", ("0", "1"))):
        found = open_dataset(source, DataConfig(label_column=column, split_column=""))
        assert found.classes == classes
        split_of = {path: name for name, split in found.splits.items() for path in split.paths}
        pairs = [{split_of[f"one.tar/{row:04}.png"] for row in (n, n + 1)} for n in range(0, NUM, 2)]
        assert all(len(pair) == 1 for pair in pairs)  # of one group
    sentence = refusal(source, DataConfig(label_column="kin"))
    assert "label_column is 'kin', and one has no such column. Did you mean 'kind'?" in sentence
    for without, classes in (({"cls"}, ("x", "y")), ({"cls", "json"}, ("m", "n"))):
        left = one(tmp_path, lambda row: {k: v for k, v in everything(row).items() if k not in without})  # noqa: B023
        assert open_dataset(left).classes == classes
    assert open_dataset(one(tmp_path, lambda row: {"json": json.dumps("uv"[row % 2])})).classes == ("u", "v")
    assert "has no labels: its shards take 0001.cls" in refusal(one(tmp_path, lambda row: {}))
    assert "root tells how a table is read" in refusal(source, DataConfig(root="x"))


def test_numbers_are_called_by_the_names_beside_the_shards(tmp_path: Path) -> None:
    source = one(tmp_path, lambda row: {"cls": str(row % 2)})
    (tmp_path / "classnames.txt").write_text("rose\ndaisy\n")
    assert labels(open_dataset(source))["one.tar/0001.png"] == "daisy"
    (tmp_path / "classnames.txt").write_text("rose\n")
    assert "has the class 1, and there are names for 1 only" in refusal(source)
    (tmp_path / "classnames.txt").write_text("rose\nrose\n")
    assert "has a name twice" in refusal(source)


def test_lists_are_several_labels(tmp_path: Path) -> None:
    source = one(tmp_path, lambda row: {"json": json.dumps({"labels": ["x", "y"][: row % 3], "a": row % 2, "b": 1})})
    dataset = open_dataset(source)
    assert (dataset.task, dataset.classes) == ("multilabel", ("x", "y"))
    assert {record.path: record.label for record in dataset.records}["one.tar/0002.png"] == ("x", "y")
    columns = open_dataset(source, DataConfig(label_columns=("a", "b")))
    assert {record.path: record.label for record in columns.records}["one.tar/0002.png"] == ("b",)
    separated = open_dataset(
        one(tmp_path, lambda row: {"txt": "x|y" if row % 2 else "x"}), DataConfig(label_separator="|")
    )
    assert separated.classes == ("x", "y")


def test_of_several_images_of_a_sample_one_is_named(tmp_path: Path) -> None:
    files = [
        (f"{row:04}.{kind}", FILES[row - part]) for row in range(NUM) for part, kind in enumerate(("left.png", "PNG"))
    ]
    source = write_tar(tmp_path / "s.tar", [*files, *((f"{row:04}.cls", "ab"[row % 2]) for row in range(NUM))])
    assert "sample 0000, has several images, left.png, png; say which one is meant with path_column" in refusal(source)
    dataset = open_dataset(source, DataConfig(path_column="left.png"))
    assert np.array_equal(pixels(dataset, "s.tar/0003.left.png"), np.asarray(decode_bytes(FILES[3], "")))
    assert "path_column is 'right', and" in refusal(source, DataConfig(path_column="right"))


def test_channels_are_kept_where_they_are_asked_for(tmp_path: Path) -> None:
    files: list[tuple[str, Any]] = []
    for row in range(NUM):
        file = io.BytesIO()
        np.save(file, np.random.default_rng(row).integers(0, 2**16, (9, 8, 5), np.uint16))
        files += [(f"{row}.npy", file.getvalue()), (f"{row}.cls", "ab"[row % 2])]
    source = write_tar(tmp_path / "s.tar", files)
    assert "has no images" in refusal(source)
    dataset = open_dataset(source, DataConfig(channels=5))
    assert (dataset.channels, dataset.pixel_type) == (5, "uint16")
    assert len(dataset.records) == NUM


def link(name: str, kind: bytes, target: str = "/etc/passwd") -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, target
    return member


def test_hostile_members_are_passed_over_or_refused_with_a_reason(tmp_path: Path) -> None:
    good = samples(range(12, NUM))
    long = "d" * 120 + "/" + "f" * 120
    odd = "n\n\udcff"
    bad: list[tuple[Any, Any]] = [
        (link("link.png", tarfile.SYMTYPE), b""),
        (link("hard.png", tarfile.LNKTYPE), b""),
        (link("pipe.png", tarfile.FIFOTYPE), b""),
        (link("folder.png", tarfile.DIRTYPE), b""),
        ("../../outside.png", FILES[0]),
        ("/absolute.png", FILES[0]),
        ("a/../../b.png", FILES[0]),
        ("._0001.png", FILES[0]),
        ("noextension", FILES[0]),
        ("__meta__.png", FILES[0]),
        ("only.cls", "a"),
        *[
            (f"./twice.{kind}", data)
            for kind, data in (("png", FILES[1]), ("cls", "a"), ("png", FILES[2]), ("cls", "b"))
        ],
        *[(f"{long}.{kind}", data) for kind, data in (("png", FILES[3]), ("cls", "b"))],
        *[(f"{odd}.{kind}", data) for kind, data in (("png", FILES[4]), ("cls", "b"))],
        *[(f"broken.{kind}", data) for kind, data in (("png", FILES[5][:80]), ("cls", "b"))],
        *[(f"empty.{kind}", data) for kind, data in (("png", b""), ("cls", "b"))],
        *[(f"text.{kind}", data) for kind, data in (("png", "no image"), ("cls", "b"))],
        *[(f"apple.{kind}", data) for kind, data in (("heic", FILES[5]), ("cls", "b"))],
        *[(f"x/../inside.{kind}", data) for kind, data in (("png", FILES[6]), ("cls", "b"))],
        ("unlabelled.png", FILES[7]),
        *[(f"nojson.{kind}", data) for kind, data in (("png", FILES[8]), ("cls", "b"), ("json", "{"))],
        *[(f"large.d/between.{kind}", data) for kind, data in (("png", FILES[10]), ("cls", "b"))],
        *[(f"large.{kind}", data) for kind, data in (("png", FILES[9]), ("cls", "b" * 2**21))],
    ]
    source = write_tar(tmp_path / "s.tar", [*bad, *good])
    dataset = open_dataset(source)
    reasons = {record.path.removeprefix("s.tar/"): record.reason for record in dataset.records if record.reason}
    assert reasons["twice.png"] == "its shard has several files of this name"
    assert reasons["unlabelled.png"] == "its row has no label"
    assert reasons["large.png"] == "its .cls has 2 MiB; at most 1 is read"
    assert ".heic files are not read" in reasons["apple.heic"]
    assert set(reasons) == {
        *("twice.png", "unlabelled.png", "large.png", "apple.heic", "broken.png", "empty.png", "text.png"),
    }
    assert dataset.ignored == {
        "links and the like in archives": 3,
        "names that lead out of an archive": 3,
        "hidden files and those without an extension": 3,
        "samples without an image": 1,
    }
    used = set(labels(dataset))
    assert {f"s.tar/{long}.png", f"s.tar/{odd}.png", "s.tar/inside.png", "s.tar/nojson.png"} <= used
    assert "s.tar/large.d/between.png" in used
    assert np.array_equal(pixels(dataset, f"s.tar/{odd}.png"), np.asarray(decode_bytes(FILES[4], "")))
    dataset.write_manifest(tmp_path / "m.csv")
    assert open_manifest(tmp_path / "m.csv", source).records == dataset.records
    assert {path.name for path in tmp_path.iterdir()} == {"s.tar", "m.csv"}
    by_field = refusal(one(tmp_path, lambda row: {"cls": "a", "json": '{"b": {"c": 1}}'}), DataConfig(label_column="b"))
    assert "The column 'b' of one.tar, sample 0000 holds dict" in by_field


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_every_format_of_tar_is_read(tmp_path: Path, form: int) -> None:
    files = [
        (f"{'k' * 90}/{row:04}.{kind}", data)
        for row in range(NUM)
        for kind, data in (("png", FILES[row]), ("cls", "ab"[row % 2]))
    ]
    source = write_tar(tmp_path / "s.tar", files, form)
    assert len(labels(open_dataset(source))) == NUM


def second_header(path: Path) -> int:
    with tarfile.open(path) as archive:
        return archive.getmembers()[1].offset


def overwritten(path: Path) -> None:
    start, data = second_header(path), path.read_bytes()
    path.write_bytes(data[:start] + b"x" * 512 + data[start + 512 :])


def cut_between_members(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: second_header(path)])


def negative(path: Path) -> None:
    """Give the second member a size that leads back to it (as CVE-2025-8194 has it)."""
    start, data = second_header(path), bytearray(path.read_bytes())
    header = data[start : start + 512]
    header[124:136] = (-512).to_bytes(12, "big", signed=True)
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    data[start : start + 512] = header
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:3000]), "is damaged or cut short"),
        (cut_between_members, "is cut short at byte"),
        (overwritten, "is damaged at byte"),
        (lambda path: path.write_bytes(b""), "is damaged or cut short (empty file)"),
        (lambda path: path.write_bytes(b"no archive" * 100), "is damaged or cut short"),
        (lambda path: path.write_bytes(gzip.compress(path.read_bytes())), "is packed by gzip, so that no image in it"),
        (negative, "is damaged or cut short"),
    ],
)
def test_damaged_and_packed_archives_get_one_sentence(
    folder: Path, damage: Callable[[Path], object], says: str
) -> None:
    damage(folder / "part-001.tar")
    assert says in refusal(folder)
    assert "part-001.tar" in refusal(folder)


def test_packed_and_empty_folders_get_one_sentence(folder: Path, tmp_path: Path) -> None:
    for path in folder.glob("*.tar"):
        path.with_suffix(".tar.gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
    assert "part-000.tar.gz is packed by gzip" in refusal(folder)
    assert "part-001.tar.gz is packed by gzip" in refusal(folder / "part-001.tar.gz")
    assert "has no images: its shards hold none" in refusal(write_tar(tmp_path / "e.tar", []))


def test_archives_beside_folders_of_classes_are_no_shards(folder: Path) -> None:
    for row, data in enumerate(FILES):
        path = folder / "ab"[row % 2] / f"{row}.png"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)
    assert len(open_dataset(folder).records) == NUM
    assert open_dataset(folder).ignored == {"files outside class folders": 4}


def test_copies_and_leaks_across_shards_are_found(tmp_path: Path) -> None:
    write_tar(tmp_path / "s" / "train-0.tar", samples(range(16)))
    write_tar(tmp_path / "s" / "test-0.tar", samples([*range(16, NUM), 3]))
    dataset = open_dataset(tmp_path / "s")
    assert [each.path for each in dataset.dropped] == ["test-0.tar/0003.png"]


def test_indices_are_kept_until_a_shard_changes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    walk, walked = tarindex._walk, []
    monkeypatch.setattr(tarindex, "_walk", lambda path, key: walked.append(Path(path).name) or walk(path, key))
    first = open_dataset(folder).records
    assert len(walked) == 4
    assert open_dataset(folder).records == first
    assert len(walked) == 4
    pictures = open_source(folder).pictures
    before = pictures.key("part-001.tar/0006.png")
    # A sample more, and all others elsewhere: read by name, not where the old index says.
    write_tar(folder / "part-001.tar", [("0005.txt", "x" * 600), *samples(range(6, 12))])
    assert pictures.stored("part-001.tar/0006.png") == FILES[6]
    assert walked[4:] == ["part-001.tar"]
    assert pictures.key("part-001.tar/0006.png") != before
    tarindex.cache_file("shards", str((folder / "part-002.tar").resolve())).write_bytes(b"damaged")
    assert read_index(str(folder / "part-002.tar")).find("0012.png") is not None
    assert walked[5:] == ["part-002.tar"]


def test_what_is_no_longer_there_is_refused(folder: Path) -> None:
    pictures = open_source(folder, SourceConfig()).pictures
    for path, says in (
        ("part-000.tar/0099.png", "there is no such file in its shard"),
        ("part-009.tar/0000.png", "there is no such shard"),
        ("../set/part-000.tar/0000.png", "there is no such shard"),
    ):
        with pytest.raises(DataError, match=says):
            pictures.stored(path)
    split = open_dataset(folder).splits["train"]
    for path in folder.glob("*.tar"):
        path.unlink()
    with pytest.raises(DataError, match=r"its shard cannot be read.*It was whole when the images were checked"):
        split.decode(0)
    with pytest.raises(ConfigError, match="allow_outside tells"):
        open_source(write_tar(folder / "x.tar", samples(range(3))), SourceConfig(allow_outside=True))


def test_an_index_takes_less_than_a_hundred_bytes_of_memory_per_sample(tmp_path: Path) -> None:
    source = write_tar(
        tmp_path / "s.tar", [(f"{row:08}.{kind}", b"x") for row in range(1000) for kind in ("jpg", "cls")]
    )
    index = read_index(str(source))
    assert len(index) == 2000
    assert index.num_bytes / 1000 == 72  # twice: 12 bytes of name and three numbers
