"""Tables that give several labels per picture: how they are read, divided, written as a manifest, and refused."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vitrail.config import DataConfig, SourceConfig
from vitrail.data import open_dataset, open_evaluation_set, open_manifest, read_manifest
from vitrail.errors import ConfigError, DataError

NUM = 60
SETS = [tuple(name for place, name in enumerate("abc") if number % (place + 2) == 0) for number in range(NUM)]
"""a in every second picture, b in every third, c in every fourth; none in a third of them."""


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of noise."""
    root = tmp_path_factory.mktemp("several")
    for number in range(NUM):
        pixels = np.random.default_rng(number).integers(0, 256, (10, 12, 3), np.uint8)
        Image.fromarray(pixels).save(root / f"{number:02}.png")
    return root


@pytest.fixture
def table(photos: Path, tmp_path: Path):
    """Write a table of all pictures in a folder of its own; its root is the folder of the pictures."""

    def write(header, cells, name="tags.csv", separator=","):
        rows = [(f"{number:02}.png", *row) for number, row in enumerate(cells)]
        with (tmp_path / name).open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
            csv.writer(file, delimiter=separator).writerows([("path", *header), *rows])
        return tmp_path / name

    return write


@pytest.fixture
def configure(photos: Path):
    return lambda **options: DataConfig(root=str(photos), **options)


def sets_of(dataset):
    """Return the labels by path."""
    return {
        path: tuple(dataset.classes[place] for place in np.flatnonzero(row))
        for split in dataset.splits.values()
        for path, row in zip(split.paths, split.labels, strict=True)
    }


EXPECTED = {f"{number:02}.png": names for number, names in enumerate(SETS)}


@pytest.mark.parametrize("separator", [";", "|", ",", " / "])
def test_a_cell_holds_any_number_of_labels(table, configure, separator):
    path = table(["labels"], [[separator.join(names)] for names in SETS])
    dataset = open_dataset(path, configure(label_separator=separator))
    assert (dataset.task, dataset.classes) == ("multilabel", ("a", "b", "c"))
    assert sets_of(dataset) == EXPECTED
    assert all(split.labels.dtype == bool for split in dataset.splits.values())


def test_white_space_empty_names_and_repetitions_make_no_other_labels(table, configure):
    path = table(["label"], [[f" {' ;; '.join(names)} ; {names[0] if names else ''}"] for names in SETS])
    assert sets_of(open_dataset(path, configure(label_separator=";"))) == EXPECTED


@pytest.mark.parametrize(("yes", "no"), [("1", "0"), ("True", "false"), ("1.0", "0.0")])
def test_a_column_for_each_label_says_whether_it_is_there(table, configure, yes, no):
    cells = [[yes if name in names else no for name in "cab"] + ["x"] for names in SETS]
    dataset = open_dataset(table(["c", "a", "b", "other"], cells), configure(label_columns=("c", "a", "b")))
    assert dataset.classes == ("a", "b", "c")
    assert sets_of(dataset) == EXPECTED


def test_parquet_columns_of_numbers_and_booleans_are_read(photos, tmp_path, configure):
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    columns = {"path": list(EXPECTED), "a": [int("a" in s) for s in SETS], "b": ["b" in s for s in SETS]}
    columns["c"] = [float("c" in s) for s in SETS]
    parquet.write_table(pa.table(columns), tmp_path / "tags.parquet")
    dataset = open_dataset(tmp_path / "tags.parquet", configure(label_columns=("a", "b", "c")))
    assert sets_of(dataset) == EXPECTED


def test_the_division_is_stratified_and_keeps_groups_together(table, configure):
    path = table(["labels", "who"], [[";".join(names), f"p{n // 2}"] for n, names in enumerate(SETS)])
    dataset = open_dataset(path, configure(label_separator=";", val_fraction=0.2, test_fraction=0.2))
    counts = {name: split.counts for name, split in dataset.splits.items()}
    assert counts["val"] == counts["test"] == (6, 4, 3)
    assert {name: len(split) for name, split in dataset.splits.items()} == {"train": 36, "val": 12, "test": 12}
    grouped = open_dataset(path, configure(label_separator=";", group_by="who"))
    place = {path: name for name, split in grouped.splits.items() for path in split.paths}
    assert all(place[f"{n:02}.png"] == place[f"{n + 1:02}.png"] for n in range(0, NUM, 2))


