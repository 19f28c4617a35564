"""Adaptive local enhancement: fine detail from each token's neighbours, beside the global view of attention.

Axes: B batch, N tokens (prefix tokens first, then H * W patch tokens row by row), D width, H W the grid of patches.
"""

from typing import Literal, get_args

import torch
from torch import Tensor, nn

from vitrail.errors import ConfigError, did_you_mean

LocalForm = Literal["adaptive", "literal"]


class LocalEnhancement(nn.Module):
    """Mix each patch token with its eight neighbours on the grid; prefix tokens pass through untouched.

    ``adaptive`` computes ``x + g(x) * s * ReLU(DWConv3x3(x))``. The depthwise filter starts as "token minus the mean of
    its neighbourhood", because attention averages over tokens and so dampens exactly that part of the signal (Park and
    Kim, section 3), and its bias is the threshold from which a difference counts as detail. The gate ``g``, one sigmoid
    per token, decides where the detail is added, the vector ``s`` in which channels. ``s`` starts at zero: the module
    is then the identity, so a pretrained model with the module added computes what it did before.

    ``literal`` computes ``ReLU(Conv3x3(x))`` with a full convolution, and replaces the patch tokens by it.

    Both pad the grid with zeros, which also tells tokens at the border where they are (Chu et al., section 3.3). There
    is no norm: the input is the residual stream, and batch statistics would break small batches.

    Source:
        Depthwise residual before attention: Guo et al., CMT, arXiv 2107.06263, section 3.2 (local perception unit);
        Chu et al., Conditional Positional Encodings, arXiv 2102.10882. Attention as a low-pass filter: Park and Kim,
        How Do Vision Transformers Work?, arXiv 2202.06709. Zero start: Touvron et al., CaiT, arXiv 2103.17239, eq. 4.

    Args:
        dim: D, at least 1.
        form: "adaptive" (12 D + 1 parameters) or "literal" (9 D^2 + D parameters).

    Raises:
        ConfigError: for another form.
    """

    def __init__(self, dim: int, *, form: LocalForm = "adaptive") -> None:
        super().__init__()
        if form not in get_args(LocalForm):
            raise ConfigError(
                f"form is {form!r}; it takes 'adaptive' or 'literal'.{did_you_mean(form, get_args(LocalForm))}"
            )
        self.dim = dim
        self.form = form
        self.conv = nn.Conv2d(dim, dim, kernel_size=3, padding=1, groups=dim if form == "adaptive" else 1)
        if form == "adaptive":
            self.gate = nn.Linear(dim, 1)
            self.scale = nn.Parameter(torch.empty(dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Make the adaptive form the identity, with a detail filter behind it; the literal form random."""
        for parameter in self.parameters():
            nn.init.zeros_(parameter)
        if self.form == "literal":
            nn.init.kaiming_normal_(self.conv.weight, nonlinearity="relu")
            return
        with torch.no_grad():
            self.conv.weight.fill_(-1 / 9)
            self.conv.weight[:, :, 1, 1] += 1

    def forward(self, tokens: Tensor, grid: tuple[int, int], num_prefix: int) -> Tensor:
        """Enhance tokens (B, N, D) whose last H * W lie on ``grid`` (H, W); return (B, N, D).

        Raises:
            ConfigError: if N is not ``num_prefix`` + H * W.
        """
        height, width = grid
        num_tokens = tokens.shape[1]
        if num_tokens != num_prefix + height * width:
            raise ConfigError(
                f"There are {num_tokens} tokens; a grid of {height} x {width} after {num_prefix} prefix tokens takes "
                f"{num_prefix + height * width}."
            )
        prefix, patches = tokens[:, :num_prefix], tokens[:, num_prefix:]
        # A view, in channels-last memory: half the time of copying to channels first and back (32 x 196 x 192, 1 core).
        on_grid = patches.transpose(1, 2).reshape(tokens.shape[0], self.dim, height, width)  # (B, D, H, W)
        detail = self.conv(on_grid).relu().flatten(2).transpose(1, 2)  # (B, H * W, D)
        if self.form == "adaptive":
            detail = patches + self.gate(patches).sigmoid() * (self.scale * detail)
        return torch.cat([prefix, detail], dim=1) if num_prefix else detail

    def macs(self, grid: tuple[int, int]) -> int:
        """Multiply-accumulates for one image on ``grid`` (H, W): of the convolution and the gate's product.

        Elementwise products are not counted, as is usual.
        """
        per_token = 9 * self.dim + self.dim if self.form == "adaptive" else 9 * self.dim**2
        return grid[0] * grid[1] * per_token

    def extra_repr(self) -> str:
        """Show the form when the module is printed."""
        return f"dim={self.dim}, form={self.form!r}"
