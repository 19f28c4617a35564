import pytest
import torch

from vitrail.errors import ConfigError
from vitrail.evaluation.cost import model_cost
from vitrail.models import create_model, list_models
from vitrail.models.lucarne import LocalEnhancement2d, SingleHeadAttention

MOBILEVIT_XS_PARAMETERS = 2_317_848


def small(**options):
    torch.manual_seed(0)
    return create_model("lucarne_xs", **{"num_classes": 5, "image_size": 64, **options})


@pytest.mark.parametrize("name", list_models("lucarne_*"))
def test_it_is_smaller_than_what_it_is_to_replace(name):
    cost = model_cost(create_model(name), (224, 224))
    assert cost.parameters <= MOBILEVIT_XS_PARAMETERS


def test_attention_is_softmax_of_one_head_over_all_positions():
    """The same written with sums over positions. Seen: 2e-7."""
    torch.manual_seed(0)
    attention = SingleHeadAttention(dim=8, key_dim=4).eval()
    x = torch.randn(2, 8, 3, 5)

    def conv(part, maps):
        weight = part.conv.weight[:, :, 0, 0] / (part.bn.running_var + part.bn.eps).sqrt()[:, None]
        return torch.einsum("oc,bcp->bop", weight, maps)

    parts = conv(attention.qkv, x.flatten(2))
    q, k, v = parts[:, :4], parts[:, 4:8], parts[:, 8:]
    scores = torch.einsum("bdp,bdr->bpr", q, k) / 2
    shares = scores.exp() / scores.exp().sum(dim=2, keepdim=True)
    expected = conv(attention.proj, torch.einsum("bpr,bcr->bcp", shares, v)).view_as(x)
    torch.testing.assert_close(attention(x), expected, rtol=0, atol=2e-6)


def test_local_enhancement_adds_gated_detail_and_nothing_where_the_gate_is_shut():
    torch.manual_seed(0)
    module = LocalEnhancement2d(6).eval()
    x = torch.randn(2, 6, 5, 5)
    assert (module(x) >= x).all()  # what a ReLU adds
    torch.nn.init.constant_(module.gate.bias, -1e4)
    torch.testing.assert_close(module(x), x)


@pytest.mark.parametrize(
    "options", [{"local": False}, {"fusion": False}, {"attention": False}], ids=lambda options: next(iter(options))
)
def test_each_part_can_be_left_out(options):
    model = small(**options).eval()
    assert model(torch.randn(2, 3, 64, 64)).shape == (2, 5)
    kinds = {type(module).__name__ for module in model.modules()}
    missing = {"local": "LocalEnhancement2d", "fusion": "MultiScaleFusion", "attention": "SingleHeadAttention"}
    assert missing[next(iter(options))] not in kinds


def test_the_head_hears_of_three_strides():
    model = small().eval()
    with torch.no_grad():
        for parameter in model.fusion.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    images = torch.randn(1, 3, 64, 64)
    maps = {}
    for name, module in (("stage2", model.blocks[1]), ("stage3", model.blocks[2]), ("stage4", model.blocks[3])):
        module.register_forward_hook(lambda _, __, out, name=name: maps.setdefault(name, out.retain_grad() or out))
    model(images).sum().backward()
    assert all(maps[name].grad.abs().sum() > 0 for name in ("stage2", "stage3", "stage4"))


def test_a_wrong_rate_is_refused():
    with pytest.raises(ConfigError, match=r"drop_path is 1\.5"):
        create_model("lucarne_s", drop_path=1.5)
