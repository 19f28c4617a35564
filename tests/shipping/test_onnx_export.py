import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from vitrail.config import Preprocess
from vitrail.errors import ConfigError
from vitrail.shipping.onnx import DeployedClassifier, export_onnx
from vitrail.shipping.predictor import open_session
from vitrail.shipping.readout import Readout


@pytest.fixture(scope="module")
def graph(exported) -> onnx.ModelProto:
    return onnx.load(exported.folder / "model.onnx")


@pytest.mark.parametrize(
    ("mean", "std"),
    [((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)), ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)), ((0, 0, 0), (1, 1, 1))],
)
def test_folded_normalisation_is_the_plain_formula_for_every_byte(mean, std) -> None:
    preprocess = Preprocess(image_size=(16, 16), mean=mean, std=std)
    deployed = DeployedClassifier(nn.Identity(), preprocess, Readout())
    values = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(3, axis=3)
    folded, _ = deployed(torch.from_numpy(values))
    plain = (values / 255 - np.array(mean)) / np.array(std)  # in float64
    # Measured: 3.4e-7 at most, for ImageNet's numbers.
    np.testing.assert_allclose(folded.numpy(), plain.transpose(0, 3, 1, 2), atol=5e-7, rtol=0)


@pytest.mark.parametrize("size", [1, 3, 8])
def test_any_batch_size_gives_the_logits_of_the_model(exported, model, size) -> None:
    session = open_session(exported.folder / "model.onnx")
    images = exported.images[:size]
    logits, probabilities = session.run(["logits", "probabilities"], {"images": images})
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    normalised = ((torch.from_numpy(images) / 255 - mean) / std).permute(0, 3, 1, 2)
    with torch.inference_mode():
        expected = model(normalised)
    # Measured: 2.2e-6 and 3.3e-7.
    np.testing.assert_allclose(logits, expected.numpy(), atol=1e-4, rtol=0)
    np.testing.assert_allclose(probabilities, (expected / 1.7).softmax(-1).numpy(), atol=1e-5, rtol=0)


def test_the_file_tells_labels_preprocessing_and_how_it_is_called(graph) -> None:
    told = {entry.key: entry.value for entry in graph.metadata_props}
    assert json.loads(told["labels"]) == ["zero", "one", "two", "three", "vier und fünf"]
    assert Preprocess.from_dict(json.loads(told["preprocess"])).mean == (0.485, 0.456, 0.406)
    assert float(told["temperature"]) == 1.7
    assert told["task"] == "classification"
    assert "uint8 RGB (batch, 32, 32, 3)" in told["input"]
    assert {entry.version for entry in graph.opset_import if not entry.domain} == {20}


def test_attention_and_activation_are_plain_operators(graph) -> None:
    operators = {node.op_type for node in graph.graph.node}
    assert {"Softmax", "MatMul", "Gelu", "LayerNormalization"} <= operators
    # What the decomposition of scaled_dot_product_attention adds against rows that are masked altogether.
    assert not operators & {"IsNaN", "Where", "Equal", "If", "Not", "ReduceSum"}
    assert {node.domain for node in graph.graph.node} == {""}


def test_the_file_holds_weights_and_no_notes_of_the_exporter(exported, graph, model) -> None:
    content = (exported.folder / "model.onnx").read_bytes()
    for trace in (b"stack_trace", b"class_hierarchy", b"site-packages", str(Path.home()).encode() + b"/", b".py"):
        assert trace not in content
    weights = 4 * sum(parameter.numel() for parameter in model.parameters())
    # Measured: 1.3 % more than the weights, here in the smallest of the models.
    assert weights < len(content) < 1.05 * weights
    assert not any(node.metadata_props for node in graph.graph.node)


def test_the_exporter_says_nothing_and_leaves_the_model_alone(tmp_path, capfd) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(48, 3)).train().bfloat16()
    export_onnx(model, tmp_path / "m.onnx", preprocess=Preprocess(image_size=(4, 4)), classes=("a", "b", "c"))
    said = capfd.readouterr()
    assert (said.out, said.err) == ("", "")
    assert model.training
    assert model[2].weight.dtype == torch.bfloat16
    assert [path.name for path in tmp_path.iterdir()] == ["m.onnx"]


def test_a_wrong_number_of_classes_is_refused(tmp_path) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 3))
    preprocess = Preprocess(image_size=(4, 4))
    with pytest.raises(ConfigError, match="gives 3 logits but 2 classes"):
        export_onnx(model, tmp_path / "m.onnx", preprocess=preprocess, classes=("a", "b"))
    assert not list(tmp_path.iterdir())


def test_of_several_labels_the_graph_has_sigmoids_and_the_file_their_thresholds(tmp_path) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 3))
    readout = Readout("multilabel", temperature=1.7, thresholds=(0.5, 0.25, 0.8))
    preprocess = Preprocess(image_size=(4, 4))
    export_onnx(model, tmp_path / "m.onnx", preprocess=preprocess, classes=("a", "b", "c"), readout=readout)
    images = np.random.default_rng(0).integers(0, 256, (5, 4, 4, 3), dtype=np.uint8)
    session = open_session(tmp_path / "m.onnx")
    logits, probabilities = session.run(["logits", "probabilities"], {"images": images})
    np.testing.assert_allclose(probabilities, 1 / (1 + np.exp(-logits / 1.7)), atol=1e-6)
    np.testing.assert_allclose(probabilities, readout.probabilities(logits), atol=1e-6)
    told = session.get_modelmeta().custom_metadata_map
    assert (told["task"], json.loads(told["thresholds"])) == ("multilabel", [0.5, 0.25, 0.8])
