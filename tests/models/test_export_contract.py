"""What holds for the smallest model of every family outside eager mode; larger ones repeat its blocks."""

import onnx
import onnxruntime
import pytest
import torch

from vitrail.config import Preprocess
from vitrail.models import MODELS, create_model
from vitrail.shipping.onnx import export_onnx

SMALLEST = (
    "vit_micro_patch32",
    "lucarne_xs",
    "mobilevit_xxs",
    "mobilevitv2_050",
    "mocovit_050",
    "ghostnet_050",
    "mobilenetv3_small_050",
    "mobilenetv3_large_075",
    "repvit_m0_9",
    "resnet18",
    "resnet50",
)


def trained(name):
    """A model whose norms have seen images, and in which no weight has a value that hides a mistake."""
    torch.manual_seed(0)
    side = 2 * MODELS[name].multiple
    model = create_model(name, num_classes=3, image_size=side).train()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.02 * torch.randn_like(parameter)
        for _ in range(3):
            model(torch.randn(8, 3, side, side))
    return model.eval()


def test_every_family_is_here():
    families = {entry.build.func.__module__ for entry in MODELS.values()}
    assert {MODELS[name].build.func.__module__ for name in SMALLEST} == families


@pytest.mark.parametrize("name", SMALLEST)
def test_the_onnx_graph_answers_alike_for_any_batch_with_at_most_four_axes(name, tmp_path):
    """Seen: at most 8e-6 of the largest logit."""
    model, path = trained(name), tmp_path / "model.onnx"
    preprocess = Preprocess(image_size=model.image_size, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    export_onnx(model, path, preprocess=preprocess, classes=["a", "b", "c"])

    graph = onnx.shape_inference.infer_shapes(onnx.load(path), strict_mode=True, data_prop=True).graph
    tensors = [*graph.value_info, *graph.input, *graph.output]
    assert {output for node in graph.node for output in node.output} <= {tensor.name for tensor in tensors}
    assert max(len(tensor.type.tensor_type.shape.dim) for tensor in tensors) <= 4
    assert not any(node.op_type == "BatchNormalization" for node in graph.node)

    session = onnxruntime.InferenceSession(path)
    for batch in (1, 3):
        pixels = torch.randint(0, 256, (batch, *model.image_size, 3), dtype=torch.uint8)
        with torch.inference_mode():
            expected = model(pixels.permute(0, 3, 1, 2) / 255)
        (found,) = session.run(["logits"], {"images": pixels.numpy()})
        difference = (torch.from_numpy(found) - expected).abs().max() / expected.abs().max()
        assert difference < 1e-4


@pytest.mark.parametrize("name", SMALLEST)
def test_it_is_traced_for_compilation_without_a_break(name):
    """The compiler's back end is PyTorch's own: what counts here is that one graph holds the whole model."""
    model = trained(name)
    images = torch.randn(2, 3, *model.image_size)
    torch.compiler.reset()  # all models share one forward, which may be compiled anew for a few of them only
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    with torch.inference_mode():
        expected = model(images)
        torch.testing.assert_close(compiled(images), expected, rtol=0, atol=1e-4 * expected.abs().max().item())
