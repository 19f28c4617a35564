"""Published weights: the model that they are of is recognised, and it computes what the library of its makers does."""

import json
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor

from vitrail.config import Preprocess
from vitrail.errors import CheckpointError, UnknownNameError
from vitrail.models import MODELS, Model, ModelSpec, create_model, layouts
from vitrail.models.checkpoint import load_checkpoint, save_checkpoint
from vitrail.models.pretrained import checkpoint_source, load_pretrained, read_spec

CLASSES = ("ash", "birch", "cedar")
MOBILEVIT = {"size": {"shortest_edge": 72}, "crop_size": {"height": 64, "width": 64}, "resample": 2}
CONVNEXT = {"size": {"shortest_edge": 64}, "crop_pct": 0.875, "resample": 3, "image_mean": [0.1, 0.2, 0.3]}


def shaken(model: torch.nn.Module) -> torch.nn.Module:
    """Move every weight and statistic, so that each tensor counts."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for tensor in model.parameters():
            tensor += 0.02 * torch.randn(tensor.shape, generator=generator)
        for tensor in (buffer for buffer in model.buffers() if buffer.is_floating_point()):
            tensor += 0.2 * torch.rand(tensor.shape, generator=generator)
    return model.eval()


def published(kind: str, folder: Path) -> torch.nn.Module:
    """Save a model as transformers does, with its processor; return it."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    names = dict(enumerate(CLASSES))
    if kind == "vit":
        config = transformers.ViTConfig(
            hidden_size=192, num_hidden_layers=12, num_attention_heads=3, intermediate_size=768, image_size=64,
            patch_size=16, id2label=names, layer_norm_eps=1e-6,
        )  # fmt: skip
        model, processor = transformers.ViTForImageClassification(config), {"size": {"height": 64, "width": 64}}
    elif kind == "mobilevit":
        config = transformers.MobileViTConfig(
            hidden_sizes=[64, 80, 96], neck_hidden_sizes=[16, 16, 24, 48, 64, 80, 320], expand_ratio=2.0, image_size=64,
            id2label=names,
        )  # fmt: skip
        model, processor = transformers.MobileViTForImageClassification(config), MOBILEVIT
    elif kind == "mobilevitv2":
        config = transformers.MobileViTV2Config(width_multiplier=0.5, image_size=64, id2label=names)
        model, processor = transformers.MobileViTV2ForImageClassification(config), MOBILEVIT
    else:
        config = transformers.ResNetConfig(
            embedding_size=64, hidden_sizes=[64, 128, 256, 512], depths=[2, 2, 2, 2], layer_type="basic", id2label=names
        )
        model = transformers.ResNetForImageClassification(config)
        processor = {**CONVNEXT, "image_std": [0.4, 0.5, 0.6]}
    model = shaken(model)
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return model


FAMILIES = {
    "vit": "vit_tiny_patch16",
    "mobilevit": "mobilevit_xxs",
    "mobilevitv2": "mobilevitv2_050",
    "resnet": "resnet18",
}


def images(channels: int = 3, side: int = 64) -> Tensor:
    return torch.rand(2, channels, side, side, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("kind", FAMILIES)
def test_a_folder_of_transformers_becomes_the_model_it_holds(kind: str, tmp_path: Path) -> None:
    theirs = published(kind, tmp_path)
    ours = create_model(str(tmp_path)).eval()
    assert ours.spec == ModelSpec(name=FAMILIES[kind], num_classes=3, image_size=(64, 64), options=ours.spec.options)
    seen = images()
    with torch.inference_mode():
        # MobileViT's processor hands its model blue, green, red.
        expected = theirs(seen.flip(1) if kind.startswith("mobilevit") else seen).logits
        answer = ours(seen)
    # Seen: at most 2e-6 of the largest logit.
    torch.testing.assert_close(answer, expected, rtol=0, atol=2e-5 * max(1.0, expected.abs().max().item()))
    again = create_model(**ours.spec.to_dict())
    assert again.state_dict().keys() == ours.state_dict().keys()


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("vit", Preprocess(image_size=(64, 64), resize="squash", interpolation="bilinear")),
        (
            "mobilevit",
            Preprocess(
                image_size=(64, 64), crop_fraction=64 / 72, interpolation="bilinear", mean=(0, 0, 0), std=(1, 1, 1)
            ),
        ),
        (
            "resnet",
            Preprocess(image_size=(64, 64), crop_fraction=0.875, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6)),
        ),
    ],
)
def test_what_comes_with_the_weights_is_told(kind: str, expected: Preprocess, tmp_path: Path) -> None:
    published(kind, tmp_path)
    model = create_model(FAMILIES[kind], num_classes=3, image_size=64)
    report = load_pretrained(model, tmp_path)
    assert report.classes == CLASSES
    assert report.preprocess == expected
    assert (report.layout, report.reinitialised, report.unexpected) == ("huggingface", (), ())
    flipped = ("stem.conv.weight",) if kind == "mobilevit" else ()
    assert report.flipped == flipped
    assert ("Flipped from blue, green, red" in report.summary()) == bool(flipped)


