"""`evaluate`: which images, which numbers, and that what is written agrees with what is returned."""

import csv
import json
import shutil
from pathlib import Path

import pytest

import vitrail
from vitrail.errors import ConfigError, DataError


def answers(path: Path) -> list[dict[str, str]]:
    with (path / "predictions.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def others(pictures, tmp_path):
    """Pictures of two of the three classes; those called blue are green, so exactly 4 of 10 are right."""
    source = pictures(tmp_path / "others", {"green": 6, "red": 4})
    (source / "green").rename(source / "blue")
    return source


def test_a_run_is_measured_on_its_own_test_images_as_at_its_end(trained, tmp_path):
    evaluation = vitrail.evaluate(trained.path, out=tmp_path)
    assert evaluation.split == "test"
    assert evaluation.metrics.to_dict() == trained.metrics["test"].to_dict()
    assert evaluation.path == tmp_path / "evaluate" / "colours-test"
    manifest = vitrail.verbs.target.open_target(trained.path).dataset()
    assert [row["path"] for row in answers(evaluation.path)] == manifest.splits["test"].paths


@pytest.mark.parametrize(("split", "num_images"), [("train", 36), ("val", 6)])
def test_another_split_can_be_asked_for(trained, tmp_path, split, num_images):
    evaluation = vitrail.evaluate(trained.path, split=split, out=tmp_path, name="mine", batch_size=5)
    assert (evaluation.split, evaluation.metrics.num_images) == (split, num_images)
    assert evaluation.path == tmp_path / "evaluate" / "mine"


def test_every_answer_is_written_and_adds_up_to_the_accuracy(trained, others, tmp_path):
    evaluation = vitrail.evaluate(trained.path, data=others, out=tmp_path)
    rows = answers(evaluation.path)
    assert [row["path"] for row in rows] == sorted(str(path.relative_to(others)) for path in others.rglob("*.png"))
    assert all(row["label"] == row["path"].split("/")[0] for row in rows)
    assert all((row["correct"] == "true") == (row["label"] == row["predicted"]) for row in rows)
    assert all(1 / 3 <= float(row["probability"]) <= 1 for row in rows)
    assert {row["predicted"] for row in rows if row["label"] == "blue"} == {"green"}
    share = sum(row["correct"] == "true" for row in rows) / len(rows)
    assert evaluation.metrics.accuracy.value == share == 0.4
    written = json.loads((evaluation.path / "evaluation.json").read_text())
    assert written == json.loads(json.dumps({"test": evaluation.metrics.to_dict()}))
    page = (evaluation.path / "report.html").read_text(encoding="utf-8")
    assert "No image of test shows green" in page
    config = json.loads((evaluation.path / "config.json").read_text())
    assert (config["target"], config["data"]) == (str(trained.path), str(others))
    assert json.loads((evaluation.path / "environment.json").read_text())["versions"]


def test_a_source_with_split_folders_gives_the_split_that_is_asked_for(trained, pictures, tmp_path):
    source = tmp_path / "divided"
    pictures(source / "train", {"blue": 3, "red": 3})
    pictures(source / "val", {"green": 2})
    pictures(source / "test", {"red": 1})
    assert vitrail.evaluate(trained.path, data=source, out=tmp_path).metrics.num_images == 1
    assert vitrail.evaluate(trained.path, data=source, split="val", out=tmp_path).metrics.num_images == 2
    assert vitrail.evaluate(trained.path, data=source, split="train", out=tmp_path).metrics.accuracy.value == 1


def test_a_split_that_is_not_there_is_named_with_those_that_are(trained, colours, others, pictures, tmp_path):
    with pytest.raises(ConfigError, match=r"others has no split 'val'. It has: test"):
        vitrail.evaluate(trained.path, data=others, split="val", out=tmp_path / "out")
    with pytest.raises(ConfigError, match=r"split is 'vall'; it takes 'train', 'val', 'test'.* Did you mean 'val'"):
        vitrail.evaluate(trained.path, split="vall", out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_classes_that_the_model_does_not_know_are_refused_by_name(trained, pictures, tmp_path):
    source = pictures(tmp_path / "source", {"red": 2, "white": 2})
    (source / "bleu").mkdir()
    shutil.copy(source / "red" / "00.png", source / "bleu")
    with pytest.raises(DataError, match=r"does not know: bleu, white. Did you mean 'blue'\?"):
        vitrail.evaluate(trained.path, data=source, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_broken_files_are_left_out_and_told(trained, others, tmp_path):
    (others / "red" / "00.png").write_bytes(b"no picture")
    evaluation = vitrail.evaluate(trained.path, data=others, out=tmp_path)
    assert evaluation.metrics.num_images == 9
    assert evaluation.metrics.accuracy.value == pytest.approx(3 / 9)
    assert "1 files were left out" in (evaluation.path / "report.html").read_text(encoding="utf-8")


def test_a_bundle_and_a_checkpoint_measure_the_same_as_the_run(trained, bundle, others, tmp_path):
    run = vitrail.evaluate(trained.path, data=others, out=tmp_path)
    shipped = vitrail.evaluate(bundle.path, data=others, out=tmp_path)
    checkpoint = vitrail.evaluate(trained.path / "model.safetensors", data=others, out=tmp_path)
    assert shipped.metrics.accuracy == checkpoint.metrics.accuracy == run.metrics.accuracy
    for other in (shipped, checkpoint):
        for theirs, ours in zip(answers(other.path), answers(run.path), strict=True):
            assert float(theirs.pop("probability")) == pytest.approx(float(ours.pop("probability")), abs=2e-6)
            assert theirs == ours


@pytest.mark.parametrize("what", ["bundle", "checkpoint"])
def test_what_does_not_know_its_images_asks_for_some(command, trained, bundle, tmp_path, what):
    target = bundle.path if what == "bundle" else trained.path / "model.safetensors"
    answer = command("evaluate", target, "--out", tmp_path / "out")
    assert answer.code == 2
    assert f"is a {what} and does not know its images. Name a folder with --data." in answer.sentence()
    assert not (tmp_path / "out").exists()


def test_images_that_went_away_or_changed_are_not_measured_in_silence(command, pictures, quick, tmp_path):
    source = pictures(tmp_path / "source", {"blue": 6, "red": 6})
    run = vitrail.train(source, **quick, epochs=1, out=tmp_path).path
    victim = source / answers(vitrail.evaluate(run, out=tmp_path).path)[0]["path"]
    shutil.copy(pictures(tmp_path / "large", {"red": 1}, side=20) / "red" / "00.png", victim)
    assert "has changed since it was checked: it had 16 x 16 pixels" in command("evaluate", run).sentence()
    victim.unlink()
    assert "there is no such file" in command("evaluate", run).sentence()
    source.rename(tmp_path / "elsewhere")
    answer = command("evaluate", run, "--out", tmp_path / "out")
    assert answer.code == 1
    assert f"There is no file or folder {source}" in answer.sentence()
    assert not (tmp_path / "out").exists()


def test_the_command_prints_the_numbers_and_where_the_report_is(command, trained, tmp_path):
    answer = command("evaluate", trained.path, "--out", tmp_path)
    assert (answer.code, answer.err) == (0, "")
    assert f"report   {tmp_path}/evaluate/colours-test/report.html" in answer.out.splitlines()
    assert all(label in answer.out for label in ("blue", "green", "red", "accuracy", "mean of classes"))
    assert "100.0" in answer.out
    again = command("evaluate", trained.path, "--out", tmp_path)
    assert "colours-test-2/report.html" in again.out
