import pytest
import torch
import torch.nn.functional as F

from vitrail.errors import ConfigError
from vitrail.evaluation.cost import model_cost
from vitrail.layers.conv import DepthwiseConv2d
from vitrail.layers.ghost import GhostBottleneck, GhostModule
from vitrail.models import create_model
from vitrail.models.ghostnet import recognise


def scramble(module):
    """Give every weight and statistic a value that a mistake would show."""
    generator = torch.Generator().manual_seed(1)
    for name, tensor in module.state_dict().items():
        if tensor.is_floating_point():
            noise = torch.rand(tensor.shape, generator=generator, dtype=tensor.dtype)
            tensor.copy_(noise + 0.5 if name.endswith("running_var") else tensor + 0.4 * (noise - 0.5))
    return module.double().eval()


def norm_by_hand(weights, name, x):
    scale = weights[f"{name}.weight"] / (weights[f"{name}.running_var"] + 1e-5).sqrt()
    shift = weights[f"{name}.bias"] - weights[f"{name}.running_mean"] * scale
    return torch.einsum("bchw,c->bchw", x, scale) + shift[:, None, None]


def depthwise_by_hand(weights, name, x, stride=1):
    """Sum shifted copies of the padded map, one for each place in the kernel."""
    kernel = weights[f"{name}.weight"][:, 0]
    margin = kernel.shape[-1] // 2
    height, width = x.shape[2:]
    padded = F.pad(x, [margin] * 4)
    total = torch.zeros_like(x)
    for row in range(kernel.shape[1]):
        for column in range(kernel.shape[2]):
            moved = padded[:, :, row : row + height, column : column + width]
            total += torch.einsum("bchw,c->bchw", moved, kernel[:, row, column])
    return total[:, :, ::stride, ::stride]


def pointwise_by_hand(weights, name, x):
    return torch.einsum("bchw,oc->bohw", x, weights[f"{name}.weight"][:, :, 0, 0])


def ghost_by_hand(weights, name, x, *, act):
    """A Ghost module in other words than ours."""

    def activated(y):
        return y.clamp(min=0) if act else y

    first = pointwise_by_hand(weights, f"{name}.primary_conv.0", x)
    first = activated(norm_by_hand(weights, f"{name}.primary_conv.1", first))
    second = depthwise_by_hand(weights, f"{name}.cheap_operation.0", first)
    second = activated(norm_by_hand(weights, f"{name}.cheap_operation.1", second))
    out = x.new_empty(x.shape[0], 2 * first.shape[1], *x.shape[2:])
    out[:, : first.shape[1]], out[:, first.shape[1] :] = first, second
    return out


def excite_by_hand(weights, name, x):
    def layer(part, y):
        return y @ weights[f"{name}.{part}.weight"][:, :, 0, 0].T + weights[f"{name}.{part}.bias"]

    hidden = layer("conv_reduce", x.flatten(2).sum(-1) / x[0, 0].numel()).clamp(min=0)
    gate = ((layer("conv_expand", hidden) + 3) / 6).clamp(0, 1)
    return torch.einsum("bchw,bc->bchw", x, gate)


def bottleneck_by_hand(weights, x, *, stride):
    y = ghost_by_hand(weights, "ghost1", x, act=True)
    if stride > 1:
        y = norm_by_hand(weights, "bn_dw", depthwise_by_hand(weights, "conv_dw", y, stride))
    if "se.conv_reduce.weight" in weights:
        y = excite_by_hand(weights, "se", y)
    y = ghost_by_hand(weights, "ghost2", y, act=False)
    if "shortcut.0.weight" in weights:
        x = norm_by_hand(weights, "shortcut.1", depthwise_by_hand(weights, "shortcut.0", x, stride))
        x = norm_by_hand(weights, "shortcut.3", pointwise_by_hand(weights, "shortcut.2", x))
    return x + y


