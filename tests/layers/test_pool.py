import pytest
import torch

from vitrail.errors import ConfigError
from vitrail.layers.pool import AttentionPool, DepthFusion, pool_mean, pool_token


def test_token_and_mean_pooling_take_what_they_say():
    x = torch.randn(2, 3 + 4, 5)
    torch.testing.assert_close(pool_token(x), x[:, 0], rtol=0, atol=0)
    expected = (x[:, 3] + x[:, 4] + x[:, 5] + x[:, 6]) / 4
    torch.testing.assert_close(pool_mean(x, num_prefix=3), expected)


@pytest.fixture
def attention_pool():
    torch.manual_seed(0)
    pool = AttentionPool(12, 3, mlp_ratio=2)
    pool.reset_parameters()
    return pool


def test_attention_pooling_agrees_with_einsum(attention_pool):
    pool, x = attention_pool.double(), torch.randn(2, 7, 12, dtype=torch.float64)
    q = (pool.latent[0, 0] @ pool.q.weight.T + pool.q.bias).view(3, 4)
    k, v = (x @ pool.kv.weight.T + pool.kv.bias).view(2, 7, 2, 3, 4).unbind(2)
    weights = (torch.einsum("hd,bnhd->bhn", q, k) / 2).exp()
    weights = weights / weights.sum(-1, keepdim=True)
    found = torch.einsum("bhn,bnhd->bhd", weights, v).reshape(2, 12) @ pool.proj.weight.T + pool.proj.bias
    normed = (found - found.mean(-1, True)) / (found.var(-1, False, keepdim=True) + 1e-6).sqrt()
    torch.testing.assert_close(pool(x), found + pool.mlp(normed), rtol=0, atol=1e-12)  # measured: 1e-16


def test_attention_pooling_does_not_depend_on_the_order_of_tokens(attention_pool):
    x = torch.randn(2, 9, 12)
    torch.testing.assert_close(attention_pool(x[:, torch.randperm(9)]), attention_pool(x), rtol=0, atol=1e-6)


def test_attention_pooling_refuses_heads_that_do_not_divide_the_width():
    with pytest.raises(ConfigError, match="width of 12 cannot be divided among 5 heads"):
        AttentionPool(12, 5)


def test_depth_fusion_starts_as_the_mean_of_the_normalised_levels_and_adds_nothing():
    torch.manual_seed(0)
    fusion = DepthFusion(8, 2)
    fusion.reset_parameters()
    levels = [torch.randn(3, 1 + 6, 8), 100 * torch.randn(3, 1 + 6, 8)]
    fused, added = fusion(levels, (2, 3), 1)

    def norm(x):
        return (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + 1e-6).sqrt()

    expected = (norm(levels[0]) + norm(levels[1]))[:, 1:] / 2
    assert fused.shape == (3, 8, 2, 3)
    for index in range(6):
        torch.testing.assert_close(fused[:, :, index // 3, index % 3], expected[:, index], rtol=0, atol=1e-5)
    assert added.abs().max() == 0


def test_depth_fusion_adds_the_projected_mean_of_the_fused_map():
    torch.manual_seed(0)
    fusion = DepthFusion(8, 2)
    fused, added = fusion([torch.randn(3, 6, 8), torch.randn(3, 6, 8)], (2, 3), 0)
    torch.testing.assert_close(added, fused.mean(dim=(2, 3)) @ fusion.proj.weight.T + fusion.proj.bias)
