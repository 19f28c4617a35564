"""Hugging Face datasets as sources: what their splits and columns mean, and what is refused."""

import io
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from views import labels, refusal, sizes

from vitrail.config import DataConfig, SourceConfig
from vitrail.data import open_dataset, open_evaluation_set, open_manifest
from vitrail.data.images import decode_bytes
from vitrail.data.sources import huggingface, open_source
from vitrail.errors import ConfigError, DataError, MissingExtraError

NUM = 24
datasets = pytest.importorskip("datasets")
Classes = datasets.ClassLabel(names=["b", "a"])  # whose numbers are not in the order of the names


def encoded(number: int, mode: str = "RGB") -> bytes:
    rng = np.random.default_rng(number)
    if mode == "I;16":
        image = Image.fromarray(rng.integers(0, 2**16, (10, 12), np.uint16))
    else:
        image = Image.fromarray(rng.integers(0, 256, (10, 12, 3), np.uint8))
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


FILES = [encoded(number) for number in range(NUM)]


@pytest.fixture(autouse=True)
def _library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the library keep what it makes in the test's folder, show nothing, and decode nothing."""

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("the library decodes an image")

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf-cache")
    monkeypatch.setattr(datasets.Image, "decode_example", refuse)
    datasets.disable_progress_bars()


def make(rows: Sequence[int] = range(NUM), *, files: Sequence[Any] = FILES, label: Any = Classes, **more: Any) -> Any:
    """Return a dataset of some of the pictures; row i is of class i % 2, which is b for 0."""
    features = {"image": datasets.Image(), "label": label}
    cells: dict[str, list[Any]] = {
        "image": [files[row] and {"bytes": files[row], "path": None} for row in rows],
        "label": [row % 2 if label is Classes else "ba"[row % 2] for row in rows],
    }
    for name, (feature, value) in more.items():
        features[name] = feature
        cells[name] = [value(row) for row in rows]
    return datasets.Dataset.from_dict(cells, features=datasets.Features(features))


def saved(folder: Path, dataset: Any = None, **parts: Any) -> Path:
    (datasets.DatasetDict(parts) if parts else make() if dataset is None else dataset).save_to_disk(folder)
    return folder


def as_parquet(folder: Path) -> str:
    (folder / "data").mkdir(parents=True)
    make().to_parquet(folder / "data" / "train-00000-of-00001.parquet")
    return f"hf-dataset:{folder}"


def as_imagefolder(folder: Path) -> str:
    for row, data in enumerate(FILES):
        path = folder / "ba"[row % 2] / f"{row:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return f"hf-dataset:{folder}"


@pytest.mark.parametrize("write", [saved, as_parquet, as_imagefolder])
def test_a_dataset_without_splits_is_divided(write: Callable[[Path], str | Path], tmp_path: Path) -> None:
    source = write(tmp_path / "flowers")
    dataset = open_dataset(source)
    assert (dataset.name, dataset.classes) == ("flowers", ("a", "b"))
    assert open_source(source).place == open_source(f"hf-dataset:{tmp_path / 'flowers'}").place
    assert sizes(dataset) == {"train": 18, "val": 2, "test": 4}
    pictures = dataset.splits["train"].pictures
    rows = {path: int(path.rpartition("/")[2]) for path in labels(dataset)}
    assert sorted(rows.values()) == list(range(NUM))
    known = [np.asarray(decode_bytes(data, "")).tobytes() for data in FILES]
    for path, row in rows.items():
        place = known.index(np.asarray(pictures.open(path, None)).tobytes())
        assert place == row or write is as_imagefolder  # where the library takes the folders one after the other
        assert labels(dataset)[path] == "ba"[place % 2]
    dataset.write_manifest(tmp_path / "m.csv")
    assert open_manifest(tmp_path / "m.csv", source).records == dataset.records
    assert open_dataset(tmp_path / "m.csv", DataConfig(root=str(source))).records == dataset.records
    evaluated = open_evaluation_set(source, ("a", "b", "c"))
    assert sizes(evaluated) == {"test": NUM}


def test_splits_keep_their_names_and_share_one_class_index(tmp_path: Path) -> None:
    other = datasets.ClassLabel(names=["c", "a", "b"])
    validation = (
        make(range(16, 20)).remove_columns("label").add_column("label", [2, 1, 2, 1]).cast_column("label", other)
    )
    folder = saved(
        tmp_path / "d", train=make(range(16)), validation=validation, test=make(range(20, 24)), unsupervised=make([0])
    )
    dataset = open_dataset(folder)
    assert sizes(dataset) == {"train": 16, "val": 4, "test": 4}
    assert dataset.ignored == {"splits beside train, val and test": 1}
    assert labels(dataset)["validation/00000"] == "b"
    assert labels(dataset)["validation/00001"] == labels(dataset)["test/00001"] == "a"
    anew = open_dataset(folder, DataConfig(split_column="", duplicates="off"))
    assert sum(sizes(anew).values()) == NUM + 1
    assert dict(anew.ignored) == {}