def test_copies_under_other_sets_of_labels_are_told_and_stay_together(photos, table, tmp_path):
    root = tmp_path / "copies"
    root.mkdir()
    for number in range(NUM):
        (root / f"{number:02}.png").write_bytes((photos / f"{number % 50:02}.png").read_bytes())
    path = table(["labels"], [[";".join(names)] for names in SETS])
    dataset = open_dataset(path, DataConfig(root=str(root), label_separator=";"))
    place = {path: name for name, split in dataset.splits.items() for path in split.paths}
    assert all(place[f"{n:02}.png"] == place[f"{n + 50:02}.png"] for n in range(10))
    expected = sum(set(SETS[n]) != set(SETS[n + 50]) for n in range(10))
    assert len(dataset.findings.conflicts) == expected > 0


def test_the_manifest_makes_the_same_dataset(photos, table, configure, tmp_path):
    awkward = {"a": 'a "quoted", one', "b": "b;|[]", "c": "\udcffc ü"}
    sets = [tuple(awkward[name] for name in names) for names in SETS]
    columns = tuple(awkward.values())
    path = table(columns, [[int(name in names) for name in columns] for names in sets])
    first = open_dataset(path, configure(label_columns=columns))
    first.write_manifest(tmp_path / "manifest.csv")
    header = (tmp_path / "manifest.csv").read_bytes().splitlines()[0]
    assert header.startswith(b"path,labels,split")
    assert read_manifest(tmp_path / "manifest.csv") == first.records
    for second in (
        open_manifest(tmp_path / "manifest.csv", photos),
        open_dataset(tmp_path / "manifest.csv", DataConfig(root=str(photos))),
    ):
        assert (second.task, second.classes) == ("multilabel", first.classes)
        for name, split in first.splits.items():
            assert split.paths == second.splits[name].paths
            assert np.array_equal(split.labels, second.splits[name].labels)
    anew = open_dataset(tmp_path / "manifest.csv", DataConfig(root=str(photos), split_column="", seed=5))
    assert sets_of(anew) == sets_of(first)
    assert anew.splits["val"].paths != first.splits["val"].paths


@pytest.mark.parametrize("cell", ["a;b", '"a"', "[1]", '[""]', "[" * 100_000])
def test_a_manifest_whose_labels_are_no_list_is_refused_with_its_row(photos, table, configure, tmp_path, cell):
    open_dataset(table(["x"], [["a"]] * NUM), configure(label_column="x", label_separator=";")).write_manifest(
        tmp_path / "manifest.csv"
    )
    with (tmp_path / "manifest.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    rows[3][1] = cell
    with (tmp_path / "manifest.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    with pytest.raises(DataError, match=r"row 4 has the labels .* it takes a list in JSON"):
        open_manifest(tmp_path / "manifest.csv", photos)


def test_pictures_without_labels_are_used_and_told(table, configure):
    dataset = open_dataset(table(["labels"], [[";".join(names)] for names in SETS]), configure(label_separator=";"))
    (note,) = [item for item in dataset.findings.items if item.kind == "unlabelled"]
    assert note.severity == "note"
    assert set(note.paths) == {path for path, names in EXPECTED.items() if not names}
    assert sum(len(split) for split in dataset.splits.values()) == NUM


def test_a_row_without_an_answer_for_a_label_is_no_answer_of_no(table, configure):
    cells = [[int(name in names) for name in "abc"] for names in SETS]
    cells[7][1] = ""
    dataset = open_dataset(table("abc", cells), configure(label_columns=("a", "b", "c")))
    assert dataset.refused == [("07.png", "its row has no label")]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"label_columns": ("a", "b", "bb")}, "label_columns has 'bb', and .* Did you mean 'b'.* It has: path, a, b"),
        ({"label_columns": ("a", "b", "note")}, "row 2 has 'n' in the column note; .* takes 1 where"),
        ({"label_columns": ("a", "b", "never")}, "No picture in tags shows never, so it cannot be learnt"),
        ({"label_columns": ("a", "path")}, "row 2 has '00.png' in the column path"),
    ],
)
def test_columns_that_are_none_of_labels_are_refused(table, configure, options, message):
    cells = [["1" if name in names else "0" for name in "ab"] + ["n", "0"] for names in SETS]
    with pytest.raises((ConfigError, DataError), match=message):
        open_dataset(table(["a", "b", "note", "never"], cells), configure(**options))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"label_columns": ("a",), "label_column": "x"},
            "label_columns says .*label_column that all labels are in one",
        ),
        ({"label_columns": ("a",), "label_separator": ";"}, "and label_separator that all labels are in one"),
        ({"label_separator": ""}, "label_separator is empty"),
        ({"label_columns": ("a", "b", "a")}, "label_columns names 'a' twice"),
    ],
)
def test_contradictory_options_are_refused_before_anything_is_read(options, message):
    with pytest.raises(ConfigError, match=message):
        SourceConfig(**options)


