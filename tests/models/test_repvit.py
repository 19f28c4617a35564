"""RepViT: what training branches fold into, the two heads of published weights, and ONNX."""

import pytest
import torch
import torch.nn.functional as F

from vitrail.layers.conv import fold
from vitrail.models import create_model
from vitrail.models.repvit import SHAPES, NormedLinear, TokenMixer, merge_heads, recognise

SECOND_HEAD = {"repvit_m0_9": 385_768, "repvit_m1_0": 449_896, "repvit_m1_1": 514_024}
"""Parameters of the head for the teacher's answers, which timm's models have besides."""
PARAMETERS = {"repvit_m0_9": 5_489_328, "repvit_m1_0": 7_302_796, "repvit_m1_1": 8_802_912}
"""Of timm 1.0.31's models with the same names and 1000 classes, both heads included."""
FOLDED_M = {"repvit_m0_9": 5.07, "repvit_m1_0": 6.81, "repvit_m1_1": 8.24}
"""Millions of parameters when folded, as timm's benchmarks print them."""


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
def test_it_has_timms_number_of_parameters_but_for_the_second_head(name):
    with torch.device("meta"):
        assert num_parameters(create_model(name)) == PARAMETERS[name] - SECOND_HEAD[name]


@pytest.mark.parametrize("name", PARAMETERS)
def test_it_folds_to_the_published_number_of_parameters(name):
    assert num_parameters(fold(create_model(name))) / 1e6 == pytest.approx(FOLDED_M[name], abs=0.005)


def test_a_token_mixer_is_the_norm_of_three_branches_and_folds_into_one_convolution():
    """Seen: 8e-8 of the largest value."""
    mixer = scramble(TokenMixer(12))
    x = torch.randn(2, 12, 7, 9)
    with torch.inference_mode():
        branches = mixer.conv(x) + F.conv2d(x, mixer.conv1.weight, mixer.conv1.bias, groups=12) + x
        expected = mixer.bn(branches)
        assert worst(mixer(x), expected) < 2e-6
        folded = fold(mixer)
        assert worst(folded(x), expected) < 2e-6
    assert [type(module) for module in folded.children()] == [torch.nn.Conv2d]
    assert num_parameters(folded) == 12 * (9 + 1)
    assert torch.equal(fold(folded).folded.weight, folded.folded.weight)  # once is enough


def test_a_folded_model_gives_the_same_answers_without_norms():
    """In float64. Seen: 1e-14 of the largest logit."""
    model = scramble(create_model("repvit_m0_9", num_classes=5)).double()
    folded = fold(model)
    assert not [module for module in folded.modules() if "BatchNorm" in type(module).__name__]
    with torch.inference_mode():
        assert worst(folded(pictures().double()), model(pictures().double())) < 1e-9


def test_the_norm_before_the_head_stays_where_there_is_no_head():
    head = fold(scramble(NormedLinear(8, 0)))
    assert isinstance(head.bn, torch.nn.BatchNorm1d)


def test_two_heads_become_one_with_the_mean_of_their_logits():
    """Seen: 3e-7 of the largest logit."""
    model = scramble(create_model("repvit_m0_9", num_classes=5))
    other = NormedLinear(model.num_features, 5).eval()
    with torch.no_grad():
        for tensor in other.state_dict().values():
            if tensor.is_floating_point():
                tensor.add_(torch.rand(tensor.shape, generator=torch.Generator().manual_seed(3)))
    tensors = {**model.state_dict(), **{f"head.head_dist.{name}": value for name, value in other.state_dict().items()}}
    with torch.inference_mode():
        means = model.forward_features(pictures())["stage4"].mean(dim=(2, 3))
        expected = (model(pictures()) + other.l(other.bn(means))) / 2
        model.load_state_dict(merge_heads(tensors), strict=True)
        assert worst(model(pictures()), expected) < 2e-6


def test_weights_with_one_head_are_left_alone():
    tensors = create_model("repvit_m0_9", num_classes=5).state_dict()
    assert merge_heads(tensors) is tensors


@pytest.mark.parametrize("size", SHAPES)
def test_it_is_recognised_by_its_tensors_with_any_head_and_image(size):
    with torch.device("meta"):
        model = create_model(f"repvit_{size}", num_classes=0, in_channels=1)
    assert recognise(model.state_dict()) == f"repvit_{size}"


def test_other_networks_are_not_taken_for_it():
    with torch.device("meta"):
        tensors = create_model("repvit_m0_9").state_dict()
        others = [create_model("resnet18").state_dict(), {}]
    deeper = tensors["stages.3.blocks.1.token_mixer.conv.c.weight"]
    others.append({**tensors, "stages.3.blocks.2.token_mixer.conv.c.weight": deeper})
    # The first RepViTs, "repvit_m1" to "m3": no norm behind the sum.
    others.append({name: tensor for name, tensor in tensors.items() if ".token_mixer.bn." not in name})
    assert [recognise(other) for other in others] == [None] * 4


def test_stochastic_depth_leaves_out_whole_branches():
    """The rates rise from 0 to the option's in the last branch, and dropped rows are not computed."""
    model = create_model("repvit_m0_9", num_classes=3, image_size=64, drop_path=0.5).train()
    rates = [module.drop_path for _, module in model.named_modules() if hasattr(module, "drop_path")]
    assert rates[-1] == 0.5
    assert sorted(rates) == pytest.approx([0.5 * index / (len(rates) - 1) for index in range(len(rates))])
    seen = []
    model.get_submodule("stages.3.blocks.1.channel_mixer").register_forward_hook(
        lambda module, inputs, output: seen.append(len(inputs[0]))
    )
    model(pictures(8))
    assert seen == [4]
