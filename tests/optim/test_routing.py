import pytest
import torch
from torch import nn

from vitrail.errors import ConfigError
from vitrail.models import MODELS, create_model
from vitrail.optim.routing import route_parameters


def roles(model, overrides=None, known=True, qkv="split"):
    routes = route_parameters(list(model.named_parameters()), model if known else None, overrides, qkv)
    return {route.name: (route.role, len(route.parts)) for route in routes}


@pytest.mark.parametrize("known", [True, False], ids=["by module", "by name"])
def test_a_vit_is_divided_by_what_its_parameters_do(make_vit, known):
    found = roles(make_vit(num_registers=2, layer_scale=0.1), known=known)
    assert found["patch_embed.proj.weight"][0] == ("matrix" if known else "convolution")
    assert found["blocks.0.attn.qkv.weight"] == ("matrix", 3)
    for name in ("attn.proj", "mlp.fc1", "mlp.fc2"):
        assert found[f"blocks.5.{name}.weight"] == ("matrix", 1)
    assert found["head.weight"] == ("head", 1)
    others = {name for name, (role, _) in found.items() if role == "vector"}
    assert {"cls_token", "reg_token", "pos_embed", "norm.weight", "blocks.0.ls1.gamma", "head.bias"} <= others
    assert not any(name.endswith(("qkv.weight", "fc1.weight")) for name in others)


def test_wrappers_change_nothing(make_vit):
    class Wrapper(nn.Module):
        def __init__(self, module):
            super().__init__()
            self.module = module

    model = make_vit()
    bare = roles(model)
    assert {name.removeprefix("module."): role for name, role in roles(Wrapper(model)).items()} == bare
    compiled = torch.compile(model)
    assert {name.removeprefix("_orig_mod."): role for name, role in roles(compiled).items()} == bare


def test_transformers_vit():
    try:  # a torchvision that was made for another torch makes this fail, too
        from transformers import ViTConfig, ViTForImageClassification
    except ImportError:
        pytest.skip("needs transformers")
    config = ViTConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64, image_size=16, patch_size=8
    )
    found = roles(ViTForImageClassification(config))
    matrices = {name for name, (role, _) in found.items() if role == "matrix"}
    by_heads = roles(ViTForImageClassification(config), qkv="heads")
    assert sum(parts == 2 for _, parts in by_heads.values()) == 3
    assert sum("attention" in name for name in matrices) == 4
    assert any(name.endswith("patch_embeddings.projection.weight") for name in matrices)
    assert {name for name, (role, _) in found.items() if role == "head"} == {"classifier.weight"}
    assert all(found[name][0] == "vector" for name in found if "position" in name or "token" in name)


class TorchvisionLike(nn.Module):
    """The names of torchvision's ViT, whose attention is torch's own module."""

    def __init__(self):
        super().__init__()
        self.class_token = nn.Parameter(torch.zeros(1, 1, 16))
        self.conv_proj = nn.Conv2d(3, 16, 8, 8)
        self.encoder = nn.Module()
        self.encoder.pos_embedding = nn.Parameter(torch.zeros(1, 5, 16))
        self.encoder.self_attention = nn.MultiheadAttention(16, 2)
        self.heads = nn.Sequential()
        self.heads.pre_logits = nn.Linear(16, 16)
        self.heads.head = nn.Linear(16, 10)


def test_torchs_attention_and_a_head_of_two_layers():
    found = roles(TorchvisionLike())
    assert found["encoder.self_attention.in_proj_weight"] == ("matrix", 3)
    assert found["encoder.self_attention.out_proj.weight"] == ("matrix", 1)
    assert found["conv_proj.weight"] == ("matrix", 1)
    assert (found["heads.pre_logits.weight"][0], found["heads.head.weight"][0]) == ("matrix", "head")
    assert (found["class_token"][0], found["encoder.pos_embedding"][0]) == ("vector", "vector")


