"""MobileViT and MobileViTv2 against transformers' own, in the layouts of their checkpoints, and as ONNX."""

import re

import pytest
import torch
import torch.nn.functional as F

from vitrail.errors import ConfigError
from vitrail.layers.mobile import from_patches, to_patches
from vitrail.models import MODELS, create_model, mobilevit
from vitrail.models.mobilevitv2 import SeparableAttention
from vitrail.models.translate_mobilevit import recognise, to_native

PARAMETERS = {
    "mobilevit_xxs": 1_272_024,
    "mobilevit_xs": 2_317_848,
    "mobilevit_s": 5_578_632,
    "mobilevitv2_050": 1_370_593,
    "mobilevitv2_075": 2_866_009,
    "mobilevitv2_100": 4_901_841,
    "mobilevitv2_125": 7_478_089,
    "mobilevitv2_150": 10_594_753,
    "mobilevitv2_175": 14_251_833,
    "mobilevitv2_200": 18_449_329,
}
"""Of timm 1.0.31's models with the same names and 1000 classes."""

SMALLEST = ("mobilevit_xxs", "mobilevitv2_050")


def transformers_model(name, num_classes=1000):
    transformers = pytest.importorskip("transformers")
    family, size = name.split("_")
    if family == "mobilevitv2":
        config = transformers.MobileViTV2Config(width_multiplier=int(size) / 100, num_labels=num_classes)
        return transformers.MobileViTV2ForImageClassification(config).eval()
    shape = mobilevit.SHAPES[size]
    config = transformers.MobileViTConfig(
        hidden_sizes=list(shape.dims),
        neck_hidden_sizes=[shape.stem, *shape.widths, shape.features],
        expand_ratio=float(shape.expansion),
        num_labels=num_classes,
    )
    return transformers.MobileViTForImageClassification(config).eval()


def scramble(model):
    """Give every weight and statistic a value that a mistake would show."""
    generator = torch.Generator().manual_seed(1)
    for name, tensor in model.state_dict().items():
        noise = torch.randn(tensor.shape, generator=generator)
        if "running_var" in name:
            tensor.copy_(1 + 0.5 * noise.abs())
        elif "norm" in name and name.endswith("weight"):
            tensor.copy_(1 + 0.2 * noise)
        elif tensor.is_floating_point():
            tensor.add_(0.1 * noise)
    return model


def pair(name, num_classes=10):
    """Return transformers' model and ours with the same weights."""
    torch.manual_seed(0)
    reference = scramble(transformers_model(name, num_classes))
    layout, native = to_native(reference.state_dict())
    assert layout == "huggingface"
    ours = create_model(name, num_classes=num_classes).eval()
    ours.load_state_dict(native)
    return reference, ours


def resize_odd_maps(reference):
    """Make transformers' v2 resize maps with odd sides as the authors' code does; it leaves out the last row."""

    def resize(_, args):
        height, width = (side + side % 2 for side in args[0].shape[-2:])
        return F.interpolate(args[0], (height, width), mode="bilinear", align_corners=True)

    for name, module in reference.named_modules():
        if re.fullmatch(r"mobilevitv2\.encoder\.layer\.\d\.conv_kxk", name):
            module.register_forward_pre_hook(resize)