def test_the_splits_of_a_dataset_come_before_a_column_of_splits(tmp_path: Path) -> None:
    more = {"split": (datasets.Value("string"), lambda row: "test" if row < 4 else "train")}
    folder = saved(tmp_path / "d", train=make(range(16), **more), test=make(range(16, NUM), **more))
    assert set(open_dataset(folder).splits["test"].paths) == {f"test/{row:05}" for row in range(8)}
    named = open_dataset(folder, DataConfig(split_column="split"))
    assert set(named.splits["test"].paths) == {f"train/{row:05}" for row in range(4)}


def test_splits_of_which_none_has_a_usual_name_are_refused(tmp_path: Path) -> None:
    folder = saved(tmp_path / "d", dogs=make(range(12)), cats=make(range(12, NUM)))
    assert 'has the splits dogs, cats, of which none is train, val or test. Give split_column "" to' in refusal(folder)
    assert sum(sizes(open_dataset(folder, DataConfig(split_column=""))).values()) == NUM


def test_a_copy_across_splits_is_dropped(tmp_path: Path) -> None:
    dataset = open_dataset(saved(tmp_path / "d", train=make(range(16)), test=make([*range(16, 22), 3])))
    assert [each.path for each in dataset.dropped] == ["test/00006"]


def test_columns_are_chosen_by_flags(tmp_path: Path) -> None:
    more = {
        "mask": (datasets.Image(), lambda row: {"bytes": FILES[0], "path": None}),
        "raw": (datasets.Value("binary"), lambda row: FILES[NUM - 1 - row]),
        "species": (datasets.Value("string"), lambda row: "xy"[row // 12]),
        "fold": (datasets.Value("string"), lambda row: "test" if row < 4 else "train"),
        "patient": (datasets.Value("int64"), lambda row: row // 4),
    }
    folder = saved(tmp_path / "d", make(**more))
    dataset = open_dataset(folder)
    assert set(dataset.splits["test"].paths) == {f"rows/{row:05}" for row in range(4)}
    config = DataConfig(path_column="raw", label_column="species", split_column="", group_by="patient")
    dataset = open_dataset(folder, config)
    first = np.asarray(dataset.splits["train"].pictures.open("rows/00000", None))
    assert np.array_equal(first, np.asarray(decode_bytes(FILES[-1], "")))
    assert labels(dataset) == {f"rows/{row:05}": "xy"[row // 12] for row in range(NUM)}
    split_of = {path: name for name, split in dataset.splits.items() for path in split.paths}
    assert all(len({split_of[f"rows/{row:05}"] for row in range(4 * p, 4 * p + 4)}) == 1 for p in range(6))
    assert "path_column is 'raws', and" in refusal(folder, DataConfig(path_column="raws"))
    assert "Did you mean 'species'?" in refusal(folder, DataConfig(label_column="specie"))
    assert "'species' of" in refusal(folder, DataConfig(path_column="species"))
    assert "holds no images" in refusal(folder, DataConfig(path_column="species"))
    assert "root tells how a table is read" in refusal(folder, DataConfig(root="x"))
    renamed = saved(tmp_path / "e", make(**more).rename_column("image", "left"))
    assert "has several columns of images; name one with path_column: left, mask." in refusal(renamed)


def test_the_only_column_of_classes_is_the_label(tmp_path: Path) -> None:
    dataset = make().rename_column("label", "Fine Kind")
    assert labels(open_dataset(saved(tmp_path / "d", dataset)))["rows/00001"] == "a"
    two = dataset.add_column("coarse", [0, 1] * 12).cast_column("coarse", Classes)
    assert "has no column called label, labels" in refusal(saved(tmp_path / "e", two))
    assert "has no column of images; name one with path_column: Fine Kind." in refusal(
        saved(tmp_path / "f", dataset.remove_columns("image"))
    )


def test_lists_of_classes_are_several_labels(tmp_path: Path) -> None:
    more = {
        "labels": (datasets.List(datasets.ClassLabel(names=["x", "y", "z"])), lambda row: [[0], [2, 1], []][row % 3]),
        "tags": (datasets.Value("string"), lambda row: "p;q" if row % 2 else "p"),
        "sun": (datasets.Value("bool"), lambda row: row % 2 == 0),
        "rain": (datasets.Value("int8"), lambda row: int(row % 4 == 0)),
    }
    folder = saved(tmp_path / "d", make(**more).remove_columns("label"))
    dataset = open_dataset(folder)
    assert (dataset.task, dataset.classes) == ("multilabel", ("x", "y", "z"))
    told = {record.path: record.label for record in dataset.records}
    assert (told["rows/00001"], told["rows/00002"]) == (("y", "z"), ())
    assert "nothing separates" in refusal(folder, DataConfig(label_separator=";"))
    dataset = open_dataset(folder, DataConfig(label_column="tags", label_separator=";"))
    assert dataset.classes == ("p", "q")
    dataset = open_dataset(folder, DataConfig(label_columns=("sun", "rain")))
    assert {record.path: record.label for record in dataset.records}["rows/00000"] == ("rain", "sun")


def test_rows_without_image_or_label_are_refused_with_their_reason(tmp_path: Path) -> None:
    files = [*FILES[:3], b"no image", FILES[4][:60], None, *FILES[6:]]
    numbers = [-1 if row == 7 else None if row == 8 else row % 2 for row in range(NUM)]
    dataset = make(files=files).remove_columns("label").add_column("label", numbers).cast_column("label", Classes)
    opened = open_dataset(saved(tmp_path / "d", dataset))
    reasons = {each.path: each.reason for each in opened.refused}
    assert list(reasons) == [f"rows/0000{row}" for row in (3, 4, 5, 7, 8)]
    assert reasons["rows/00005"] == "its row has no image"
    assert reasons["rows/00007"] == reasons["rows/00008"] == "its row has no label"
    assert "none of the formats" in reasons["rows/00003"]


def test_deep_images_keep_their_values_where_channels_are_asked_for(tmp_path: Path) -> None:
    folder = saved(tmp_path / "d", make(files=[encoded(number, "I;16") for number in range(NUM)]))
    dataset = open_dataset(folder, DataConfig(channels=1))
    assert (dataset.channels, dataset.pixel_type) == (1, "uint16")
    expected = np.random.default_rng(3).integers(0, 2**16, (10, 12), np.uint16)
    assert np.array_equal(dataset.splits["train"].pictures.open("rows/00003", None)[..., 0], expected)


def test_files_outside_of_the_dataset_are_used_where_that_is_allowed(tmp_path: Path) -> None:
    parquet, pyarrow = pytest.importorskip("pyarrow.parquet"), pytest.importorskip("pyarrow")
    (tmp_path / "private.png").write_bytes(FILES[0])
    cells = [{"bytes": data, "path": None} for data in FILES]
    for row, path in enumerate((tmp_path / "private.png", "../private.png", "https://example.org/a.png")):
        cells[row] = {"bytes": None, "path": str(path)}
    (tmp_path / "d").mkdir()
    table = pyarrow.table({"image": cells, "label": ["ba"[row % 2] for row in range(NUM)]})
    parquet.write_table(table, tmp_path / "d" / "train.parquet")
    dataset = open_dataset(f"hf-dataset:{tmp_path / 'd'}")
    assert [each.path for each in dataset.refused] == [f"train/0000{row}" for row in range(3)]
    assert "is not below the dataset; allow_outside uses it" in dataset.refused[0].reason
    dataset = open_dataset(f"hf-dataset:{tmp_path / 'd'}", DataConfig(allow_outside=True))
    assert [each.path for each in dataset.refused] == ["train/00001", "train/00002"]


def test_a_dataset_of_the_hub_is_found_in_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    as_parquet(tmp_path / "files")
    datasets.load_dataset(str(tmp_path / "files"), cache_dir=tmp_path / "made")
    (made,) = (path.parent for path in (tmp_path / "made").glob("**/dataset_info.json"))
    kept = tmp_path / "hf-cache" / "org___flowers" / "default" / "0.0.0" / ("b" * 40)
    shutil.copytree(made, kept)
    for path in kept.glob("*.arrow"):
        path.rename(path.with_name(path.name.replace("files-", "flowers-")))
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    dataset = open_dataset("hf-dataset:org/flowers")
    assert (dataset.name, sizes(dataset)) == ("flowers", {"train": 18, "val": 2, "test": 4})
    dataset.write_manifest(tmp_path / "m.csv")
    assert open_manifest(tmp_path / "m.csv", "hf-dataset:org/flowers").records == dataset.records
    sentence = refusal("hf-dataset:org/other@main:small")
    assert "cannot be read as a Hugging Face dataset: Couldn't reach" in sentence
    assert sentence.endswith("it has to be in the library's cache.")


def test_a_configuration_is_named_after_a_colon(tmp_path: Path) -> None:
    for name, rows in (("one", range(12)), ("two", range(NUM))):
        (tmp_path / "d" / name).mkdir(parents=True)
        make(rows).to_parquet(tmp_path / "d" / name / "train.parquet")
    head = "---\nconfigs:\n" + "".join(f"- config_name: {n}\n  data_files: {n}/*.parquet\n" for n in ("one", "two"))
    (tmp_path / "d" / "README.md").write_text(f"{head}---\n")
    assert "'one', 'two'" in refusal(f"hf-dataset:{tmp_path / 'd'}")
    assert sum(sizes(open_dataset(f"hf-dataset:{tmp_path / 'd'}:two")).values()) == NUM


def test_nothing_is_decoded_a_second_time_and_a_changed_file_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, source = saved(tmp_path / "saved"), as_imagefolder(tmp_path / "folder")
    counts = [open_dataset(each) and 0 for each in (folder, source)]
    inspect = huggingface.DatasetPictures.inspect
    seen: list[str] = []
    monkeypatch.setattr(
        huggingface.DatasetPictures, "inspect", lambda self, path: seen.append(path) or inspect(self, path)
    )
    open_dataset(folder), open_dataset(source)
    assert seen == []
    pictures = open_source(source).pictures
    before = pictures.key("train/00000")
    file = sorted((tmp_path / "folder").rglob("*.png"))[0]
    Image.new("RGB", (9, 9)).save(file)
    assert pictures.key("train/00000") != before
    shutil.rmtree(folder)
    make(range(NUM)).select(range(NUM - 1, -1, -1)).save_to_disk(folder)
    open_dataset(folder)
    assert len(seen) == NUM
    assert counts == [0, 0]


def test_code_that_comes_with_a_dataset_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "d.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    assert "cannot be read as a Hugging Face dataset" in refusal(f"hf-dataset:{tmp_path / 'd'}")
    assert not (tmp_path / "ran").exists()
    monkeypatch.setattr(datasets, "__version__", "3.6.0")
    with pytest.raises(MissingExtraError, match=r"datasets 3\.6\.0 may run code"):
        open_source("hf-dataset:org/name")


def test_without_the_library_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved(tmp_path / "d")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'vitrail\[datasets\]'"):
        open_source(tmp_path / "d")


def test_damaged_and_empty_datasets_get_one_sentence(tmp_path: Path) -> None:
    as_parquet(tmp_path / "files")
    folder = saved(tmp_path / "d")
    for file in folder.glob("*.arrow"):
        file.write_bytes(file.read_bytes()[:300])
    assert "cannot be read as a Hugging Face dataset" in refusal(folder)
    (folder / "state.json").write_text("{")
    assert "cannot be read as a Hugging Face dataset" in refusal(folder)
    (tmp_path / "e").mkdir()
    make([]).to_parquet(tmp_path / "e" / "train.parquet")
    assert "cannot be read as a Hugging Face dataset" in refusal(f"hf-dataset:{tmp_path / 'e'}")
    assert f"may be a Hugging Face dataset: hf-dataset:{tmp_path / 'e'}" in refusal(tmp_path / "e")
    assert "Images inside a table are read from its folder as hf-dataset:" in refusal(
        Path(shutil.copy(tmp_path / "files" / "data" / "train-00000-of-00001.parquet", tmp_path / "t.parquet"))
    )
    assert "cannot be read as a Hugging Face dataset" in refusal(f"hf-dataset:{tmp_path / 'nowhere' / 'x' / 'y'}")
    parts = saved(tmp_path / "f", train=make(range(12)), test=make(range(12, NUM)).remove_columns("label"))
    assert "The split test of" in refusal(parts)
    parts = saved(tmp_path / "g", train=make(range(12)), test=make(range(12, NUM)).remove_columns("image"))
    assert "has splits without the column 'image'" in refusal(parts)


def test_rows_that_are_not_there_are_refused(tmp_path: Path) -> None:
    pictures = open_source(saved(tmp_path / "d"), SourceConfig()).pictures
    for path in ("rows/00024", "rows/x", "other/00000", "00000", "rows/-1"):
        with pytest.raises(DataError, match="there is no such row"):
            pictures.stored(path)
    with pytest.raises(ConfigError, match="root tells"):
        open_source(tmp_path / "d", SourceConfig(root="x"))
