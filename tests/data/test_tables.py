"""Tables as sources: what the columns mean, which rows are used, and what is refused."""

import csv
import json
import os
import shutil
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from views import labels, refusal

import vitrail
from vitrail.config import DataConfig, SourceConfig
from vitrail.data import Dataset, open_dataset, open_evaluation_set, open_manifest
from vitrail.errors import ConfigError, DataError, MissingExtraError

NUM = 24


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]], separator: str = ",") -> Path:
    with path.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        csv.writer(file, delimiter=separator).writerows([header, *rows])
    return path


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder of pictures that no folder tells the classes of."""
    (tmp_path / "photos").mkdir()
    for number in range(NUM):
        rng = np.random.default_rng(number)
        Image.fromarray(rng.integers(0, 256, (10, 12, 3), np.uint8)).save(tmp_path / "photos" / f"{number:02}.png")
    return tmp_path


@pytest.fixture
def rows() -> list[tuple[str, str]]:
    return [(f"photos/{number:02}.png", "ab"[number % 2]) for number in range(NUM)]


def splits_by_path(dataset: Dataset) -> dict[str, str]:
    return {path: name for name, split in dataset.splits.items() for path in split.paths}


@pytest.mark.parametrize(
    ("header", "separator", "name"),
    [
        (("path", "label"), ",", "t.csv"),
        (("Image Path", "Class"), ";", "t.CSV"),
        (("FILE_NAME", "category"), "\t", "t.tsv"),
        (("img", "Target"), "\t", "t.csv"),
    ],
)
def test_a_table_is_divided_like_a_folder_of_the_same_paths(
    photos: Path, rows: list[tuple[str, str]], header: tuple[str, str], separator: str, name: str
) -> None:
    dataset = open_dataset(write_csv(photos / name, header, rows, separator))
    assert labels(dataset) == dict(rows)
    assert (dataset.name, dataset.classes) == ("t", ("a", "b"))
    for path, label in rows:
        target = photos / "tree" / label / Path(path).name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(photos / path, target)
    tree = open_dataset(photos / "tree", DataConfig(seed=1))
    again = write_csv(photos / "tree" / "t.csv", header, [(f"{r[1]}/{Path(r[0]).name}", r[1]) for r in rows], separator)
    assert splits_by_path(open_dataset(again, DataConfig(seed=1))) == splits_by_path(tree)


def test_columns_are_chosen_by_flags_and_the_paths_by_the_root(photos: Path, rows: list[tuple[str, str]]) -> None:
    (photos / "elsewhere").mkdir()
    table = write_csv(
        photos / "elsewhere" / "t.csv",
        ("id", "path", "label", "species", "where"),
        [(number, "x", "x", label, Path(path).name) for number, (path, label) in enumerate(rows)],
    )
    config = DataConfig(path_column="where", label_column="species", root=str(photos / "photos"))
    assert labels(open_dataset(table, config)) == {Path(path).name: label for path, label in rows}
    assert "label_column is 'specie', and" in refusal(table, DataConfig(label_column="specie"))
    assert "Did you mean 'species'?" in refusal(table, DataConfig(label_column="specie"))


def test_a_split_column_is_obeyed_and_a_missing_val_is_taken_from_train(photos: Path, rows: list) -> None:
    splits = ["Train", "train", "TEST", " test ", "training", "train"]
    table = write_csv(photos / "t.csv", ("path", "label", "subset"), [(*r, splits[i // 4]) for i, r in enumerate(rows)])
    dataset = open_dataset(table)
    assert {name: len(split) for name, split in dataset.splits.items()} == {"train": 14, "val": 2, "test": 8}
    assert set(dataset.splits["test"].paths) == {path for path, _ in rows[8:16]}
    anew = open_dataset(table, DataConfig(split_column=""))
    assert set(anew.splits["test"].paths) != set(dataset.splits["test"].paths)
    evaluated = open_evaluation_set(table, ("a", "b", "c"))
    assert {name: len(split) for name, split in evaluated.splits.items()} == {"train": 16, "test": 8}


def test_a_split_that_is_none_is_refused_with_its_row(photos: Path, rows: list) -> None:
    table = write_csv(photos / "t.csv", ("path", "label", "fold"), [(*r, i % 5) for i, r in enumerate(rows)])
    assert "row 2 has the split '0'; it takes train, val or test." in refusal(table)
    assert len(labels(open_dataset(table, DataConfig(split_column="")))) == NUM


def test_groups_of_a_column_stay_together(photos: Path, rows: list) -> None:
    for number, name in enumerate(("patient", "group")):
        patients = [(*row, f"p{i // 2 % 6}") for i, row in enumerate(rows)]
        table = write_csv(photos / f"{number}.csv", ("path", "label", name), patients)
        for seed in range(4):
            config = DataConfig(group_by="patient" if name == "patient" else None, seed=seed, val_fraction=0.2)
            split_of = splits_by_path(open_dataset(table, config))
            assert all(len({split_of[path] for path, _, who in patients if who == p}) == 1 for _, _, p in patients)
    # What is no column is a pattern for the paths, as for every other source.
    assert {r.group for r in open_dataset(table, DataConfig(group_by=r"(\d)\.png")).records} == set("0123456789")
    table = write_csv(photos / "empty.csv", ("path", "label", "patient"), [(*row, "") for row in rows])
    assert "row 2 has no patient, by which images are grouped" in refusal(table, DataConfig(group_by="patient"))


@pytest.mark.parametrize(
    ("header", "values", "says"),
    [
        (("id", "label"), ("1", "a"), "has no column called path, file, filename, file_name or the like"),
        (("id", "label"), ("1", "a"), "It has: id, label."),
        (("path", "kind"), ("photos/00.png", "a"), "name one with label_column"),
        (("path", "label", "class"), ("photos/00.png", "a", "b"), "has the columns label, class; say which one"),
        (("path", "label", "label"), ("photos/00.png", "a", "b"), "has several columns 'label'"),
        (("path", "label"), ("photos/00.png",), "row 2 has 1 values; its first line names 2 columns"),
        ((), (), "It has: none."),
        (("path", "label"), ("../photos/00.png", "a"), "row 2 has the path '../photos/00.png', which leaves the root"),
        (("path", "label"), ("x/../../y.png", "a"), "which leaves the root"),
        (("path", "label"), ("/etc/passwd", "a"), "which leaves the root"),
        (("path", "label"), ("photos/00.png\0.jpg", "a"), r"'photos/00.png\\x00.jpg'"),
    ],
)
def test_tables_that_cannot_be_read_get_one_sentence(
    photos: Path, header: Sequence[str], values: Sequence[str], says: str
) -> None:
    assert says in refusal(write_csv(photos / "t.csv", header, [values]))


def test_files_that_are_no_tables_get_one_sentence(photos: Path, rows: list) -> None:
    utf16 = photos / "t.csv"
    utf16.write_bytes("path,label\n".encode("utf-16"))
    assert "is no text in UTF-8" in refusal(utf16)
    utf16.write_text('path,label\n"photos/00.png"x,a\n')
    assert "cannot be read" in refusal(utf16)
    utf16.chmod(0)
    if os.geteuid() != 0:
        assert "Permission denied" in refusal(utf16)
    (photos / "p.parquet").write_bytes(b"PAR1 and no more")
    assert "p.parquet cannot be read" in refusal(photos / "p.parquet")
    assert "Did you mean 't.csv'?" in refusal(photos / "tt.csv")


def test_options_of_tables_are_refused_for_other_sources(tmp_path: Path) -> None:
    assert "label_column tells how a table is read, and digits is none" in refusal(
        Path("digits"), DataConfig(label_column="x")
    )
    with pytest.raises(ConfigError, match="path_column tells how data is read, and none is given"):
        vitrail.evaluate("somewhere", path_column="x")


def test_rows_that_are_not_as_they_should_be_are_named_or_counted(photos: Path, rows: list) -> None:
    odd = [
        ("", "a"),  # no path
        ("  ", ""),
        ("photos/00.png", "a"),  # again
        ("./photos/../photos/01.png", "b"),  # again, in another spelling
        ("photos/02.png", "b"),  # another label
        ("photos/gone.png", "a"),
        ("photos/unlabelled.png", " "),
        ("photos/phone.HEIC", "a"),
        (photos / "photos" / "03.png", "b"),  # again, in full
    ]
    table = write_csv(photos / "t.csv", ("path", "label"), [*rows, *odd])
    with table.open("a") as file:
        file.write("\n\n")
    dataset = open_dataset(table)
    assert dict(dataset.ignored) == {"rows without a path": 2, "rows that repeat a path": 4}
    assert dict(dataset.refused) == {
        "photos/02.png": "rows 4 and 30 disagree about its label: a and b",
        "photos/gone.png": "there is no such file",
        "photos/unlabelled.png": "its row has no label",
        "photos/phone.HEIC": ".heic files are not read; convert it to JPEG or PNG",
    }
    assert labels(dataset) == {path: label for path, label in rows if path != "photos/02.png"}


def test_rows_without_a_split_are_refused_where_others_have_one(photos: Path, rows: list) -> None:
    split = ["train"] * 16 + ["test"] * 7 + [""]
    dataset = open_dataset(
        write_csv(photos / "t.csv", ("path", "label", "split"), [(*r, s) for r, s in zip(rows, split, strict=True)])
    )
    assert dataset.refused == [(rows[-1][0], "its row names no split")]
    undivided = open_dataset(write_csv(photos / "u.csv", ("path", "label", "split"), [(*row, "") for row in rows]))
    assert len(labels(undivided)) == NUM


def test_labels_that_differ_by_case_or_space_are_warned_of(photos: Path, rows: list) -> None:
    table = write_csv(
        photos / "t.csv",
        ("path", "label"),
        [(p, ["cat", "Cat", "cat ", "dog"][i % 4]) for i, (p, _) in enumerate(rows)],
    )
    (finding,) = [item for item in open_dataset(table).findings.items if item.kind == "labels"]
    assert "The classes 'Cat', 'cat', 'cat ' differ only by case or white space" in finding.text


def test_paths_of_any_bytes_lead_to_their_files(photos: Path, rows: list, tmp_path: Path) -> None:
    odd = [os.fsdecode(b'photos/caf\xe9 "x", y\r\nz.png'), "photos/ leading.png", "photos/ünïcode.png"]
    for name in odd:
        shutil.copy(photos / rows[0][0], photos / name)
        image = np.random.default_rng(len(name)).integers(0, 256, (9, 9, 3), np.uint8)
        Image.fromarray(image).save(photos / "x.png")
        (photos / "x.png").rename(photos / name)
    table = write_csv(photos / "t.csv", ("path", "label"), [*rows, *((name, "a") for name in odd)])
    dataset = open_dataset(table)
    assert set(odd) < set(labels(dataset))
    dataset.write_manifest(tmp_path / "m.csv")
    assert open_manifest(tmp_path / "m.csv", table).records == dataset.records


def test_paths_outside_the_root_are_used_where_that_is_allowed(photos: Path, rows: list, tmp_path: Path) -> None:
    (photos / "deep").mkdir()
    above = [("../" + path if i % 2 else str(photos / path), label) for i, (path, label) in enumerate(rows)]
    table = write_csv(photos / "deep" / "t.csv", ("path", "label"), above)
    assert "or allow_outside if you trust the table" in refusal(table)
    config = DataConfig(allow_outside=True)
    dataset = open_dataset(table, config)
    assert labels(dataset) == dict(above)
    dataset.write_manifest(tmp_path / "m.csv")
    assert open_manifest(tmp_path / "m.csv", table, config).splits["val"].decode(0).size == (12, 10)
    with pytest.raises(DataError, match="stay below"):
        open_manifest(tmp_path / "m.csv", table)


def test_parquet_says_the_same_as_csv(photos: Path, rows: list) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    split = ["train"] * 16 + ["test"] * 8
    columns = {
        "path": [path for path, _ in rows],
        "label": pyarrow.array([float("ab".index(label)) for _, label in rows]),  # as pandas keeps numbers with gaps
        "split": pyarrow.array(split).dictionary_encode(),
        "score": [{"high": 0.5}] * NUM,
        "tags": [["x", "y"][: i % 3] for i in range(NUM)],
    }
    parquet.write_table(pyarrow.table(columns), photos / "t.parquet")
    table = write_csv(
        photos / "t.csv",
        ("path", "label", "split"),
        [(p, "ab".index(kind), s) for (p, kind), s in zip(rows, split, strict=True)],
    )
    ours, theirs = (open_dataset(photos / name) for name in ("t.parquet", table))
    assert ours.records == theirs.records
    assert ours.classes == ("0", "1")
    assert not ours.traits.flip
    assert "The column 'score' of" in refusal(photos / "t.parquet", DataConfig(label_column="score"))
    several = open_dataset(photos / "t.parquet", DataConfig(label_column="tags"))
    assert {record.path: record.label for record in several.records} == {
        path: ("x", "y")[: i % 3] for i, (path, _) in enumerate(rows)
    }


def test_parquet_without_pyarrow_is_refused_with_what_to_install(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (photos / "t.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'vitrail\[parquet\]'"):
        open_dataset(photos / "t.parquet")


@pytest.fixture
def tree(photos: Path, rows: list) -> Path:
    """A folder per class with a copy, a broken file and splits that share a picture."""
    for number, (path, label) in enumerate(rows):
        split = "train" if number < 16 else "test"
        target = photos / "tree" / split / label / Path(path).name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(photos / path, target)
    shutil.copy(photos / rows[0][0], photos / "tree" / "test" / "a" / "leak.png")
    (photos / "tree" / "train" / "a" / "broken.png").write_bytes(b"?")
    return photos / "tree"


def test_a_manifest_is_a_table_that_gives_the_same_split_anywhere(tree: Path, tmp_path: Path) -> None:
    first = open_dataset(tree, DataConfig(seed=5))
    assert first.dropped
    first.write_manifest(tmp_path / "elsewhere" / "manifest.csv")
    moved = tree.rename(tmp_path / "moved")
    second = open_dataset(tmp_path / "elsewhere" / "manifest.csv", DataConfig(root=str(moved), seed=9))
    assert splits_by_path(second) == splits_by_path(first)
    assert (second.refused, second.dropped) == (first.refused, first.dropped)
    assert second.records == first.records
    # Even what a user kept against advice stays; it is only told.
    kept = open_dataset(moved, DataConfig(keep_leaks=True))
    kept.write_manifest(tmp_path / "m.csv")
    again = open_dataset(tmp_path / "m.csv", DataConfig(root=str(moved)))
    assert splits_by_path(again) == splits_by_path(kept)
    assert any(item.kind == "leak" and "stay there" in item.text for item in again.findings.items)
    anew = open_dataset(tmp_path / "m.csv", DataConfig(root=str(moved), split_column=""))
    assert splits_by_path(anew) != splits_by_path(kept)


def test_a_manifest_notices_files_that_are_others_now(tree: Path, tmp_path: Path) -> None:
    dataset = open_dataset(tree)
    dataset.write_manifest(tmp_path / "m.csv")
    path = dataset.splits["train"].paths[0]
    Image.new("RGB", (12, 10), (1, 2, 3)).save(tree / path)
    (finding,) = [
        item
        for item in open_dataset(tmp_path / "m.csv", DataConfig(root=str(tree))).findings.items
        if item.kind == "changed"
    ]
    assert finding.paths == (path,)


def test_the_manifest_of_a_run_knows_its_images(tree: Path, tmp_path: Path) -> None:
    admission = vitrail.admit(tree, out=tmp_path / "runs")
    manifest = admission.path / "manifest.csv"
    assert splits_by_path(open_dataset(manifest)) == splits_by_path(admission.dataset)
    # Also when its own source was a table somewhere else, and again from the manifest of that.
    second = vitrail.admit(manifest, out=tmp_path / "others")
    assert second.path.name == "manifest"
    assert splits_by_path(open_dataset(second.path / "manifest.csv")) == splits_by_path(admission.dataset)
    tree.rename(tmp_path / "moved")
    assert "The images of" in refusal(manifest)
    assert "give their root" in refusal(manifest)
    config = json.loads((second.path / "config.json").read_text())
    (second.path / "config.json").write_text(json.dumps({**config, "source": str(second.path / "manifest.csv")}))
    assert "None of the" in refusal(second.path / "manifest.csv")
    for damaged in ("", "[]", '{"source": 3}'):
        (second.path / "config.json").write_text(damaged)
        assert "None of the" in refusal(second.path / "manifest.csv")


def test_a_table_can_divide_any_source_anew(tmp_path: Path) -> None:
    table = write_csv(
        tmp_path / "t.csv",
        ("path", "label"),
        [(f"digits/{number:04}", ["even", "odd"][number % 2]) for number in range(40)],
    )
    dataset = open_dataset(table, DataConfig(root="digits", duplicates="off"))
    assert dataset.classes == ("even", "odd")
    assert dataset.splits["train"].decode(0).size == (8, 8)
    assert open_evaluation_set(table, ("even", "odd"), SourceConfig(root="digits")).splits["test"].sizes.max() == 8
