"""Training from published weights: any checkpoint as the model, rates by depth, the head first, and going on again."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

import vitrail
from vitrail.config import TrainConfig
from vitrail.data import TrainLoader
from vitrail.errors import ConfigError
from vitrail.models import create_model
from vitrail.training import Run, TrainPlan, steps
from vitrail.verbs import plan
from vitrail.verbs import session as sessions

SIZE = 64
OPTIONS = {"image_size": SIZE, "batch_size": 12, "workers": 1, "device": "cpu", "quiet": True, "precision": "fp32"}


def configuration(run: Path) -> dict[str, Any]:
    return json.loads((run / "config.json").read_text())


def tensors(run: Path) -> dict[str, torch.Tensor]:
    with safe_open(run / "state.safetensors", framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping


@pytest.fixture(scope="module")
def resnet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Save a ResNet-18 of transformers for other classes; return its folder."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.ResNetConfig(
        embedding_size=64, hidden_sizes=[64, 128, 256, 512], depths=[2, 2, 2, 2], layer_type="basic", num_labels=5
    )
    folder = tmp_path_factory.mktemp("published")
    transformers.ResNetForImageClassification(config).save_pretrained(folder)
    processor = {"size": {"shortest_edge": SIZE}, "crop_pct": 0.875, "resample": 3, "image_mean": [0.1, 0.2, 0.3]}
    (folder / "preprocessor_config.json").write_text(json.dumps({**processor, "image_std": [0.4, 0.5, 0.6]}))
    return folder


def test_a_checkpoint_as_the_model_is_trained_and_written_down_by_name(resnet, colours, tmp_path):
    options = {**OPTIONS, "image_size": None}
    result = vitrail.train(colours, model=str(resnet), **options, epochs=1, out=tmp_path)
    written = configuration(result.path)
    assert (written["model"], written["pretrained"], written["image_size"]) == ("resnet18", str(resnet), SIZE)
    assert (written["layer_decay"], written["options"]) == (1.0, [])
    assert Run(result.path).read_preprocess().mean == (0.1, 0.2, 0.3)
    assert Run(result.path).read_preprocess().crop_fraction == 0.875
    assert vitrail.load_checkpoint(result.path).model.spec.name == "resnet18"
    assert len(vitrail.predict(result.path, [colours])) == 54
    exported = vitrail.export(result.path, out=tmp_path)  # from channels-last weights
    assert exported.path.is_dir()


def test_a_model_with_weights_of_its_own_takes_no_others(resnet, colours, tmp_path):
    with pytest.raises(ConfigError, match="has weights of its own, and pretrained is"):
        vitrail.train(colours, model=str(resnet), pretrained=str(resnet), out=tmp_path, quiet=True)


def test_the_options_of_a_checkpoint_are_resumed_without_it(colours, tmp_path):
    source = create_model("vit_micro_patch8", num_classes=5, image_size=16, pool="mean", class_token=False)
    folder = tmp_path / "published"
    folder.mkdir()
    vitrail.save_checkpoint(folder / "model.safetensors", source)
    options = {**OPTIONS, "image_size": None, "batch_size": 8}
    result = vitrail.train(colours, model=str(folder), **options, epochs=2, lr=1e-3, out=tmp_path)
    written = configuration(result.path)
    assert written["options"] == ['pool="mean"', "class_token=false"]
    assert (written["image_size"], written["layer_decay"]) == (16, 0.75)
    shutil.rmtree(folder)
    again = vitrail.train(result.path, resume=True, quiet=True)
    assert again.metrics["test"].to_dict() == result.metrics["test"].to_dict()


def test_head_first_leaves_everything_else_as_it_was_and_then_trains_it(resnet, colours, tmp_path):
    loaded = create_model(str(resnet))
    options = {**OPTIONS, "model": str(resnet), "ema": False, "lr": 1e-3, "layer_decay": 0.5, "out": tmp_path}
    first = tensors(vitrail.train(colours, **options, epochs=1, head_first=1).path)
    backbone = [name for name in loaded.state_dict() if not name.startswith("fc.")]
    assert any("running_mean" in name for name in backbone)
    changed = [name for name in backbone if not torch.equal(first[f"model/{name}"], loaded.state_dict()[name])]
    assert changed == []
    after = tensors(vitrail.train(colours, **options, epochs=2, head_first=1).path)
    assert not torch.equal(after["model/conv1.weight"], loaded.conv1.weight)
    assert not torch.equal(after["model/bn1.running_mean"], loaded.bn1.running_mean)


def test_a_fine_tuning_that_is_stopped_goes_on_bit_for_bit(resnet, colours, tmp_path):
    """Through the change from the head alone to everything, with rates by depth and channels-last weights."""
    options = {**OPTIONS, "model": str(resnet), "lr": 1e-3, "layer_decay": 0.5, "head_first": 1, "out": tmp_path}
    whole = vitrail.train(colours, **options, epochs=3, name="whole")
    config = TrainConfig(source=str(colours), epochs=3, name="parts", **{**options, "out": str(tmp_path)})
    stopped = sessions.start(config)
    policy = plan.choose_policy(stopped.config, stopped.dataset)
    loader = TrainLoader(stopped.dataset.splits["train"], stopped.preprocess, policy, 12, seed=config.seed)
    schedule = TrainPlan(epochs=3, head_first=1)
    for report in steps(stopped.state, stopped.objective, loader, schedule, stopped.precision):
        if report.step == 4:  # of three in an epoch
            break
    stopped.state.save(stopped.run.state_path)
    vitrail.train(stopped.run.path, resume=True, quiet=True)
    ours, theirs = tensors(stopped.run.path), tensors(whole.path)
    compared = [name for name in theirs if name.startswith(("model/", "ema/", "optimizer/"))]
    assert [name for name in compared if not torch.equal(ours[name], theirs[name])] == []


def test_rates_fall_from_the_head_to_the_image(resnet, colours, tmp_path):
    options = {**OPTIONS, "model": str(resnet), "lr": 1e-3, "layer_decay": 0.5, "out": str(tmp_path)}
    opened = sessions.start(TrainConfig(source=str(colours), epochs=1, **options))
    rates = {name: group["lr"] for group in opened.state.optimizer.param_groups for name in group["param_names"]}
    layers = opened.state.model.layer_groups()
    assert rates["fc.weight"] == 1e-3
    assert rates["conv1.weight"] == pytest.approx(1e-3 * 0.5 ** (len(layers) - 1))
    assert opened.state.optimizer.param_groups[0]["lr"] == 1e-3
    assert opened.state.model.conv1.weight.is_contiguous(memory_format=torch.channels_last)
    assert opened.state.ema.module.conv1.weight.is_contiguous(memory_format=torch.channels_last)


def test_a_model_of_another_library_is_trained_predicted_and_resumed(colours, tmp_path):
    transformers = pytest.importorskip("transformers")
    config = transformers.SwinConfig(
        image_size=32, patch_size=4, embed_dim=8, depths=[1, 1], num_heads=[2, 2], window_size=4, num_labels=4
    )
    folder = tmp_path / "swin"
    transformers.SwinForImageClassification(config).save_pretrained(folder)
    options = {**OPTIONS, "image_size": None}
    result = vitrail.train(colours, model=f"transformers:{folder}", **options, epochs=1, out=tmp_path)
    written = configuration(result.path)
    assert (written["model"], written["image_size"]) == (f"transformers:{folder}", 32)
    assert written["pretrained"] == f"transformers:{folder}"
    shutil.rmtree(folder)
    again = vitrail.train(result.path, resume=True, quiet=True)
    assert again.metrics["test"].to_dict() == result.metrics["test"].to_dict()
    assert len(vitrail.predict(result.path, [colours])) == 54
