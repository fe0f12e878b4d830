"""Elastic residual CNN for small images whose stages begin with a convolution and max pooling.

The shape of the fast CIFAR-10 recipes (Page's ResNet-9, 2018; Jordan's airbench, 2024): a stem of
2x2 patches without padding, so that 32x32 images become 31, 15, 7 and 3 pixels wide, few and wide
3x3 convolutions, and the largest value of each channel for the classifier. It reaches a given
accuracy in a fraction of the epochs that the thin and deep networks of the resnet family need.

Elastic in width per stage, in depth per stage and in the inner width of each block. Block "0" of a
stage is convolution, pooling, convolution; the others are residual blocks.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from supernet.arch import Arch
from supernet.describe import Block
from supernet.families.resnet import BasicBlock
from supernet.family import ChannelGroup, norm_vectors
from supernet.layers.blocks import BlockSequence, conv2d, init_conv_weights, round_channels
from supernet.registry import supernet_family
from supernet.space import SearchSpace

_PATCH = 2


@dataclass(frozen=True, kw_only=True)
class PooledResNetConfig:
    """Which supernet: its full size, and the choices below it. Square images of `resolution`.

    `stem_width` is fixed at all sizes. `widths` are those of the stages' outputs.
    """

    num_classes: int = 10
    in_channels: int = 3
    resolution: int = 32
    stem_width: int = 24
    widths: tuple[int, ...] = (64, 256, 384)
    depths: tuple[int, ...] = (2, 2, 2)
    width_choices: tuple[float, ...] = (0.25, 0.5, 0.75, 1.0)
    expand_choices: tuple[float, ...] = (0.25, 0.5, 1.0)

    def __post_init__(self) -> None:
        if len(self.widths) != len(self.depths) or not self.widths:
            raise ValueError(
                f"widths has {len(self.widths)} stages and depths {len(self.depths)}; "
                "expected the same number, at least one"
            )
        if min(self.depths) < 1:
            raise ValueError(f"depths is {list(self.depths)}, allowed 1 or more in each stage")
        for name in ("width_choices", "expand_choices"):
            choices = getattr(self, name)
            if not choices or choices[-1] != 1.0:
                raise ValueError(f"{name} is {list(choices)}; the last choice must be 1.0")
        if self.resolution - _PATCH + 1 < 2 ** len(self.widths):
            raise ValueError(
                f"resolution is {self.resolution}, too small to be halved {len(self.widths)} times"
            )


class PoolingBlock(Block):
    """3x3 convolution, 2x2 max pooling, 3x3 convolution; each normalised, no shortcut.

    Pooling comes last of the first half, where the recipes have it first: so convolution,
    normalisation and activation are one operation of a compiled graph.
    """

    def __init__(self, in_channels: int, mid_channels: int, out_channels: int):
        super().__init__()
        self.conv1 = conv2d(in_channels, mid_channels, 3)
        self.bn1 = nn.BatchNorm2d(mid_channels)
        self.conv2 = conv2d(mid_channels, out_channels, 3)
        self.bn2 = nn.BatchNorm2d(out_channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # (B, C, H, W) to (B, C', H / 2, W / 2)
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 2)
        return F.relu(self.bn2(self.conv2(x)))


def _space(config: PooledResNetConfig) -> SearchSpace:
    return SearchSpace(
        family="pooled_resnet",
        resolution=(config.resolution,),
        depth=tuple(tuple(range(1, depth + 1)) for depth in config.depths),
        width=(config.width_choices,) * len(config.widths),
        expand=config.expand_choices,
    )


def _channel_groups(config: PooledResNetConfig) -> tuple[ChannelGroup, ...]:
    """Inner channels of each block, and each stage's stream with all that writes or reads it."""
    blocks = [f"layer{s + 1}.{i}" for s, depth in enumerate(config.depths) for i in range(depth)]
    inner = [
        ChannelGroup(
            name=f"{block}.inner",
            produced=((f"{block}.conv1.weight", 0), *norm_vectors(f"{block}.bn1")),
            consumed=((f"{block}.conv2.weight", 1),),
        )
        for block in blocks
    ]
    return (*inner, *(_stream_group(config, stage) for stage in range(len(config.depths))))


def _stream_group(config: PooledResNetConfig, stage: int) -> ChannelGroup:
    blocks = [f"layer{stage + 1}.{i}" for i in range(config.depths[stage])]
    produced: list[tuple[str, int]] = []
    for block in blocks:
        produced += [(f"{block}.conv2.weight", 0), *norm_vectors(f"{block}.bn2")]
    is_last = stage + 1 == len(config.depths)
    following = "fc.weight" if is_last else f"layer{stage + 2}.0.conv1.weight"
    consumed = [*((f"{block}.conv1.weight", 1) for block in blocks[1:]), (following, 1)]
    return ChannelGroup(
        name=f"layer{stage + 1}.stream", produced=tuple(produced), consumed=tuple(consumed)
    )


@supernet_family(
    "pooled_resnet",
    config=PooledResNetConfig,
    space=_space,
    channel_groups=_channel_groups,
    variants={
        "pooled_resnet_cifar": PooledResNetConfig(),
        "pooled_resnet_tiny": PooledResNetConfig(
            in_channels=1,
            resolution=8,
            stem_width=8,
            widths=(16, 16),
            depths=(2, 2),
            width_choices=(0.5, 1.0),
            expand_choices=(0.5, 1.0),
        ),
    },
    letters={
        "d": "blocks per stage (1 up to the full depth of the stage)",
        "w": "width of a stage's output as a part of the full one (0.25, 0.5, 0.75, 1)",
        "e": "inner width of a block as a part of the full one (0.25, 0.5, 1)",
        "r": "resolution (one per variant)",
    },
)
class PooledResNet(nn.Module):
    """The network at one arch: (B, in_channels, H, W) float to (B, num_classes) logits."""

    def __init__(self, config: PooledResNetConfig, arch: Arch):
        super().__init__()
        self.stem = nn.Conv2d(config.in_channels, config.stem_width, _PATCH, bias=False)
        self.bn = nn.BatchNorm2d(config.stem_width)
        expand = iter(arch.expand)
        in_channels = config.stem_width
        for stage, (depth, part) in enumerate(zip(arch.depth, arch.width, strict=True)):
            width = round_channels(config.widths[stage] * part)
            blocks = BlockSequence()
            for i in range(depth):
                mid_channels = round_channels(width * next(expand))
                blocks[str(i)] = (
                    PoolingBlock(in_channels, mid_channels, width)
                    if i == 0
                    else BasicBlock(width, mid_channels, width, 1, False)
                )
                in_channels = width
            setattr(self, f"layer{stage + 1}", blocks)
        self.num_stages = len(config.depths)
        self.fc = nn.Linear(in_channels, config.num_classes)
        init_conv_weights(self)

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) images to (B, C', H', W') features."""
        x = F.relu(self.bn(self.stem(x)))
        for stage in range(self.num_stages):
            x = getattr(self, f"layer{stage + 1}")(x)
        return x

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.forward_features(x).amax((2, 3)))
