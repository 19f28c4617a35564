"""A bundle of a model that gives any number of labels: exported once, proven, checked, called as its page says."""

import json
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from vitrail.config import Preprocess
from vitrail.errors import ParityError
from vitrail.shipping import bundle as bundle_module
from vitrail.shipping import check
from vitrail.shipping.bundle import export_bundle
from vitrail.shipping.check import check_bundle
from vitrail.shipping.predictor import OnnxPredictor
from vitrail.shipping.readme import bundle_readme
from vitrail.shipping.readout import Readout

CLASSES = ("red", "green", "blue")
PREPROCESS = Preprocess(image_size=(4, 4), mean=(0, 0, 0), std=(1, 1, 1))
CALIBRATION = {"temperature": 0.5, "thresholds": [0.5, 0.6, 0.4]}


def tints() -> tuple[np.ndarray, np.ndarray]:
    """Images (N, 4, 4, 3) in every mixture of the three colours, black too, and which of them each shows (N, 3)."""
    labels = np.array([[place >> bit & 1 for bit in range(3)] for place in range(8)] * 4, bool)
    noise = np.random.default_rng(0).integers(0, 40, (len(labels), 4, 4, 3))
    return (noise + 200 * labels[:, None, None, :]).astype(np.uint8), labels


def tint_model() -> nn.Module:
    """Says how much there is of each colour."""
    model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 3))
    with torch.no_grad():
        model[2].weight.copy_(8 * torch.eye(3))
        model[2].bias.fill_(-4)
    return model.eval()


def batches() -> list:
    images, labels = tints()
    return [
        (images[i : i + 10], labels[i : i + 10], [f"{n}.png" for n in range(i, min(i + 10, 32))])
        for i in (0, 10, 20, 30)
    ]


def export(folder, model=None, **changes):
    options = {"classes": CLASSES, "preprocess": PREPROCESS, "batches": batches(), "task": "multilabel", **changes}
    return export_bundle(model or tint_model(), folder, **{"calibration": CALIBRATION, **options})["onnx"]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tints") / "bundle"
    return folder, export(folder)


@pytest.fixture
def edited(made, tmp_path, sign):
    """Make a copy with other values in bundle.json and checksums that fit."""

    def edit(change):
        folder = shutil.copytree(made[0], tmp_path / "edited")
        told = json.loads((folder / "bundle.json").read_text(encoding="utf-8"))
        change(told)
        (folder / "bundle.json").write_text(json.dumps(told), encoding="utf-8")
        sign(folder)
        last = check_bundle(folder).checks[-1]
        return last.name, last.ok, last.detail

    return edit


def test_sets_of_labels_are_proven_on_every_image(made):
    folder, parity = made
    assert (parity.num_images, parity.agreement) == (32, 1)
    assert (parity.reference_accuracy, parity.exported_accuracy) == (1, 1)
    told = json.loads((folder / "bundle.json").read_text(encoding="utf-8"))
    assert (told["task"], told["calibration"]) == ("multilabel", CALIBRATION)
    assert OnnxPredictor(folder).task == "multilabel"


def test_the_golden_images_show_every_class(made):
    with np.load(made[0] / "golden.npz", allow_pickle=False) as arrays:
        given = arrays["logits"] / 0.5 > np.log(np.array([0.5, 0.6, 0.4]) / (1 - np.array([0.5, 0.6, 0.4])))
    # Five places of each class and of no class among the first images: no mixture is left out.
    assert len({tuple(row) for row in given.tolist()}) == 8
    assert given.sum(axis=0).min() >= 5


def test_an_image_is_golden_if_one_of_its_labels_has_a_place_left():
    picker = bundle_module._GoldenPicker(num_classes=3)
    image, logits = np.zeros((4, 4, 3), np.uint8), np.zeros(3, np.float32)
    for labels in ([0],) * 6 + ([0, 2], []):
        picker.offer(image, logits, labels)
    assert dict(picker.seen) == {0: 6, 2: 1, -1: 1}  # five of the first, the one that shows another too, one of none