def to_cvnets(native):
    """Rename tensors to those of Apple's code, from a list of its names and not by our rules."""
    renamed = {}
    is_v2 = any("qkv_proj" in name for name in native)
    depth = {"2": 2, "3": 4, "4": 3}
    conv, attention = (".block.conv", "pre_norm_attn.1") if is_v2 else ("", "pre_norm_mha.1")
    outside = {"stem": "conv_1.block", "final_conv": "conv_1x1_exp.block"}
    in_residual = {"conv1_1x1": "exp_1x1", "conv2_kxk": "conv_3x3", "conv3_1x1": "red_1x1"}
    in_block = {
        "conv_kxk": "local_rep.0.block" if is_v2 else "local_rep.conv_3x3.block",
        "conv_1x1": "local_rep.1.block.conv" if is_v2 else "local_rep.conv_1x1.block.conv",
        "conv_proj": "conv_proj.block",
        "conv_fusion": "fusion.block",
    }
    in_layer = {
        "norm1": attention.replace(".1", ".0"),
        "norm2": "pre_norm_ffn.0",
        "attn.qkv": f"{attention}.qkv_proj",
        "attn.proj": f"{attention}.out_proj",
        "attn.qkv_proj": f"{attention}.qkv_proj.block.conv",
        "attn.out_proj": f"{attention}.out_proj.block.conv",
        "mlp.fc1": f"pre_norm_ffn.1{conv}",
        "mlp.fc2": f"pre_norm_ffn.3{conv}" if is_v2 else "pre_norm_ffn.4",
    }
    for name, tensor in native.items():
        path, leaf = name.replace(".bn.", ".norm.").rsplit(".", 1)
        parts = path.split(".")
        if parts[0] == "head":
            new = "classifier.1" if is_v2 else "classifier.fc"
        elif parts[0] in outside:
            new = f"{outside[parts[0]]}.{parts[1]}"
        else:
            place, rest = f"layer_{int(parts[1]) + 1}.{parts[2]}", parts[3:]
            if rest[0] in in_residual:
                new = f"{place}.block.{in_residual[rest[0]]}.block.{rest[1]}"
            elif rest[0] == "transformer":
                new = f"{place}.global_rep.{rest[1]}.{in_layer['.'.join(rest[2:])]}"
            elif rest == ["norm"]:
                new = f"{place}.global_rep.{depth[parts[1]]}"
            else:
                new = ".".join([place, in_block[rest[0]], *rest[1:]])
        renamed[f"{new}.{leaf}"] = tensor
    assert len(renamed) == len(native)
    return renamed


@pytest.mark.parametrize("name", PARAMETERS)
def test_it_has_as_many_parameters_as_timms_and_transformers_models(name):
    with torch.device("meta"):
        ours, theirs = create_model(name), transformers_model(name)
    assert sum(parameter.numel() for parameter in ours.parameters()) == PARAMETERS[name]
    assert sum(parameter.numel() for parameter in theirs.parameters()) == PARAMETERS[name]
    assert name in MODELS
    assert len(PARAMETERS) == sum(other.startswith("mobilevit") for other in MODELS)


@pytest.mark.parametrize("size", [(128, 128), (96, 160), (100, 164)], ids=str)
@pytest.mark.parametrize("name", [*SMALLEST, "mobilevit_xs", "mobilevitv2_100"])
def test_logits_are_those_of_transformers_with_the_same_weights(name, size):
    """Seen: 2e-15 of the largest logit, in float64. Odd maps: 3 x 5 of 96 x 160; 13 x 21, 7 x 11 of 100 x 164."""
    reference, ours = (model.double() for model in pair(name))
    if "v2" in name:
        resize_odd_maps(reference)
    images = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    with torch.inference_mode():
        expected, found = reference(images).logits, ours(images)
    assert expected.std() > 0.1
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10 * expected.abs().max().item())


