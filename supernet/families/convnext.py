"""Elastic ConvNeXt (Liu et al., CVPR 2022).

At full size these are timm's convnext_ atto to base. Elastic in depth per stage (its first blocks
stay) and in the MLP ratio per block; widths are fixed. A block's scale is an embedding of one row,
so that every parameter belongs to a layer that the operators know.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from supernet.arch import Arch
from supernet.describe import Block
from supernet.family import ChannelGroup
from supernet.layers.blocks import BlockSequence, init_conv_weights
from supernet.registry import supernet_family
from supernet.space import SearchSpace

_EPS, _KERNEL = 1e-6, 7


@dataclass(frozen=True, kw_only=True)
class ConvNeXtConfig:
    """Which network: its full size and the choices below it. Square images of `resolution`.

    With `pointwise` the MLPs are 1x1 convolutions, as in the smaller published ones; the function
    is the same. `num_classes` 0: the output is the embedding.
    """

    num_classes: int = 1000
    in_channels: int = 3
    resolution: int = 224
    widths: tuple[int, ...] = (96, 192, 384, 768)
    depths: tuple[int, ...] = (3, 3, 9, 3)
    expand_choices: tuple[float, ...] = (1, 2, 3, 4)
    pointwise: bool = False

    def __post_init__(self) -> None:
        if len(self.widths) != len(self.depths) or not self.widths:
            raise ValueError(
                f"widths has {len(self.widths)} stages and depths {len(self.depths)}; "
                "expected the same number, at least one"
            )
        step = 4 * 2 ** (len(self.widths) - 1)
        if self.resolution % step or not self.resolution:
            raise ValueError(f"resolution is {self.resolution}, expected a multiple of {step}")

    @property
    def embedding_size(self) -> int:
        """Numbers of an embedding."""
        return self.widths[-1]


class ConvNeXtMlp(nn.Module):
    """Two layers with GELU between, over the channels of (B, H, W, C)."""

    def __init__(self, width: int, hidden: int, pointwise: bool):
        super().__init__()
        self._pointwise = pointwise
        self.fc1 = nn.Conv2d(width, hidden, 1) if pointwise else nn.Linear(width, hidden)
        self.fc2 = nn.Conv2d(hidden, width, 1) if pointwise else nn.Linear(hidden, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self._pointwise:
            return self.fc2(F.gelu(self.fc1(x)))
        return _last(self.fc2(F.gelu(self.fc1(_first(x)))))


class ConvNeXtBlock(Block):
    """7x7 depthwise convolution, LayerNorm over channels, MLP, scale, shortcut; (B, C, H, W)."""

    def __init__(self, width: int, hidden: int, pointwise: bool):
        super().__init__()
        self.conv_dw = nn.Conv2d(width, width, _KERNEL, padding=_KERNEL // 2, groups=width)
        self.norm = nn.LayerNorm(width, eps=_EPS)
        self.mlp = ConvNeXtMlp(width, hidden, pointwise)
        self.gamma = nn.Embedding(1, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.mlp(self.norm(_last(self.conv_dw(x))))
        rows = torch.zeros(x.shape[0], 1, 1, dtype=torch.long, device=x.device)
        return x + _first(y * self.gamma(rows))


class Downsample(Block):
    """LayerNorm over channels, then a convolution whose kernel is its stride, or the other way."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, norm_first: bool):
        super().__init__()
        conv = nn.Conv2d(in_channels, out_channels, stride, stride)
        norm = nn.LayerNorm(in_channels if norm_first else out_channels, eps=_EPS)
        self.steps = nn.ModuleList((norm, conv) if norm_first else (conv, norm))
        self._norm = 0 if norm_first else 1

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # (B, C, H, W)
        for i, step in enumerate(self.steps):
            x = _first(step(_last(x))) if i == self._norm else step(x)
        return x


