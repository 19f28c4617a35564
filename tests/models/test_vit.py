import json
import weakref

import pytest
import torch

from vitrail.errors import ConfigError, UnknownNameError
from vitrail.layers.embed import resample_position_embedding
from vitrail.models import MODELS, ModelSpec, create_model, list_models
from vitrail.models.vit import MODELS as VITS
from vitrail.models.vit import VisionTransformer, VitOptions, VitShape

SHAPE = VitShape(dim=32, depth=4, heads=2, mlp_ratio=2.0)

VARIANTS = {
    "plain": {},
    "mean": {"pool": "mean", "class_token": False},
    "mean beside a class token": {"pool": "mean", "num_registers": 2},
    "attention": {"pool": "attention", "class_token": False, "num_registers": 1},
    "registers without positions": {"num_registers": 3, "prefix_position": False},
    "sincos": {"position": "sincos"},
    "rotary": {"position": "rotary", "num_registers": 1},
    "no positions": {"position": "none"},
    "modern": {"qk_norm": True, "qkv_bias": False, "layer_scale": 1e-4},
    "local": {"local": True},
    "literal local in chosen blocks": {"local": "literal", "local_blocks": (3,)},
    "fusion": {"fusion": True},
    "pyramid": {"fusion": "pyramid"},
    "local and fusion": {"local": True, "fusion": True, "fusion_blocks": (0, 3), "pool": "mean"},
}


def small_vit(**options):
    torch.manual_seed(0)
    return VisionTransformer(SHAPE, VitOptions(**{"image_size": 32, "patch_size": 8, "num_classes": 5, **options}))


def scramble(model):
    """Give every parameter a value that a mistake would show: none is zero, one or equal to another."""
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        parameter.data += 0.2 * torch.randn(parameter.shape, generator=generator)
    return model


@pytest.fixture(params=VARIANTS.values(), ids=VARIANTS.keys())
def variant(request):
    return scramble(small_vit(**request.param))


def plain_reference(weights, images, *, heads, patch_size):
    """Compute the logits of a ViT with class token from weights with timm's names, in other words than ours."""
    batch, channels, height, width = images.shape
    rows, columns = height // patch_size[0], width // patch_size[1]
    patches = images.reshape(batch, channels, rows, patch_size[0], columns, patch_size[1])
    x = torch.einsum("bcriqj,dcij->brqd", patches, weights["patch_embed.proj.weight"]).flatten(1, 2)
    x = x + weights["patch_embed.proj.bias"]
    x = torch.cat([weights["cls_token"].repeat(batch, 1, 1), x], dim=1) + weights["pos_embed"]

    def linear(name, x):
        return torch.einsum("...i,oi->...o", x, weights[f"{name}.weight"]) + weights[f"{name}.bias"]

    def norm(name, x):
        centred = x - x.mean(-1, keepdim=True)
        normed = centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt()
        return normed * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    depth = len({name.split(".")[1] for name in weights if name.startswith("blocks.")})
    for block in (f"blocks.{index}" for index in range(depth)):
        qkv = linear(f"{block}.attn.qkv", norm(f"{block}.norm1", x))
        q, k, v = qkv.unflatten(-1, (3, heads, -1)).unbind(2)
        scores = torch.einsum("bnhd,bmhd->bhnm", q, k) / q.shape[-1] ** 0.5
        mixed = torch.einsum("bhnm,bmhd->bnhd", scores.exp() / scores.exp().sum(-1, keepdim=True), v)
        x = x + linear(f"{block}.attn.proj", mixed.flatten(2))
        hidden = linear(f"{block}.mlp.fc1", norm(f"{block}.norm2", x))
        x = x + linear(f"{block}.mlp.fc2", hidden * (1 + torch.erf(hidden / 2**0.5)) / 2)
    return linear("head", norm("norm", x)[:, 0])


def test_agrees_with_a_plain_reference_on_rectangular_images_and_patches():
    model = scramble(small_vit(image_size=(24, 40), patch_size=(8, 4))).double()
    images = torch.randn(3, 3, 24, 40, dtype=torch.float64)
    expected = plain_reference(model.state_dict(), images, heads=SHAPE.heads, patch_size=(8, 4))
    torch.testing.assert_close(model(images), expected, rtol=0, atol=1e-12)  # measured: 1.6e-15