@pytest.mark.parametrize("name", SMALLEST)
def test_gradients_are_those_of_transformers_with_the_same_weights(name):
    """In float64. Seen: 1e-14 of the largest of each parameter.

    Not in float32: there a value just beside zero may come out on its other side where the order of summing differs,
    and a ReLU then passes its gradient in one model only. Seen: 4e-3 of the largest, in one of 54 draws of weights; the
    value was 1.6e-7.
    """
    reference, ours = (model.double() for model in pair(name))
    images = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    weights = torch.randn(2, 10, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    if "v2" in name:
        resize_odd_maps(reference)
    (reference(images).logits * weights).sum().backward()
    (ours(images) * weights).sum().backward()
    _, expected = to_native({key: value.grad for key, value in reference.named_parameters()})
    for key, parameter in ours.named_parameters():
        largest = expected[key].abs().max().item()
        assert largest > 0
        torch.testing.assert_close(parameter.grad, expected[key], rtol=0, atol=1e-10 * largest)


@pytest.mark.parametrize("name", PARAMETERS)
@pytest.mark.parametrize("prefix", ["", "encoder."])
def test_apples_layout_is_translated_to_every_native_name(name, prefix):
    with torch.device("meta"):
        native = create_model(name, num_classes=3).state_dict()
    theirs = {prefix + key: value for key, value in to_cvnets(native).items()}
    layout, found = to_native({**theirs, "seg_head.up.weight": torch.empty(1)})
    assert layout == "cvnets"
    assert found.keys() - native.keys() == {"seg_head.up.weight"}
    assert all(found[key] is value for key, value in native.items())


@pytest.mark.parametrize("name", PARAMETERS)
def test_transformers_layout_is_translated_with_and_without_its_prefix(name):
    with torch.device("meta"):
        native = create_model(name, num_classes=3).state_dict()
        theirs = transformers_model(name, num_classes=3).state_dict()
    short = {re.sub(r"^mobilevit(v2)?\.", "", key): value for key, value in theirs.items()}
    for tensors in (theirs, short):
        layout, found = to_native(tensors)
        assert layout == "huggingface"
        assert {key: value.shape for key, value in found.items()} == {key: value.shape for key, value in native.items()}


@pytest.mark.parametrize("name", PARAMETERS)
def test_a_size_is_recognised_by_its_shapes(name):
    with torch.device("meta"):
        native = create_model(name, num_classes=7, in_channels=1).state_dict()
    assert to_native(native) == ("timm", native)
    assert recognise(native) == name
    assert recognise({key: value for key, value in native.items() if not key.startswith("head.")}) == name
    assert recognise({key: value for key, value in native.items() if "stages.3.1.conv_1x1" not in key}) is None
    other_width = {**native, "stages.2.1.conv_1x1.weight": torch.empty(8, 8, 1, 1)}
    assert recognise(other_width) is None


def test_other_models_are_not_taken_for_a_mobilevit():
    with torch.device("meta"):
        vit = create_model("vit_micro_patch8").state_dict()
    assert to_native(vit) is None
    assert recognise(vit) is None
    assert to_native({}) is None
    assert recognise({}) is None


def test_queries_without_their_keys_stay_as_they_are():
    with torch.device("meta"):
        theirs = transformers_model("mobilevit_xxs").state_dict()
    place = "mobilevit.encoder.layer.3.transformer.layer.1.attention.attention"
    del theirs[f"{place}.key.weight"]
    _, found = to_native(theirs)
    assert {f"{place}.query.weight", f"{place}.value.weight"} <= found.keys()
    assert "stages.3.1.transformer.1.attn.qkv.weight" not in found
    assert "stages.3.1.transformer.1.attn.qkv.bias" in found


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_patches_are_sorted_by_place_and_go_back(memory_format):
    x = torch.arange(2 * 3 * 4 * 6.0).reshape(2, 3, 4, 6).to(memory_format=memory_format)
    tokens = to_patches(x)
    assert tokens.shape == (2, 4, 6, 3)
    for place in range(4):
        expected = x[:, :, place // 2 :: 2, place % 2 :: 2].flatten(2).transpose(1, 2)
        assert torch.equal(tokens[:, place], expected)
    assert torch.equal(from_patches(tokens, 4, 6), x)


def test_separable_attention_saves_the_keys_of_all_tokens_but_not_their_effect():
    """Against the paper's own order: a key for every token, then their mean. Seen: 9e-8."""
    torch.manual_seed(0)
    layer = SeparableAttention(16)
    x = torch.randn(2, 4, 5, 16)
    score, key, value = layer.qkv_proj(x.permute(0, 3, 1, 2)).split([1, 16, 16], dim=1)
    context = (key * score.softmax(dim=-1)).sum(dim=-1, keepdim=True)
    expected = layer.out_proj((value.relu() * context).permute(0, 2, 3, 1))
    torch.testing.assert_close(layer(x), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", SMALLEST)
def test_a_pixel_attends_to_its_place_in_every_patch_and_to_no_other(name):
    block = create_model(name, num_classes=0).stages[2][1].eval()
    attention = block.transformer[0].attn
    x = torch.randn(1, 4, 6, block.conv_1x1.out_channels, requires_grad=True)
    attention(x)[0, 1, 2].sum().backward()
    reached = x.grad.abs().sum(dim=(0, 3)) > 0
    assert reached.tolist() == [[place == 1] * 6 for place in range(4)]


def test_stochastic_depth_rises_from_the_first_transformer_layer_to_the_last():
    model = create_model("mobilevit_xxs", drop_path=0.4, num_classes=3)
    rates = [module.drop_path for module in model.modules() if hasattr(module, "drop_path")]
    assert rates == pytest.approx([0.05 * index for index in range(9)])


@pytest.mark.parametrize("option", [{"drop_path": 1.0}, {"num_classes": -1}, {"in_channels": 0}])
@pytest.mark.parametrize("name", SMALLEST)
def test_values_outside_their_range_are_refused(name, option):
    with pytest.raises(ConfigError, match=f"{next(iter(option))} is"):
        MODELS[name].build(**option)
