"""Models of other libraries: built, trained on, saved and built again without their library's downloads."""

import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from vitrail.config import Preprocess
from vitrail.errors import CheckpointError, ConfigError, MissingExtraError
from vitrail.models import create_model
from vitrail.models.checkpoint import load_checkpoint, save_checkpoint
from vitrail.models.pretrained import load_pretrained
from vitrail.optim import parameter_groups

CLASSES = ("ash", "birch", "cedar")


@pytest.fixture(scope="module")
def swin(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Tensor]:
    """A type of model that vitrail does not have, saved as transformers does, and its logits."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.SwinConfig(
        image_size=32, patch_size=4, embed_dim=8, depths=[1, 1], num_heads=[2, 2], window_size=4,
        id2label=dict(enumerate(CLASSES)),
    )  # fmt: skip
    model = transformers.SwinForImageClassification(config).eval()
    folder = tmp_path_factory.mktemp("swin")
    model.save_pretrained(folder)
    processor = {"size": {"height": 32, "width": 32}, "resample": 3, "image_mean": [0.4] * 3, "image_std": [0.2] * 3}
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    with torch.inference_mode():
        return folder, model(images()).logits


def images() -> Tensor:
    return torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def test_a_model_of_transformers_computes_what_it_does_there(swin: tuple[Path, Tensor]) -> None:
    folder, logits = swin
    model = create_model(f"transformers:{folder}").eval()
    assert (model.num_classes, model.image_size) == (3, (32, 32))
    torch.testing.assert_close(model(images()), logits, rtol=0, atol=1e-6)
    features = model.forward_features(images())
    assert features["pooled"].shape == (2, model.num_features)
    torch.testing.assert_close(model.forward_head(features["pooled"]), logits, rtol=0, atol=1e-6)


def test_it_keeps_the_contract(swin: tuple[Path, Tensor]) -> None:
    model = create_model(f"transformers:{swin[0]}")
    names = [name for name, _ in model.named_parameters()]
    layers = model.layer_groups()
    prefixes = [prefix for layer in layers for prefix in layer]
    assert len(set(prefixes)) == len(prefixes)
    assert all(any(name.startswith(prefix) for prefix in prefixes) for name in names)
    assert any(f"{model.stem_name}.weight".startswith(prefix) for prefix in layers[0])
    assert "head." in layers[-1]
    assert len(layers) > 2
    groups = parameter_groups(model, 0.1, layer_decay=0.5)
    assert sorted(name for group in groups for name in group["param_names"]) == sorted(names)
    model.reset_head(7)
    assert model(images()).shape == (2, 7)


def test_its_weights_its_classes_and_its_preparation_are_loaded(swin: tuple[Path, Tensor]) -> None:
    spec = create_model(f"transformers:{swin[0]}").spec
    model = create_model(**{**spec.to_dict(), "num_classes": 5}).eval()
    report = load_pretrained(model, f"transformers:{swin[0]}", classes=["a", "b", "c", "d", "e"])
    assert report.reinitialised == ("head.weight", "head.bias")
    assert report.classes == CLASSES
    assert report.preprocess == Preprocess(image_size=(32, 32), resize="squash", mean=(0.4,) * 3, std=(0.2,) * 3)


def test_a_saved_guest_is_rebuilt_without_the_folder_it_came_from(swin: tuple[Path, Tensor], tmp_path: Path) -> None:
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    for file in swin[0].iterdir():
        (theirs / file.name).write_bytes(file.read_bytes())
    model = create_model(f"transformers:{theirs}").eval()
    save_checkpoint(tmp_path / "own.safetensors", model, classes=CLASSES)
    for file in theirs.iterdir():
        file.unlink()
    state = torch.get_rng_state()
    again = load_checkpoint(tmp_path / "own.safetensors")
    assert torch.equal(torch.get_rng_state(), state)
    assert again.classes == CLASSES
    assert torch.equal(again.model(images()), model(images()))


def test_a_folder_without_a_configuration_or_with_pickles_is_refused(swin: tuple[Path, Tensor], tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes((swin[0] / "model.safetensors").read_bytes())
    with pytest.raises(CheckpointError, match=r"has no config\.json"):
        create_model(f"transformers:{tmp_path}")
    (tmp_path / "model.safetensors").unlink()
    torch.save({}, tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="looks like a pickle"):
        create_model(f"transformers:{tmp_path}")


class FakeNet(nn.Module):
    """What timm's models offer, as far as it is used."""

    default_cfg = {"classifier": "fc", "first_conv": "conv1"}  # noqa: RUF012 - as timm has it

    def __init__(self, num_classes: int, in_chans: int, drop_path_rate: float) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.zeros(1))
        self.conv1 = nn.Conv2d(in_chans, 4, 3)
        self.layers = nn.Sequential(nn.Conv2d(4, 4, 3), nn.Conv2d(4, 6, 3))
        self.fc = nn.Linear(6, num_classes)
        self.drop_path_rate = drop_path_rate

    def no_weight_decay(self) -> set[str]:
        return {"token"}

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.layers(self.conv1(x + self.token)).mean(dim=(2, 3)))


@pytest.fixture
def fake_timm(monkeypatch: pytest.MonkeyPatch) -> None:
    def create(name: str, *, pretrained: bool, num_classes: int, in_chans: int, drop_path_rate: float = 0.0) -> FakeNet:
        assert not pretrained
        if name != "fakenet":
            raise RuntimeError(f"Unknown model ({name})")
        return FakeNet(num_classes, in_chans, drop_path_rate)

    module: Any = ModuleType("timm")
    module.create_model = create
    monkeypatch.setitem(sys.modules, "timm", module)


@pytest.mark.usefixtures("fake_timm")
def test_a_model_of_timm_is_built_fresh_and_loads_a_file_in_its_own_layout(tmp_path: Path) -> None:
    model = create_model("timm:fakenet", num_classes=3, image_size=32, drop_path=0.3).eval()
    assert model.model.drop_path_rate == 0.3
    assert model.no_weight_decay() == {"model.token"}
    assert model.layer_groups()[0] == ("model.token", "model.conv1.weight", "model.conv1.bias")
    assert model.layer_groups()[1:] == [("model.layers.0.",), ("model.layers.1.",), ("head.",)]
    source = FakeNet(3, 3, 0.0)
    safetensors.torch.save_file(source.state_dict(), tmp_path / "a.safetensors")
    report = load_pretrained(model, tmp_path / "a.safetensors")
    assert set(report.loaded) == set(model.state_dict())
    assert torch.equal(model(images()), source(images()))
    save_checkpoint(tmp_path / "own.safetensors", model)
    assert torch.equal(load_checkpoint(tmp_path / "own.safetensors").model(images()), source(images()))


@pytest.mark.usefixtures("fake_timm")
def test_a_name_that_the_library_does_not_know_is_told_in_one_sentence() -> None:
    with pytest.raises(ConfigError, match=r"timm:other cannot be built: Unknown model \(other\)") as caught:
        create_model("timm:other")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("error", [ImportError("No module named 'timm'"), RuntimeError("operator nms does not exist")])
def test_a_library_that_does_not_import_is_one_sentence_with_the_cause(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(name: str) -> SimpleNamespace:
        raise error

    monkeypatch.setattr("importlib.import_module", fail)
    with pytest.raises(MissingExtraError, match="timm:resnet18 needs timm, which does not import here") as caught:
        create_model("timm:resnet18")
    assert str(error) in str(caught.value)
    assert "\n" not in str(caught.value)
