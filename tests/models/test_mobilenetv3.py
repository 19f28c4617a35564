"""MobileNetV3: its tables, its roundings, its activations, and as ONNX. Logits equal timm's; see the docstrings."""

import pytest
import torch
import torch.nn.functional as F

from vitrail.layers.conv import fold
from vitrail.models import create_model
from vitrail.models.mobilenetv3 import SHAPES, InvertedResidual, recognise

PARAMETERS = {
    "mobilenetv3_small_050": 1_593_224,
    "mobilenetv3_small_075": 2_041_872,
    "mobilenetv3_small_100": 2_542_856,
    "mobilenetv3_large_075": 3_993_528,
    "mobilenetv3_large_100": 5_483_032,
}
"""Of timm 1.0.31's models with the same names and 1000 classes."""

# The columns "exp size" and "SE" of tables 1 and 2 of arXiv 1905.02244, without the first block.
HIDDEN = {
    "large": [64, 72, 72, 120, 120, 240, 200, 184, 184, 480, 672, 672, 960, 960],
    "small": [72, 88, 96, 240, 240, 120, 144, 288, 576, 576],
}


def scramble(model):
    """Give every weight and statistic a value that a mistake would show."""
    generator = torch.Generator().manual_seed(1)
    for name, tensor in model.state_dict().items():
        noise = torch.randn(tensor.shape, generator=generator)
        if "running_var" in name:
            tensor.copy_(1 + 0.5 * noise.abs())
        elif "running_mean" in name:
            tensor.copy_(0.1 * noise)
        elif tensor.dim() == 1:
            tensor += 0.1 * noise  # norms of branches that start at zero, and biases
    return model.eval()


def pictures(batch=2, size=(64, 96)):
    return torch.rand(batch, 3, *size, generator=torch.Generator().manual_seed(2))


def worst(found, expected):
    """Return the largest difference in multiples of the largest expected value."""
    return ((found - expected).abs().max() / expected.abs().max()).item()


def num_parameters(model):
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("name", PARAMETERS)
def test_it_has_timms_number_of_parameters(name):
    with torch.device("meta"):
        assert num_parameters(create_model(name)) == PARAMETERS[name]


@pytest.mark.parametrize("size", SHAPES)
def test_the_inner_widths_are_those_of_the_papers_tables(size):
    with torch.device("meta"):
        model = create_model(f"mobilenetv3_{size}_100")
    blocks = [module for module in model.modules() if isinstance(module, InvertedResidual)]
    assert [block.conv_dw.in_channels for block in blocks] == HIDDEN[size]


@pytest.mark.parametrize("size", SHAPES)
def test_the_strides_of_the_stages_are_those_of_the_papers_tables(size):
    with torch.device("meta"):
        info = create_model(f"mobilenetv3_{size}_100").feature_info
    expected = {"large": [2, 4, 8, 16, 16, 32, 32], "small": [4, 8, 16, 16, 32, 32]}
    assert [each["stride"][0] for each in info] == expected[size]


def test_a_block_computes_what_the_paper_says():
    """Written out with the parts of torch.nn.functional. Seen: no difference."""
    block = scramble(create_model("mobilenetv3_small_100").get_submodule("blocks.2.1"))
    x = torch.randn(2, 40, 6, 5)

    def norm(layer, value):
        return F.batch_norm(value, layer.running_mean, layer.running_var, layer.weight, layer.bias)

    def hard_swish(value):
        return value * (value + 3).clamp(0, 6) / 6

    with torch.inference_mode():
        found = block(x)
        inner = hard_swish(norm(block.bn1, F.conv2d(x, block.conv_pw.weight)))
        inner = hard_swish(norm(block.bn2, F.conv2d(inner, block.conv_dw.weight, padding=2, groups=240)))
        reduce, expand = block.se.conv_reduce, block.se.conv_expand
        gate = F.conv2d(inner.mean(dim=(2, 3), keepdim=True), reduce.weight, reduce.bias).relu()
        gate = (F.conv2d(gate, expand.weight, expand.bias) + 3).clamp(0, 6) / 6
        expected = x + norm(block.bn3, F.conv2d(inner * gate, block.conv_pwl.weight))
    assert reduce.out_channels == 64  # a quarter of 240 is 60; the nearest multiple of 8
    assert worst(found, expected) < 2e-6


def test_depthwise_convolutions_train_in_fp32_where_the_rest_is_in_bf16():
    model = create_model("mobilenetv3_small_050", num_classes=3)
    seen = {}
    block = model.get_submodule("blocks.1.1")
    for name in ("conv_pw", "conv_dw"):
        block.get_submodule(name).register_forward_hook(
            lambda module, inputs, output, name=name: seen.update({name: output})
        )
    for training in (True, False):
        with torch.autocast("cpu", torch.bfloat16):
            model.train(training)(pictures())
        assert {output.dtype for output in seen.values()} == {torch.bfloat16}
        in_fp32 = seen["conv_dw"].grad_fn.next_functions[0][0].name().startswith("ConvolutionBackward")
        assert in_fp32 == training  # what was computed in fp32 is cast afterwards


def test_features_before_the_head_are_behind_the_last_convolution():
    model = create_model("mobilenetv3_small_050", num_classes=3).eval()
    with torch.inference_mode():
        features = model.forward_features(pictures())
        mean = features["stage6"].mean(dim=(2, 3), keepdim=True)
        assert features["pooled"].shape == (2, 1024)
        torch.testing.assert_close(features["pooled"], F.hardswish(model.conv_head(mean)).flatten(1))


def test_answers_are_the_same_whether_gradients_are_recorded_or_not():
    """Without gradients, activations are computed in place. Features already handed out stay as they were."""
    model = scramble(create_model("mobilenetv3_small_100", num_classes=3))
    for each in (model, fold(model)):
        with torch.inference_mode():
            features = each.forward_features(pictures())
        for name, expected in each.forward_features(pictures()).items():
            torch.testing.assert_close(features[name], expected)


@pytest.mark.parametrize("name", PARAMETERS)
def test_it_is_recognised_by_its_tensors_with_any_head_and_image(name):
    with torch.device("meta"):
        assert recognise(create_model(name, num_classes=0, in_channels=1).state_dict()) == name


def test_other_networks_are_not_taken_for_it():
    with torch.device("meta"):
        tensors = create_model("mobilenetv3_small_100").state_dict()
        others = [create_model("resnet18").state_dict(), create_model("ghostnet_100").state_dict(), {}]
    others.append({name: tensor for name, tensor in tensors.items() if ".se." not in name})
    others.append({**tensors, "conv_head.weight": torch.zeros(1280, 576, 1, 1)})
    assert [recognise(other) for other in others] == [None] * 5


def test_stochastic_depth_leaves_out_whole_branches():
    """The rates rise from 0 to the option's in the last branch, and dropped rows are not computed."""
    model = create_model("mobilenetv3_small_100", num_classes=3, image_size=64, drop_path=0.5).train()
    rates = [module.drop_path for _, module in model.named_modules() if hasattr(module, "drop_path")]
    assert rates[-1] == 0.5
    assert sorted(rates) == pytest.approx([0.5 * index / (len(rates) - 1) for index in range(len(rates))])
    seen = []
    model.get_submodule("blocks.4.2.conv_pw").register_forward_hook(
        lambda module, inputs, output: seen.append(len(inputs[0]))
    )
    model(pictures(8))
    assert seen == [4]
