"""The plain vision transformer (ViT): patches to tokens, equal blocks of global attention, one vector to the head.

Axes: B batch, C channels, P prefix tokens (class token, then registers), N = P + patches tokens, D width of a token.

Names of parameters are those of timm's ViT, so that its weights load as they are. What timm lacks is added under
``blocks.i.local`` and ``fusion``.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Final, Literal, get_args

import torch
from torch import Tensor, nn

from vitrail.config import from_options
from vitrail.errors import ConfigError, did_you_mean, lookup
from vitrail.layers import embed
from vitrail.layers.attention import NORM_EPS
from vitrail.layers.block import Block, LayerScale
from vitrail.layers.local import LocalEnhancement, LocalForm
from vitrail.layers.pool import AttentionPool, DepthFusion, pool_mean, pool_token
from vitrail.models.contract import Model, ModelEntry, Published, make_head, reset_linear

Pool = Literal["token", "mean", "attention"]
Position = Literal["learned", "sincos", "rotary", "none"]
FusionMaps = Literal["depths", "pyramid"]


@dataclass(frozen=True)
class VitShape:
    """How wide and deep a ViT is."""

    dim: int
    """Width of a token."""
    depth: int
    """Number of blocks."""
    heads: int
    """Attention heads of each block."""
    mlp_ratio: float = 4.0
    """Width of the perceptron's hidden layer in multiples of `dim`."""


SHAPES: Final[dict[str, VitShape]] = {
    # Ours, for images of about 32 pixels. The narrow perceptron follows the compact transformers that learn from small
    # data: Hassani et al., Escaping the Big Data Paradigm with Compact Transformers, arXiv 2104.05704, table 1.
    "micro": VitShape(128, 6, 4, 2.0),
    # Touvron et al., Training data-efficient image transformers, arXiv 2012.12877, table 1.
    "tiny": VitShape(192, 12, 3),
    "small": VitShape(384, 12, 6),
    # Dosovitskiy et al., An Image is Worth 16x16 Words, arXiv 2010.11929, table 1.
    "base": VitShape(768, 12, 12),
    "large": VitShape(1024, 24, 16),
}


@dataclass(frozen=True, kw_only=True)
class VitOptions:
    """Everything of a ViT but its shape. The defaults are timm's plain ViT."""

    num_classes: int = 1000
    """Outputs of the head; 0 leaves the head out."""
    image_size: int | tuple[int, int] = 224
    """Height and width in pixels, multiples of the patch's. Other sizes run too: positions are resampled."""
    in_channels: int = 3
    """Channels of the image."""
    patch_size: int | tuple[int, int] = 16
    """Height and width of a patch in pixels."""
    pool: Pool = "token"
    """What the head sees: class token, mean of the patches (normalised after the mean), or a learned query's find."""
    class_token: bool = True
    """Whether a learned token comes before the patches."""
    num_registers: int = 0
    """Learned tokens after the class token that are thrown away at the end (arXiv 2309.16588)."""
    position: Position = "learned"
    """learned and sincos are added to the tokens; rotary turns queries and keys of the patches in every block."""
    prefix_position: bool = True
    """Whether learned positions have entries for the prefix tokens too. False is timm's ``no_embed_class``."""
    qkv_bias: bool = True
    """Whether queries, keys and values have a bias."""
    qk_norm: bool = False
    """Normalise each head's queries and keys."""
    layer_scale: float | None = None
    """Start of learned factors on every branch, such as 1e-4. None: no such factors."""
    drop_path: float = 0.0
    """Rate of stochastic depth in the last block, in [0, 1); rises linearly from 0 in the first."""
    patch_dropout: float = 0.0
    """Share of the patches left out of each training image, in [0, 1)."""
    local: bool | LocalForm = False
    """Local enhancement before the attention; True is "adaptive"."""
    local_blocks: tuple[int, ...] | None = None
    """Blocks that have it. Default: the first half, where a ViT attends to neighbours if it has data enough to learn
    to, and does not if it has not (arXiv 2108.08810, section 4); later blocks attend globally anyway."""
    fusion: bool | FusionMaps = False
    """Add what several depths know, fused position by position, to the pooled features; True is "depths". "pyramid"
    fuses at twice the grid, with the last depth in three resolutions, for dense prediction."""
    fusion_blocks: tuple[int, ...] | None = None
    """Blocks whose tokens are fused. Default: four, evenly spaced, the last one among them."""

    def __post_init__(self) -> None:
        """Refuse values outside their range, and options that exclude each other."""
        choices = {"pool": Pool, "position": Position, "local": LocalForm, "fusion": FusionMaps}
        for name, choice in choices.items():
            allowed = (*((False, True) if name in {"local", "fusion"} else ()), *get_args(choice))
            if (value := getattr(self, name)) not in allowed:
                hint = did_you_mean(str(value), map(str, allowed))
                raise ConfigError(f"{name} is {value!r}; it takes {', '.join(map(repr, allowed))}.{hint}")
        for name, lowest in (("num_classes", 0), ("in_channels", 1), ("num_registers", 0)):
            if (value := getattr(self, name)) < lowest:
                raise ConfigError(f"{name} is {value}; it takes a whole number from {lowest}.")
        for name in ("local", "fusion"):
            if getattr(self, f"{name}_blocks") is not None and not getattr(self, name):
                raise ConfigError(f"{name}_blocks chooses blocks for {name}, which is off; give {name}=True with it.")
        if not 0 <= self.patch_dropout < 1:
            raise ConfigError(f"patch_dropout is {self.patch_dropout}; it takes a rate from 0 up to, not including, 1.")
        if self.pool == "token" and not self.class_token:
            raise ConfigError('pool "token" needs a class token; take pool "mean" or "attention", or class_token=True.')
        if self.patch_dropout and (self.local or self.fusion):
            raise ConfigError("patch_dropout leaves no grid for local and fusion; set it to 0 or switch those off.")