def from_transformers(weights):
    """Rename transformers' weights to timm's names."""
    names = {
        "vit.embeddings.cls_token": "cls_token",
        "vit.embeddings.position_embeddings": "pos_embed",
        "vit.embeddings.patch_embeddings.projection": "patch_embed.proj",
        "vit.layernorm": "norm",
        "vit.layers": "blocks",
        "attention.o_proj": "attn.proj",
        "layernorm_before": "norm1",
        "layernorm_after": "norm2",
        "classifier": "head",
    }
    renamed = {}
    for name, value in weights.items():
        for theirs, ours in names.items():
            name = name.replace(theirs, ours)
        renamed[name] = value
    for block in {name.split(".attention.")[0] for name in renamed if ".attention." in name}:
        for kind in ("weight", "bias"):
            parts = [renamed.pop(f"{block}.attention.{part}_proj.{kind}") for part in "qkv"]
            renamed[f"{block}.attn.qkv.{kind}"] = torch.cat(parts)
    return renamed


def test_agrees_with_transformers_given_its_weights():
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(
        hidden_size=SHAPE.dim,
        num_hidden_layers=SHAPE.depth,
        num_attention_heads=SHAPE.heads,
        intermediate_size=int(SHAPE.dim * SHAPE.mlp_ratio),
        image_size=32,
        patch_size=8,
        num_labels=5,
        layer_norm_eps=1e-6,
    )
    torch.manual_seed(0)
    reference = scramble(transformers.ViTForImageClassification(config)).eval()
    model = small_vit()
    model.load_state_dict(from_transformers(reference.state_dict()))
    images = torch.randn(4, 3, 32, 32)
    expected = reference(images)
    torch.testing.assert_close(model(images), expected.logits, rtol=0, atol=1e-5)  # measured: 8.9e-7


# As timm counts them for 224 pixels and 1000 classes.
@pytest.mark.parametrize(
    ("name", "num_parameters"),
    [
        ("vit_tiny_patch16_224", 5_717_416),
        ("vit_small_patch16_224", 22_050_664),
        ("vit_base_patch16_224", 86_567_656),
        ("vit_large_patch16_224", 304_326_632),
    ],
)
def test_sizes_have_the_published_number_of_parameters(name, num_parameters):
    with torch.device("meta"):
        model = create_model(name)
    assert sum(parameter.numel() for parameter in model.parameters()) == num_parameters


def test_names_of_the_weights_are_those_of_timm():
    names = set(small_vit(num_registers=2, qk_norm=True, layer_scale=1e-4).state_dict())
    block = {f"{layer}.{kind}" for layer in ("norm1", "attn.qkv", "attn.q_norm", "attn.k_norm", "attn.proj", "norm2",
             "mlp.fc1", "mlp.fc2") for kind in ("weight", "bias")} | {"ls1.gamma", "ls2.gamma"}  # fmt: skip
    expected = {"cls_token", "reg_token", "pos_embed"} | {f"blocks.{i}.{name}" for i in range(4) for name in block}
    expected |= {f"{layer}.{kind}" for layer in ("patch_embed.proj", "norm", "head") for kind in ("weight", "bias")}
    assert names == expected
    assert {"fc_norm.weight"} == set(small_vit(pool="mean").state_dict()) & {"norm.weight", "fc_norm.weight"}


@pytest.mark.parametrize(("prefix_position", "num_positions"), [(True, 3 + 16), (False, 16)])
def test_positions_have_entries_for_the_prefix_unless_told_otherwise(prefix_position, num_positions):
    model = small_vit(num_registers=2, prefix_position=prefix_position)
    assert model.pos_embed.shape == (1, num_positions, 32)


