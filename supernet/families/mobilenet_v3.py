"""Elastic MobileNetV3 (Howard et al., ICCV 2019, https://arxiv.org/abs/1905.02244).

At full size these are timm's mobilenetv3_large_100 and mobilenetv3_small_100 (and their tf_
forms, padded as TensorFlow pads). Elastic in depth per stage, inner width and kernel per block,
and resolution. Differences from OFA's space: the published kernels and expand ratios are the full
size, so a pretrained network is the largest subnet.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from supernet.arch import Arch
from supernet.family import ChannelGroup
from supernet.layers.blocks import BlockSequence, ConvNormAct, init_conv_weights
from supernet.layers.inverted_residual import DepthwiseSeparable, Stage, append_stages, stage_groups
from supernet.registry import supernet_family
from supernet.space import SearchSpace

_STEM = 16
_H = "hard_swish"
_STAGES = {
    "large": (
        Stage(channels=24, kernel=3, expand=(4, 3), stride=2),
        Stage(channels=40, kernel=5, expand=(3, 3, 3), stride=2, has_se=True),
        Stage(channels=80, kernel=3, expand=(6, 2.5, 2.3, 2.3), stride=2, act=_H),
        Stage(channels=112, kernel=3, expand=(6, 6), has_se=True, act=_H),
        Stage(channels=160, kernel=5, expand=(6, 6, 6), stride=2, has_se=True, act=_H),
    ),
    "small": (
        Stage(channels=24, kernel=3, expand=(4.5, 3.67), stride=2),
        Stage(channels=40, kernel=5, expand=(4, 6, 6), stride=2, has_se=True, act=_H),
        Stage(channels=48, kernel=5, expand=(3, 3), has_se=True, act=_H),
        Stage(channels=96, kernel=5, expand=(6, 6, 6), stride=2, has_se=True, act=_H),
    ),
}
_FINAL = {"large": (960, 1280), "small": (576, 1024)}


@dataclass(frozen=True, kw_only=True)
class MobileNetV3Config:
    """Which supernet: large or small, TensorFlow's padding or not, and the choices below it."""

    size: str = "large"
    num_classes: int = 1000
    in_channels: int = 3
    resolutions: tuple[int, ...] = (128, 160, 192, 224)
    expand_choices: tuple[float, ...] = (0.5, 0.75, 1.0)
    kernel_choices: tuple[int, ...] = (3, 5)
    bn_eps: float = 1e-5
    same_padding: bool = False

    def __post_init__(self) -> None:
        if self.size not in _STAGES:
            raise ValueError(f"size is {self.size!r}, allowed {', '.join(_STAGES)}")


def _space(config: MobileNetV3Config) -> SearchSpace:
    stages = _STAGES[config.size]
    return SearchSpace(
        family="mobilenet_v3",
        resolution=config.resolutions,
        depth=tuple(tuple(range(1, len(stage.expand) + 1)) for stage in stages),
        expand=config.expand_choices,
        kernel=tuple(stage.kernels(config.kernel_choices) for stage in stages),
    )


def _channel_groups(config: MobileNetV3Config) -> tuple[ChannelGroup, ...]:
    return stage_groups(_STAGES[config.size], config.kernel_choices)


@supernet_family(
    "mobilenet_v3",
    config=MobileNetV3Config,
    space=_space,
    channel_groups=_channel_groups,
    variants={
        "mobilenetv3_large_100": MobileNetV3Config(),
        "mobilenetv3_small_100": MobileNetV3Config(size="small"),
        "tf_mobilenetv3_large_100": MobileNetV3Config(bn_eps=1e-3, same_padding=True),
        "tf_mobilenetv3_small_100": MobileNetV3Config(size="small", bn_eps=1e-3, same_padding=True),
    },
    letters={
        "d": "blocks per stage (1 up to the full depth of the stage)",
        "e": "inner width of a block as a part of the full one (0.5, 0.75, 1)",
        "k": "depthwise kernel (3, 5; stages whose full kernel is 3 keep 3)",
        "r": "resolution (128, 160, 192, 224)",
    },
)
class MobileNetV3(nn.Module):
    """The network at one arch: (B, in_channels, H, W) float to (B, num_classes) logits."""

    def __init__(self, config: MobileNetV3Config, arch: Arch):
        super().__init__()
        style = {"bn_eps": config.bn_eps, "same_padding": config.same_padding}
        final, hidden = _FINAL[config.size]
        is_small = config.size == "small"
        self.stem = ConvNormAct(config.in_channels, _STEM, 3, 2, act=_H, **style)
        first = DepthwiseSeparable(
            _STEM, _STEM, stride=2 if is_small else 1, se_hidden=8 if is_small else 0, **style
        )
        self.blocks = BlockSequence({"0": BlockSequence({"0": first})})
        channels = append_stages(
            self.blocks,
            _STAGES[config.size],
            arch,
            in_channels=_STEM,
            kernel_choices=config.kernel_choices,
            **style,
        )
        last = ConvNormAct(channels, final, 1, act=_H, bn_eps=config.bn_eps)
        self.blocks[str(len(self.blocks))] = BlockSequence({"0": last})
        self.conv_head = nn.Conv2d(final, hidden, 1)
        self.classifier = nn.Linear(hidden, config.num_classes)
        init_conv_weights(self)

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) images to (B, C', H', W') features."""
        return self.blocks(self.stem(x))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.forward_features(x).mean((2, 3), keepdim=True)
        return self.classifier(F.hardswish(self.conv_head(x)).flatten(1))
