"""The transformer block: attention and a perceptron, each behind a norm and added to what came in.

Axes: B batch, N tokens, D width of a token.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitrail.errors import ConfigError
from vitrail.layers.attention import NORM_EPS, Attention

Branch = Callable[[Tensor, Tensor | None], Tensor]
"""Maps the tokens of some rows of the batch, and the numbers of those rows (None: all), to what is added to them."""


class Mlp(nn.Module):
    """Two layers with an exact GELU between them, applied to each token by itself.

    Source: Dosovitskiy et al., An Image is Worth 16x16 Words, arXiv 2010.11929, section 3.1.

    Args:
        dim: width of a token.
        hidden_dim: width between the layers.
    """

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.fc2 = nn.Linear(hidden_dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, N, D) to (B, N, D)."""
        out: Tensor = self.fc2(F.gelu(self.fc1(x)))
        return out


class LayerScale(nn.Module):
    """Multiplies each channel by a learned factor that starts small, which steadies deep networks.

    Source: Touvron et al., Going deeper with Image Transformers, arXiv 2103.17239, section 2.

    Args:
        dim: width of a token.
        init: value that every factor starts with, such as 1e-4.
    """

    def __init__(self, dim: int, init: float) -> None:
        super().__init__()
        self.init = init
        self.gamma = nn.Parameter(torch.full((dim,), init))

    def reset_parameters(self) -> None:
        """Set every factor to its start."""
        nn.init.constant_(self.gamma, self.init)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, N, D) to (B, N, D)."""
        return x * self.gamma


def add_branch(x: Tensor, branch: Branch, drop_rate: float = 0.0) -> Tensor:
    """Return ``x`` plus ``branch(x)``, with stochastic depth that does not compute what it drops.

    Of B rows, ``B - round(B * drop_rate)`` (at least one), drawn at random, go through the branch; its result is
    multiplied by B over their number. A row is kept with just the inverse of that factor as probability, so the
    expectation is exactly ``x + branch(x)``, as it is when each row is drawn by itself. The number of rows is the same
    in every step, so shapes stay static under `torch.compile`; the price is that the rate is rounded to a multiple of
    1 / B, and that it is 0 for batches smaller than half of ``1 / drop_rate``.

    Args:
        x: tokens, (B, N, D).
        branch: what is added; a function of the kept rows and of their numbers.
        drop_rate: share of the rows that skip the branch, in [0, 1).

    Source: Huang et al., Deep Networks with Stochastic Depth, arXiv 1603.09382, section 3; computed as in Oquab et al.,
    DINOv2, arXiv 2304.07193, section 5, "Efficient stochastic depth".
    """
    batch = x.shape[0]
    num_kept = max(1, batch - round(batch * drop_rate))
    if num_kept >= batch:
        return x + branch(x, None)
    rows = torch.randperm(batch, device=x.device)[:num_kept]
    added = branch(x.index_select(0, rows), rows)
    return x.index_add(0, rows, added.to(x.dtype), alpha=batch / num_kept)


class Block(nn.Module):
    """One layer of a ViT: local enhancement if there is any, attention over all tokens, then a perceptron.

    ``x = local(x)``; ``x = x + ls1(attn(norm1(x)))``; ``x = x + ls2(mlp(norm2(x)))``.

    Source: Dosovitskiy et al., An Image is Worth 16x16 Words, arXiv 2010.11929, equations 2 and 3. Local detail is
    added before the attention as in Guo et al., CMT, arXiv 2107.06263, section 3.2.

    Args:
        dim: width of a token.
        heads: number of attention heads.
        mlp_ratio: width of the perceptron's hidden layer, in multiples of ``dim``.
        qkv_bias: whether queries, keys and values have a bias.
        qk_norm: normalise queries and keys.
        layer_scale: start of the factors on both branches; None leaves them out.
        drop_path: rate of stochastic depth in training, in [0, 1).
        local: a module called with tokens, grid and number of prefix tokens, or None.

    Raises:
        ConfigError: if ``drop_path`` is outside its range or ``dim`` is not a multiple of ``heads``.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        *,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        qk_norm: bool = False,
        layer_scale: float | None = None,
        drop_path: float = 0.0,
        local: nn.Module | None = None,
    ) -> None:
        super().__init__()
        if not 0 <= drop_path < 1:
            raise ConfigError(f"drop_path is {drop_path}; it takes a rate from 0 up to, not including, 1.")
        self.drop_path = drop_path
        self.local = local
        self.norm1 = nn.LayerNorm(dim, eps=NORM_EPS)
        self.attn = Attention(dim, heads, qkv_bias=qkv_bias, qk_norm=qk_norm)
        self.ls1 = nn.Identity() if layer_scale is None else LayerScale(dim, layer_scale)
        self.norm2 = nn.LayerNorm(dim, eps=NORM_EPS)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))
        self.ls2 = nn.Identity() if layer_scale is None else LayerScale(dim, layer_scale)

    def forward(self, x: Tensor, grid: tuple[int, int], num_prefix: int, rotary: Tensor | None = None) -> Tensor:
        """Map (B, N, D) to (B, N, D); ``rotary`` is (1 or B, 1, N, 2 d), see `vitrail.layers.embed.rotary_table`."""

        def attention(kept: Tensor, rows: Tensor | None) -> Tensor:
            table = rotary
            if rotary is not None and rows is not None and rotary.shape[0] > 1:  # each image kept other patches
                table = rotary[rows]
            out: Tensor = self.ls1(self.attn(self.norm1(kept), table))
            return out

        def perceptron(kept: Tensor, _: Tensor | None) -> Tensor:
            out: Tensor = self.ls2(self.mlp(self.norm2(kept)))
            return out

        if self.local is not None:
            x = self.local(x, grid, num_prefix)
        drop_rate = self.drop_path if self.training else 0.0
        return add_branch(add_branch(x, attention, drop_rate), perceptron, drop_rate)
