"""Elastic vision transformers: ViT (Dosovitskiy et al., ICLR 2021), DeiT (Touvron et al., 2021).

At full size these are timm's vit_ and deit_ {tiny, small, base}_patch16_224. Elastic in depth
(every other block goes first), attention heads and MLP ratio per block.

Differences: `qkv` is stored head-major (supernet/layers/transformer.py); class token and
positions are embeddings, so that every parameter belongs to a layer that the operators know.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from supernet.arch import Arch
from supernet.describe import Block
from supernet.family import ChannelGroup
from supernet.layers.blocks import BlockSequence
from supernet.layers.transformer import (
    Attention,
    Mlp,
    init_transformer_weights,
    kept_blocks,
    transformer_groups,
)
from supernet.registry import supernet_family
from supernet.space import SearchSpace

_LN_EPS = 1e-6


@dataclass(frozen=True, kw_only=True)
class ViTConfig:
    """Which supernet: its full size and the choices below it. Square images of `resolution`."""

    num_classes: int = 1000
    in_channels: int = 3
    resolution: int = 224
    patch_size: int = 16
    width: int = 192
    depth: int = 12
    num_heads: int = 3
    depth_choices: tuple[int, ...] = (6, 7, 8, 9, 10, 11, 12)
    heads_choices: tuple[int, ...] = (1, 2, 3)
    expand_choices: tuple[float, ...] = (1, 2, 3, 4)

    def __post_init__(self) -> None:
        for name, full in (("depth_choices", self.depth), ("heads_choices", self.num_heads)):
            if getattr(self, name)[-1] != full:
                raise ValueError(f"{name} is {getattr(self, name)}; the last must be {full}")
        if self.resolution % self.patch_size or self.width % self.num_heads:
            raise ValueError(
                f"resolution {self.resolution} must be a multiple of patch_size "
                f"{self.patch_size}, and width {self.width} of num_heads {self.num_heads}"
            )

    @property
    def num_patches(self) -> int:
        """Tokens beside the class token."""
        return (self.resolution // self.patch_size) ** 2


class ViTBlock(Block):
    """Attention, then MLP, each behind a LayerNorm and beside a shortcut; (B, N, C)."""

    def __init__(self, width: int, num_heads: int, head_dim: int, hidden: int):
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=_LN_EPS)
        self.attn = Attention(width, num_heads, head_dim)
        self.norm2 = nn.LayerNorm(width, eps=_LN_EPS)
        self.mlp = Mlp(width, hidden)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class PatchEmbedding(Block):
    """Patches by a strided convolution, class token first, positions added."""

    def __init__(self, in_channels: int, width: int, patch_size: int, num_patches: int):
        super().__init__()
        self.proj = nn.Conv2d(in_channels, width, patch_size, patch_size)
        self.cls_token = nn.Embedding(1, width)
        self.pos_embed = nn.Embedding(1 + num_patches, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # (B, C, H, W)
        patches = self.proj(x).flatten(2).transpose(1, 2)  # (B, N, C)
        B, N, _ = patches.shape
        first = torch.zeros(B, 1, dtype=torch.long, device=x.device)
        tokens = torch.cat((self.cls_token(first), patches), 1)  # (B, 1 + N, C)
        return tokens + self.pos_embed(torch.arange(1 + N, device=x.device))


def _space(config: ViTConfig) -> SearchSpace:
    return SearchSpace(
        family="vit",
        resolution=(config.resolution,),
        depth=(config.depth_choices,),
        heads=config.heads_choices,
        expand=config.expand_choices,
    )


def _channel_groups(config: ViTConfig) -> tuple[ChannelGroup, ...]:
    return transformer_groups([f"blocks.{i}" for i in range(config.depth)], config.num_heads)


_SIZES = {
    "tiny": ViTConfig(),
    "small": ViTConfig(width=384, num_heads=6, heads_choices=(3, 4, 5, 6)),
    "base": ViTConfig(width=768, num_heads=12, heads_choices=(6, 8, 10, 12)),
}


@supernet_family(
    "vit",
    config=ViTConfig,
    space=_space,
    channel_groups=_channel_groups,
    variants={
        f"{kind}_{size}_patch16_224": config
        for kind in ("vit", "deit")
        for size, config in _SIZES.items()
    },
    letters={
        "d": "blocks (6 to 12); every other one goes first",
        "h": "attention heads of a block (tiny 1-3, small 3-6, base 6, 8, 10, 12)",
        "e": "MLP ratio of a block (1, 2, 3, 4)",
        "r": "resolution (224; positions fix it)",
    },
)
class VisionTransformer(nn.Module):
    """The network at one arch: (B, in_channels, H, W) float to (B, num_classes) logits."""

    def __init__(self, config: ViTConfig, arch: Arch):
        super().__init__()
        self.patch_embed = PatchEmbedding(
            config.in_channels, config.width, config.patch_size, config.num_patches
        )
        head_dim = config.width // config.num_heads
        kept = kept_blocks(config.depth, arch.depth[0])
        self.blocks = BlockSequence(
            {
                str(i): ViTBlock(config.width, heads, head_dim, round(config.width * ratio))
                for i, heads, ratio in zip(kept, arch.heads, arch.expand, strict=True)
            }
        )
        self.norm = nn.LayerNorm(config.width, eps=_LN_EPS)
        self.head = nn.Linear(config.width, config.num_classes)
        init_transformer_weights(self)

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) images to (B, 1 + N, C) tokens, the class token first."""
        return self.norm(self.blocks(self.patch_embed(x)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.forward_features(x)[:, 0])
