"""`predict`: an answer for each picture, in order, whatever lies between them, in every format."""

import csv
import errno
import io
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import vitrail
from vitrail.config import Preprocess
from vitrail.errors import ConfigError, DataError, StorageError
from vitrail.evaluation.predict import TorchPredictor
from vitrail.runtime import files
from vitrail.verbs.target import open_target


@pytest.fixture
def album(pictures, tmp_path):
    """Pictures in folders, and a broken file between them."""
    source = pictures(tmp_path / "album", {"blue": 2, "green": 2, "red": 2})
    (source / "green" / "00-broken.png").write_bytes(b"no picture")
    return source


def test_files_folders_and_globs_are_answered_in_their_order(trained, album):
    named = [album / "red" / "01.png", album / "blue", f"{album}/gr*n/0?.png"]
    found = vitrail.predict(trained.path, named)
    assert [Path(each.path).relative_to(album).as_posix() for each in found] == [
        *("red/01.png", "blue/00.png", "blue/01.png", "green/00.png", "green/01.png")
    ]
    assert [each.label for each in found] == ["red", "blue", "blue", "green", "green"]
    assert all(each.error is None for each in found)
    assert vitrail.predict(trained.path, str(album / "red" / "01.png"))[0].label == "red"


def test_the_answers_are_those_of_the_evaluation(trained, colours, tmp_path):
    with (vitrail.evaluate(trained.path, out=tmp_path).path / "predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    found = vitrail.predict(trained.path, [colours / row["path"] for row in rows])
    assert [each.label for each in found] == [row["predicted"] for row in rows]
    assert [f"{each.probabilities[0]:.6f}" for each in found] == [row["probability"] for row in rows]


def test_batch_norms_are_folded_and_the_checkpoint_keeps_them(tmp_path):
    """Largest difference seen: 2.3e-5, of logits up to 4.7."""
    torch.manual_seed(0)
    model = vitrail.create_model("mobilenetv3_small_050", num_classes=3, image_size=32)
    for norm in norms_of(model):
        norm.momentum = None  # the statistics become those of the next batch, and not nearly the identity
    model.train()(torch.randn(8, 3, 32, 32))
    path, preprocess = tmp_path / "model.safetensors", Preprocess(image_size=(32, 32))
    vitrail.save_checkpoint(path, model, classes=("a", "b", "c"), preprocess=preprocess)
    target = open_target(path)
    assert not norms_of(target.predictor.model)
    assert len(norms_of(target.checkpoint.model)) == len(norms_of(model)) > 0
    pixels = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
    plain = TorchPredictor(model, ("a", "b", "c"), preprocess).logits(pixels)
    assert np.ptp(plain, axis=0).max() > 0.01
    assert target.predictor.logits(pixels) == pytest.approx(plain, abs=2e-4)


def norms_of(model):
    return [module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d)]


def test_a_bundle_gives_the_answers_of_its_run(trained, bundle, album):
    ours, theirs = (vitrail.predict(path, album, top_k=3) for path in (trained.path, bundle.path))
    assert [each.labels for each in ours] == [each.labels for each in theirs]
    assert [each.accepted for each in ours] == [each.accepted for each in theirs]
    assert [each.error for each in ours] == [each.error for each in theirs]
    for one, other in zip(ours, theirs, strict=True):
        assert one.probabilities == pytest.approx(other.probabilities, abs=1e-6)


def test_a_broken_file_is_told_and_the_others_are_answered(trained, album):
    found = vitrail.predict(trained.path, album, batch_size=2)
    assert len(found) == 7
    (broken,) = [each for each in found if each.error is not None]
    assert broken.path.endswith("green/00-broken.png")
    assert (broken.label, broken.labels, broken.probabilities, broken.accepted) == (None, (), (), None)
    assert "header is damaged" in broken.error
    assert [each.label for each in found if each.error is None] == [
        Path(each.path).parent.name for each in found if each.error is None
    ]


def test_nothing_but_broken_files_is_told_too(trained, album):
    (only,) = vitrail.predict(trained.path, album / "green" / "00-broken.png")
    assert only.error
    assert only.label is None


@pytest.mark.parametrize("batch_size", [1, 4, 7, 100])
def test_the_batch_size_decides_no_answer(trained, album, batch_size):
    expected = vitrail.predict(trained.path, album, top_k=3)
    found = vitrail.predict(trained.path, album, top_k=3, batch_size=batch_size)
    assert [(each.path, each.labels, each.error) for each in found] == [
        (each.path, each.labels, each.error) for each in expected
    ]
    for one, other in zip(found, expected, strict=True):
        # Matrix products of other sizes add up in another order; measured: 2e-8.
        assert one.probabilities == pytest.approx(other.probabilities, abs=1e-6)


def test_more_labels_than_classes_are_all_classes_the_most_probable_first(trained, album):
    (found,) = vitrail.predict(trained.path, album / "red" / "00.png", top_k=50)
    assert found.labels[0] == "red"
    assert set(found.labels) == {"blue", "green", "red"}
    assert list(found.probabilities) == sorted(found.probabilities, reverse=True)
    assert sum(found.probabilities) == pytest.approx(1)