class VisionTransformer(Model):
    """A ViT for images of any rectangular size that is a whole number of patches.

    Source: Dosovitskiy et al., An Image is Worth 16x16 Words, arXiv 2010.11929, section 3.1.

    Raises:
        ConfigError: if the shape and the options do not fit together; the message says which.
    """

    stem_name: ClassVar[str] = "patch_embed.proj"

    def __init__(self, shape: VitShape, options: VitOptions) -> None:
        super().__init__()
        dim, depth = shape.dim, shape.depth
        self.shape = shape
        self.options = options
        self.num_classes = options.num_classes
        self.num_features = dim
        self.image_size = embed.as_pair("image_size", options.image_size)
        self.num_prefix = int(options.class_token) + options.num_registers
        self.local_blocks = _chosen("local_blocks", options.local_blocks, range((depth + 1) // 2), depth)
        spaced = sorted({max(0, depth * quarter // 4 - 1) for quarter in (1, 2, 3, 4)})
        self.fusion_blocks = _chosen("fusion_blocks", options.fusion_blocks, spaced, depth) if options.fusion else ()

        self.patch_embed = embed.PatchEmbed(options.in_channels, dim, embed.as_pair("patch_size", options.patch_size))
        self.grid = self.patch_embed.grid(self.image_size)
        num_positions = math.prod(self.grid) + self.num_prefix * options.prefix_position
        self.cls_token = nn.Parameter(torch.empty(1, 1, dim)) if options.class_token else None
        self.reg_token = nn.Parameter(torch.empty(1, options.num_registers, dim)) if options.num_registers else None
        self.pos_embed = nn.Parameter(torch.empty(1, num_positions, dim)) if options.position == "learned" else None
        self.blocks = nn.ModuleList(self._block(index) for index in range(depth))
        mean = options.pool == "mean"
        self.norm = nn.Identity() if mean else nn.LayerNorm(dim, eps=NORM_EPS)
        self.attn_pool = AttentionPool(dim, shape.heads, shape.mlp_ratio) if options.pool == "attention" else None
        self.fc_norm = nn.LayerNorm(dim, eps=NORM_EPS) if mean else nn.Identity()
        self.fusion = (
            DepthFusion(dim, len(self.fusion_blocks), pyramid=options.fusion == "pyramid") if options.fusion else None
        )
        self.head = make_head(dim, options.num_classes)
        stride = self.patch_embed.patch_size
        self.feature_info = [{"name": f"block{i}", "channels": dim, "stride": stride} for i in range(depth)]
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw all weights anew.

        ============================  ==========================================================
        linear layers, head           truncated normal, std 0.02; bias 0
        patch projection              truncated normal, variance 1 / fan-in (LeCun); bias 0
        norms                         1; bias 0
        learned positions             truncated normal, std 0.02
        class token, registers        normal, std 1e-6
        layer scale                   the option's value
        query of attention pooling    truncated normal, std 1 / sqrt(D)
        local enhancement, fusion     their own: add nothing to a pretrained ViT
        ============================  ==========================================================
        """
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                reset_linear(layer)
        # After all linear layers, because some of these hold linear layers that start in their own way.
        for module in self.modules():
            if isinstance(
                module, nn.LayerNorm | embed.PatchEmbed | LayerScale | AttentionPool | LocalEnhancement | DepthFusion
            ):
                module.reset_parameters()
        if self.pos_embed is not None:
            nn.init.trunc_normal_(self.pos_embed, std=0.02)
        for token in (self.cls_token, self.reg_token):
            if token is not None:
                nn.init.normal_(token, std=1e-6)

    def no_weight_decay(self) -> set[str]:
        """Return the names of positions and learned tokens."""
        names = {"cls_token", "reg_token", "pos_embed", "attn_pool.latent"}
        return {name for name, _ in self.named_parameters() if name in names}

    def layer_groups(self) -> list[tuple[str, ...]]:
        """Return the embedding, each block, and what follows them."""
        blocks = [(f"blocks.{index}.",) for index in range(self.shape.depth)]
        return [
            ("patch_embed.", "cls_token", "reg_token", "pos_embed"),
            *blocks,
            ("norm.", "attn_pool.", "fc_norm.", "fusion.", "head."),
        ]

    def _block(self, index: int) -> Block:
        shape, options = self.shape, self.options
        form: LocalForm = "literal" if options.local == "literal" else "adaptive"
        has_local = bool(options.local) and index in self.local_blocks
        return Block(
            shape.dim,
            shape.heads,
            mlp_ratio=shape.mlp_ratio,
            qkv_bias=options.qkv_bias,
            qk_norm=options.qk_norm,
            layer_scale=options.layer_scale,
            drop_path=options.drop_path * index / max(1, shape.depth - 1),
            local=LocalEnhancement(shape.dim, form=form) if has_local else None,
        )

    def intermediates(self, images: Tensor) -> Iterator[tuple[str, Tensor]]:
        """Yield each intermediate of images (B, C, H, W) with its name.

        "embed", "block0", "block1", ... (before the final norm) and "tokens" (after it, unless pool is "mean", which
        normalises after pooling): (B, N, D). "fused" (only with fusion): (B, D, rows, columns). "pooled": (B, D).
        """
        grid = self.patch_embed.grid((images.shape[-2], images.shape[-1]))
        x, rotary = self._embed(images, grid)
        yield "embed", x
        levels: list[Tensor] = []
        for index, block in enumerate(self.blocks):
            x = block(x, grid, self.num_prefix, rotary)
            if index in self.fusion_blocks:
                levels.append(x)
            yield f"block{index}", x
        x = self.norm(x)
        yield "tokens", x
        pooled = self.fc_norm(self._pool(x))
        if self.fusion is not None:
            fused, added = self.fusion(levels, grid, self.num_prefix)
            yield "fused", fused
            pooled = pooled + added
        yield "pooled", pooled

    def _embed(self, images: Tensor, grid: embed.Grid) -> tuple[Tensor, Tensor | None]:
        """Return the tokens (B, N, D) with their positions, and the table of rotary ones."""
        options, num_prefix = self.options, self.num_prefix
        x = self.patch_embed(images)
        pos = rotary = None
        if self.pos_embed is not None:
            learned_prefix = num_prefix * options.prefix_position
            pos = embed.resample_position_embedding(self.pos_embed, self.grid, grid, learned_prefix)
        elif options.position == "sincos":
            pos = embed.sincos_positions(grid, self.num_features, self.grid, x.device)
        elif options.position == "rotary":
            rotary = embed.rotary_table(grid, self.num_features // self.shape.heads, num_prefix, x.device)
        prefix = [token for token in (self.cls_token, self.reg_token) if token is not None]
        x = embed.place_tokens(x, prefix, pos)
        if self.training and options.patch_dropout:
            x, kept = embed.drop_patches(x, options.patch_dropout, num_prefix)
            rotary = None if rotary is None else rotary[0, 0, kept][:, None]  # (B, 1, N, 2 d)
        return x, rotary

    def _pool(self, x: Tensor) -> Tensor:
        if self.options.pool == "token":
            return pool_token(x)
        return pool_mean(x, self.num_prefix) if self.attn_pool is None else self.attn_pool(x)


def build(size: str, **options: Any) -> VisionTransformer:
    """Build the ViT of a size in `SHAPES` with `VitOptions` given as keyword arguments."""
    return VisionTransformer(lookup(SHAPES, size, "size of a ViT"), from_options(VitOptions, options))


def _chosen(name: str, blocks: Sequence[int] | None, default: Sequence[int], depth: int) -> tuple[int, ...]:
    """Return the numbers of the blocks that an option chooses, each once and in order."""
    chosen = tuple(sorted(set(default if blocks is None else blocks)))
    if not chosen or chosen[0] < 0 or chosen[-1] >= depth:
        raise ConfigError(f"{name} is {blocks}; it takes one or more numbers of blocks from 0 to {depth - 1}.")
    return chosen


_DEIT: Final = "DeiT, arXiv 2012.12877, table 5; timm's results-imagenet.csv"
_PUBLISHED: Final = {
    # Beyond ImageNet-1k alone, most ViTs of the literature saw larger data or a teacher; those are not listed.
    "vit_tiny_patch16": Published(top1=72.2, params_m=5.72, macs_m=1258, source=_DEIT),
    "vit_small_patch16": Published(top1=79.9, params_m=22.05, macs_m=4608, source=_DEIT),
    "vit_base_patch16": Published(top1=82.0, params_m=86.57, macs_m=17582, source=_DEIT),
}

MODELS: Final[dict[str, ModelEntry]] = {
    name: ModelEntry(
        build=partial(build, size, patch_size=patch), multiple=patch, published=_PUBLISHED.get(name, Published())
    )
    for size in SHAPES
    for patch in ((4, 8, 14, 16, 32) if size == "large" else (4, 8, 16, 32))
    for name in [f"vit_{size}_patch{patch}"]
}
"""Every size with every common patch."""
