"""Elastic image towers: DINOv2 (Oquab et al., 2023; registers, Darcet et al., ICLR 2024), CLIP
(Radford et al., ICML 2021), SigLIP (Zhai et al., ICCV 2023).

Vision transformers that people hold for their embeddings. At full size these are timm's of the same
names; with `num_classes` 0 the output is the embedding, (B, width). Elastic as `vit` is: depth,
heads and MLP ratio per block. A layer's scale and the pooling's latent are embeddings of one row,
so that every parameter belongs to a layer that the operators know.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import nn
from torch.nn import functional as F

from supernet.arch import Arch
from supernet.describe import Block
from supernet.family import ChannelGroup
from supernet.layers.blocks import BlockSequence
from supernet.layers.transformer import (
    Attention,
    AttentionCore,
    init_transformer_weights,
    kept_blocks,
    transformer_groups,
)
from supernet.registry import supernet_family
from supernet.space import SearchSpace

_ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "gelu": F.gelu,
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
}


@dataclass(frozen=True, kw_only=True)
class ImageTowerConfig:
    """Which tower: its full size and the choices below it. Square images of `resolution`.

    `registers` are further tokens beside the class token. `layer_scale` multiplies each branch per
    channel, `pre_norm` normalises the tokens (and patches have no bias then). `pool` is what is
    read: the class token, or what a latent attends to (`map`, without a class token). Positions of
    a tower with registers are those of the patches alone.
    """

    num_classes: int = 0
    in_channels: int = 3
    resolution: int = 224
    patch_size: int = 16
    width: int = 768
    depth: int = 12
    num_heads: int = 12
    registers: int = 0
    layer_scale: bool = False
    pre_norm: bool = False
    pool: Literal["token", "map"] = "token"
    act: Literal["gelu", "quick_gelu"] = "gelu"
    ln_eps: float = 1e-6
    depth_choices: tuple[int, ...] = (6, 7, 8, 9, 10, 11, 12)
    heads_choices: tuple[int, ...] = (6, 8, 10, 12)
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
        for name, allowed in (("pool", ("token", "map")), ("act", tuple(_ACTIVATIONS))):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} is {getattr(self, name)!r}, allowed {', '.join(allowed)}")

    @property
    def embedding_size(self) -> int:
        """Numbers of an embedding."""
        return self.width

    @property
    def num_patches(self) -> int:
        """Tokens of the image itself."""
        return (self.resolution // self.patch_size) ** 2

    @property
    def num_positions(self) -> int:
        """Rows of the table of positions: patches, and the class token where there is no other."""
        return self.num_patches + (self.pool == "token" and not self.registers)


class TowerMlp(nn.Module):
    """Two linear layers with the tower's activation between; (B, N, C) in and out."""

    def __init__(self, width: int, hidden: int, act: str):
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)
        self._act = _ACTIVATIONS[act]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc2(self._act(self.fc1(x)))