def test_colours_are_not_reversed_where_the_processor_does_not(tmp_path: Path) -> None:
    theirs = published("mobilevit", tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({**MOBILEVIT, "do_flip_channel_order": False}))
    ours = create_model(str(tmp_path)).eval()
    with torch.inference_mode():
        torch.testing.assert_close(ours(images()), theirs(images()).logits, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", [name for name in MODELS if not name.startswith("lucarne")])
def test_every_published_model_of_the_table_is_recognised_by_its_tensors(name: str) -> None:
    """Lucarne is our own and published nowhere else; its files say what they are."""
    with torch.device("meta"):
        model = create_model(name)
    _, tensors, family = layouts.to_native(model.state_dict())
    assert layouts.recognise(tensors, family) == name


@pytest.mark.parametrize("name", ["resnet18", "mobilenetv3_small_050", "ghostnet_050", "repvit_m0_9", "mobilevit_xxs"])
def test_tensors_under_timms_names_tell_their_model(name: str, tmp_path: Path) -> None:
    source = shaken(create_model(name, num_classes=3, image_size=64))
    path = tmp_path / "a.safetensors"
    safetensors.torch.save_file(source.state_dict(), path)
    assert read_spec(path).name == name
    assert read_spec(path).num_classes == 3
    ours = create_model(str(path), image_size=64).eval()
    torch.testing.assert_close(ours(images()), source(images()))
    grey = create_model(str(path), image_size=64, in_channels=1, num_classes=5).eval()
    assert grey(images(1)).shape == (2, 5)
    expected = ours.forward_features(images(1).expand(-1, 3, -1, -1))["pooled"]
    # Seen: at most 4e-5 of the largest feature.
    tolerance = 1e-3 * expected.abs().max().item()
    torch.testing.assert_close(grey.forward_features(images(1))["pooled"], expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"class_token": False, "num_registers": 4, "prefix_position": False, "pool": "mean"},
        {"num_registers": 4, "prefix_position": False, "layer_scale": 1e-5, "qk_norm": True, "patch_size": 14},
        {"pool": "attention", "qkv_bias": False, "patch_size": [8, 16]},
    ],
)
def test_the_options_of_a_vit_are_read_from_its_tensors(options: dict[str, Any], tmp_path: Path) -> None:
    patch = options.get("patch_size", 16)
    size = 56 if patch == 14 else (32, 64) if isinstance(patch, list) else 64
    source = shaken(create_model("vit_tiny_patch16", num_classes=3, image_size=size, **options))
    save_checkpoint(tmp_path / "a.safetensors", source, layout="timm")
    ours = create_model(str(tmp_path / "a.safetensors")).eval()
    assert ours.image_size == source.image_size
    sample = torch.rand(2, 3, *source.image_size)
    torch.testing.assert_close(ours(sample), source(sample))


def test_what_the_caller_gives_goes_before_what_the_weights_say(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "model.safetensors", create_model("vit_micro_patch8", num_classes=3, image_size=32))
    model = create_model(str(tmp_path), num_classes=7, image_size=48, drop_path=0.2, local=True)
    assert (model.num_classes, model.image_size) == (7, (48, 48))
    assert model.spec.options == {"drop_path": 0.2, "local": True}


def test_a_grey_picture_in_any_number_of_channels_gets_the_answer_it_got(tmp_path: Path) -> None:
    source = shaken(create_model("resnet18", num_classes=3, image_size=64))
    save_checkpoint(tmp_path / "model.safetensors", source)
    model = create_model(str(tmp_path), in_channels=5).eval()
    grey = images(1)
    # Seen: 6e-7.
    torch.testing.assert_close(
        model(grey.expand(-1, 5, -1, -1)), source(grey.expand(-1, 3, -1, -1)), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("resnet18", None),
        ("vit_tiny_patch16_224", None),
        ("resnet18.a1_in1k", "hf-hub:timm/resnet18.a1_in1k"),
        ("vit_tiny_patch16_224.augreg_in21k_ft_in1k", "hf-hub:timm/vit_tiny_patch16_224.augreg_in21k_ft_in1k"),
        ("hf-hub:org/name", "hf-hub:org/name"),
        ("timm:resnet18", None),
        ("transformers:org/name", "transformers:org/name"),
        ("runs/train/flowers", "runs/train/flowers"),
        ("weights.safetensors", "weights.safetensors"),
        ("resnet19.a1_in1k", None),
    ],
)
def test_a_name_tells_where_its_weights_are(name: str, source: str | None) -> None:
    assert checkpoint_source(name) == source


def test_what_fits_no_family_is_refused_with_the_tensors_and_the_families(tmp_path: Path) -> None:
    safetensors.torch.save_file({"encoder.weight": torch.zeros(2)}, tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match=r"no model of a known family.*encoder\.weight.*ViT, MobileViT, ResNet"):
        create_model(str(tmp_path / "a.safetensors"))
    with pytest.raises(UnknownNameError, match="Did you mean 'resnet18'"):
        create_model("resnet19.a1_in1k")


def test_weights_of_another_model_of_the_table_are_named(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "model.safetensors", create_model("resnet34", num_classes=3))
    model: Model = create_model("resnet18", num_classes=3)
    with pytest.raises(CheckpointError, match="it is a resnet34; choose that model, or leave it open"):
        load_pretrained(model, tmp_path)


def test_a_model_from_a_checkpoint_is_saved_and_comes_back_without_it(tmp_path: Path) -> None:
    published("mobilevit", tmp_path)
    model = create_model(str(tmp_path)).eval()
    save_checkpoint(tmp_path / "own.safetensors", model, classes=CLASSES)
    (tmp_path / "model.safetensors").unlink()
    again = load_checkpoint(tmp_path / "own.safetensors").model
    assert torch.equal(again(images()), model(images()))
