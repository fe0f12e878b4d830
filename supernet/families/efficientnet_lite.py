"""Elastic EfficientNet-Lite 0 to 4 (R. Liu, 2020; EfficientNet: Tan and Le, ICML 2019).

No gates, ReLU6, fixed stem and head. At full size these are timm's efficientnet_lite0 and, padded
as TensorFlow pads and with BatchNorm eps 1e-3, tf_efficientnet_lite0 to 4. Elastic in depth per
stage, inner width and kernel per block, and resolution.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

import torch
from torch import nn

from supernet.arch import Arch
from supernet.family import ChannelGroup
from supernet.layers.blocks import BlockSequence, ConvNormAct, init_conv_weights, round_channels
from supernet.layers.inverted_residual import DepthwiseSeparable, Stage, append_stages, stage_groups
from supernet.registry import supernet_family
from supernet.space import SearchSpace

_STEM, _FIRST, _HEAD, _EXPAND, _ACT = 32, 16, 1280, 6, "relu6"
# (channels, kernel, stride, blocks) of EfficientNet-B0; the last stage keeps its single block.
_STAGES = (
    (24, 3, 2, 2),
    (40, 5, 2, 2),
    (80, 3, 2, 3),
    (112, 5, 1, 3),
    (192, 5, 2, 4),
    (320, 3, 1, 1),
)


@dataclass(frozen=True, kw_only=True)
class EfficientNetLiteConfig:
    """Which supernet: its multipliers, TensorFlow's padding or not, and the choices below it."""

    num_classes: int = 1000
    in_channels: int = 3
    width_mult: float = 1.0
    depth_mult: float = 1.0
    resolutions: tuple[int, ...] = (128, 160, 192, 224)
    expand_choices: tuple[float, ...] = (0.5, 0.75, 1.0)
    kernel_choices: tuple[int, ...] = (3, 5)
    bn_eps: float = 1e-3
    same_padding: bool = True


def _stages(config: EfficientNetLiteConfig) -> tuple[Stage, ...]:
    stages: list[Stage] = []
    for number, (channels, kernel, stride, blocks) in enumerate(_STAGES, start=1):
        is_last = number == len(_STAGES)
        depth = blocks if is_last else ceil(blocks * config.depth_mult)
        stages.append(
            Stage(
                channels=round_channels(channels * config.width_mult),
                kernel=kernel,
                expand=(_EXPAND,) * depth,
                stride=stride,
                act=_ACT,
            )
        )
    return tuple(stages)


def _space(config: EfficientNetLiteConfig) -> SearchSpace:
    stages = _stages(config)
    return SearchSpace(
        family="efficientnet_lite",
        resolution=config.resolutions,
        depth=tuple(tuple(range(1, len(stage.expand) + 1)) for stage in stages),
        expand=config.expand_choices,
        kernel=tuple(stage.kernels(config.kernel_choices) for stage in stages),
    )


def _channel_groups(config: EfficientNetLiteConfig) -> tuple[ChannelGroup, ...]:
    return stage_groups(_stages(config), config.kernel_choices)


def _scaled(width_mult: float, depth_mult: float, resolution: int) -> EfficientNetLiteConfig:
    return EfficientNetLiteConfig(
        width_mult=width_mult, depth_mult=depth_mult, resolutions=(128, 160, 192, 224, resolution)
    )


@supernet_family(
    "efficientnet_lite",
    config=EfficientNetLiteConfig,
    space=_space,
    channel_groups=_channel_groups,
    variants={
        "tf_efficientnet_lite0": EfficientNetLiteConfig(),
        "tf_efficientnet_lite1": _scaled(1.0, 1.1, 240),
        "tf_efficientnet_lite2": _scaled(1.1, 1.2, 260),
        "tf_efficientnet_lite3": _scaled(1.2, 1.4, 300),
        "tf_efficientnet_lite4": _scaled(1.4, 1.8, 380),
        "efficientnet_lite0": EfficientNetLiteConfig(bn_eps=1e-5, same_padding=False),
    },
    letters={
        "d": "blocks per stage (1 up to the full depth of the stage)",
        "e": "inner width of a block as a part of the full one (0.5, 0.75, 1)",
        "k": "depthwise kernel (3, 5; stages whose full kernel is 3 keep 3)",
        "r": "resolution (128, 160, 192, 224 and the variant's own)",
    },
)
class EfficientNetLite(nn.Module):
    """The network at one arch: (B, in_channels, H, W) float to (B, num_classes) logits."""

    def __init__(self, config: EfficientNetLiteConfig, arch: Arch):
        super().__init__()
        style = {"bn_eps": config.bn_eps, "same_padding": config.same_padding}
        first_channels = round_channels(_FIRST * config.width_mult)
        self.stem = ConvNormAct(config.in_channels, _STEM, 3, 2, act=_ACT, **style)
        first = DepthwiseSeparable(_STEM, first_channels, act=_ACT, **style)
        self.blocks = BlockSequence({"0": BlockSequence({"0": first})})
        channels = append_stages(
            self.blocks,
            _stages(config),
            arch,
            in_channels=first_channels,
            kernel_choices=config.kernel_choices,
            **style,
        )
        self.head = ConvNormAct(channels, _HEAD, 1, act=_ACT, bn_eps=config.bn_eps)
        self.classifier = nn.Linear(_HEAD, config.num_classes)
        init_conv_weights(self)

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) images to (B, C', H', W') features."""
        return self.head(self.blocks(self.stem(x)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.forward_features(x).mean((2, 3)))
