import pytest
import torch
from torch import nn

from vitrail.errors import ConfigError
from vitrail.layers.block import Block, LayerScale, Mlp, add_branch


def test_block_agrees_with_its_definition_written_out():
    torch.manual_seed(0)
    block = Block(16, 2, mlp_ratio=3, layer_scale=0.5)
    x = torch.randn(2, 5, 16)

    def norm(x):
        return (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + 1e-6).sqrt()

    middle = x + 0.5 * block.attn(norm(x))
    hidden = norm(middle) @ block.mlp.fc1.weight.T + block.mlp.fc1.bias
    hidden = hidden * 0.5 * (1 + torch.erf(hidden / 2**0.5))
    expected = middle + 0.5 * (hidden @ block.mlp.fc2.weight.T + block.mlp.fc2.bias)
    torch.testing.assert_close(block(x, (1, 5), 0), expected, rtol=0, atol=2e-6)  # measured: 1.2e-7


def test_local_module_gets_the_grid_and_acts_before_the_attention():
    class Spy(nn.Module):
        def forward(self, tokens, grid, num_prefix):
            self.seen = (grid, num_prefix)
            return tokens * 2

    torch.manual_seed(0)
    spy = Spy()
    block = Block(16, 2, local=spy)
    x = torch.randn(2, 7, 16)
    out = block(x, (2, 3), 1)
    assert spy.seen == ((2, 3), 1)
    block.local = None
    torch.testing.assert_close(out, block(2 * x, (2, 3), 1), rtol=0, atol=0)


def test_branch_sees_only_kept_rows_and_only_they_change():
    torch.manual_seed(0)
    x = torch.randn(10, 3, 4)
    seen = []

    def branch(kept, rows):
        seen.append((kept, rows))
        return torch.ones_like(kept)

    out = add_branch(x, branch, 0.3)
    ((kept, rows),) = seen
    assert kept.shape == (7, 3, 4)
    assert len(set(rows.tolist())) == 7
    torch.testing.assert_close(kept, x[rows], rtol=0, atol=0)
    dropped = sorted(set(range(10)) - set(rows.tolist()))
    torch.testing.assert_close(out[dropped], x[dropped], rtol=0, atol=0)
    torch.testing.assert_close(out[rows], x[rows] + 10 / 7)


def test_each_row_is_kept_as_often_as_the_rate_says_and_the_mean_is_the_plain_sum():
    torch.manual_seed(0)
    x = torch.randn(8, 1, 2, dtype=torch.float64)
    num_draws, kept_counts, total = 4000, torch.zeros(8), torch.zeros_like(x)
    for _ in range(num_draws):
        out = add_branch(x, lambda kept, rows: 3 * kept, 0.25)
        kept_counts += (out != x).any(dim=2)[:, 0]
        total += out
    # The share kept has a standard deviation of sqrt(.75 * .25 / 4000) = 0.0068; four of them are allowed.
    torch.testing.assert_close(kept_counts / num_draws, torch.full((8,), 0.75), rtol=0, atol=0.028)
    torch.testing.assert_close(total / num_draws, 4 * x, rtol=0.04, atol=0)  # 3 / .75 * .028 of 4 x is 0.028


def test_rows_of_one_batch_are_dropped_in_changing_company():
    torch.manual_seed(0)
    x = torch.zeros(4, 1, 1)
    patterns = {tuple(add_branch(x, lambda kept, _: kept + 1, 0.5)[:, 0, 0].tolist()) for _ in range(200)}
    assert len(patterns) == 6  # all choices of two rows out of four


@pytest.mark.parametrize(("batch", "rate", "num_kept"), [(1, 0.9, 1), (4, 0.1, 4), (8, 0.5, 4), (3, 0.99, 1)])
def test_number_of_kept_rows(batch, rate, num_kept):
    shapes = []
    add_branch(torch.zeros(batch, 1, 1), lambda kept, _: shapes.append(len(kept)) or kept, rate)
    assert shapes == [num_kept]


def test_drop_path_is_off_in_evaluation():
    torch.manual_seed(0)
    block, x = Block(16, 2, drop_path=0.5), torch.randn(6, 4, 16)
    plain = Block(16, 2)
    plain.load_state_dict(block.state_dict())
    torch.testing.assert_close(block.eval()(x, (2, 2), 0), plain.train()(x, (2, 2), 0), rtol=0, atol=0)
    assert not torch.equal(block.train()(x, (2, 2), 0), plain(x, (2, 2), 0))


def test_gradient_of_a_dropped_row_is_that_of_the_identity():
    torch.manual_seed(0)
    x = torch.randn(4, 2, 3, requires_grad=True)
    out = add_branch(x, lambda kept, _: 5 * kept, 0.5)
    (gradient,) = torch.autograd.grad(out.sum(), x)
    per_row = gradient[:, 0, 0].sort().values
    torch.testing.assert_close(per_row, torch.tensor([1.0, 1.0, 11.0, 11.0]))


def test_drop_path_picks_the_rotary_tables_of_the_kept_images():
    torch.manual_seed(0)
    block, x, tables = Block(16, 2, drop_path=0.5), torch.randn(6, 4, 16), torch.randn(6, 1, 4, 16)
    nn.init.zeros_(block.mlp.fc2.weight)  # only the attention adds something
    nn.init.zeros_(block.mlp.fc2.bias)
    added = block.eval()(x, (2, 2), 0, tables) - x
    out = block.train()(x, (2, 2), 0, tables)
    kept = (out != x).flatten(1).any(dim=1)
    assert kept.sum() == 3
    torch.testing.assert_close(out[kept], (x + 2 * added)[kept], rtol=0, atol=1e-5)


def test_bfloat16_branch_is_added_to_a_float32_stream():
    out = add_branch(torch.zeros(4, 1, 2), lambda kept, _: kept.bfloat16() + 1, 0.5)
    assert out.dtype == torch.float32
    assert out.sum() == 4 * 2


def test_layer_scale_starts_with_its_value_and_can_be_reset():
    scale = LayerScale(3, 1e-4)
    scale.gamma.data.zero_()
    scale.reset_parameters()
    torch.testing.assert_close(scale(torch.ones(1, 1, 3)), torch.full((1, 1, 3), 1e-4))


def test_perceptron_treats_each_token_by_itself():
    mlp, x = Mlp(4, 8), torch.randn(1, 5, 4)
    torch.testing.assert_close(mlp(x)[:, 2:3], mlp(x[:, 2:3]))


@pytest.mark.parametrize("rate", [-0.1, 1.0])
def test_rate_outside_its_range_is_refused(rate):
    with pytest.raises(ConfigError, match="drop_path"):
        Block(16, 2, drop_path=rate)
