import errno
import hashlib
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from vitrail.config import Preprocess
from vitrail.data.images import open_image, prepare
from vitrail.errors import BundleError, ConfigError, ParityError, StorageError
from vitrail.shipping import bundle as bundle_module
from vitrail.shipping.bundle import export_bundle
from vitrail.shipping.onnx import export_onnx
from vitrail.shipping.parity import Parity, Tolerance
from vitrail.shipping.readme import bundle_readme

LINEAR_PREPROCESS = Preprocess(image_size=(4, 4))


def linear_model(num_classes: int = 3) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(48, num_classes)).eval()


def linear_batches(num_images: int = 20, *, labelled: bool = True) -> list:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (num_images, 4, 4, 3), dtype=np.uint8)
    labels = np.sort(rng.integers(0, 3, num_images))
    return [
        (
            images[start : start + 8],
            labels[start : start + 8] if labelled else None,
            [f"{i}.jpg" for i in range(start, min(start + 8, num_images))],
        )
        for start in range(0, num_images, 8)
    ]


@pytest.fixture(scope="module")
def linear_file(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("linear") / "model.onnx"
    export_onnx(linear_model(), path, preprocess=LINEAR_PREPROCESS, classes=("a", "b", "c"))
    return path


@pytest.fixture
def export_linear(linear_file, monkeypatch) -> Callable[..., Parity]:
    """`export_bundle` of the linear model, whose exporter hands out a file made before: seconds less for each test."""
    monkeypatch.setattr(bundle_module, "export_onnx", lambda model, path, **options: shutil.copy(linear_file, path))

    def export(folder: Path, model: nn.Module | None = None, **changes) -> Parity:
        options = {"classes": ("a", "b", "c"), "preprocess": LINEAR_PREPROCESS, "batches": linear_batches(), **changes}
        return export_bundle(model or linear_model(), folder, **options)["onnx"]

    return export


def test_the_exported_model_answers_alike_on_all_real_images(exported) -> None:
    parity = exported.parity
    assert parity.num_images == len(exported.images)
    assert parity.agreement == 1
    # Measured: 2.7e-6 where the logits have a standard deviation of 1.3.
    assert 0 < parity.max_logit_difference < 1e-4
    assert parity.logit_std > 0.5
    assert parity.reference_accuracy == parity.exported_accuracy


def test_the_bundle_holds_what_it_lists_and_its_checksums_suit_sha256sum(exported) -> None:
    names = {"README.md", "SHA256SUMS", "bundle.json", "check.py", "golden.npz", "labels.txt", "model.onnx"}
    assert {path.name for path in exported.folder.iterdir()} == names
    lines = (exported.folder / "SHA256SUMS").read_text().splitlines()
    assert {line.split("  ")[1] for line in lines} == names - {"SHA256SUMS"}
    for line in lines:
        checksum, name = line.split("  ")
        assert hashlib.sha256((exported.folder / name).read_bytes()).hexdigest() == checksum


def test_bundle_json_tells_what_the_model_is_and_how_it_was_verified(exported) -> None:
    told = json.loads((exported.folder / "bundle.json").read_text(encoding="utf-8"))
    assert told["format"] == 1
    assert told["source"] == "digits-run"
    assert told["classes"] == ["zero", "one", "two", "three", "vier und fünf"]
    assert Preprocess.from_dict(told["preprocess"]) == Preprocess(
        image_size=(32, 32), mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)
    )
    assert told["calibration"] == {"temperature": 1.7, "reject_threshold": 0.4}
    assert told["input"]["shape"] == ["batch", 32, 32, 3]
    assert told["verification"]["parity"]["num_images"] == len(exported.images)
    assert told["verification"]["runtime"].startswith("onnxruntime ")
    age = datetime.now(UTC) - datetime.fromisoformat(told["created_at"])
    assert timedelta(0) <= age < timedelta(hours=1)


