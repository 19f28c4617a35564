"""`export` and `check`: a proven bundle or nothing, and a check that finds what was changed."""

import json
import os
import shutil
import sys

import numpy as np
import onnx
import pytest

import vitrail
from vitrail.errors import ConfigError, DataError, ParityError, StorageError
from vitrail.shipping import onnx as shipping_onnx
from vitrail.verbs import export as export_verb


def test_the_bundle_was_proven_on_every_validation_image(trained, bundle):
    assert bundle.parity.num_images == trained.metrics["val"].num_images
    assert bundle.parity.differences == ()
    # Measured: 5e-7, with a standard deviation of the logits of 1.6.
    assert bundle.parity.max_logit_difference < 1e-5
    assert bundle.parity.exported_accuracy == trained.metrics["val"].accuracy.value
    assert bundle.path.name == "colours"
    assert bundle.path.parent.name == "export"
    description = json.loads((bundle.path / "bundle.json").read_text())
    checkpoint = vitrail.load_checkpoint(trained.path)
    assert description["classes"] == ["blue", "green", "red"]
    assert description["calibration"] == checkpoint.calibration
    assert vitrail.Preprocess.from_dict(description["preprocess"]) == checkpoint.preprocess
    assert description["source"] == "colours"


def test_a_whole_bundle_passes_its_check(bundle, command):
    assert vitrail.check(bundle.path).ok
    answer = command("check", bundle.path)
    assert (answer.code, answer.err) == (0, "")
    assert answer.out.splitlines()[-1].endswith("gives the answers it was made with.")
    assert "FAILED" not in answer.out


@pytest.mark.parametrize("victim", ["model.onnx", "labels.txt", "bundle.json", "golden.npz", "check.py"])
def test_a_bundle_that_was_changed_fails_its_check(bundle, command, tmp_path, victim):
    copy = shutil.copytree(bundle.path, tmp_path / "copy")
    data = bytearray((copy / victim).read_bytes())
    data[len(data) // 2] ^= 1
    (copy / victim).write_bytes(data)
    assert not vitrail.check(copy).ok
    answer = command("check", copy)
    assert (answer.code, answer.err) == (1, "")
    assert f"Altered since the export: {victim}" in answer.out
    assert "do not use it" in answer.out


@pytest.mark.parametrize(
    ("where", "says"),
    [("nowhere", "is not a folder"), (".", "SHA256SUMS is missing"), ("file", "is not a folder")],
)
def test_the_check_of_what_is_no_bundle_fails(command, tmp_path, where, says):
    (tmp_path / "file").write_text("")
    answer = command("check", tmp_path / where)
    assert answer.code == 1
    assert says in answer.out
    assert "Traceback" not in answer.out + answer.err


def test_a_damaged_bundle_predicts_nothing(bundle, command, colours, tmp_path):
    copy = shutil.copytree(bundle.path, tmp_path / "copy")
    (copy / "model.onnx").write_bytes((copy / "model.onnx").read_bytes()[:5000])
    assert "onnxruntime cannot open" in command("predict", copy, colours).sentence()
    (copy / "bundle.json").write_text("{")
    answer = command("predict", copy, colours)
    assert answer.code == 1
    assert "cannot be read" in answer.sentence()


def test_a_bundle_is_not_exported_again(bundle, command, tmp_path):
    answer = command("export", bundle.path, "--out", tmp_path / "out")
    assert answer.code == 2
    assert "is a bundle already. Name the run it was exported from." in answer.sentence()
    assert not (tmp_path / "out").exists()


def test_a_model_that_answers_otherwise_is_not_shipped(monkeypatch, trained, command, tmp_path):
    """The exporter forgets to take the mean away, as a wrong normalisation does: the gate sees it on real images."""

    class Forgetful(shipping_onnx.DeployedClassifier):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            self.shift.zero_()

    monkeypatch.setattr(shipping_onnx, "DeployedClassifier", Forgetful)
    answer = command("export", trained.path, "--out", tmp_path / "out")
    assert answer.code == 1
    assert answer.out == ""
    sentence = answer.sentence()
    assert "does not answer like the trained one; nothing was written" in sentence
    assert "The largest logit difference is" in sentence
    assert list((tmp_path / "out" / "export").iterdir()) == []


@pytest.fixture
def exports(monkeypatch):
    """Replace the export itself, which takes seconds, by one that notes what it was asked for."""
    asked = []

    def export(model, folder, **options):
        options["batches"] = list(options["batches"])
        asked.append({"model": model, "folder": folder, **options})
        folder.mkdir(parents=True)
        return {"onnx": None, options["format"]: None}

    monkeypatch.setattr(export_verb, "export_bundle", export)
    return asked


def test_a_bundle_is_never_written_over(exports, trained, tmp_path):
    paths = [vitrail.export(trained.path, out=tmp_path, name="mine").path for _ in range(3)]
    assert paths == [tmp_path / "export" / name for name in ("mine", "mine-2", "mine-3")]


def test_the_proof_is_on_the_images_that_are_named(exports, trained, pictures, tmp_path):
    source = pictures(tmp_path / "source", {"red": 3, "blue": 2})
    vitrail.export(trained.path / "model.safetensors", data=source, tolerance=0.01, out=tmp_path)
    (asked,) = exports
    (pixels, labels, paths), *more = asked["batches"]
    assert more == []
    assert (pixels.shape, pixels.dtype) == ((5, 16, 16, 3), np.uint8)
    assert labels.tolist() == [0, 0, 2, 2, 2]
    assert paths == ["blue/00.png", "blue/01.png", *(f"red/0{number}.png" for number in range(3))]
    assert asked["tolerance"].logits == 0.01
    assert asked["folder"].name == "model"


def test_the_library_that_a_format_needs_is_named_before_the_images_are_read(monkeypatch, exports, trained, command):
    monkeypatch.setitem(sys.modules, "executorch", None)
    monkeypatch.setitem(sys.modules, "executorch.exir", None)
    answer = command("export", trained.path, "--data", "nowhere", "--format", "executorch")
    assert answer.code == 1
    assert "pip install 'vitrail[executorch]'" in answer.sentence()
    assert exports == []


def test_what_cannot_be_exported_is_refused_with_the_same_errors_in_python(trained, pictures, tmp_path):
    with pytest.raises(ConfigError, match="checkpoint and does not know its images"):
        vitrail.export(trained.path / "model.safetensors", out=tmp_path)
    with pytest.raises(DataError, match="classes that the model does not know: white"):
        vitrail.export(trained.path, data=pictures(tmp_path / "source", {"white": 2}), out=tmp_path)
    with pytest.raises(ConfigError, match="tolerance is 0"):
        vitrail.export(trained.path, tolerance=0.0, out=tmp_path)
    with pytest.raises(ConfigError, match=r"format is 'onx'.* Did you mean 'onnx'"):
        vitrail.export(trained.path, format="onx", out=tmp_path)
    assert issubclass(ParityError, vitrail.VitrailError)
    assert not (tmp_path / "export").exists()


def test_the_graph_in_the_bundle_carries_no_path_of_this_machine(bundle, tmp_path):
    text = (bundle.path / "model.onnx").read_bytes() + (bundle.path / "bundle.json").read_bytes()
    assert os.fsencode(tmp_path.parents[1]) not in text
    assert b"site-packages" not in text
    onnx.checker.check_model(str(bundle.path / "model.onnx"))


def test_a_place_that_cannot_hold_bundles_is_told(trained, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot be written"):
        vitrail.export(trained.path, out=tmp_path / "file")
