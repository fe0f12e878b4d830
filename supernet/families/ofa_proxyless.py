"""OFA-ProxylessNAS (Cai et al., ICLR 2020, on the network of ProxylessNAS, ICLR 2019).

Depth 2-4 in five stages (the sixth has one block), expand ratio 3, 4, 6 and kernel 3, 5, 7 per
block, and resolution; ReLU6 everywhere, no gates, BatchNorm eps 1e-3. Blocks are numbered as in
the official files: block 0 is static, stage s (from 0) has the blocks 4s + 1 to 4s + 4.

Differences: as for ofa_mobilenet_v3, each kernel size has its own materialised parameter.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

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

_STEM, _FIRST, _STAGES, _MIX = 32, 16, (24, 40, 80, 96, 192, 320), 1280
_STRIDES = (2, 2, 2, 1, 2, 1)
_BN_EPS = 1e-3


@dataclass(frozen=True, kw_only=True)
class OfaProxylessConfig:
    """Which supernet: the width multiplier and the choices below the full size."""

    num_classes: int = 1000
    in_channels: int = 3
    width_mult: float = 1.3
    resolutions: tuple[int, ...] = tuple(range(128, 225, 4))
    depth_choices: tuple[int, ...] = (2, 3, 4)
    expand_choices: tuple[float, ...] = (3, 4, 6)
    kernel_choices: tuple[int, ...] = (3, 5, 7)


def _space(config: OfaProxylessConfig) -> SearchSpace:
    return SearchSpace(
        family="ofa_proxyless",
        resolution=config.resolutions,
        depth=(*(config.depth_choices,) * (len(_STAGES) - 1), (1,)),
        expand=config.expand_choices,
        kernel=config.kernel_choices,
    )


def _channel_groups(config: OfaProxylessConfig) -> tuple[ChannelGroup, ...]:
    num_blocks = (len(_STAGES) - 1) * config.depth_choices[-1] + 1
    return tuple(
        group
        for i in range(1, num_blocks + 1)
        for group in inverted_residual_groups(f"blocks.{i}", config.kernel_choices, has_se=False)
    )


@supernet_family(
    "ofa_proxyless",
    config=OfaProxylessConfig,
    space=_space,
    channel_groups=_channel_groups,
    variants={
        "ofa_proxyless_w1.3": OfaProxylessConfig(),
        "ofa_proxyless_w1.0": OfaProxylessConfig(width_mult=1.0),
    },
    letters={
        "d": "blocks per stage (2, 3, 4; the last stage has 1)",
        "e": "expand ratio of a block's inner width (3, 4, 6)",
        "k": "depthwise kernel (3, 5, 7)",
        "r": "resolution (128 to 224 in steps of 4)",
    },
)
class OfaProxyless(nn.Module):
    """The network at one arch: (B, in_channels, H, W) float to (B, num_classes) logits."""

    def __init__(self, config: OfaProxylessConfig, arch: Arch):
        super().__init__()
        stem, first, mix = (round_channels(c * config.width_mult) for c in (_STEM, _FIRST, _MIX))
        style = {"act": "relu6", "bn_eps": _BN_EPS}
        self.first_conv = ConvNormAct(config.in_channels, stem, 3, 2, **style)
        self.blocks = BlockSequence({"0": DepthwiseSeparable(stem, first, **style)})
        expand, kernel = iter(arch.expand), iter(arch.kernel)
        in_channels = first
        for stage, depth in enumerate(arch.depth):
            channels = round_channels(_STAGES[stage] * config.width_mult)
            for i in range(depth):
                chosen = next(kernel, None)
                self.blocks[str(1 + config.depth_choices[-1] * stage + i)] = InvertedResidual(
                    in_channels,
                    round_channels(round(in_channels * next(expand))),
                    channels,
                    kernels=(chosen,) if chosen else config.kernel_choices,
                    stride=_STRIDES[stage] if i == 0 else 1,
                    **style,
                )
                in_channels = channels
        self.feature_mix = ConvNormAct(in_channels, mix, 1, **style)
        self.classifier = nn.Linear(mix, config.num_classes)
        init_conv_weights(self)

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) images to (B, C', H', W') features."""
        return self.feature_mix(self.blocks(self.first_conv(x)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.forward_features(x).mean((2, 3)))
