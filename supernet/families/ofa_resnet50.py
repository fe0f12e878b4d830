"""OFA-ResNet50 (Cai et al., ICLR 2020): ResNet-50D (He et al., CVPR 2019) made elastic.

Elastic in depth (0 to 2 blocks beyond 2, 2, 4, 2, and a residual convolution in the stem), in the
bottleneck's expand ratio, in the width of the stem and of every stage, and in resolution. An arch
is OFA's descriptor without its padding: `depth` are the extra blocks, the stem's (0 or 2) first;
`width` are indices into (0.65, 0.8, 1) for stem middle, stem end and four stages. Blocks are
numbered as in the official files, 18 in a row.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from supernet.arch import Arch
from supernet.describe import Block
from supernet.family import ChannelGroup, norm_vectors
from supernet.layers.blocks import (
    BlockSequence,
    ConvNormAct,
    conv2d,
    init_conv_weights,
    round_channels,
)
from supernet.registry import supernet_family
from supernet.space import SearchSpace

_STAGES, _BASE_DEPTHS, _STRIDES = (256, 512, 1024, 2048), (2, 2, 4, 2), (1, 2, 2, 2)
_STEM, _MAX_EXTRA = 64, 2


@dataclass(frozen=True, kw_only=True)
class OfaResNet50Config:
    """Which supernet: the choices below the full size."""

    num_classes: int = 1000
    in_channels: int = 3
    resolutions: tuple[int, ...] = tuple(range(128, 225, 4))
    expand_choices: tuple[float, ...] = (0.2, 0.25, 0.35)
    width_mults: tuple[float, ...] = (0.65, 0.8, 1.0)


class AvgPoolShortcut(nn.Module):
    """Average pooling by the stride, then a 1x1 projection with BatchNorm (ResNet-D)."""

    def __init__(self, in_channels: int, out_channels: int, stride: int):
        super().__init__()
        self._stride = stride
        self.conv = conv2d(in_channels, out_channels, 1)
        self.bn = nn.BatchNorm2d(out_channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self._stride > 1:
            x = F.avg_pool2d(x, self._stride, self._stride, ceil_mode=True)
        return self.bn(self.conv(x))


class OfaBottleneck(Block):
    """1x1, 3x3 with the stride, 1x1; a projection in the first block of a stage."""

    def __init__(
        self, in_channels: int, mid_channels: int, out_channels: int, stride: int, project: bool
    ):
        super().__init__()
        self.conv1 = conv2d(in_channels, mid_channels, 1)
        self.bn1 = nn.BatchNorm2d(mid_channels)
        self.conv2 = conv2d(mid_channels, mid_channels, 3, stride)
        self.bn2 = nn.BatchNorm2d(mid_channels)
        self.conv3 = conv2d(mid_channels, out_channels, 1)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.downsample = AvgPoolShortcut(in_channels, out_channels, stride) if project else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # (B, C, H, W)
        shortcut = x if self.downsample is None else self.downsample(x)
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(self.bn2(self.conv2(x)))
        return F.relu(self.bn3(self.conv3(x)) + shortcut)


class ResidualConv(Block):
    """3x3 convolution, BatchNorm and ReLU beside an identity: the stem's optional block."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = ConvNormAct(channels, channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.conv(x)


def _space(config: OfaResNet50Config) -> SearchSpace:
    extra = tuple(range(_MAX_EXTRA + 1))
    return SearchSpace(
        family="ofa_resnet50",
        resolution=config.resolutions,
        depth=((0, _MAX_EXTRA), *(extra,) * len(_STAGES)),
        num_blocks=((0, 0), *(tuple(base + e for e in extra) for base in _BASE_DEPTHS)),
        width=(tuple(range(len(config.width_mults))),) * (2 + len(_STAGES)),
        expand=config.expand_choices,
    )


def _blocks_of_stages() -> list[list[str]]:
    """Names of the blocks of every stage at full depth."""
    names: list[list[str]] = []
    first = 0
    for base in _BASE_DEPTHS:
        names.append([str(i) for i in range(first, first + base + _MAX_EXTRA)])
        first += base + _MAX_EXTRA
    return names


