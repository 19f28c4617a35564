"""What holds outside eager mode for the smallest model of every family, and on the meta device for every model."""

import onnx
import onnxruntime
import pytest
import torch
from torch.overrides import TorchFunctionMode

from vitrail.config import Preprocess
from vitrail.layers.conv import fold
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

NEVER = {
    "BatchNormalization",
    "Einsum",
    "Equal",
    "GridSample",
    "If",
    "IsNaN",
    "Loop",
    "NonZero",
    "Not",
    "Scan",
    "Where",
}
"""What phone runtimes have no fast kernel for, and what a norm not folded or a condition not decided would leave."""


def trained(name, **options):
    """A model whose norms have seen images, and in which no weight has a value that hides a mistake."""
    torch.manual_seed(0)
    side = 2 * MODELS[name].multiple
    model = create_model(name, num_classes=3, image_size=side, **options).train()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.02 * torch.randn_like(parameter)
        for _ in range(3):
            model(torch.randn(8, 3, side, side))
    return model.eval()


def test_every_family_is_here():
    families = {entry.build.func.__module__ for entry in MODELS.values()}
    assert {MODELS[name].build.func.__module__ for name in SMALLEST} == families


class Shapes(TorchFunctionMode):
    """Notes the operations whose results a phone runtime cannot hold."""

    def __init__(self, batch):
        super().__init__()
        self.batch, self.refused, self.seen = batch, [], 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else [result]:
            if isinstance(tensor, torch.Tensor):
                self.seen += 1
                merged = [side for side in tensor.shape if side % self.batch == 0 and side != self.batch]
                if tensor.dim() > 4 or merged:
                    self.refused.append((getattr(func, "__name__", func), tuple(tensor.shape)))
        return result


@pytest.mark.parametrize("name", MODELS)
def test_what_is_shipped_has_at_most_four_axes_and_the_batch_as_one_of_them(monkeypatch, name):
    """Without memory and time: on the meta device, with a batch that divides no other size.

    It holds for the unfolding of MobileViT and MobileViTv2 too, which others write with six axes.
    """
    with torch.device("meta"):
        model = fold(create_model(name))
    monkeypatch.setattr(torch.compiler, "is_exporting", lambda: True)
    images = torch.empty(10_007, 3, *model.image_size, device="meta")
    with torch.inference_mode(), Shapes(len(images)) as shapes:
        assert model(images).shape == (len(images), model.num_classes)
    assert shapes.seen > 20
    assert shapes.refused == []


@pytest.mark.parametrize("name", SMALLEST)
def test_the_onnx_graph_answers_alike_for_any_batch_with_at_most_four_axes(name, tmp_path):
    """Seen: at most 8e-6 of the largest logit."""
    model, path = trained(name), tmp_path / "model.onnx"
    preprocess = Preprocess(image_size=model.image_size, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    export_onnx(model, path, preprocess=preprocess, classes=["a", "b", "c"])

    graph = onnx.shape_inference.infer_shapes(onnx.load(path), strict_mode=True, data_prop=True).graph
    tensors = [*graph.value_info, *graph.input, *graph.output]
    sizes = [size for tensor in tensors for size in tensor.type.tensor_type.shape.dim]
    assert {size.dim_param for size in sizes if not size.HasField("dim_value")} == {"batch"}
    assert {output for node in graph.node for output in node.output} <= {tensor.name for tensor in tensors}
    assert max(len(tensor.type.tensor_type.shape.dim) for tensor in tensors) <= 4
    assert {node.domain for node in graph.node} == {""}
    assert not {node.op_type for node in graph.node} & NEVER

    session = onnxruntime.InferenceSession(path)
    assert session.get_inputs()[0].shape == ["batch", *model.image_size, 3]
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