def test_golden_images_are_given_images_of_every_class_with_the_models_logits(exported) -> None:
    with np.load(exported.folder / "golden.npz", allow_pickle=False) as arrays:
        images, logits = arrays["images"], arrays["logits"]
    found = [int(np.flatnonzero((exported.images == image).all(axis=(1, 2, 3)))[0]) for image in images]
    assert np.bincount(exported.labels[found]).tolist() == [3, 3, 3, 3, 3]
    assert logits.dtype == np.float32
    assert logits.shape == (15, 5)


def test_without_labels_the_first_images_are_golden(tmp_path, export_linear) -> None:
    export_linear(tmp_path / "b", batches=linear_batches(labelled=False))
    with np.load(tmp_path / "b" / "golden.npz", allow_pickle=False) as arrays:
        first = np.concatenate([pixels for pixels, _, _ in linear_batches()])[:16]
        np.testing.assert_array_equal(arrays["images"], first)
    told = json.loads((tmp_path / "b" / "bundle.json").read_text(encoding="utf-8"))
    assert told["calibration"] == {"temperature": 1.0}
    assert told["verification"]["parity"]["reference_accuracy"] is None


def test_a_graph_with_other_weights_is_refused_and_nothing_is_left(tmp_path, export_linear) -> None:
    trained_on = linear_model()
    with torch.no_grad():
        trained_on[1].weight.add_(0.3 * torch.randn_like(trained_on[1].weight))
    with pytest.raises(ParityError, match="largest logit difference") as caught:
        export_linear(tmp_path / "b", trained_on)
    sentence = str(caught.value)
    assert re.search(r"\d+ of 20 images get another label", sentence)
    assert len(re.findall(r"\d+\.jpg \(\w became \w\)", sentence)) == 5
    assert re.search(r"and \d+ more", sentence)
    assert caught.value.exit_code == 1
    assert not list(tmp_path.iterdir())


