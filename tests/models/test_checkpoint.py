"""Checkpoints: what is written comes back, what others wrote loads, and what is broken is refused in one sentence."""

import random
import struct
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from safetensors import safe_open
from torch import Tensor

from vitrail.config import Preprocess
from vitrail.errors import CheckpointError, ConfigError
from vitrail.layers.embed import resample_position_embedding
from vitrail.models import Model, create_model
from vitrail.models.checkpoint import load_checkpoint, save_checkpoint
from vitrail.models.pretrained import load_pretrained

CLASSES = ("ash", "birch", "cedar")


def small_vit(**options: Any) -> Model:
    """Build the smallest ViT with weights that are nowhere zero, so that every tensor counts."""
    torch.manual_seed(0)
    model = create_model("vit_micro_patch8", **{"num_classes": 3, "image_size": 16, **options})
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return model.eval()


def images(*, size: tuple[int, int] = (16, 16), channels: int = 3) -> Tensor:
    return torch.randn(2, channels, *size, generator=torch.Generator().manual_seed(1))


def write(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> Path:
    safetensors.torch.save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, metadata)
    return path


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"local": True, "fusion": True, "image_size": (16, 24)},
        {"pool": "mean", "position": "rotary", "class_token": False, "num_registers": 2},
        {"pool": "attention", "position": "sincos", "layer_scale": 1e-4, "qk_norm": True, "in_channels": 1},
        {"num_classes": 0},
    ],
)
def test_a_saved_model_comes_back_with_everything_that_belongs_to_it(tmp_path: Path, options: dict[str, Any]) -> None:
    model = small_vit(**options)
    classes = CLASSES if model.num_classes else None
    preprocess = Preprocess(image_size=(16, 16), resize="pad", mean=(0.1, 0.2, 0.3))
    save_checkpoint(
        tmp_path / "model.safetensors", model, classes=classes, preprocess=preprocess, calibration={"temperature": 1.5}
    )
    for source in (tmp_path, tmp_path / "model.safetensors"):
        loaded = load_checkpoint(source)
        sample = images(size=model.image_size, channels=options.get("in_channels", 3))
        assert torch.equal(loaded.model(sample), model(sample))
        assert loaded.model.spec == model.spec
        assert (loaded.classes, loaded.preprocess, loaded.calibration) == (classes, preprocess, {"temperature": 1.5})
        assert not loaded.model.training


def test_loading_leaves_the_random_numbers_of_the_caller_alone(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "a.safetensors", small_vit())
    state = torch.get_rng_state()
    load_checkpoint(tmp_path / "a.safetensors")
    assert torch.equal(torch.get_rng_state(), state)


