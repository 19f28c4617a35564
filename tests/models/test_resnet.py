"""ResNet against transformers' own, in the layouts of its checkpoints, and as ONNX."""

import pytest
import torch

from vitrail.models import create_model
from vitrail.models.resnet import ResidualBlock, recognise
from vitrail.models.translate_resnet import to_native

PARAMETERS = {"resnet18": 11_689_512, "resnet34": 21_797_672, "resnet50": 25_557_032}
"""Of torchvision's and timm's models with 1000 classes."""

DEPTHS = {"resnet18": [2, 2, 2, 2], "resnet34": [3, 4, 6, 3], "resnet50": [3, 4, 6, 3]}


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


def transformers_model(name, *, head=True):
    transformers = pytest.importorskip("transformers")
    basic = {"layer_type": "basic", "hidden_sizes": [64, 128, 256, 512]} if name != "resnet50" else {}
    config = transformers.ResNetConfig(depths=DEPTHS[name], num_labels=7, **basic)
    return scramble(transformers.ResNetForImageClassification(config) if head else transformers.ResNetModel(config))


@pytest.mark.parametrize("name", PARAMETERS)
def test_it_has_the_published_number_of_parameters(name):
    with torch.device("meta"):
        assert num_parameters(create_model(name)) == PARAMETERS[name]


@pytest.mark.parametrize("name", PARAMETERS)
def test_it_computes_what_transformers_computes_with_the_same_weights(name):
    """In logits and in every stage. Seen: no difference."""
    reference = transformers_model(name)
    layout, native = to_native(reference.state_dict())
    assert layout == "huggingface"
    model = create_model(name, num_classes=7).eval()
    model.load_state_dict(native, strict=True)
    images = pictures()
    with torch.inference_mode():
        theirs = reference(images, output_hidden_states=True)
        ours = model.forward_features(images)
        assert worst(model(images), theirs.logits) < 1e-5
    for number, stage in enumerate(theirs.hidden_states[1:], start=1):
        assert worst(ours[f"stage{number}"], stage) < 1e-5


def test_gradients_and_statistics_of_a_training_step_are_those_of_transformers():
    """In float64, so that no value beside a ReLU's zero falls to its other side by rounding. Seen: no difference."""
    reference = transformers_model("resnet18").double().train()
    model = create_model("resnet18", num_classes=7).double().train()
    model.load_state_dict(to_native(reference.state_dict())[1])
    images = pictures(4).double()
    reference(images).logits.square().sum().backward()
    model(images).square().sum().backward()
    _, expected = to_native({name: parameter.grad for name, parameter in reference.named_parameters()})
    for name, parameter in model.named_parameters():
        assert worst(parameter.grad, expected[name]) < 1e-9, name
    _, statistics = to_native(dict(reference.named_buffers()) | dict(reference.named_parameters()))
    for name, buffer in model.named_buffers():
        torch.testing.assert_close(buffer, statistics[name], rtol=0, atol=1e-12)


def test_the_body_alone_is_translated_too_and_unknown_names_stay():
    tensors = transformers_model("resnet18", head=False).state_dict()
    body = {name for name in create_model("resnet18").state_dict() if not name.startswith("fc.")}
    layout, native = to_native({**tensors, "something.else": torch.zeros(1)})
    assert layout == "huggingface"
    assert set(native) == body | {"something.else"}
    assert recognise(native) == "resnet18"


def test_timms_layout_is_the_native_one():
    tensors = create_model("resnet18", num_classes=2).state_dict()
    layout, native = to_native(tensors)
    assert layout == "timm"
    assert native.keys() == tensors.keys()


def test_other_networks_are_not_taken_for_a_resnet():
    assert to_native(create_model("vit_micro_patch4", image_size=32).state_dict()) is None
    # RegNet's names in transformers are ResNet's, but for the prefix; its stem is 3x3.
    assert to_native({"embedder.embedder.convolution.weight": torch.zeros(32, 3, 3, 3)}) is None


@pytest.mark.parametrize("name", PARAMETERS)
def test_it_is_recognised_by_its_tensors_with_any_head_and_image(name):
    with torch.device("meta"):
        assert recognise(create_model(name, num_classes=0, in_channels=1).state_dict()) == name


def test_its_relatives_are_not_taken_for_it():
    with torch.device("meta"):
        tensors = create_model("resnet50").state_dict()
    wide = {**tensors, "layer4.0.conv2.weight": torch.zeros(1024, 1024, 3, 3, device="meta")}
    squeezed = {**tensors, "layer1.0.se.fc1.weight": torch.zeros(16, 256, 1, 1)}
    deeper = {**tensors, "layer3.6.conv1.weight": tensors["layer3.5.conv1.weight"]}
    deep_stem = {name: tensor for name, tensor in tensors.items() if name != "conv1.weight"}
    assert [recognise(other) for other in (wide, squeezed, deeper, deep_stem, {})] == [None] * 5


def test_a_fresh_block_passes_its_input_on():
    """The norm of the branch starts at zero, so that only the ReLU over the sum is left."""
    model = create_model("resnet18", num_classes=3)
    block = next(module for module in model.modules() if isinstance(module, ResidualBlock))
    images = torch.randn(2, 64, 8, 8)
    assert torch.equal(block(images), images.relu())


def test_dropped_rows_take_the_shortcut_where_it_is_a_convolution_too():
    model = create_model("resnet18", num_classes=3, drop_path=0.9)
    block = scramble(model.get_submodule("layer4.0"))
    images = torch.randn(2, 256, 4, 4)
    with torch.no_grad():
        shortcut = block.downsample(images)
        whole = block.eval()(images)
        block.train()
        for norm in (module for module in block.modules() if isinstance(module, torch.nn.BatchNorm2d)):
            norm.eval()
        found = block(images)
    kept = [index for index in range(2) if not torch.equal(found[index], shortcut[index].relu())]
    assert len(kept) == 1
    # The kept row counts for both.
    branch = found[kept[0]] - shortcut[kept[0]]
    expected = (block.bn2(block.conv2(block.bn1(block.conv1(images)).relu())) * 2)[kept[0]]
    above = found[kept[0]] > 0
    torch.testing.assert_close(branch[above], expected[above], rtol=1e-4, atol=1e-5)
    assert not torch.equal(whole, found)


def test_stochastic_depth_leaves_out_whole_branches():
    """The rates rise from 0 to the option's in the last branch, and dropped rows are not computed."""
    model = create_model("resnet18", num_classes=3, image_size=64, drop_path=0.5).train()
    rates = [module.drop_path for _, module in model.named_modules() if hasattr(module, "drop_path")]
    assert rates[-1] == 0.5
    assert sorted(rates) == pytest.approx([0.5 * index / (len(rates) - 1) for index in range(len(rates))])
    seen = []
    model.get_submodule("layer4.1.conv1").register_forward_hook(
        lambda module, inputs, output: seen.append(len(inputs[0]))
    )
    model(pictures(8))
    assert seen == [4]
