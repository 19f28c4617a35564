"""Weights in Hugging Face's layout, and the descriptions that stand beside weights."""

import json
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor

from vitrail.config import Preprocess
from vitrail.errors import CheckpointError
from vitrail.models import Model, create_model
from vitrail.models.describe import describe
from vitrail.models.pretrained import load_pretrained

CLASSES = ("ash", "birch", "cedar")


def small_vit(**options: Any) -> Model:
    torch.manual_seed(0)
    return create_model("vit_micro_patch8", **{"num_classes": 3, "image_size": 16, **options}).eval()


def images(*, size: tuple[int, int] = (16, 16), channels: int = 3) -> Tensor:
    return torch.randn(2, channels, *size, generator=torch.Generator().manual_seed(1))


def write(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> Path:
    safetensors.torch.save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, metadata)
    return path


@pytest.fixture(scope="module")
def huggingface_vit(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Tensor]:
    """Save a small ViTForImageClassification of transformers; return its folder and its logits."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.ViTConfig(
        hidden_size=128,
        num_hidden_layers=6,
        num_attention_heads=4,
        intermediate_size=256,
        image_size=16,
        patch_size=8,
        id2label=dict(enumerate(CLASSES)),
        layer_norm_eps=1e-6,
    )
    model = transformers.ViTForImageClassification(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    folder = tmp_path_factory.mktemp("huggingface")
    model.save_pretrained(folder)
    processor = {"size": {"height": 16, "width": 16}, "resample": 3, "image_mean": [0.5] * 3, "image_std": [0.25] * 3}
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    with torch.no_grad():
        logits: Tensor = model(images()).logits
    write(folder / "in_memory.safetensors", model.state_dict())
    return folder, logits


@pytest.mark.parametrize("file", ["", "in_memory.safetensors"])  # names of transformers 4 and 5
def test_a_vit_of_transformers_gives_the_same_logits(huggingface_vit: tuple[Path, Tensor], file: str) -> None:
    folder, logits = huggingface_vit
    model = small_vit()
    report = load_pretrained(model, folder / file)
    assert report.layout == "huggingface"
    assert set(report.loaded) == set(model.state_dict())
    # Worst difference measured: 0 at logits up to 3.1; 1.9e-5 if the norms keep transformers' default epsilon, 1e-12.
    torch.testing.assert_close(model(images()), logits, rtol=0, atol=1e-5)


def test_classes_and_preparation_come_with_the_weights(huggingface_vit: tuple[Path, Tensor]) -> None:
    report = load_pretrained(small_vit(), huggingface_vit[0])
    assert report.classes == CLASSES
    assert report.preprocess == Preprocess(image_size=(16, 16), resize="squash", std=(0.25, 0.25, 0.25))
    assert "Loaded 80 tensors" in report.summary()


def test_a_backbone_without_head_leaves_the_models_own_and_its_pooler_out(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(
        hidden_size=128,
        num_hidden_layers=6,
        num_attention_heads=4,
        intermediate_size=256,
        image_size=16,
        patch_size=8,
    )
    transformers.ViTModel(config).save_pretrained(tmp_path)
    model = small_vit()
    head = model.head.weight.clone()
    report = load_pretrained(model, tmp_path)
    assert report.unexpected == ("pooler.dense.bias", "pooler.dense.weight")
    assert report.reinitialised == ("head.weight", "head.bias")
    assert report.classes is None
    assert torch.equal(model.head.weight, head)


def test_another_number_of_heads_is_refused_although_every_shape_fits(
    huggingface_vit: tuple[Path, Tensor], tmp_path: Path
) -> None:
    config = json.loads((huggingface_vit[0] / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "num_attention_heads": 8}))
    (tmp_path / "model.safetensors").write_bytes((huggingface_vit[0] / "model.safetensors").read_bytes())
    with pytest.raises(CheckpointError, match="8 attention heads; this one has 4"):
        load_pretrained(small_vit(), tmp_path)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"model_type": "deit"}, "'deit'"),
        ({"hidden_act": "quick_gelu"}, "'quick_gelu'"),
        ({"id2label": {"1": "a"}}, "cannot be understood"),
        ({"image_size": "big"}, "cannot be understood"),
    ],
)
def test_a_description_that_is_not_supported_is_refused(tmp_path: Path, change: dict[str, Any], reason: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "vit", **change}))
    write(tmp_path / "model.safetensors", small_vit().state_dict())
    with pytest.raises(CheckpointError, match=reason):
        load_pretrained(small_vit(), tmp_path)


def test_a_damaged_description_beside_the_weights_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "vit", ')
    write(tmp_path / "model.safetensors", small_vit().state_dict())
    with pytest.raises(CheckpointError, match=r"config\.json is damaged"):
        load_pretrained(small_vit(), tmp_path)


def test_the_description_of_timm_on_the_hub_is_understood(tmp_path: Path) -> None:
    pretrained = {
        "input_size": [3, 224, 200],
        "interpolation": "bilinear",
        "crop_pct": 0.9,
        "crop_mode": "center",
        "mean": [0.1, 0.2, 0.3],
        "std": [0.4, 0.5, 0.6],
    }
    config = {"architecture": "vit_tiny_patch16_224", "label_names": list(CLASSES), "pretrained_cfg": pretrained}
    (tmp_path / "config.json").write_text(json.dumps(config))
    described = describe(tmp_path)
    assert described.classes == CLASSES
    assert described.preprocess == Preprocess(
        image_size=(224, 200),
        resize="crop",
        crop_fraction=0.9,
        interpolation="bilinear",
        mean=(0.1, 0.2, 0.3),
        std=(0.4, 0.5, 0.6),
    )


def test_a_centre_crop_of_transformers_keeps_its_share(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "vit"}))
    processor = {
        "size": {"shortest_edge": 256},
        "do_center_crop": True,
        "crop_size": {"height": 224, "width": 224},
        "do_normalize": False,
    }
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(processor))
    assert describe(tmp_path).preprocess == Preprocess(
        image_size=(224, 224), crop_fraction=0.875, interpolation="bilinear", mean=(0, 0, 0), std=(1, 1, 1)
    )
