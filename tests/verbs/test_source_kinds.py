"""Every kind of source goes the whole way: admitted, trained on, resumed, evaluated."""

import csv
import io
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import vitrail
from vitrail.errors import DataError
from vitrail.training import Run


def as_table(colours: Path, folder: Path) -> tuple[Path, dict[str, Any]]:
    folder.mkdir()
    shutil.copytree(colours, folder / "photos")
    paths = sorted(path.relative_to(colours) for path in colours.rglob("*.png"))
    with (folder / "labels.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("name", "kind"), *((path, path.parts[0]) for path in paths)])
    options = {"path_column": "name", "label_column": "kind", "root": str(folder / "photos")}
    return folder / "labels.csv", options


def as_archive(colours: Path, folder: Path) -> tuple[Path, dict[str, Any]]:
    folder.mkdir()
    paths = sorted(colours.rglob("*.png"))
    names = sorted({path.parent.name for path in paths})
    arrays = {
        "images": np.stack([np.asarray(Image.open(path)) for path in paths]),
        "labels": np.array([names.index(path.parent.name) for path in paths]),
        "class_names": np.array(names),
    }
    np.savez_compressed(folder / "set.npz", **arrays)
    return folder / "set.npz", {}


def as_saved_dataset(colours: Path, folder: Path) -> tuple[Path, dict[str, Any]]:
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    datasets.load_dataset(str(colours), split="train", cache_dir=folder.parent / "cache").save_to_disk(folder)
    return folder, {}


def as_shards(colours: Path, folder: Path) -> tuple[Path, dict[str, Any]]:
    paths = sorted(colours.rglob("*.png"))
    folder.mkdir()
    for number in range(3):
        with tarfile.open(folder / f"{number}.tar", "w") as archive:
            for place, path in list(enumerate(paths))[number::3]:
                archive.add(path, f"{place:04}.png")
                label = path.parent.name.encode()
                member = tarfile.TarInfo(f"{place:04}.cls")
                member.size = len(label)
                archive.addfile(member, io.BytesIO(label))
    return folder, {}


MAKERS: dict[str, Callable[[Path, Path], tuple[Path, dict[str, Any]]]] = {
    "table": as_table,
    "archive": as_archive,
    "saved dataset": as_saved_dataset,
    "shards": as_shards,
}


@pytest.mark.parametrize("kind", MAKERS)
def test_every_verb_takes_every_kind(kind, colours, quick, tmp_path, monkeypatch):
    source, options = MAKERS[kind](colours, tmp_path / "source")
    admission = vitrail.admit(source, **options, out=tmp_path)
    assert admission.report_path.exists()
    assert not admission.dataset.refused
    assert {name: len(split) for name, split in admission.dataset.splits.items()} == {"train": 36, "val": 6, "test": 12}
    result = vitrail.train(source, **options, **quick, epochs=3, lr=1e-3, out=tmp_path)
    manifest = (result.path / "manifest.csv").read_bytes()
    assert manifest == (admission.path / "manifest.csv").read_bytes()
    evaluation = vitrail.evaluate(result.path, out=tmp_path)
    assert evaluation.metrics.accuracy.value == result.metrics["test"].accuracy.value
    elsewhere = vitrail.evaluate(result.path, data=source, **options, out=tmp_path)
    assert elsewhere.metrics.num_images == 54
    again = vitrail.train(result.path, resume=True, quiet=True)
    assert again.metrics["test"].accuracy.value == result.metrics["test"].accuracy.value
    assert Run(again.path).manifest_path.read_bytes() == manifest
    # From the manifest alone, wherever it is.
    moved = tmp_path / "elsewhere.csv"
    moved.write_bytes(manifest)
    third = vitrail.admit(moved, root=str(options.get("root", source)), out=tmp_path / "third")
    assert (third.path / "manifest.csv").read_bytes() == manifest
    source.rename(source.with_name("gone"))
    with pytest.raises(DataError, match=r"The pictures of .*manifest\.csv are looked for there"):
        vitrail.evaluate(result.path, out=tmp_path)