def test_a_loaded_model_does_not_depend_on_its_file_any_more(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_checkpoint(path, small_vit())
    model = load_checkpoint(path).model
    before = model(images())
    path.write_bytes(bytes(path.stat().st_size))
    assert torch.equal(model(images()), before)


def test_a_failed_save_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_checkpoint(path, small_vit())
    before = path.read_bytes()
    with pytest.raises(ValueError, match="JSON compliant"):
        save_checkpoint(path, small_vit(), calibration={"temperature": float("nan")})
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_classes_must_be_as_many_as_the_outputs(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="2 names of classes for a model with 3 outputs"):
        save_checkpoint(tmp_path / "a.safetensors", small_vit(), classes=["one", "two"])


@pytest.mark.parametrize("damage", ["weights", "classes", "name"])
def test_a_file_that_was_changed_after_writing_is_refused(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "a.safetensors"
    save_checkpoint(path, small_vit(), classes=CLASSES)
    data = path.read_bytes()
    old, new = {"weights": (data[-8:], b"\0" * 8), "classes": (b"birch", b"beech"), "name": (b"fc1.bias", b"fc3.bias")}[
        damage
    ]
    path.write_bytes(data.replace(old, new))
    with pytest.raises(CheckpointError, match="changed or damaged after it was written"):
        load_checkpoint(path)


def test_weights_without_a_description_are_not_guessed_at(tmp_path: Path) -> None:
    path = write(tmp_path / "a.safetensors", small_vit().state_dict())
    with pytest.raises(CheckpointError, match="use load_pretrained"):
        load_checkpoint(path)


def test_the_layout_of_timm_holds_timms_names_alone_and_loads_again(tmp_path: Path) -> None:
    model = small_vit(num_registers=1, layer_scale=0.1, qk_norm=True)
    path = tmp_path / "timm.safetensors"
    save_checkpoint(path, model, layout="timm")
    with safe_open(path, framework="pt") as file:
        names, metadata = set(file.keys()), file.metadata()
    assert metadata == {"format": "pt"}
    # timm 1.0.20, vision_transformer.py: the names of VisionTransformer with reg_tokens, init_values and qk_norm.
    inside = ["norm1", "attn.qkv", "attn.q_norm", "attn.k_norm", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2"]
    layers = ["patch_embed.proj", "norm", "head", *(f"blocks.{block}.{name}" for block in range(6) for name in inside)]
    expected = {f"{layer}.{kind}" for layer in layers for kind in ("weight", "bias")}
    expected |= {f"blocks.{block}.ls{branch}.gamma" for block in range(6) for branch in (1, 2)}
    assert names == expected | {"cls_token", "pos_embed", "reg_token"}

    fresh = create_model(**model.spec.to_dict()).eval()
    report = load_pretrained(fresh, path)
    assert report.layout == "timm"
    assert set(report.loaded) == names
    assert torch.equal(fresh(images()), model(images()))


@pytest.mark.parametrize(
    ("options", "culprit"),
    [({"local": True}, "local=True"), ({"fusion": True}, "fusion=True"), ({"position": "rotary"}, "position='rotary'")],
)
def test_what_timm_cannot_hold_is_named(tmp_path: Path, options: dict[str, Any], culprit: str) -> None:
    with pytest.raises(ConfigError, match=culprit):
        save_checkpoint(tmp_path / "a.safetensors", small_vit(**options), layout="timm")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("prefix_position", [True, False])
def test_positions_are_resampled_to_the_grid_of_the_model(tmp_path: Path, prefix_position: bool) -> None:
    source = small_vit(image_size=(24, 16), prefix_position=prefix_position)
    save_checkpoint(tmp_path / "model.safetensors", source)
    model = small_vit(image_size=(16, 40), prefix_position=prefix_position)
    report = load_pretrained(model, tmp_path)
    assert report.resized == ("pos_embed",)
    expected = resample_position_embedding(source.pos_embed, (3, 2), (2, 5), int(prefix_position))
    assert torch.equal(model.pos_embed, expected)


def test_as_many_patches_on_another_grid_are_resampled_too(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "model.safetensors", small_vit(image_size=(16, 64)))
    assert load_pretrained(small_vit(image_size=(32, 32)), tmp_path).resized == ("pos_embed",)


def test_positions_of_unknown_grid_are_taken_as_a_square_or_refused(tmp_path: Path) -> None:
    square = write(tmp_path / "square.safetensors", small_vit(image_size=24).state_dict())
    assert load_pretrained(small_vit(), square).resized == ("pos_embed",)
    oblong = write(tmp_path / "oblong.safetensors", small_vit(image_size=(16, 24)).state_dict())
    with pytest.raises(CheckpointError, match="positions for 6 patches, which are no square"):
        load_pretrained(small_vit(), oblong)


def test_weights_for_colour_give_a_grey_model_the_answer_for_grey_images(tmp_path: Path) -> None:
    colour, grey = small_vit(), small_vit(in_channels=1)
    save_checkpoint(tmp_path / "model.safetensors", colour)
    assert load_pretrained(grey, tmp_path).resized == ("patch_embed.proj.weight",)
    sample = images(channels=1)
    # Worst difference measured: 8.2e-8.
    torch.testing.assert_close(grey(sample), colour(sample.expand(-1, 3, -1, -1)), rtol=0, atol=1e-5)


def test_a_head_for_other_classes_is_left_out_and_said(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "model.safetensors", small_vit(), classes=CLASSES)
    model = small_vit(num_classes=5)
    head = model.head.weight.clone()
    report = load_pretrained(model, tmp_path)
    assert report.reinitialised == report.unexpected == ("head.weight", "head.bias")
    assert torch.equal(model.head.weight, head)
    assert "Fresh, because the classes differ: head.weight, head.bias." in report.summary()
    assert not load_pretrained(small_vit(), tmp_path, classes=CLASSES).reinitialised
    assert load_pretrained(small_vit(), tmp_path, classes=["oak", "pine", "yew"]).reinitialised
    assert not load_pretrained(small_vit(num_classes=0), tmp_path).reinitialised


def test_a_pretrained_vit_with_local_and_fusion_added_computes_what_it_did(tmp_path: Path) -> None:
    source = small_vit()
    save_checkpoint(tmp_path / "model.safetensors", source)
    model = create_model("vit_micro_patch8", num_classes=3, image_size=16, local=True, fusion=True).eval()
    report = load_pretrained(model, tmp_path)
    assert report.missing
    assert all(".local." in name or name.startswith("fusion.") for name in report.missing)
    assert torch.equal(model(images()), source(images()))


@pytest.mark.parametrize(
    ("source", "target", "message"),
    [
        ({}, {"qk_norm": True}, "lacks blocks.0.attn.k_norm.bias.*option qk_norm"),
        ({}, {"num_registers": 2, "prefix_position": False}, "Likely cause: the option .*num_registers|no square"),
        ({"local": True}, {}, "also has blocks.0.local.*option local"),
        ({}, {"pool": "mean"}, "lacks fc_norm.bias.* and also has norm.bias.*option pool"),
        ({}, {"position": "rotary"}, "also has pos_embed.*option position"),
        ({}, {"patch_size": 4}, r"patch_embed.proj.weight has the shape \(128, 3, 8, 8\).*takes \(128, 3, 4, 4\)"),
    ],
)
def test_weights_of_another_architecture_are_refused_with_the_likely_cause(
    tmp_path: Path, source: dict[str, Any], target: dict[str, Any], message: str
) -> None:
    save_checkpoint(tmp_path / "model.safetensors", small_vit(**source))
    model = small_vit(**target)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(CheckpointError, match=message):
        load_pretrained(model, tmp_path)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_another_depth_is_refused(tmp_path: Path) -> None:
    tensors = {name: tensor for name, tensor in small_vit().state_dict().items() if not name.startswith("blocks.5.")}
    with pytest.raises(CheckpointError, match=r"lacks blocks\.5\..*12 in all.*another number of blocks"):
        load_pretrained(small_vit(), write(tmp_path / "a.safetensors", tensors))


def test_weights_of_another_kind_of_model_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.safetensors", {"layer1.0.conv1.weight": torch.zeros(1)})
    with pytest.raises(CheckpointError, match=r"also has layer1\.0\.conv1\.weight.*another kind of model"):
        load_pretrained(small_vit(), path)


@pytest.mark.parametrize("loads_ours", [True, False])
def test_no_damage_to_a_file_gives_anything_but_a_model_or_a_clear_refusal(tmp_path: Path, loads_ours: bool) -> None:
    path = tmp_path / "a.safetensors"
    model = small_vit()
    save_checkpoint(path, model, classes=CLASSES, layout="vitrail" if loads_ours else "timm")
    whole = path.read_bytes()
    header_size = 8 + struct.unpack("<Q", whole[:8])[0]
    chance = random.Random(0)
    num_refused = 0
    for trial in range(250):
        data = bytearray(whole)
        if trial % 5 == 0:
            del data[chance.randrange(header_size if trial % 2 else len(data)) :]
        else:
            for _ in range(chance.choice((1, 1, 3))):
                data[chance.randrange(header_size)] = chance.choice((chance.randrange(256), *b'0129{}[]",:-'))
        path.write_bytes(data)
        try:
            if loads_ours:
                load_checkpoint(path)
            else:
                load_pretrained(model, path)
        except CheckpointError:
            num_refused += 1
    assert num_refused > 200


@pytest.mark.parametrize(
    "spec",
    [
        {"name": "vit_micro_patch9"},
        {"name": 3},
        {"num_classes": -1},
        {"image_size": [10**9, 10**9]},
        {"image_size": [16]},
        {"image_size": None},
        {"in_channels": "three"},
        {"pool": ["token"]},
        {"num_registers": 10**12},
        {"unheard_of": 1},
        {"num_registers": 1},
    ],
)
def test_a_forged_description_cannot_claim_memory_or_crash(
    tmp_path: Path, spec: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.safetensors"
    model = small_vit()
    honest = model.spec.to_dict()
    monkeypatch.setattr(type(model.spec), "to_dict", lambda _: {**honest, **spec})
    save_checkpoint(path, model)
    monkeypatch.undo()
    with pytest.raises(CheckpointError):
        load_checkpoint(path)
