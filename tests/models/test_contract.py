"""What holds for every model of the table, whatever its family."""

import pytest
import torch

from vitrail.evaluation.cost import model_cost
from vitrail.layers.conv import fold
from vitrail.models import MODELS, create_model

LARGEST_COMPUTED = 15e6
"""Parameters of the largest models that compute in this file; larger ones differ in widths and depths only."""


def on_meta(name, **options):
    with torch.device("meta"):
        return create_model(name, **options)


def num_parameters(model):
    return sum(parameter.numel() for parameter in model.parameters())


SMALL = [name for name in MODELS if num_parameters(on_meta(name, num_classes=10)) <= LARGEST_COMPUTED]
LARGE = [name for name in MODELS if name not in SMALL]


def smallest_side(name):
    """Two cells of the last grid."""
    return 2 * MODELS[name].multiple


def build(name, **options):
    torch.manual_seed(0)
    return create_model(name, **{"num_classes": 5, "image_size": smallest_side(name), **options})


def images_for(model, batch=2):
    generator = torch.Generator().manual_seed(1)
    channels = model.get_submodule(model.stem_name).in_channels
    return torch.randn(batch, channels, *model.image_size, generator=generator)


@pytest.mark.parametrize("name", MODELS)
def test_it_costs_what_the_literature_says(name):
    """Within half a unit of the last printed digit for parameters, and 4 % for multiply-adds, whose rules differ."""
    published = MODELS[name].published
    if published.params_m is None:
        pytest.skip("no published number")
    cost = model_cost(on_meta(name, image_size=published.image_size), (published.image_size,) * 2)
    digits = len(str(published.params_m).partition(".")[2])
    assert cost.parameters / 1e6 == pytest.approx(published.params_m, abs=0.501 * 10**-digits)
    if published.macs_m is not None:
        assert cost.macs / 1e6 == pytest.approx(published.macs_m, rel=0.04)


@pytest.mark.parametrize("name", MODELS)
def test_it_builds_on_the_meta_device_for_any_channels_and_classes(name):
    model = on_meta(name, num_classes=7, in_channels=4)
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
    logits = model(torch.empty(2, 4, *model.image_size, device="meta"))
    assert logits.shape == (2, 7)


@pytest.mark.parametrize("name", MODELS)
def test_every_parameter_is_in_one_group_by_depth(name):
    model = on_meta(name, num_classes=3)
    prefixes = [prefix for group in model.layer_groups() for prefix in group]
    assert len(set(prefixes)) == len(prefixes)
    for parameter, _ in model.named_parameters():
        assert any(parameter.startswith(prefix) for prefix in prefixes), parameter
    head = model.head_name + "."
    assert any(head.startswith(prefix) for prefix in model.layer_groups()[-1])
    assert any(f"{model.stem_name}.".startswith(prefix) for prefix in model.layer_groups()[0])
    assert model.no_weight_decay() <= {parameter for parameter, _ in model.named_parameters()}