class LayerScale(nn.Module):
    """One factor per channel (Touvron et al., ICCV 2021); (B, N, C) in and out."""

    def __init__(self, width: int):
        super().__init__()
        self.gamma = nn.Embedding(1, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.gamma(_first(x))


class TowerBlock(Block):
    """Attention, then MLP, each normalised, perhaps scaled, beside a shortcut; (B, N, C)."""

    def __init__(self, config: ImageTowerConfig, num_heads: int, hidden: int):
        super().__init__()
        norm = partial(nn.LayerNorm, config.width, eps=config.ln_eps)
        self.norm1 = norm()
        self.attn = Attention(config.width, num_heads, config.width // config.num_heads)
        self.ls1 = LayerScale(config.width) if config.layer_scale else None
        self.norm2 = norm()
        self.mlp = TowerMlp(config.width, hidden, config.act)
        self.ls2 = LayerScale(config.width) if config.layer_scale else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.attn(self.norm1(x))
        x = x + (y if self.ls1 is None else self.ls1(y))
        y = self.mlp(self.norm2(x))
        return x + (y if self.ls2 is None else self.ls2(y))


class TowerEmbedding(Block):
    """Patches by a strided convolution, positions, class token and registers first."""

    def __init__(self, config: ImageTowerConfig):
        super().__init__()
        size = config.patch_size
        self.proj = nn.Conv2d(
            config.in_channels, config.width, size, size, bias=not config.pre_norm
        )
        self.cls_token = nn.Embedding(1, config.width) if config.pool == "token" else None
        self._registers = config.registers
        self.reg_token = nn.Embedding(config.registers, config.width) if config.registers else None
        self.pos_embed = nn.Embedding(config.num_positions, config.width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # (B, C, H, W) to (B, N, C)
        tokens = self.proj(x).flatten(2).transpose(1, 2)
        first = [] if self.cls_token is None else [self.cls_token(_first(tokens))]
        if self.reg_token is not None:
            rows = torch.arange(self._registers, device=x.device)
            first.append(self.reg_token(_first(tokens) + rows))  # (B, R, C)
            tokens = tokens + self._positions(tokens)
            return torch.cat((*first, tokens), 1)
        tokens = torch.cat((*first, tokens), 1)
        return tokens + self._positions(tokens)

    def _positions(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.pos_embed(torch.arange(tokens.shape[1], device=tokens.device))


class LatentPooling(Block):
    """One latent attends to all tokens; then an MLP. (B, N, C) to (B, C)."""

    def __init__(self, config: ImageTowerConfig):
        super().__init__()
        width = config.width
        self._head_dim = width // config.num_heads
        self.latent = nn.Embedding(1, width)
        self.q = nn.Linear(width, width)
        self.kv = nn.Linear(width, 2 * width)
        self.core = AttentionCore()
        self.proj = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width, eps=config.ln_eps)
        self.mlp = TowerMlp(width, 4 * width, config.act)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        B, N, _ = x.shape
        q = self.q(self.latent(_first(x))).view(B, 1, -1, self._head_dim).transpose(1, 2)
        k, v = self.kv(x).view(B, N, 2, -1, self._head_dim).permute(2, 0, 3, 1, 4).unbind(0)
        y = self.proj(self.core(q, k, v, None).transpose(1, 2).flatten(2))
        return (y + self.mlp(self.norm(y)))[:, 0]


def _first(x: torch.Tensor) -> torch.Tensor:
    """(B, 1) indices of the only row of a table."""
    return torch.zeros(x.shape[0], 1, dtype=torch.long, device=x.device)


def _space(config: ImageTowerConfig) -> SearchSpace:
    return SearchSpace(
        family="image_tower",
        resolution=(config.resolution,),
        depth=(config.depth_choices,),
        heads=config.heads_choices,
        expand=config.expand_choices,
    )


def _channel_groups(config: ImageTowerConfig) -> tuple[ChannelGroup, ...]:
    return transformer_groups([f"blocks.{i}" for i in range(config.depth)], config.num_heads)


def _dinov2(width: int, heads: int, choices: tuple[int, ...], registers: int) -> ImageTowerConfig:
    return ImageTowerConfig(
        resolution=518,
        patch_size=14,
        width=width,
        num_heads=heads,
        heads_choices=choices,
        registers=registers,
        layer_scale=True,
    )


def _clip(patch_size: int, act: Literal["gelu", "quick_gelu"]) -> ImageTowerConfig:
    return ImageTowerConfig(patch_size=patch_size, pre_norm=True, act=act, ln_eps=1e-5)


@supernet_family(
    "image_tower",
    config=ImageTowerConfig,
    space=_space,
    channel_groups=_channel_groups,
    variants={
        "vit_small_patch14_dinov2": _dinov2(384, 6, (3, 4, 5, 6), 0),
        "vit_base_patch14_dinov2": _dinov2(768, 12, (6, 8, 10, 12), 0),
        "vit_small_patch14_reg4_dinov2": _dinov2(384, 6, (3, 4, 5, 6), 4),
        "vit_base_patch14_reg4_dinov2": _dinov2(768, 12, (6, 8, 10, 12), 4),
        "vit_base_patch16_clip_224": _clip(16, "gelu"),
        "vit_base_patch32_clip_224": _clip(32, "gelu"),
        "vit_base_patch16_clip_quickgelu_224": _clip(16, "quick_gelu"),
        "vit_base_patch32_clip_quickgelu_224": _clip(32, "quick_gelu"),
        "vit_base_patch16_siglip_224": ImageTowerConfig(pool="map"),
    },
    letters={
        "d": "blocks (6 to 12); every other one goes first",
        "h": "attention heads of a block (small 3-6, base 6, 8, 10, 12)",
        "e": "MLP ratio of a block (1, 2, 3, 4)",
        "r": "resolution (one per variant; positions fix it)",
    },
)
class ImageTower(nn.Module):
    """The tower at one arch: (B, in_channels, H, W) float to logits, or to (B, width)."""

    def __init__(self, config: ImageTowerConfig, arch: Arch):
        super().__init__()
        width = config.width
        self.patch_embed = TowerEmbedding(config)
        self.norm_pre = nn.LayerNorm(width, eps=config.ln_eps) if config.pre_norm else None
        kept = kept_blocks(config.depth, arch.depth[0])
        self.blocks = BlockSequence(
            {
                str(i): TowerBlock(config, heads, round(width * ratio))
                for i, heads, ratio in zip(kept, arch.heads, arch.expand, strict=True)
            }
        )
        self.norm = nn.LayerNorm(width, eps=config.ln_eps)
        self.attn_pool = LatentPooling(config) if config.pool == "map" else None
        self.head = nn.Linear(width, config.num_classes) if config.num_classes else None
        init_transformer_weights(self)

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) images to (B, N, C) tokens, class token and registers first."""
        x = self.patch_embed(x)
        if self.norm_pre is not None:
            x = self.norm_pre(x)
        return self.norm(self.blocks(x))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = self.forward_features(x)
        pooled = tokens[:, 0] if self.attn_pool is None else self.attn_pool(tokens)
        return pooled if self.head is None else self.head(pooled)