def test_attention_is_divided_as_asked_for(make_vit):
    fused, heads = roles(make_vit(), qkv="fused"), roles(make_vit(), qkv="heads")
    assert fused["blocks.0.attn.qkv.weight"] == ("matrix", 1)
    assert heads["blocks.0.attn.qkv.weight"] == ("matrix", 12)  # 4 heads
    assert heads["blocks.0.attn.proj.weight"] == fused["blocks.0.attn.proj.weight"] == ("matrix", 1)
    assert roles(TorchvisionLike(), qkv="heads")["encoder.self_attention.in_proj_weight"] == ("matrix", 6)
    wide = nn.ModuleDict({"attention": nn.MultiheadAttention(32, 2, kdim=16, vdim=16), "w12": nn.Linear(16, 32)})
    found = roles(wide, qkv="heads")
    assert [found[f"attention.{each}_proj_weight"][1] for each in "qkv"] == [2, 2, 2]
    assert roles(wide, qkv="fused")["w12.weight"] == ("matrix", 2), "gates are no attention"
    with pytest.raises(ConfigError, match=r"cannot divide blocks.0.attn.qkv.weight.*Give the whole model"):
        roles(make_vit(), known=False, qkv="heads")


class Attentions(nn.Module):
    """Layers that compute several maps of unequal width."""

    def __init__(self):
        super().__init__()
        self.narrow = nn.Module()
        self.narrow.parts = (16, 16, 32)  # queries and keys narrower than values, told by the module
        self.narrow.qkv = nn.Sequential(nn.Conv2d(32, 64, 1))
        self.narrow.proj = nn.Sequential(nn.Conv2d(32, 64, 1))
        self.separable = nn.Module()
        self.separable.qkv_proj = nn.Conv2d(64, 129, 1)  # 129 is 3 * 43
        self.cross = nn.Module()
        self.cross.qkv = nn.Linear(48, 96)  # keys and values alone


def test_maps_of_unequal_width_are_divided_where_they_meet():
    model = Attentions()
    routes = {route.name: route for route in route_parameters(list(model.named_parameters()), model)}
    assert routes["narrow.qkv.0.weight"].parts == (16, 16, 32)
    assert routes["narrow.proj.0.weight"].parts == (64,)
    assert routes["separable.qkv_proj.weight"].parts == (1, 64, 64)
    assert routes["cross.qkv.weight"].parts == (48, 48)
    assert "matrix x 16 + 16 + 32" in str(route_parameters(list(model.named_parameters()), model))
    fused = route_parameters(list(model.named_parameters()), model, qkv="fused")
    assert all(len(route.parts) == 1 for route in fused)
    narrow = next(route for route in route_parameters(list(model.narrow.named_parameters()), model, qkv="heads"))
    assert narrow.parts == (16, 16, 32), "one head where the module tells its maps and no heads"


@pytest.mark.parametrize(("name", "parts"), [("lucarne_xs", {(16, 16, 80), (40, 40, 160)}), ("mobilevitv2_050", None)])
def test_the_attention_of_our_mobile_models_is_divided_into_its_maps(name, parts):
    model = create_model(name, num_classes=10)
    routes = route_parameters(list(model.named_parameters()), model)
    found = {route.parts for route in routes if ".qkv" in route.name and route.role == "matrix"}
    assert found == (parts or {(1, width, width) for width in (64, 96, 128)})


class GatedMlp(nn.Module):
    """Computes gates and values with one layer, as timm's GluMlp does."""

    def __init__(self, hidden=24, out=12):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(16, hidden), nn.Linear(out, 16)


@pytest.mark.parametrize("qkv", ["split", "fused", "heads"])
def test_gates_and_values_are_two_matrices(qkv):
    assert roles(GatedMlp(), qkv=qkv)["fc1.weight"] == ("matrix", 2)
    assert roles(GatedMlp(out=24), qkv=qkv)["fc1.weight"] == ("matrix", 1)


class TorchvisionVit(nn.Module):
    """Names, types and shapes of torchvision's VisionTransformer."""

    def __init__(self):
        super().__init__()
        self.class_token = nn.Parameter(torch.zeros(1, 1, 16))
        self.conv_proj = nn.Conv2d(3, 16, 8, 8)
        block = nn.Module()
        block.ln_1, block.ln_2 = nn.LayerNorm(16), nn.LayerNorm(16)
        block.self_attention = nn.MultiheadAttention(16, 2)
        block.mlp = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Dropout(0.0), nn.Linear(32, 16), nn.Dropout(0.0))
        self.encoder = nn.Module()
        self.encoder.pos_embedding = nn.Parameter(torch.zeros(1, 17, 16))
        self.encoder.layers = nn.Sequential()
        self.encoder.layers.add_module("encoder_layer_0", block)
        self.heads = nn.Sequential()
        self.heads.add_module("head", nn.Linear(16, 10))