def _channel_groups(config: OfaResNet50Config) -> tuple[ChannelGroup, ...]:
    stages = [[f"blocks.{name}" for name in names] for names in _blocks_of_stages()]
    inner = [
        ChannelGroup(
            name=f"{block}.inner{i}",
            produced=((f"{block}.conv{i}.weight", 0), *norm_vectors(f"{block}.bn{i}")),
            consumed=((f"{block}.conv{i + 1}.weight", 1),),
        )
        for names in stages
        for block in names
        for i in (1, 2)
    ]
    streams = [_stream_group(stages, stage) for stage in range(len(stages))]
    return (*_stem_groups(), *inner, *streams)


def _stem_groups() -> tuple[ChannelGroup, ChannelGroup]:
    residual = "input_stem.1.conv"
    middle = ChannelGroup(
        name="input_stem.middle",
        produced=(
            *(("input_stem.0.conv.weight", 0), *norm_vectors("input_stem.0.bn")),
            *((f"{residual}.conv.weight", 0), *norm_vectors(f"{residual}.bn")),
        ),
        consumed=((f"{residual}.conv.weight", 1), ("input_stem.2.conv.weight", 1)),
    )
    end = ChannelGroup(
        name="input_stem.end",
        produced=(("input_stem.2.conv.weight", 0), *norm_vectors("input_stem.2.bn")),
        consumed=(("blocks.0.conv1.weight", 1), ("blocks.0.downsample.conv.weight", 1)),
    )
    return middle, end


def _stream_group(stages: list[list[str]], stage: int) -> ChannelGroup:
    blocks = stages[stage]
    shortcut = f"{blocks[0]}.downsample"
    produced = [(f"{shortcut}.conv.weight", 0), *norm_vectors(f"{shortcut}.bn")]
    for block in blocks:
        produced += [(f"{block}.conv3.weight", 0), *norm_vectors(f"{block}.bn3")]
    consumed = [(f"{block}.conv1.weight", 1) for block in blocks[1:]]
    if stage + 1 < len(stages):
        following = stages[stage + 1][0]
        consumed += [(f"{following}.conv1.weight", 1), (f"{following}.downsample.conv.weight", 1)]
    else:
        consumed += [("classifier.weight", 1)]
    return ChannelGroup(
        name=f"stage{stage}.stream", produced=tuple(produced), consumed=tuple(consumed)
    )


@supernet_family(
    "ofa_resnet50",
    config=OfaResNet50Config,
    space=_space,
    channel_groups=_channel_groups,
    variants={"ofa_resnet50": OfaResNet50Config()},
    letters={
        "d": "extra blocks per stage beyond 2, 2, 4, 2 (0, 1, 2); the stem's residual only at 2",
        "e": "bottleneck width as a part of the block's output (0.2, 0.25, 0.35)",
        "w": "index into the width multipliers 0.65, 0.8, 1 (0, 1, 2), stem and stages",
        "r": "resolution (128 to 224 in steps of 4)",
    },
)
class OfaResNet50(nn.Module):
    """The network at one arch: (B, in_channels, H, W) float to (B, num_classes) logits."""

    def __init__(self, config: OfaResNet50Config, arch: Arch):
        super().__init__()
        mults = [config.width_mults[int(index)] for index in arch.width]
        middle = round_channels(round_channels(_STEM * mults[0]) // 2)
        in_channels = round_channels(_STEM * mults[1])
        self.input_stem = BlockSequence({"0": ConvNormAct(config.in_channels, middle, 3, 2)})
        if arch.depth[0] == _MAX_EXTRA:
            self.input_stem["1"] = ResidualConv(middle)
        self.input_stem["2"] = ConvNormAct(middle, in_channels)
        self.blocks = BlockSequence()
        expand = iter(arch.expand)
        for stage, names in enumerate(_blocks_of_stages()):
            channels = round_channels(_STAGES[stage] * mults[2 + stage])
            for i in range(_BASE_DEPTHS[stage] + arch.depth[1 + stage]):
                mid_channels = round_channels(round(channels * next(expand)))
                stride = _STRIDES[stage] if i == 0 else 1
                self.blocks[names[i]] = OfaBottleneck(
                    in_channels, mid_channels, channels, stride, i == 0
                )
                in_channels = channels
        self.classifier = nn.Linear(in_channels, config.num_classes)
        init_conv_weights(self)

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) images to (B, C', H', W') features."""
        x = F.max_pool2d(self.input_stem(x), 3, 2, 1)
        return self.blocks(x)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.forward_features(x).mean((2, 3)))
