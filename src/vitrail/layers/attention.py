"""Multi-head self-attention, and the rule that picks how its core is computed.

Axes: B batch, N tokens, D width of a token, H heads, d = D / H width of a head.
"""

from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitrail.errors import ConfigError
from vitrail.layers.embed import apply_rotary
from vitrail.runtime.precision import onednn_multiplies_fp32

NORM_EPS: Final = 1e-6
"""Added to the variance by every LayerNorm of a ViT; pretrained weights expect this value, not PyTorch's 1e-5."""

CPU_EXPLICIT_MAX_TOKENS: Final = 1024
"""Longest sequence whose score matrix is written out on a CPU. See `attend`."""


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Return ``softmax(q k^T / sqrt(d)) v``.

    On a CPU whose matrix products go through oneDNN (bfloat16, and float32 where `vitrail.runtime.precision` chose so),
    three plain operations beat PyTorch's fused kernel: 2.2 to 6.9 times in bfloat16, 1.5 to 6.0 times in float32,
    forwards and backwards, at 65 to 577 tokens on one core of an EPYC Zen 4 (`benchmarks/attention.py`). Their score
    matrix grows with the square of the sequence, so very long ones use the fused kernel; so do float32 through MKL,
    where it is the faster one, and every GPU. An exported graph always holds the three plain operations: PyTorch's own
    decomposition of the fused one adds nodes for rows without any key, which cannot occur here and which phone runtimes
    do not speed up.

    Args:
        q: queries, (B, H, N, d).
        k: keys, (B, H, M, d).
        v: values, (B, H, M, d).

    Returns:
        (B, H, N, d).

    Source: Vaswani et al., Attention Is All You Need, arXiv 1706.03762, equation 1.
    """
    if torch.compiler.is_exporting() or _is_explicit_faster(q, k.shape[-2]):
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)  # (B, H, N, M)
        mixed: Tensor = scores.softmax(dim=-1) @ v
        return mixed
    return F.scaled_dot_product_attention(q, k, v)


def attend_maps(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Return what `attend` does with one head, for maps whose positions lie in the last axis.

    An exported graph holds products of three axes and no fourth for the one head: ExecuTorch's XNNPACK takes all of
    them, where it leaves seven operators of each attention of four axes to slow kernels.

    Args:
        q: queries, (B, d, N).
        k: keys, (B, d, M).
        v: values, (B, C, M).

    Returns:
        (B, C, N).
    """
    if torch.compiler.is_exporting():
        scores = torch.bmm((q * q.shape[1] ** -0.5).transpose(1, 2), k)  # (B, N, M)
        return torch.bmm(v, scores.softmax(dim=-1).transpose(1, 2))
    q, k, v = (each.transpose(1, 2).unsqueeze(1) for each in (q, k, v))
    return attend(q, k, v).squeeze(1).transpose(1, 2)


def _is_explicit_faster(q: Tensor, num_keys: int) -> bool:
    if q.device.type != "cpu" or num_keys > CPU_EXPLICIT_MAX_TOKENS:
        return False
    return q.dtype == torch.bfloat16 or onednn_multiplies_fp32()


def split_heads(x: Tensor, heads: int) -> Tensor:
    """Return (B, N, H * d) as (B, H, N, d)."""
    return torch.unflatten(x, -1, (heads, -1)).transpose(1, 2)


def merge_heads(x: Tensor) -> Tensor:
    """Return (B, H, N, d) as (B, N, H * d)."""
    return x.transpose(1, 2).flatten(2)


class Attention(nn.Module):
    """Lets every token gather information from all tokens.

    Source: Dosovitskiy et al., An Image is Worth 16x16 Words, arXiv 2010.11929, appendix A. ``qk_norm``: Dehghani et
    al., Scaling Vision Transformers to 22 Billion Parameters, arXiv 2302.05442, section 2.

    Args:
        dim: width of a token, a multiple of ``heads``.
        heads: number of attention heads.
        qkv_bias: whether queries, keys and values have a bias.
        qk_norm: normalise each head's queries and keys, which keeps the scores bounded.

    Raises:
        ConfigError: if ``dim`` is not a multiple of ``heads``.
    """

    def __init__(self, dim: int, heads: int, *, qkv_bias: bool = True, qk_norm: bool = False) -> None:
        super().__init__()
        if heads < 1 or dim % heads:
            raise ConfigError(f"A width of {dim} cannot be divided among {heads} heads; take a divisor of {dim}.")
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.q_norm = nn.LayerNorm(dim // heads, eps=NORM_EPS) if qk_norm else nn.Identity()
        self.k_norm = nn.LayerNorm(dim // heads, eps=NORM_EPS) if qk_norm else nn.Identity()
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, rotary: Tensor | None = None) -> Tensor:
        """Map (B, N, D) to (B, N, D); ``rotary`` is a table of `vitrail.layers.embed.rotary_table`."""
        # Three chunks of a 3-D tensor, not one 5-D view: phone runtimes have at most four axes.
        q, k, v = (split_heads(part, self.heads) for part in self.qkv(x).chunk(3, dim=-1))
        q, k = self.q_norm(q), self.k_norm(k)
        if rotary is not None:
            q, k = apply_rotary(q, rotary), apply_rotary(k, rotary)
        out: Tensor = self.proj(merge_heads(attend(q, k, v)))
        return out
