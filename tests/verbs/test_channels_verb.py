"""Pictures of five channels and 16 bits through every verb."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import vitrail
from vitrail.config import TrainConfig
from vitrail.shipping.predictor import OnnxPredictor
from vitrail.training import Run, TrainProgress
from vitrail.verbs.session import resume, start
from vitrail.verbs.train import TrainResult

SIDE = 16
CLASSES = ("dark", "mixed", "near_infrared")
LEVELS = np.array([[0.1, 0.1, 0.1, 0.1, 0.1], [0.5, 0.2, 0.5, 0.2, 0.5], [0.1, 0.1, 0.1, 0.6, 0.1]])
"""The third class differs from the first in the fourth channel alone."""


def write_scenes(root: Path, *, per_class: int = 16, seed: int = 0) -> Path:
    rng = np.random.default_rng(seed)
    for label, levels in zip(CLASSES, LEVELS, strict=True):
        (root / label).mkdir(parents=True)
        for number in range(per_class):
            share = levels + rng.normal(0, 0.03, (SIDE, SIDE + 3, 5))
            np.save(root / label / f"{number:02d}.npy", (np.clip(share, 0, 1) * 65535).astype(np.uint16))
    return root


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_scenes(tmp_path_factory.mktemp("scenes") / "scenes")


@pytest.fixture(scope="module")
def five(scenes: Path, quick: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> TrainResult:
    out = tmp_path_factory.mktemp("runs")
    return vitrail.train(scenes, **quick, channels=5, epochs=12, lr=3e-3, augment="strong", out=str(out), name="five")


@pytest.fixture(scope="module")
def five_bundle(five: TrainResult, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return vitrail.export(five.path, out=str(tmp_path_factory.mktemp("bundles"))).path


def test_training_learns_from_all_channels_and_says_what_it_left_out(five, scenes, quick, command, tmp_path):
    preprocess = vitrail.load_checkpoint(five.path).preprocess
    assert (preprocess.channels, preprocess.pixel_type) == (5, "uint16")
    # The fourth channel: 0.1, 0.2 and 0.6, each a third; 0.03 of noise, and what resizing takes of it.
    assert preprocess.mean[3] == pytest.approx(0.3, abs=0.01)
    assert preprocess.std[3] == pytest.approx(np.std([0.1, 0.2, 0.6]), abs=0.01)
    assert five.metrics["test"].accuracy.value == 1.0
    html = five.report_path.read_text(encoding="utf-8")
    assert html.count("data:image") >= 8  # augmented pictures of five channels are shown
    options = ("--channels", "5", "--epochs", "1", "--model", quick["model"], "--image-size", SIDE, "--out", tmp_path)
    answer = command("train", scenes, *options, "--workers", "1", "--batch-size", "8", "--device", "cpu")
    assert answer.code == 0
    assert "Images of 5 channels, uint16; no colours are changed" in " ".join(answer.err.split())


def test_the_admission_shows_them(scenes, command, tmp_path):
    answer = command("data", scenes, "--channels", "5", "--out", tmp_path, "--name", "five")
    assert answer.code == 0
    assert "refused" not in answer.out
    assert (tmp_path / "data" / "five" / "report.html").exists()


def test_evaluation_reads_the_same_channels_here_and_elsewhere(five, tmp_path):
    own = vitrail.evaluate(five.path, out=str(tmp_path))
    other = vitrail.evaluate(five.path, data=str(write_scenes(tmp_path / "other", seed=1)), out=str(tmp_path))
    assert own.metrics.accuracy.value == other.metrics.accuracy.value == 1.0
    assert other.metrics.num_images == 48


def test_predictions_search_arrays_and_refuse_others_with_the_reason(five, scenes, command, tmp_path):
    answers = vitrail.predict(five.path, scenes / "dark")
    assert len(answers) == 16
    assert {answer.label for answer in answers} == {"dark"}
    Image.new("RGB", (9, 9)).save(tmp_path / "x.png")
    np.save(tmp_path / "y.npy", np.zeros((9, 9, 5), np.float32))
    first, second = vitrail.predict(five.path, tmp_path)
    assert first.error == "it has 3 channels (RGB), and the model takes 5"
    assert second.error == "its values are float32, and the model takes uint16"
    assert command("predict", five.path, tmp_path / "x.png").code == 1


def test_the_bundle_takes_the_channels_and_their_type(five, five_bundle, scenes):
    told = json.loads((five_bundle / "bundle.json").read_text(encoding="utf-8"))["input"]
    assert (told["dtype"], told["shape"]) == ("uint16", ["batch", SIDE, SIDE, 5])
    assert np.load(five_bundle / "golden.npz")["images"].dtype == np.uint16
    assert vitrail.check(five_bundle).ok
    files = sorted((scenes / "near_infrared").iterdir())
    ours, theirs = (vitrail.predict(target, files) for target in (five.path, five_bundle))
    assert [each.label for each in theirs] == [each.label for each in ours] == ["near_infrared"] * 16
    # Seen: 2e-7.
    assert np.allclose([each.probabilities for each in ours], [each.probabilities for each in theirs], atol=1e-5)
    deepest = OnnxPredictor(five_bundle).logits(np.full((1, SIDE, SIDE, 5), 65535, np.uint16))
    assert np.isfinite(deepest).all()


def test_the_check_finds_a_type_that_was_exchanged(five_bundle, tmp_path):
    copy = shutil.copytree(five_bundle, tmp_path / "copy")
    text = (copy / "bundle.json").read_text(encoding="utf-8").replace('"dtype": "uint16"', '"dtype": "uint8"')
    (copy / "bundle.json").write_text(text, encoding="utf-8")
    sums = (copy / "SHA256SUMS").read_text(encoding="utf-8").splitlines()
    changed = hashlib.sha256((copy / "bundle.json").read_bytes()).hexdigest()
    sums = [f"{changed}  bundle.json" if line.endswith("  bundle.json") else line for line in sums]
    (copy / "SHA256SUMS").write_text("\n".join(sums) + "\n", encoding="utf-8")
    failed = vitrail.check(copy).checks[-1]
    assert (failed.name, failed.ok) == ("interface", False)


def test_a_run_goes_on_with_its_channels(scenes, quick, tmp_path):
    options = {**quick, "channels": 5, "lr": 3e-3, "out": str(tmp_path)}
    whole = vitrail.train(scenes, **options, epochs=2, name="whole")
    session = start(TrainConfig(source=str(scenes), **options, epochs=2, name="parts"))
    session.state.save(session.run.state_path)
    again = resume(Run(session.run.path))
    assert again.dataset.splits["train"].decode(0).shape == (SIDE, SIDE + 3, 5)
    with TrainProgress(2, quiet=True) as progress:
        again.fit(progress)
    one, other = (vitrail.load_checkpoint(path).model.state_dict() for path in (whole.path, again.run.path))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_weights_of_three_channels_start_a_model_of_five(trained, scenes, quick, tmp_path):
    fitted = vitrail.train(
        scenes,
        pretrained=str(trained.path),
        channels=5,
        epochs=1,
        out=str(tmp_path),
        **{key: value for key, value in quick.items() if key != "model"},
    )
    model = vitrail.load_checkpoint(fitted.path).model
    assert model.spec.in_channels == 5
    assert vitrail.load_checkpoint(fitted.path).preprocess.channels == 5


def test_weights_of_more_channels_are_refused_for_fewer(five, colours, command, tmp_path):
    answer = command("train", colours, "--pretrained", five.path, "--epochs", "1", "--out", tmp_path, "--quiet")
    assert answer.code != 0
    assert "takes images of 5 channels, and these have 3. Give channels 5, or other weights." in answer.sentence()


def test_a_teacher_of_other_channels_is_refused(trained, scenes, command, tmp_path):
    answer = command("train", scenes, "--channels", "5", "--teacher", trained.path, "--epochs", "1", "--out", tmp_path)
    assert answer.code != 0
    assert "takes 3 channels, and these images have 5" in answer.sentence()


def test_grey_of_16_bits_trains_and_ships(quick, tmp_path):
    rng = np.random.default_rng(0)
    for label, level in (("a", 1000), ("b", 1100)):  # of 65535: the same byte, 4
        (tmp_path / "grey" / label).mkdir(parents=True)
        for number in range(16):
            values = rng.normal(level, 10, (SIDE, SIDE)).astype(np.uint16)
            Image.fromarray(values).save(tmp_path / "grey" / label / f"{number}.png")
    run = vitrail.train(
        tmp_path / "grey", **quick, channels=1, epochs=10, lr=3e-3, duplicates="off", out=str(tmp_path / "runs")
    )
    assert run.metrics["test"].accuracy.value == 1.0
    assert vitrail.check(vitrail.export(run.path, out=str(tmp_path / "runs")).path).ok


def test_bad_numbers_are_one_sentence(scenes, command, tmp_path):
    assert command("train", scenes, "--channels", "0").sentence() == "channels is 0; it takes a number from 1 to 512."
    says = command("data", scenes, "--channels", "4", "--out", tmp_path).sentence()
    assert "it has 5 channels, and 4 are asked; give --channels 5" in says
    assert "--channels says how many channels" in command("data", scenes, "--out", tmp_path).sentence()


def test_a_wrong_label_is_seen_by_the_channel_that_tells(scenes, tmp_path):
    source = shutil.copytree(scenes, tmp_path / "scenes")
    shutil.move(source / "near_infrared" / "00.npy", source / "dark" / "wrong.npy")
    admission = vitrail.admit(source, channels=5, label_folds=3, out=tmp_path, duplicates="off")
    assert admission.labels is not None
    first = admission.labels.issues[0]
    assert (first.path, first.given, first.suggested) == ("dark/wrong.npy", ("dark",), ("near_infrared",))
