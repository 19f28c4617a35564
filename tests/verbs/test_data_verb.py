"""`data`: what a person learns of a folder of images before training on it."""

import csv
import json
import re
import shutil

import pytest

import vitrail
from vitrail.config import DataConfig
from vitrail.data import open_dataset, open_manifest
from vitrail.errors import ConfigError


def test_the_manifest_tells_of_every_file_what_became_of_it(pictures, tmp_path):
    source = pictures(tmp_path / "source", {"blue": 10, "red": 10})
    (source / "red" / "00.png").write_bytes(b"no picture")
    (source / "red" / "notes.txt").write_text("not meant")
    admission = vitrail.admit(source, out=tmp_path, seed=3)
    assert admission.path == tmp_path / "data" / "source"
    with (admission.path / "manifest.csv").open(newline="", encoding="utf-8") as file:
        rows = {row["path"]: row for row in csv.DictReader(file)}
    assert len(rows) == 20
    assert rows["red/00.png"]["status"] == "refused"
    assert "header is damaged" in rows["red/00.png"]["reason"]
    used = [row for row in rows.values() if row["status"] == "ok"]
    assert {(row["width"], row["height"]) for row in used} == {("16", "16")}
    assert all(row["label"] == row["path"].split("/")[0] for row in rows.values())
    again = open_manifest(admission.path / "manifest.csv", source)
    expected = open_dataset(source, DataConfig(seed=3))
    assert {name: split.paths for name, split in again.splits.items()} == {
        name: split.paths for name, split in expected.splits.items()
    }
    assert json.loads((admission.path / "labels.json").read_text()) == ["blue", "red"]
    config = json.loads((admission.path / "config.json").read_text())
    assert (config["source"], config["seed"]) == (str(source), 3)


def test_a_training_divides_the_images_as_data_said_it_would(trained, colours, tmp_path):
    admission = vitrail.admit(colours, out=tmp_path)
    assert (admission.path / "manifest.csv").read_bytes() == (trained.path / "manifest.csv").read_bytes()


def test_the_command_counts_and_lists(command, pictures, tmp_path):
    source = pictures(tmp_path / "source", {"blue": 30, "red": 10})
    (source / "blue" / "[red]link.tif").write_bytes(b"no picture")
    for number in range(25):
        (source / "red" / f"x{number:02}.heic").write_bytes(b"heic")
    (source / "red" / "notes.txt").write_text("not meant")
    answer = command("data", source, "--out", tmp_path, "--name", "mine")
    assert (answer.code, answer.err) == (0, "")
    table = [line.replace("│", "").split() for line in answer.out.splitlines()]
    assert ["blue", "21", "3", "6"] in table
    assert ["red", "7", "1", "2"] in table
    assert ["all", "28", "4", "8"] in table
    assert "refused: 26 files" in answer.out
    assert "blue/[red]link.tif: it is none of the formats" in answer.out
    assert ".heic files are not read; convert it to JPEG or PNG" in answer.out
    assert "and 6 more; the manifest has all" in answer.out
    assert "passed over: 1 .txt files" in answer.out
    assert f"manifest {tmp_path}/data/mine/manifest.csv" in answer.out.splitlines()


@pytest.mark.parametrize("number", [2, 3])
def test_a_look_is_never_written_over(colours, contents, tmp_path, number):
    first = vitrail.admit(colours, out=tmp_path).path
    before = contents(first)
    others = [vitrail.admit(colours, out=tmp_path).path.name for _ in range(number - 1)]
    assert others[-1] == f"colours-{number}"
    assert contents(first) == before