class ConvNeXtStage(nn.Module):
    """Downsampling where it is not the first, then the blocks that are kept."""

    def __init__(self, downsample: Downsample | None, blocks: BlockSequence):
        super().__init__()
        self.downsample = downsample
        self.blocks = blocks

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # (B, C, H, W)
        return self.blocks(x if self.downsample is None else self.downsample(x))


class ConvNeXtHead(nn.Module):
    """Mean over the image, LayerNorm, classifier where there is one; (B, C, H, W) to (B, K)."""

    def __init__(self, width: int, num_classes: int):
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=_EPS)
        self.fc = nn.Linear(width, num_classes) if num_classes else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(x.mean((2, 3)))
        return x if self.fc is None else self.fc(x)


def _last(x: torch.Tensor) -> torch.Tensor:
    """(B, C, H, W) to (B, H, W, C)."""
    return x.permute(0, 2, 3, 1)


def _first(x: torch.Tensor) -> torch.Tensor:
    """(B, H, W, C) to (B, C, H, W)."""
    return x.permute(0, 3, 1, 2)


def _space(config: ConvNeXtConfig) -> SearchSpace:
    return SearchSpace(
        family="convnext",
        resolution=(config.resolution,),
        depth=tuple(tuple(range((d + 1) // 2, d + 1)) for d in config.depths),
        expand=config.expand_choices,
    )


def _channel_groups(config: ConvNeXtConfig) -> tuple[ChannelGroup, ...]:
    return tuple(
        ChannelGroup(
            name=f"{block}.hidden",
            produced=((f"{block}.fc1.weight", 0), (f"{block}.fc1.bias", 0)),
            consumed=((f"{block}.fc2.weight", 1),),
        )
        for block in (
            f"stages.{stage}.blocks.{i}.mlp"
            for stage, depth in enumerate(config.depths)
            for i in range(depth)
        )
    )


def _sized(depths: tuple[int, ...], first: int, pointwise: bool) -> ConvNeXtConfig:
    widths = tuple(first * 2**i for i in range(4))
    return ConvNeXtConfig(depths=depths, widths=widths, pointwise=pointwise)


@supernet_family(
    "convnext",
    config=ConvNeXtConfig,
    space=_space,
    channel_groups=_channel_groups,
    variants={
        "convnext_tiny": _sized((3, 3, 9, 3), 96, False),
        "convnext_small": _sized((3, 3, 27, 3), 96, False),
        "convnext_base": _sized((3, 3, 27, 3), 128, False),
        "convnext_atto": _sized((2, 2, 6, 2), 40, True),
        "convnext_femto": _sized((2, 2, 6, 2), 48, True),
        "convnext_pico": _sized((2, 2, 6, 2), 64, True),
        "convnext_nano": _sized((2, 2, 8, 2), 80, True),
    },
    letters={
        "d": "blocks per stage (half of them to all)",
        "e": "MLP ratio of a block (1, 2, 3, 4)",
        "r": "resolution (one per variant, a multiple of 32)",
    },
)
class ConvNeXt(nn.Module):
    """The network at one arch: (B, in_channels, H, W) float to logits, or to its embedding."""

    def __init__(self, config: ConvNeXtConfig, arch: Arch):
        super().__init__()
        ratio = iter(arch.expand)
        self.stem = Downsample(config.in_channels, config.widths[0], 4, norm_first=False)
        self.stages = nn.ModuleList()
        in_channels = config.widths[0]
        for stage, (depth, width) in enumerate(zip(arch.depth, config.widths, strict=True)):
            down = Downsample(in_channels, width, 2, norm_first=True) if stage else None
            blocks = BlockSequence(
                {
                    str(i): ConvNeXtBlock(width, round(width * next(ratio)), config.pointwise)
                    for i in range(depth)
                }
            )
            self.stages.append(ConvNeXtStage(down, blocks))
            in_channels = width
        self.head = ConvNeXtHead(in_channels, config.num_classes)
        init_conv_weights(self)

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) images to (B, C', H', W') features."""
        x = self.stem(x)
        for stage in self.stages:
            x = stage(x)
        return x

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.forward_features(x))
