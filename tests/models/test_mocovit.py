import pytest
import torch
import torch.nn.functional as F

from vitrail.evaluation.cost import model_cost
from vitrail.models import create_model
from vitrail.models.ghostnet import GhostNet
from vitrail.models.mocovit import MobileFeedForward, MobileSelfAttention, MobileTransformerBlock, recognise

NAMES = ("mocovit_050", "mocovit_060", "mocovit_075", "mocovit_100", "mocovit_130")


def scramble(module):
    """Give every weight and statistic a value that a mistake would show."""
    generator = torch.Generator().manual_seed(1)
    for name, tensor in module.state_dict().items():
        if tensor.is_floating_point():
            noise = torch.rand(tensor.shape, generator=generator, dtype=tensor.dtype)
            tensor.copy_(noise + 0.5 if name.endswith("running_var") else tensor + 0.4 * (noise - 0.5))
    return module.double().eval()


def some_map():
    return torch.randn(2, 8, 5, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


def conv_norm_by_hand(weights, conv, norm, x):
    """A 1x1 or a depthwise convolution and its norm, position by position."""
    kernel = weights[f"{conv}.weight"]
    margin = kernel.shape[-1] // 2
    padded = F.pad(x, [margin] * 4)
    rows = []
    for row in range(x.shape[2]):
        for column in range(x.shape[3]):
            window = padded[:, :, row : row + kernel.shape[2], column : column + kernel.shape[3]]
            rule = "bcij,cij->bc" if margin else "bcij,ocij->bo"
            rows.append(torch.einsum(rule, window, kernel[:, 0] if margin else kernel))
    out = torch.stack(rows, dim=-1).unflatten(-1, x.shape[2:])
    centred = out - weights[f"{norm}.running_mean"][:, None, None]
    scaled = centred * (weights[f"{norm}.weight"] / (weights[f"{norm}.running_var"] + 1e-5) ** 0.5)[:, None, None]
    return scaled + weights[f"{norm}.bias"][:, None, None]


def ghost_by_hand(weights, name, x, *, act=False):
    first = conv_norm_by_hand(weights, f"{name}.primary_conv.0", f"{name}.primary_conv.1", x)
    first = first.clamp(min=0) if act else first
    second = conv_norm_by_hand(weights, f"{name}.cheap_operation.0", f"{name}.cheap_operation.1", first)
    return torch.hstack([first, second.clamp(min=0) if act else second])


def attention_by_hand(weights, x):
    """Each position asks all positions, one at a time."""
    value = ghost_by_hand(weights, "value", x)
    num_channels = value.shape[1]
    mixed = torch.empty_like(value)
    for row in range(x.shape[2]):
        for column in range(x.shape[3]):
            scores = torch.einsum("bc,bchw->bhw", value[:, :, row, column], value) / num_channels**0.5
            shares = scores.exp() / scores.exp().sum(dim=(1, 2), keepdim=True)
            mixed[:, :, row, column] = torch.einsum("bhw,bchw->bc", shares, value)
    local = conv_norm_by_hand(weights, "depthwise.conv", "depthwise.bn", value)
    return ghost_by_hand(weights, "proj", mixed + local)


def feed_forward_by_hand(weights, x):
    hidden = ghost_by_hand(weights, "ghost1", x, act=True)
    if "se.conv_reduce.weight" in weights:
        means = hidden.flatten(2).sum(-1) / (x.shape[2] * x.shape[3])
        inner = means @ weights["se.conv_reduce.weight"].flatten(1).T + weights["se.conv_reduce.bias"]
        outer = inner.clamp(min=0) @ weights["se.conv_expand.weight"].flatten(1).T + weights["se.conv_expand.bias"]
        hidden = torch.einsum("bchw,bc->bchw", hidden, ((outer + 3) / 6).clamp(0, 1))
    return ghost_by_hand(weights, "ghost2", hidden)


def test_mobile_self_attention_agrees_with_a_plain_reference():
    """Seen: 4e-16, in float64."""
    attention = scramble(MobileSelfAttention(8))
    with torch.no_grad():
        expected = attention_by_hand(attention.state_dict(), some_map())
        torch.testing.assert_close(attention(some_map()), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("excite", [False, True])
def test_the_mobile_feed_forward_network_agrees_with_a_plain_reference(excite):
    """Seen: 4e-16, in float64."""
    network = scramble(MobileFeedForward(8, 24, excite=excite))
    with torch.no_grad():
        expected = feed_forward_by_hand(network.state_dict(), some_map())
        torch.testing.assert_close(network(some_map()), expected, rtol=0, atol=1e-12)


def test_a_block_adds_both_branches_once():
    block, x = scramble(MobileTransformerBlock(8, 24, excite=True)), some_map()
    with torch.no_grad():
        between = x + attention_by_hand(block.attn.state_dict(), x)
        expected = between + feed_forward_by_hand(block.ffn.state_dict(), between)
        torch.testing.assert_close(block(x), expected, rtol=0, atol=1e-12)


def test_the_order_of_positions_matters_through_the_depthwise_convolution_alone():
    attention = scramble(MobileSelfAttention(8))
    for conv in (attention.value.cheap_operation[0], attention.proj.cheap_operation[0], attention.depthwise.conv):
        centre = torch.zeros_like(conv.weight)
        centre[:, :, 1, 1] = conv.weight[:, :, 1, 1]
        conv.weight.data = centre
    order = torch.randperm(15, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        moved = attention(some_map().flatten(2)[..., order].unflatten(2, (5, 3)))
        expected = attention(some_map()).flatten(2)[..., order].unflatten(2, (5, 3))
    torch.testing.assert_close(moved, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("name", "parameters", "conv_macs_m"),
    [
        ("mocovit_050", 2_620_572, 43.9),
        ("mocovit_060", 3_049_834, 62.7),
        ("mocovit_075", 3_800_026, 89.4),
        ("mocovit_100", 5_300_268, 146.7),
        ("mocovit_130", 7_551_844, 236.2),
    ],
)
def test_sizes(name, parameters, conv_macs_m):
    """Multiply-adds without attention's two products of 49 positions, which counters of the time left out."""
    with torch.device("meta"):
        model = create_model(name)
        cost = model_cost(model, (224, 224))
    products = 4 * 2 * 49**2 * model.feature_info[-1]["channels"]
    assert cost.parameters == parameters
    assert (cost.macs - products) / 1e6 == pytest.approx(conv_macs_m, abs=0.05)


def test_every_row_of_the_table_has_its_parameters():
    with torch.device("meta"):
        model = create_model("mocovit_100")
    blocks = [block for stage in model.blocks for block in stage]
    counted = [sum(parameter.numel() for parameter in block.parameters()) for block in blocks]
    convolutional = [464, 2_564, 2_352, 9_636, 13_672, 22_920, 17_820, 16_436, 16_436, 175_792, 306_992, 362_840]
    transformer = [190_320, 652_320, 190_320, 652_320]
    assert counted == [*convolutional, *transformer, 155_520]
    assert [isinstance(block, MobileTransformerBlock) for block in blocks] == [False] * 12 + [True] * 4 + [False]


def test_all_but_the_transformer_blocks_have_the_names_and_shapes_of_a_ghostnet():
    with torch.device("meta"):
        ours, theirs = (create_model(name).state_dict() for name in ("mocovit_100", "ghostnet_100"))
    shapes, expected = (
        {key: value.shape for key, value in tensors.items() if not key.startswith("blocks.8.")}
        for tensors in (ours, theirs)
    )
    assert shapes == expected
    assert not any("blocks.8.0.ghost1" in key for key in ours)


def test_stochastic_depth_reaches_both_branches_of_the_last_block():
    with torch.device("meta"):
        model = create_model("mocovit_050", drop_path=0.3)
    assert isinstance(model, GhostNet)
    assert model.blocks[8][3].drop_path == pytest.approx(0.3)
    torch.manual_seed(0)
    block = MobileTransformerBlock(8, 16, excite=True, drop_path=0.5).train()
    x = torch.randn(4, 8, 4, 4)
    torch.nn.init.zeros_(block.ffn.ghost2.primary_conv[1].weight)
    torch.nn.init.zeros_(block.ffn.ghost2.cheap_operation[1].weight)
    unchanged = [(row == before).all().item() for row, before in zip(block(x), x, strict=True)]
    assert sum(unchanged) == 2


@pytest.mark.parametrize("name", NAMES)
def test_weights_tell_their_width(name):
    with torch.device("meta"):
        tensors = create_model(name, num_classes=7, in_channels=1).state_dict()
        assert recognise(create_model("ghostnet_100").state_dict()) is None
    assert recognise(tensors) == name
    assert recognise({"conv_stem.weight": torch.empty(20, 3, 3, 3)}) is None