def test_labels_that_nobody_has_and_a_rare_one_are_refused(table, configure):
    with pytest.raises(DataError, match="No picture in tags has any label"):
        open_dataset(table(["labels"], [[""]] * NUM), configure(label_separator=";"))
    rare = [["a"]] * (NUM - 1) + [["a;rare"]]
    with pytest.raises(DataError, match="Too few pictures to divide into train and val in: rare"):
        open_dataset(table(["labels"], rare), configure(label_separator=";"))


def test_one_class_is_enough_where_it_may_be_absent(table, configure):
    dataset = open_dataset(table(["labels"], [["a" if "a" in n else ""] for n in SETS]), configure(label_separator=";"))
    assert dataset.classes == ("a",)


def test_a_class_that_train_does_not_show_is_refused(table, configure):
    cells = [["b" if n < 10 else "a", "test" if n < 10 else "train"] for n in range(NUM)]
    with pytest.raises(DataError, match="in val or test but have no usable picture in train: b"):
        open_dataset(table(["labels", "split"], cells), configure(label_separator=";"))


def test_an_evaluation_has_the_labels_of_the_model_or_none(table, photos):
    separated = table(["labels"], [[";".join(names)] for names in SETS])
    options = SourceConfig(root=str(photos), label_separator=";")
    dataset = open_evaluation_set(separated, ("z", "a", "b", "c"), options, task="multilabel")
    assert dataset.classes == ("z", "a", "b", "c")
    assert dataset.splits["test"].counts == (0, 30, 20, 15)
    with pytest.raises(DataError, match="has classes that the model does not know: c"):
        open_evaluation_set(separated, ("a", "b"), options, task="multilabel")
    with pytest.raises(DataError, match="The model names one class per image, and tags may have several labels"):
        open_evaluation_set(separated, ("a", "b", "c"), options)
    plain = SourceConfig(root=str(photos))
    with pytest.raises(DataError, match="gives any number of labels per image, and tags has one label each"):
        open_evaluation_set(separated, ("a", "b", "c"), plain, task="multilabel")
    columns = table("abc", [[int(name in names) for name in "abc"] for names in SETS])
    with pytest.raises(DataError, match="tags does not tell which images show d, z, which the model may name"):
        open_evaluation_set(
            columns, tuple("abcdz"), SourceConfig(root=str(photos), label_columns=tuple("abc")), task="multilabel"
        )


def test_what_was_found_is_json(table, configure):
    dataset = open_dataset(table(["labels"], [[";".join(names)] for names in SETS]), configure(label_separator=";"))
    kinds = {item["kind"] for item in json.loads(json.dumps(dataset.findings.to_dict()))["items"]}
    assert {"unlabelled", "tiny"} <= kinds


@pytest.mark.parametrize("options", [{"label_separator": ";"}, {"label_columns": ("a",)}])
def test_folders_have_one_label_each(photos, options):
    with pytest.raises(ConfigError, match="tells how a table is read"):
        open_dataset(photos, DataConfig(**options))
