import pytest
import torch
import torch.nn.functional as F
from torch import nn

from vitrail.errors import ConfigError
from vitrail.layers import attention
from vitrail.layers.attention import Attention, attend


@pytest.fixture
def layer():
    torch.manual_seed(0)
    return Attention(32, 4)


def test_agrees_with_torch_multihead_attention_given_its_weights(layer):
    reference = nn.MultiheadAttention(32, 4, batch_first=True)
    reference.in_proj_weight.data.copy_(layer.qkv.weight)
    reference.in_proj_bias.data.copy_(layer.qkv.bias)
    reference.out_proj.load_state_dict(layer.proj.state_dict())
    x = torch.randn(3, 10, 32)
    expected, _ = reference(x, x, x)
    torch.testing.assert_close(layer(x), expected, rtol=0, atol=1e-6)  # measured: 9e-8


def test_agrees_with_einsum_in_double_precision():
    torch.manual_seed(0)
    layer = Attention(24, 3, qkv_bias=False, qk_norm=True).double()
    x = torch.randn(2, 7, 24, dtype=torch.float64)
    q, k, v = torch.einsum("bnd,sed->sbne", x, layer.qkv.weight.view(3, 24, 24)).view(3, 2, 7, 3, 8)
    q, k = (part.sub(part.mean(-1, True)) / (part.var(-1, False, keepdim=True) + 1e-6).sqrt() for part in (q, k))
    weights = (torch.einsum("bnhd,bmhd->bhnm", q, k) / 8**0.5).exp()
    weights = weights / weights.sum(-1, keepdim=True)
    mixed = torch.einsum("bhnm,bmhd->bnhd", weights, v).reshape(2, 7, 24)
    expected = mixed @ layer.proj.weight.T + layer.proj.bias
    torch.testing.assert_close(layer(x), expected, rtol=0, atol=1e-12)  # measured: 2e-16


def test_permuting_the_tokens_permutes_the_output(layer):
    x = torch.randn(2, 9, 32)
    order = torch.randperm(9)
    torch.testing.assert_close(layer(x[:, order]), layer(x)[:, order], rtol=0, atol=1e-6)  # measured: 6e-8


def test_images_of_a_batch_do_not_mix(layer):
    x = torch.randn(3, 9, 32, requires_grad=True)
    (gradient,) = torch.autograd.grad(layer(x)[1].sum(), x)
    assert gradient[1].abs().min() > 0
    assert gradient[[0, 2]].abs().max() == 0


@pytest.mark.parametrize(
    ("dtype", "onednn_fp32", "num_tokens", "num_fused"),
    [
        (torch.bfloat16, False, 12, 0),
        (torch.bfloat16, False, 13, 1),
        (torch.float32, False, 12, 1),
        (torch.float32, True, 12, 0),
        (torch.float32, True, 13, 1),
    ],
)
def test_short_sequences_through_onednn_alone_are_written_out_and_all_give_the_same(
    monkeypatch, dtype, onednn_fp32, num_tokens, num_fused
):
    monkeypatch.setattr(attention, "onednn_multiplies_fp32", lambda: onednn_fp32)
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, 4, num_tokens, 8, dtype=dtype)
    fused, calls = F.scaled_dot_product_attention, []
    monkeypatch.setattr(attention, "CPU_EXPLICIT_MAX_TOKENS", 12)
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda *args: calls.append(args) or fused(*args))
    expected = (q.double() @ k.double().mT / 8**0.5).softmax(-1) @ v.double()
    atol = 4e-6 if dtype == torch.float32 else 0.04
    torch.testing.assert_close(attend(q, k, v).double(), expected, rtol=0, atol=atol)  # measured: 4e-7, 0.0075
    assert len(calls) == num_fused


def test_exported_graph_holds_no_fused_attention_and_at_most_four_axes(layer):
    program = torch.export.export(layer.eval(), (torch.randn(2, 9, 32),))
    operations = {str(node.target) for node in program.graph.nodes}
    assert any("softmax" in operation for operation in operations)
    assert not any("scaled_dot_product" in operation for operation in operations)
    ranks = {node.meta["val"].dim() for node in program.graph.nodes if hasattr(node.meta.get("val"), "dim")}
    assert max(ranks) == 4


@pytest.mark.parametrize("heads", [0, 5])
def test_width_that_cannot_be_divided_is_refused(heads):
    with pytest.raises(ConfigError, match=f"width of 32 cannot be divided among {heads} heads"):
        Attention(32, heads)
