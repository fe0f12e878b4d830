"""OFA-MobileNetV3 (Cai et al., ICLR 2020, https://arxiv.org/abs/1908.09791).

The elastic form of MobileNetV3-Large (Howard et al., ICCV 2019): depth 2-4 per stage, expand
ratio 3, 4, 6 and kernel 3, 5, 7 per block, and resolution. Blocks are numbered as in the official
files: block 0 is static, stage s (from 0) has the blocks 4s + 1 to 4s + 4.

Differences: 5x5 and 3x3 kernels are parameters of their own, materialised from the 7x7 kernel when
weights are imported (docs/decisions/004-elastic-kernels.md).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from supernet.arch import Arch
from supernet.family import ChannelGroup
from supernet.layers.blocks import BlockSequence, ConvNormAct, init_conv_weights, round_channels
from supernet.layers.inverted_residual import (
    DepthwiseSeparable,
    InvertedResidual,
    inverted_residual_groups,
)
from supernet.registry import supernet_family
from supernet.space import SearchSpace

_STEM, _STAGES, _FINAL, _MIX = 16, (24, 40, 80, 112, 160), 960, 1280
_STRIDES = (2, 2, 2, 1, 2)
_HAS_SE = (False, True, False, True, True)
_ACTS = ("relu", "relu", "hard_swish", "hard_swish", "hard_swish")


@dataclass(frozen=True, kw_only=True)
class OfaMobileNetV3Config:
    """Which supernet: the width multiplier and the choices below the full size."""

    num_classes: int = 1000
    in_channels: int = 3
    width_mult: float = 1.0
    resolutions: tuple[int, ...] = tuple(range(128, 225, 4))
    depth_choices: tuple[int, ...] = (2, 3, 4)
    expand_choices: tuple[float, ...] = (3, 4, 6)
    kernel_choices: tuple[int, ...] = (3, 5, 7)


def _space(config: OfaMobileNetV3Config) -> SearchSpace:
    return SearchSpace(
        family="ofa_mobilenet_v3",
        resolution=config.resolutions,
        depth=(config.depth_choices,) * len(_STAGES),
        expand=config.expand_choices,
        kernel=config.kernel_choices,
    )


def _channel_groups(config: OfaMobileNetV3Config) -> tuple[ChannelGroup, ...]:
    depth = config.depth_choices[-1]
    return tuple(
        group
        for stage, has_se in enumerate(_HAS_SE)
        for i in range(depth)
        for group in inverted_residual_groups(
            f"blocks.{1 + depth * stage + i}", config.kernel_choices, has_se
        )
    )


@supernet_family(
    "ofa_mobilenet_v3",
    config=OfaMobileNetV3Config,
    space=_space,
    channel_groups=_channel_groups,
    variants={
        "ofa_mobilenet_v3_w1.0": OfaMobileNetV3Config(),
        "ofa_mobilenet_v3_w1.2": OfaMobileNetV3Config(width_mult=1.2),
    },
    letters={
        "d": "blocks per stage (2, 3, 4)",
        "e": "expand ratio of a block's inner width (3, 4, 6)",
        "k": "depthwise kernel (3, 5, 7)",
        "r": "resolution (128 to 224 in steps of 4)",
    },
)
class OfaMobileNetV3(nn.Module):
    """The network at one arch: (B, in_channels, H, W) float to (B, num_classes) logits."""

    def __init__(self, config: OfaMobileNetV3Config, arch: Arch):
        super().__init__()
        stem, final, mix = (round_channels(c * config.width_mult) for c in (_STEM, _FINAL, _MIX))
        self.first_conv = ConvNormAct(config.in_channels, stem, 3, 2, act="hard_swish")
        self.blocks = BlockSequence({"0": DepthwiseSeparable(stem, stem)})
        expand, kernel = iter(arch.expand), iter(arch.kernel)
        in_channels = stem
        for stage, depth in enumerate(arch.depth):
            channels = round_channels(_STAGES[stage] * config.width_mult)
            for i in range(depth):
                mid_channels = round_channels(round(in_channels * next(expand)))
                chosen = next(kernel, None)
                name = str(1 + config.depth_choices[-1] * stage + i)
                self.blocks[name] = InvertedResidual(
                    in_channels,
                    mid_channels,
                    channels,
                    kernels=(chosen,) if chosen else config.kernel_choices,
                    stride=_STRIDES[stage] if i == 0 else 1,
                    se_hidden=round_channels(mid_channels // 4) if _HAS_SE[stage] else 0,
                    act=_ACTS[stage],
                )
                in_channels = channels
        self.final_expand = ConvNormAct(in_channels, final, 1, act="hard_swish")
        self.feature_mix = nn.Conv2d(final, mix, 1, bias=False)
        self.classifier = nn.Linear(mix, config.num_classes)
        init_conv_weights(self)

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) images to (B, C', H', W') features."""
        return self.final_expand(self.blocks(self.first_conv(x)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.forward_features(x).mean((2, 3), keepdim=True)
        return self.classifier(F.hardswish(self.feature_mix(x)).flatten(1))