def test_every_variant_runs_at_its_size_and_others_and_names_its_intermediates(variant):
    for height, width in ((32, 32), (16, 40)):
        features = variant.forward_features(torch.randn(2, 3, height, width))
        num_tokens = variant.num_prefix + height * width // 64
        blocks = [f"block{index}" for index in range(4)]
        fused = ["fused"] if variant.fusion is not None else []
        assert list(features) == ["embed", *blocks, "tokens", *fused, "pooled"]
        assert all(features[name].shape == (2, num_tokens, 32) for name in ("embed", *blocks, "tokens"))
        assert features["pooled"].shape == (2, variant.num_features)
        stride = 4 if variant.options.fusion == "pyramid" else 8
        assert all(features[name].shape == (2, 32, height // stride, width // stride) for name in fused)
        assert variant.forward_head(features["pooled"]).shape == (2, 5)
        assert all(value.isfinite().all() for value in features.values())


def test_forward_is_the_head_of_the_pooled_features(variant):
    images = torch.randn(2, 3, 32, 32)
    expected = variant.forward_head(variant.forward_features(images)["pooled"])
    torch.testing.assert_close(variant(images), expected, rtol=0, atol=0)


def test_gradients_reach_every_parameter(variant):
    variant(torch.randn(2, 3, 32, 32)).square().sum().backward()
    without = [name for name, parameter in variant.named_parameters() if not parameter.grad.abs().sum() > 0]
    assert without == []


def test_images_of_a_batch_do_not_mix(variant):
    images = torch.randn(3, 3, 32, 32, requires_grad=True)
    (gradient,) = torch.autograd.grad(variant(images)[1].sum(), images)
    assert gradient[1].abs().max() > 0
    assert gradient[[0, 2]].abs().max() == 0


def test_without_positions_a_vit_does_not_see_where_patches_are_and_with_them_it_does():
    images = torch.randn(2, 3, 32, 32)
    shifted = images.roll(8, dims=2)  # by one patch
    for position, sees in (("none", False), ("learned", True), ("sincos", True), ("rotary", True)):
        model = scramble(small_vit(position=position))
        difference = (model(images) - model(shifted)).abs().max()
        assert (difference > 1e-3) == sees, position


def test_other_sizes_use_the_resampled_positions():
    model = scramble(small_vit(num_registers=1))
    images = torch.randn(2, 3, 48, 16)
    native = small_vit(num_registers=1, image_size=(48, 16))
    weights = model.state_dict()
    weights["pos_embed"] = resample_position_embedding(weights["pos_embed"], (4, 4), (6, 2), num_prefix=2)
    native.load_state_dict(weights)
    torch.testing.assert_close(model(images), native(images), rtol=0, atol=0)


def test_local_and_fusion_added_to_trained_weights_change_nothing():
    plain = scramble(small_vit())
    images = torch.randn(2, 3, 32, 32)
    for options in ({"local": True}, {"fusion": True}, {"fusion": "pyramid"}, {"local": True, "fusion": True}):
        model = small_vit(**options)
        missing, unexpected = model.load_state_dict(plain.state_dict(), strict=False)
        assert unexpected == []
        assert missing
        assert all(".local." in name or name.startswith("fusion.") for name in missing)
        torch.testing.assert_close(model(images), plain(images), rtol=0, atol=0)


def test_local_enhancement_sits_in_the_first_half_and_fusion_takes_four_depths():
    with torch.device("meta"):
        model = create_model("vit_tiny_patch16", local=True, fusion=True)
    assert [index for index, block in enumerate(model.blocks) if block.local is not None] == [0, 1, 2, 3, 4, 5]
    assert model.fusion_blocks == (2, 5, 8, 11)


def test_drop_path_rises_linearly_and_changes_training_only():
    model = small_vit(drop_path=0.6)
    torch.testing.assert_close([block.drop_path for block in model.blocks], [0.0, 0.2, 0.4, 0.6])
    scramble(model)
    images = torch.randn(6, 3, 32, 32)
    assert not torch.equal(model(images), model(images))
    model.eval()
    torch.testing.assert_close(model(images), model(images), rtol=0, atol=0)


@pytest.mark.parametrize("position", ["learned", "rotary"])
def test_patch_dropout_shortens_training_sequences_only(position):
    model = scramble(small_vit(patch_dropout=0.5, num_registers=1, position=position, drop_path=0.3))
    images = torch.randn(4, 3, 32, 32)
    assert model.forward_features(images)["tokens"].shape == (4, 2 + 8, 32)
    assert model.eval().forward_features(images)["tokens"].shape == (4, 2 + 16, 32)


def test_rotary_tables_follow_the_patches_that_dropout_kept(monkeypatch):
    model = scramble(small_vit(patch_dropout=0.1, position="rotary"))
    images = torch.randn(2, 3, 32, 32)

    def only_reorder(x, rate, num_prefix):
        order = torch.stack([torch.cat([torch.tensor([0]), 1 + torch.randperm(16)]) for _ in x])
        return x.gather(1, order[:, :, None].expand(-1, -1, x.shape[2])), order

    monkeypatch.setattr("vitrail.layers.embed.drop_patches", only_reorder)
    reordered = model(images)
    torch.testing.assert_close(reordered, model.eval()(images), rtol=0, atol=2e-5)  # measured: 1.8e-6


def test_a_model_built_on_the_meta_device_gets_its_weights_later(variant):
    with torch.device("meta"):
        empty = VisionTransformer(variant.shape, variant.options)
    assert {parameter.device.type for parameter in empty.parameters()} == {"meta"}
    assert list(empty.buffers()) == []  # everything that is not learned is computed, nothing can be left behind
    empty.load_state_dict(variant.state_dict(), assign=True)
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(empty(images), variant(images), rtol=0, atol=0)
    fresh = empty.to_empty(device="cpu")
    fresh.reset_parameters()
    torch.manual_seed(0)
    assert fresh(images).isfinite().all()


def test_initial_weights_follow_the_table():
    model = create_model("vit_tiny_patch16", num_classes=1000, num_registers=2, layer_scale=1e-4, local=True)
    weights = dict(model.named_parameters())
    for name, std in (
        ("head.weight", 0.02),
        ("blocks.0.attn.qkv.weight", 0.02),
        ("pos_embed", 0.02),
        ("patch_embed.proj.weight", 768**-0.5),
    ):
        assert weights[name].std().item() == pytest.approx(std, rel=0.02), name
    assert weights["cls_token"].abs().max() < 1e-5
    assert (weights["blocks.3.ls1.gamma"] == 1e-4).all()
    assert (weights["blocks.3.norm1.weight"] == 1).all()
    zero = ["head.bias", "blocks.0.attn.qkv.bias", "patch_embed.proj.bias", "norm.bias", "blocks.0.local.gate.weight"]
    assert all(not weights[name].any() for name in zero)


def test_head_can_be_replaced_and_left_out():
    model = create_model("vit_micro_patch8", image_size=16, num_classes=5)
    body = {name: value.clone() for name, value in model.state_dict().items() if not name.startswith("head")}
    images = torch.randn(2, 3, 16, 16)
    model.reset_head(7)
    assert model(images).shape == (2, 7)
    assert (model.num_classes, model.spec.num_classes) == (7, 7)
    model.reset_head(0)
    torch.testing.assert_close(model(images), model.forward_features(images)["pooled"], rtol=0, atol=0)
    torch.testing.assert_close(dict(model.state_dict()), body, rtol=0, atol=0)


def test_positions_and_learned_tokens_have_no_weight_decay():
    model = small_vit(num_registers=1, pool="attention")
    assert model.no_weight_decay() == {"cls_token", "reg_token", "pos_embed", "attn_pool.latent"}
    assert small_vit(position="rotary").no_weight_decay() == {"cls_token"}


def test_feature_info_tells_the_width_and_stride_of_each_depth():
    info = small_vit(patch_size=(8, 4)).feature_info
    assert [entry["name"] for entry in info] == ["block0", "block1", "block2", "block3"]
    assert info[0] == {"name": "block0", "channels": 32, "stride": (8, 4)}


@pytest.mark.parametrize("name", list(VITS))
def test_every_name_builds_its_patch_size_and_can_be_built_again_from_its_spec(name):
    patch = int(name.rpartition("patch")[2])
    with torch.device("meta"):
        model = create_model(name, image_size=(2 * patch, 3 * patch), in_channels=1, num_classes=2, fusion=True)
        again = create_model(**json.loads(json.dumps(model.spec.to_dict())))
    assert model.patch_embed.patch_size == (patch, patch)
    assert again.spec == model.spec == ModelSpec.from_dict(model.spec.to_dict())
    shapes = {key: value.shape for key, value in model.state_dict().items()}
    assert shapes == {key: value.shape for key, value in again.state_dict().items()}


def test_spec_keeps_options_that_json_has_no_type_for():
    model = create_model("vit_micro_patch8", image_size=16, local=True, local_blocks=(1, 4), patch_size=(4, 8))
    again = create_model(**json.loads(json.dumps(model.spec.to_dict())))
    assert again.spec == model.spec
    assert again.local_blocks == (1, 4)
    assert again.patch_embed.patch_size == (4, 8)


def test_size_at_the_end_of_a_name_is_the_image_size_unless_one_is_given():
    with torch.device("meta"):
        assert create_model("vit_tiny_patch16_384").image_size == (384, 384)
        assert create_model("vit_tiny_patch16_384", image_size=64).image_size == (64, 64)
        assert create_model("vit_tiny_patch16").image_size == (224, 224)
        assert create_model("vit_tiny_patch16_384").spec.name == "vit_tiny_patch16"


def test_the_pyramid_fuses_three_resolutions_on_twice_the_grid():
    model = create_model("vit_micro_patch8", image_size=(32, 48), num_classes=3, fusion="pyramid").eval()
    seen = []
    model.fusion.fuse.register_forward_pre_hook(lambda _, inputs: seen.append([each.shape[1:] for each in inputs[0]]))
    fused = model.forward_features(torch.randn(2, 3, 32, 48))["fused"]
    assert fused.shape == (2, 128, 8, 12)
    assert seen[0] == [(128, 4, 6)] * 4 + [(32, 8, 12), (32, 4, 6), (32, 2, 3)]


def test_list_models_takes_a_pattern():
    assert len(list_models()) == len(MODELS)
    assert list_models("vit_large_*14") == ["vit_large_patch14"]
    assert list_models("resnet*") == ["resnet18", "resnet34", "resnet50"]


@pytest.mark.parametrize("name", ["vit_tinny_patch16", "vit_tinny_patch16_224"])
def test_a_misspelt_name_gets_the_nearest_one(name):
    with pytest.raises(UnknownNameError, match="Did you mean 'vit_tiny_patch16'"):
        create_model(name)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_regsters": 4}, "no option 'num_regsters'. Did you mean 'num_registers'"),
        ({"pool": "men"}, "pool is 'men'; it takes 'token', 'mean', 'attention'. Did you mean 'mean'"),
        ({"position": "sincoss"}, "Did you mean 'sincos'"),
        ({"local": "adaptve"}, "Did you mean 'adaptive'"),
        ({"fusion": "pyramd"}, "Did you mean 'pyramid'"),
        ({"class_token": False}, 'pool "token" needs a class token'),
        ({"image_size": 30}, "30 x 30 pixels is not a whole number of patches of 8 x 8"),
        ({"image_size": (8, 8, 8)}, "image_size"),
        ({"patch_size": 0}, "patch_size is 0"),
        ({"num_classes": -1}, "num_classes is -1; it takes a whole number from 0"),
        ({"drop_path": 1.0}, "drop_path is 1.0"),
        ({"patch_dropout": 1.5}, "patch_dropout is 1.5"),
        ({"patch_dropout": 0.5, "fusion": True}, "patch_dropout leaves no grid"),
        ({"local": True, "local_blocks": (6,)}, "local_blocks is .*from 0 to 5"),
        ({"fusion": True, "fusion_blocks": ()}, "fusion_blocks is .*from 0 to 5"),
        ({"fusion_blocks": (1,)}, "give fusion=True"),
    ],
)
def test_wrong_options_are_refused_with_what_is_allowed(options, message):
    with torch.device("meta"), pytest.raises(ConfigError, match=message):
        create_model("vit_micro_patch8", **{"image_size": 16, **options})


def test_images_of_the_wrong_size_are_refused():
    with pytest.raises(ConfigError, match="33 x 32 pixels"):
        small_vit()(torch.randn(1, 3, 33, 32))


def test_forward_keeps_no_intermediate_alive_without_need():
    model = small_vit().eval()
    outputs, num_alive = [], []

    def count(block, inputs, output):
        outputs.append(weakref.ref(output))
        num_alive.append(sum(reference() is not None for reference in outputs))

    for block in model.blocks:
        block.register_forward_hook(count)
    with torch.no_grad():
        model(torch.randn(1, 3, 32, 32))
    assert num_alive == [1, 2, 2, 2]  # what goes into a block, and what comes out