def test_the_page_and_the_findings_show_what_is_wrong(colours, tmp_path, command):
    source = shutil.copytree(colours, tmp_path / "colours")
    shutil.copy(source / "red" / "00.png", source / "blue" / "copy <b>.png")
    shutil.copy(source / "red" / "01.png", source / "red" / "again.png")
    (source / "red" / "broken.png").write_bytes(b"?")
    admission = vitrail.admit(source, out=tmp_path / "runs")
    findings = json.loads((admission.path / "findings.json").read_text())
    assert [(pair["first"], pair["second"], pair["kind"]) for pair in findings["pairs"]] == [
        ("blue/copy <b>.png", "red/00.png", "exact"),
        ("red/01.png", "red/again.png", "exact"),
    ]
    assert list(findings["refused"]) == ["red/broken.png"]
    page = admission.report_path.read_text(encoding="utf-8")
    assert "two labels" in page
    assert "copy <b>" not in page
    assert "copy &lt;b&gt;" in page
    assert not re.search(r"""(src|href)\s*=\s*["']?(https?:)?//""", page)
    answer = command("data", source, "--out", tmp_path / "runs")
    assert answer.code == 0
    assert "warning: 1 pair of the same image under two labels: one of the labels is wrong." in answer.out


def test_training_says_what_leaks_and_weights_the_classes(colours, tmp_path, quick):
    source = tmp_path / "split"
    for split, first in (("train", 0), ("val", 8), ("test", 12)):
        for label in ("blue", "red"):
            for number in range(first, first + 8):
                target = source / split / label / f"{number:02}.png"
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(colours / label / f"{number % 18:02}.png", target)
    options = {**quick, "quiet": False, "epochs": 1, "class_weights": "balanced", "sampling": "balanced"}
    result = vitrail.train(source, **options, out=tmp_path / "runs")
    assert not result.interrupted
    report = json.loads((result.path / "report.json").read_text())
    assert any("left out of val and test" in caveat for caveat in report["caveats"])


def test_wrong_labels_are_shown_with_what_they_should_be(colours, tmp_path, command):
    source = shutil.copytree(colours, tmp_path / "colours")
    shutil.move(source / "red" / "03.png", source / "blue" / "wrong <b>.png")
    answer = command("data", source, "--out", tmp_path, "--label-folds", 3)
    assert answer.code == 0
    assert "judged each of 3 parts" in answer.out
    assert "blue/wrong <b>.png: blue → red, " in answer.out
    found = json.loads((tmp_path / "data" / "colours" / "label_issues.json").read_text())
    assert found["issues"][0]["path"] == "blue/wrong <b>.png"
    assert (found["issues"][0]["given"], found["issues"][0]["suggested"]) == (["blue"], ["red"])
    assert 0 <= found["issues"][0]["confidence"] < 0.5
    assert found["num_images"] == len(list(source.glob("*/*.png")))
    page = (tmp_path / "data" / "colours" / "report.html").read_text(encoding="utf-8")
    assert "Suspicious labels" in page
    assert "blue → red" in page


def test_a_run_that_learnt_the_labels_does_not_judge_them(trained, colours, tmp_path):
    with pytest.raises(ConfigError, match="has learnt the labels of"):
        vitrail.admit(colours, out=tmp_path, label_folds=2, label_model=str(trained.path))
    assert not (tmp_path / "data").exists()


def test_features_of_trained_weights_judge_labels_too(trained, colours, tmp_path):
    weights = shutil.copy(trained.path / "model.safetensors", tmp_path / "weights.safetensors")
    admission = vitrail.admit(colours, out=tmp_path, label_folds=2, label_model=str(weights))
    assert admission.labels is not None
    assert admission.labels.features.endswith("weights.safetensors")
    assert admission.labels.agreement > 0.9


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"label_folds": 1}, "2"),
        ({"label_model": "x"}, "label_folds is 0"),
        ({"label_folds": 5, "label_model": "x", "channels": 4}, "looks at RGB, and channels is 4"),
    ],
)
def test_looking_for_wrong_labels_needs_folds(colours, tmp_path, options, message):
    with pytest.raises(ConfigError, match=message):
        vitrail.admit(colours, out=tmp_path, **options)