@pytest.mark.parametrize("top_k", [1, 2, 2_147_483_647])
def test_csv_has_a_row_for_each_file_and_a_column_for_each_label(command, trained, album, top_k):
    answer = command("predict", trained.path, album, "--format", "csv", "--top-k", top_k)
    assert answer.code == 1, "a file was refused"
    rows = list(csv.DictReader(io.StringIO(answer.out), strict=True))
    expected = vitrail.predict(trained.path, album, top_k=top_k)
    assert [row["path"] for row in rows] == [each.path for each in expected]
    for row, each in zip(rows, expected, strict=True):
        labels = [row[name] for name in row if name.startswith("label")]
        assert len(labels) == min(top_k, 3)
        assert tuple(filter(None, labels)) == each.labels
        assert row["error"] == (each.error or "")
        assert row["accepted"] == {None: "", True: "true", False: "false"}[each.accepted]
    assert float(rows[0]["probability"]) == pytest.approx(expected[0].probabilities[0], abs=1e-6)


def test_json_has_everything(command, trained, album):
    answer = command("predict", trained.path, album, "--format", "json", "--top-k", 2)
    assert answer.code == 1
    rows = json.loads(answer.out)
    for row, each in zip(rows, vitrail.predict(trained.path, album, top_k=2), strict=True):
        assert (row["path"], tuple(row["labels"]), row["error"]) == (each.path, each.labels, each.error)
        assert row["accepted"] == each.accepted
        assert tuple(row["probabilities"]) == each.probabilities


def test_the_refused_are_listed_for_the_person_who_waits(command, trained, album):
    answer = command("predict", trained.path, album)
    assert answer.code == 1
    first, second = answer.err.splitlines()
    assert first == "vitrail: 1 of 7 files were refused:"
    assert second.startswith(f"  {album}/green/00-broken.png: it is none of the formats")


def test_the_exit_code_is_0_where_all_are_answered(command, trained, album):
    answer = command("predict", trained.path, album / "red")
    assert (answer.code, answer.err) == (0, "")
    assert "red" in answer.out


def test_a_table_cuts_no_label_off(command, trained, album):
    """Into a pipe a table has 80 columns; 45 letters and a long path do not fit side by side."""
    checkpoint = vitrail.load_checkpoint(trained.path)
    names = tuple(f"{name}-{'x' * 60}" for name in checkpoint.classes)
    vitrail.save_checkpoint(
        album / "long.safetensors", checkpoint.model, classes=names, preprocess=checkpoint.preprocess
    )
    answer = command("predict", album / "long.safetensors", album / "red")
    assert answer.code == 0
    assert "…" not in answer.out
    assert answer.out.count("x") == 2 * 60


def test_names_that_are_no_text_are_shown_and_read(command, trained, album):
    odd = os.fsencode(album) + b"/red/\xff\n.png"
    shutil.copy(album / "red" / "00.png", odd)
    (found,) = vitrail.predict(trained.path, os.fsdecode(odd))
    assert found.label == "red"
    for style in ("table", "csv", "json"):
        answer = command("predict", trained.path, album / "red", "--format", style)
        assert answer.code == 0
        assert "\\xff\\n.png" in answer.out.replace("\\\\", "\\")


def test_output_takes_the_place_of_the_terminal(command, trained, album, tmp_path):
    for style, parse in (("csv", lambda text: list(csv.DictReader(io.StringIO(text)))), ("json", json.loads)):
        target = tmp_path / "deep" / f"answers.{style}"
        answer = command("predict", trained.path, album / "red", "--format", style, "--output", target)
        assert (answer.code, answer.out, answer.err) == (0, "", "")
        assert len(parse(target.read_text())) == 2
    command("predict", trained.path, album / "red", "--output", tmp_path / "table.csv")
    assert (tmp_path / "table.csv").read_text() == (tmp_path / "deep" / "answers.csv").read_text()


def test_a_full_disk_leaves_the_old_output_as_it_was(monkeypatch, command, trained, album, tmp_path):
    def full(path):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    target = tmp_path / "answers.csv"
    target.write_text("old")
    monkeypatch.setattr(files, "_flush_to_disk", full)
    answer = command("predict", trained.path, album / "red", "--output", target)
    assert answer.code == 1
    assert answer.sentence().startswith("The disk is full")
    assert target.read_text() == "old"
    assert not [path for path in tmp_path.iterdir() if path.suffix == ".tmp"]


def test_a_device_is_not_replaced_by_a_file(trained, album, command, tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    answer = command("predict", trained.path, album / "red", "--output", pipe)
    assert answer.code == 1
    assert "is no plain file" in answer.sentence()
    assert pipe.is_fifo()
    with pytest.raises(StorageError, match="is no plain file"):
        files.write_text(album, "a folder")


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("album/blu", "Did you mean 'blue'"),
        ("album/red/01.pgn", "Did you mean '01.png'"),
        ("nowhere/at/all.png", "There is no file or folder nowhere/at/all.png."),
        ("album/*.webp", "Nothing matches album/*.webp"),
        ("album/none", "There are no pictures in album/none"),
        ("x" * 300, "File name too long"),
    ],
)
def test_a_name_that_leads_nowhere_is_told(monkeypatch, command, trained, album, name, says):
    (album / "none").mkdir()
    monkeypatch.chdir(album.parent)
    answer = command("predict", trained.path, name)
    assert answer.code == 1
    assert answer.out == ""
    assert says in answer.sentence()


def test_wrong_calls_are_refused_before_anything_is_read(trained):
    with pytest.raises(ConfigError, match="No images were named"):
        vitrail.predict(trained.path, [])
    with pytest.raises(ConfigError, match="top_k is 0"):
        vitrail.predict(trained.path, "x.png", top_k=0)
    with pytest.raises(ConfigError, match="Did you mean 'top_k'"):
        vitrail.predict(trained.path, "x.png", topk=3)
    with pytest.raises(DataError, match="There is no file or folder"):
        vitrail.predict(trained.path, "x.png")