class Flip(nn.Module):
    """RGB to BGR."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.flip(1)


@pytest.mark.parametrize(
    ("model", "preprocess"),
    [
        (nn.Sequential(Flip(), linear_model()), LINEAR_PREPROCESS),
        (linear_model(), Preprocess(image_size=(4, 4), std=(0.5 * 256 / 255,) * 3)),  # 256 where 255 is right
        (linear_model(), Preprocess(image_size=(4, 4), mean=(0.485, 0.456, 0.406))),
    ],
)
def test_the_default_tolerance_catches_the_common_mistakes(tmp_path, export_linear, model, preprocess) -> None:
    with pytest.raises(ParityError):
        export_linear(tmp_path / "b", model, preprocess=preprocess)


def test_an_interrupted_export_leaves_nothing(tmp_path, export_linear) -> None:
    def interrupted():
        yield linear_batches()[0]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export_linear(tmp_path / "b", batches=interrupted())
    assert not list(tmp_path.iterdir())


def test_a_bundle_is_never_overwritten(tmp_path, export_linear) -> None:
    (tmp_path / "b").mkdir()
    with pytest.raises(ConfigError, match="exists and is not overwritten"):
        export_linear(tmp_path / "b")


def test_no_images_is_no_proof(tmp_path, export_linear) -> None:
    with pytest.raises(ParityError, match="no image"):
        export_linear(tmp_path / "b", batches=[])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["two\nlines", "carriage\rreturn", "not text \udcff"])
def test_a_class_name_that_is_no_line_of_text_is_refused(tmp_path, export_linear, name) -> None:
    with pytest.raises(ConfigError, match="cannot be one line"):
        export_linear(tmp_path / "b", classes=("a", "b", name))


def test_a_stricter_tolerance_is_obeyed(tmp_path, export_linear) -> None:
    with pytest.raises(ParityError, match="at most 1e-12"):
        export_linear(tmp_path / "b", tolerance=Tolerance(logits=1e-12))


def test_a_full_disk_is_one_sentence_and_leaves_nothing(tmp_path, export_linear, monkeypatch) -> None:
    def full(*_args, **_arrays) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(np, "savez_compressed", full)
    with pytest.raises(StorageError, match="disk is full"):
        export_linear(tmp_path / "b")
    assert not list(tmp_path.iterdir())


def test_a_bundle_that_fails_its_own_check_is_not_kept(tmp_path, export_linear) -> None:
    # The file was exported with temperature 1: its probabilities are not those of temperature 2.
    with pytest.raises(BundleError, match=r"failed its own check.*calibration"):
        export_linear(tmp_path / "b", calibration={"temperature": 2.0})
    assert not list(tmp_path.iterdir())


def test_large_golden_images_are_fewer(tmp_path, export_linear, monkeypatch) -> None:
    monkeypatch.setattr(bundle_module, "MAX_GOLDEN_BYTES", 4 * 48 + 1)
    export_linear(tmp_path / "b", batches=linear_batches(labelled=False))
    assert json.loads((tmp_path / "b" / "bundle.json").read_text())["golden"]["num_images"] == 4


def readme_code(description: dict) -> str:
    (code,) = re.findall(r"```python\n(.*?)```", bundle_readme(description), re.DOTALL)
    return code


@pytest.mark.parametrize("resize", ["crop", "squash", "pad"])
@pytest.mark.parametrize("size", [(131, 97), (40, 200), (20, 17)])
def test_the_readme_prepares_a_picture_as_training_did(exported, tmp_path, monkeypatch, resize, size) -> None:
    rng = np.random.default_rng(0)
    rough = Image.fromarray(rng.integers(0, 256, (9, 13, 3), dtype=np.uint8))
    rough.resize(size, Image.Resampling.BICUBIC).save(tmp_path / "picture.jpg")
    preprocess = Preprocess(image_size=(32, 40), resize=resize, crop_fraction=0.9 if resize == "crop" else 1.0)
    description = json.loads((exported.folder / "bundle.json").read_text(encoding="utf-8"))
    code = readme_code({**description, "preprocess": preprocess.to_dict()})
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(code[: code.index("session =")], names)
    expected = prepare(open_image(tmp_path / "picture.jpg"), preprocess)
    np.testing.assert_array_equal(np.asarray(names["picture"]), expected)


@pytest.mark.parametrize("resize", ["crop", "squash", "pad"])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_the_readme_prepares_channels_as_training_did(exported, tmp_path, monkeypatch, resize, dtype) -> None:
    rng = np.random.default_rng(0)
    values = (rng.random((61, 47, 5)) * (1 if dtype == "float32" else np.iinfo(dtype).max)).astype(dtype)
    np.save(tmp_path / "picture.npy", values)
    five = (0.5,) * 5
    preprocess = Preprocess(image_size=(32, 40), resize=resize, mean=five, std=five, channels=5, pixel_type=dtype)
    description = json.loads((exported.folder / "bundle.json").read_text(encoding="utf-8"))
    description["input"] = {**description["input"], "dtype": dtype, "shape": ["batch", 32, 40, 5]}
    code = readme_code({**description, "preprocess": preprocess.to_dict()})
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(code[: code.index("session =")], names)
    assert names["images"].dtype == dtype
    np.testing.assert_array_equal(names["images"][0], prepare(values, preprocess))


def test_the_code_of_the_readme_runs_in_the_bundle(exported, bundle) -> None:
    Image.fromarray(exported.images[0]).resize((50, 64)).save(bundle / "picture.jpg")
    code = readme_code(json.loads((bundle / "bundle.json").read_text(encoding="utf-8")))
    assert len(code.splitlines()) <= 16
    done = subprocess.run([sys.executable, "-I", "-c", code], cwd=bundle, check=True, capture_output=True, text=True)
    label, probability = done.stdout.rsplit(" ", 1)
    assert label in json.loads((bundle / "bundle.json").read_text(encoding="utf-8"))["classes"]
    assert 0.2 <= float(probability) <= 1