@pytest.mark.parametrize(
    ("dims", "options"),
    [
        ((8, 24, 8), {}),
        ((8, 24, 8), {"excite": True}),
        ((8, 24, 12), {"excite": True}),
        ((8, 24, 12), {"kernel": 5, "stride": 2, "excite": True}),
        ((8, 24, 12), {"kernel": 3, "stride": 2}),
    ],
)
def test_the_bottleneck_agrees_with_a_plain_reference(dims, options):
    """Seen: at most 9e-16, in float64."""
    block = scramble(GhostBottleneck(*dims, **options))
    x = torch.randn(2, 8, 7, 10, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    with torch.no_grad():
        expected = bottleneck_by_hand(block.state_dict(), x, stride=options.get("stride", 1))
        torch.testing.assert_close(block(x), expected, rtol=0, atol=1e-12)


def test_half_of_a_ghost_modules_channels_see_one_pixel_and_half_its_neighbours():
    module = scramble(GhostModule(6, 8, act=False))
    x = torch.zeros(1, 6, 5, 5, dtype=torch.float64)
    with torch.no_grad():
        before = module(x)
        x[0, :, 2, 2] = 1
        changed = (module(x) != before)[0]
    assert changed[:4].sum(dim=(1, 2)).tolist() == [1] * 4
    assert changed[4:].sum(dim=(1, 2)).tolist() == [9] * 4


def test_a_reducing_convolution_trains_in_float32_inside_bfloat16_autocast():
    torch.manual_seed(0)
    conv, x = DepthwiseConv2d(8, 5, 2), torch.randn(2, 8, 9, 9).bfloat16()
    exact = F.conv2d(x.float(), conv.weight, stride=2, padding=2, groups=8)
    with torch.autocast("cpu", torch.bfloat16):
        trained = conv(x)
    assert torch.equal(trained, exact.bfloat16())
    trained.float().square().sum().backward()
    (expected,) = torch.autograd.grad((exact + (trained.float() - exact).detach()).square().sum(), conv.weight)
    # Seen: equal. A gradient in bfloat16 would be off by some 1e-3.
    torch.testing.assert_close(conv.weight.grad, expected, rtol=0, atol=1e-5 * expected.abs().max().item())


def test_an_odd_number_of_channels_is_refused():
    with pytest.raises(ConfigError, match="out_dim is 7"):
        GhostModule(4, 7, act=True)


# timm's GhostNet has these numbers of parameters, and its names.
@pytest.mark.parametrize(
    ("name", "parameters", "macs_m"),
    [("ghostnet_050", 2_587_292, 42.3), ("ghostnet_100", 5_182_508, 141.2), ("ghostnet_130", 7_358_820, 227.0)],
)
def test_sizes(name, parameters, macs_m):
    with torch.device("meta"):
        cost = model_cost(create_model(name), (224, 224))
    assert cost.parameters == parameters
    assert cost.macs / 1e6 == pytest.approx(macs_m, abs=0.05)


def test_names_are_those_of_timm():
    with torch.device("meta"):
        shapes = {key: tuple(value.shape) for key, value in create_model("ghostnet_100").state_dict().items()}
    expected = {
        "conv_stem.weight": (16, 3, 3, 3),
        "bn1.running_var": (16,),
        "blocks.0.0.ghost1.primary_conv.0.weight": (8, 16, 1, 1),
        "blocks.1.0.conv_dw.weight": (48, 1, 3, 3),
        "blocks.1.0.bn_dw.weight": (48,),
        "blocks.3.0.se.conv_reduce.weight": (20, 72, 1, 1),
        "blocks.3.0.se.conv_expand.bias": (72,),
        "blocks.3.0.shortcut.0.weight": (24, 1, 5, 5),
        "blocks.3.0.shortcut.3.running_mean": (40,),
        "blocks.6.4.ghost1.cheap_operation.0.weight": (336, 1, 3, 3),
        "blocks.8.3.ghost2.cheap_operation.1.num_batches_tracked": (),
        "blocks.9.0.conv.weight": (960, 160, 1, 1),
        "blocks.9.0.bn1.bias": (960,),
        "conv_head.bias": (1280,),
        "classifier.weight": (1000, 1280),
    }
    assert {key: shapes.get(key) for key in expected} == expected
    assert len(shapes) == 512


def test_stochastic_depth_grows_with_depth_and_spares_blocks_that_change_the_shape():
    with torch.device("meta"):
        model = create_model("ghostnet_050", drop_path=0.3)
    blocks = [block for block in model.modules() if isinstance(block, GhostBottleneck)]
    assert [block.drop_path for block in blocks] == pytest.approx([0.02 * index for index in range(16)])
    torch.manual_seed(0)
    block = GhostBottleneck(8, 16, 12, drop_path=0.5).train()
    torch.nn.init.zeros_(block.shortcut[3].weight)  # what is left is the branch, which no row may lack
    assert (block(torch.randn(6, 8, 4, 4)).abs().sum(dim=(1, 2, 3)) > 0).all()


def test_dropout_is_for_training_only():
    model = create_model("ghostnet_050", num_classes=3, dropout=0.9)
    pooled = torch.ones(2, 1280)
    assert not torch.equal(model.train().forward_head(pooled), model.eval().forward_head(pooled))
    torch.testing.assert_close(model.forward_head(pooled), model.classifier(pooled))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"drop_path": 1.0}, "drop_path is 1.0"),
        ({"dropout": -0.1}, "dropout is -0.1"),
        ({"num_classes": -1}, "num_classes is -1"),
        ({"in_channels": 0}, "in_channels is 0"),
        ({"dropuot": 0.1}, "dropout"),
    ],
)
def test_values_outside_their_range_are_refused(options, says):
    with pytest.raises(ConfigError, match=says):
        create_model("ghostnet_050", **options)


@pytest.mark.parametrize("name", ["ghostnet_050", "ghostnet_100", "ghostnet_130"])
def test_weights_tell_their_width(name):
    with torch.device("meta"):
        tensors = create_model(name, num_classes=7, in_channels=1).state_dict()
        assert recognise(create_model("mocovit_100").state_dict()) is None
    assert recognise(tensors) == name
    assert recognise({key: value for key, value in tensors.items() if not key.startswith("classifier")}) == name
    assert recognise({"conv_stem.weight": torch.empty(20, 3, 3, 3)}) is None