@pytest.mark.parametrize("known", [True, False], ids=["by module", "by name"])
def test_torchvisions_vit(known):
    found, block = roles(TorchvisionVit(), known=known), "encoder.layers.encoder_layer_0."
    assert found["heads.head.weight"] == ("head", 1)
    assert found[f"{block}self_attention.in_proj_weight"] == ("matrix", 3)
    matrices = {f"{block}self_attention.out_proj.weight", f"{block}mlp.0.weight", f"{block}mlp.3.weight"}
    assert {found[name] for name in matrices} == {("matrix", 1)}
    assert found["conv_proj.weight"][0] == ("matrix" if known else "convolution")
    rest = found.keys() - matrices - {"heads.head.weight", "conv_proj.weight", f"{block}self_attention.in_proj_weight"}
    assert {found[name][0] for name in rest} == {"vector"}


class WithClassifier(nn.Module):
    """A model of timm's tells its classifier, whatever that is called."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(16, 16)
        self.last_linear = nn.Linear(16, 10)

    def get_classifier(self):
        return self.last_linear


def test_a_classifier_that_the_model_tells():
    found = roles(WithClassifier())
    assert (found["head.weight"][0], found["last_linear.weight"][0]) == ("matrix", "head")


class Convolutions(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, 2)
        self.depthwise = nn.Conv2d(16, 16, 3, groups=16)
        self.pointwise = nn.Conv2d(16, 32, 1)
        self.grouped = nn.Conv2d(32, 32, 3, groups=4)
        self.up = nn.ConvTranspose2d(32, 16, 2, 2)
        self.gate = nn.Conv2d(32, 1, 1)
        self.relative_position_bias_table = nn.Parameter(torch.zeros(49, 8))
        self.words = nn.Embedding(50, 16)


def test_convolutions_tables_and_thin_layers():
    found = roles(Convolutions())
    assert found["stem.weight"] == ("convolution", 1)
    assert found["depthwise.weight"] == ("vector", 1)
    assert found["pointwise.weight"] == ("matrix", 1)
    assert found["grouped.weight"] == ("convolution", 4)
    assert found["up.weight"] == ("matrix", 1)
    assert found["gate.weight"] == ("vector", 1)
    assert found["relative_position_bias_table"] == found["words.weight"] == ("vector", 1)


@pytest.mark.parametrize("name", sorted({n.split("_patch")[0]: n for n in MODELS}.values()))
def test_every_model_here_has_one_head_and_no_other_parameter_of_its_name(name):
    if "large" in name or "base" in name:
        pytest.skip("the same layers, larger")
    found = roles(create_model(name, num_classes=10))
    heads = [key for key, (role, _) in found.items() if role == "head"]
    assert len(heads) == 1
    assert heads[0].split(".")[0] in {"head", "classifier", "fc"}


def test_overrides_by_pattern_and_what_they_refuse(make_vit):
    found = roles(make_vit(), {"*.qkv.weight": "vector", "blocks.1.attn.qkv.weight": "matrix"})
    assert found["blocks.0.attn.qkv.weight"] == ("vector", 1)
    assert found["blocks.1.attn.qkv.weight"] == ("matrix", 3)
    with pytest.raises(ConfigError, match=r"takes 'matrix'.*Did you mean 'matrix'"):
        roles(make_vit(), {"*.qkv.weight": "matrx"})
    with pytest.raises(ConfigError, match=r"no trainable parameter .* Did you mean 'head.weight'"):
        roles(make_vit(), {"heads.weight": "vector"})
    with pytest.raises(ConfigError, match=r"norm.bias has 1 axes and cannot be a matrix"):
        roles(make_vit(), {"norm.bias": "matrix"})


def test_the_table_joins_numbered_layers(make_vit):
    model = make_vit()
    lines = str(route_parameters(list(model.named_parameters()), model)).splitlines()
    assert lines[0].split() == ["parameter", "shape", "role", "recognised", "by", "tensors", "elements"]
    row = next(line for line in lines if line.startswith("blocks.*.attn.qkv.weight"))
    assert row.split() == ["blocks.*.attn.qkv.weight", "384x128", "matrix", "x", "3", "Linear", "6", "294,912"]
    assert len(lines) < 30
    layers = nn.ModuleDict({f"layer_{number}": nn.Linear(8, 8) for number in range(3)})
    assert "layer_*.weight" in str(route_parameters(list(layers.named_parameters()), layers))