@pytest.mark.parametrize("name", MODELS)
def test_features_have_the_promised_names_widths_and_strides(name):
    model = on_meta(name, image_size=smallest_side(name)).eval()
    features = model.forward_features(torch.empty(2, 3, *model.image_size, device="meta"))
    assert list(features)[-1] == "pooled"
    assert features["pooled"].shape == (2, model.num_features)
    for info in model.feature_info:
        feature = features[info["name"]]
        rows, columns = (-(-side // step) for side, step in zip(model.image_size, info["stride"], strict=True))
        if feature.ndim == 4:
            assert feature.shape == (2, info["channels"], rows, columns)
        else:
            assert feature.shape[::2] == (2, info["channels"])
            assert feature.shape[1] >= rows * columns


@pytest.mark.parametrize("name", SMALL)
def test_the_logits_are_those_that_the_head_makes_of_the_pooled_features(name):
    model = build(name).eval()
    images = images_for(model)
    torch.testing.assert_close(model.forward_head(model.forward_features(images)["pooled"]), model(images))


@pytest.mark.parametrize("name", LARGE)
def test_what_shapes_tell_holds_for_large_models_too(name):
    """Every parameter takes part, any rectangle goes through, and a fresh head takes the place of the old one."""
    model = on_meta(name, num_classes=5, image_size=smallest_side(name)).train()
    step = MODELS[name].multiple
    images = torch.empty(2, 3, 2 * step, 3 * step, device="meta")
    logits = model(images)
    assert logits.shape == (2, 5)
    logits.sum().backward()
    assert not [key for key, value in model.named_parameters() if value.grad is None]
    model.reset_head(7)
    assert model.to("meta")(images).shape == (2, 7)
    model.reset_head(0)
    assert model(images).shape == (2, model.num_features)


@pytest.mark.parametrize("name", SMALL)
def test_a_gradient_reaches_every_parameter(name):
    model = build(name).train()
    # Branches that start at zero pass gradients once they have moved.
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.02 * torch.randn_like(parameter)
    model(images_for(model, batch=4)).square().sum().backward()
    without = [key for key, value in model.named_parameters() if value.grad is None or not value.grad.abs().sum() > 0]
    assert not without
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


@pytest.mark.parametrize("name", SMALL)
def test_images_of_a_batch_do_not_mix(name):
    model = build(name).eval()
    images = images_for(model, batch=3).requires_grad_()
    model(images)[1].sum().backward()
    touched = images.grad.abs().sum(dim=(1, 2, 3))
    assert touched[1] > 0
    assert touched[0] == touched[2] == 0


@pytest.mark.parametrize("name", SMALL)
def test_channels_last_computes_the_same(name):
    """In float64. Seen: at most 2e-14 of the largest logit; in float32 4e-5 for RepViT, which amplifies."""
    model = build(name).double().eval()
    images = images_for(model).double()
    with torch.inference_mode():
        before = model(images)
        after = model.to(memory_format=torch.channels_last)(images.to(memory_format=torch.channels_last))
    torch.testing.assert_close(after, before, rtol=0, atol=1e-9 * before.abs().max().item())


@pytest.mark.parametrize("name", SMALL)
def test_any_rectangle_of_whole_steps_goes_through(name):
    model = build(name).eval()
    step = MODELS[name].multiple
    with torch.inference_mode():
        assert model(torch.randn(1, 3, 2 * step, 3 * step)).shape == (1, 5)


@pytest.mark.parametrize("name", SMALL)
def test_a_fresh_head_takes_the_place_of_the_old_one(name):
    model = build(name).eval()
    images = images_for(model)
    pooled = model.forward_features(images)["pooled"]
    model.reset_head(7)
    assert model(images).shape == (2, 7)
    assert (model.num_classes, model.spec.num_classes) == (7, 7)
    model.reset_head(0)
    torch.testing.assert_close(model(images), model.forward_features(images)["pooled"])
    torch.testing.assert_close(model(images), pooled)


@pytest.mark.parametrize("name", SMALL)
def test_folding_changes_no_answer_and_leaves_no_norm_to_fold(name):
    """In float64. Seen: at most 2e-14 of the largest logit."""
    model = build(name).double().train()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.running_mean += 0.1 * torch.randn_like(module.running_mean)
                module.running_var *= 1 + torch.rand_like(module.running_var)
                module.weight += 0.2 * torch.randn_like(module.weight)
                module.bias += 0.1 * torch.randn_like(module.bias)
    model.eval()
    images = images_for(model).double()
    with torch.inference_mode():
        expected = model(images)
    smaller = fold(model)
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in smaller.modules())
    with torch.inference_mode():
        torch.testing.assert_close(smaller(images), expected, rtol=0, atol=1e-9 * expected.abs().max().item())


@pytest.mark.parametrize("name", SMALL)
def test_stochastic_depth_is_for_training_only(name):
    model = build(name, drop_path=0.5)
    plain = build(name)
    plain.load_state_dict(model.state_dict())
    images = images_for(model, batch=4)
    with torch.inference_mode():
        torch.testing.assert_close(model.eval()(images), plain.eval()(images))