@pytest.mark.parametrize("task", ["classification", "multilabel"])
def test_the_travelling_check_reads_logits_as_the_gate_does(task):
    logits = np.random.default_rng(0).normal(0, 3, (200, 3)).astype(np.float32)
    thresholds = [0.5, 0.6, 0.4] if task == "multilabel" else []
    readout = Readout.of(task, {"temperature": 0.7, "thresholds": thresholds}, 3)
    described = check.Description(task, list(CLASSES), {}, 0.7, thresholds, 4, 4, 1, 1.0)
    shares, given = check._read_out(logits, described)
    np.testing.assert_allclose(shares, readout.probabilities(logits), atol=1e-12)
    np.testing.assert_array_equal(given, readout.labels(logits))


def test_the_travelling_check_proves_it(made):
    done = subprocess.run(
        [sys.executable, "-I", made[0] / "check.py"], capture_output=True, text=True, check=True, cwd=made[0]
    )
    assert re.search(r"ok +description +multilabel of 3 classes", done.stdout)
    assert re.search(r"ok +metadata +labels, preprocess, thresholds inside the model", done.stdout)
    assert re.search(r"ok +golden +(\d+) of \1 images get their labels,", done.stdout)
    assert re.search(r"ok +calibration +are the sigmoid of logits / 0.5", done.stdout)


@pytest.mark.parametrize(
    ("change", "name"),
    [
        (lambda told: told["calibration"].update(temperature=0.51), "calibration"),
        (lambda told: told["calibration"].update(thresholds=[0.5, 0.6, 0.41]), "metadata"),
        (lambda told: told["calibration"].update(thresholds=[0.5, 0.6]), "description"),
        (lambda told: told["calibration"].update(thresholds=[0.5, 0.6, 1.5]), "description"),
        (lambda told: told["calibration"].update(thresholds=[0.5, 0.6, float("nan")]), "description"),
        (lambda told: told["calibration"].update(thresholds=None), "description"),
        (lambda told: told["calibration"].pop("thresholds"), "description"),
        (lambda told: told.update(task="classification"), "description"),
        (lambda told: told.update(task=["multilabel"]), "description"),
        (lambda told: told.update(task="segmentation"), "description"),
        (lambda told: told.pop("task"), "description"),
    ],
)
def test_what_no_export_writes_is_noticed(edited, change, name):
    found, ok, detail = edited(change)
    assert (found, ok) == (name, False)
    assert "\n" not in detail


def test_softmax_for_sigmoids_is_noticed(edited):
    def pretend(told):
        told["task"] = "classification"
        del told["calibration"]["thresholds"]

    assert edited(pretend)[0] == "calibration"


def test_a_graph_that_gives_other_labels_is_refused_with_their_names(made, tmp_path, monkeypatch):
    monkeypatch.setattr(
        bundle_module, "export_onnx", lambda model, path, **options: shutil.copy(made[0] / "model.onnx", path)
    )
    blind = tint_model()
    with torch.no_grad():
        blind[2].bias[0] = -9
    with pytest.raises(
        ParityError, match=r"16 of 32 images get another label.*1\.png \(no label became red\)"
    ) as caught:
        export(tmp_path / "b", blind)
    assert "3.png (green became red and green)" in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_without_a_calibration_labels_are_given_from_a_half(made, tmp_path, monkeypatch):
    monkeypatch.setattr(bundle_module, "_prove", lambda folder: None)  # the file has other thresholds
    monkeypatch.setattr(
        bundle_module, "export_onnx", lambda model, path, **options: shutil.copy(made[0] / "model.onnx", path)
    )
    export(tmp_path / "b", calibration=None)
    told = json.loads((tmp_path / "b" / "bundle.json").read_text(encoding="utf-8"))
    assert told["calibration"] == {"temperature": 1.0, "thresholds": [0.5, 0.5, 0.5]}


def test_the_code_of_the_readme_names_every_label(made, tmp_path):
    folder = shutil.copytree(made[0], tmp_path / "copy")
    (code,) = re.findall(
        r"```python\n(.*?)```", bundle_readme(json.loads((folder / "bundle.json").read_text())), re.DOTALL
    )
    for place, expected in ((5, {"red", "blue"}), (0, set())):
        Image.fromarray(tints()[0][place]).save(folder / "picture.png")
        run = [sys.executable, "-I", "-c", code.replace("picture.jpg", "picture.png")]
        done = subprocess.run(run, cwd=folder, check=True, capture_output=True, text=True)
        assert set(re.findall(r"'(\w+)'", done.stdout)) == expected
