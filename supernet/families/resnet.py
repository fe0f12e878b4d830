"""Elastic residual CNN for small images (He et al., CVPR 2016, CIFAR form, shortcut B).

Elastic in depth per stage, expand ratio (inner width) per block and width per stage. An ordinary
module: parameter names are those of timm's and torchvision's ResNet, the stem is one 3x3
convolution without pooling. Differences from the paper: projection shortcuts, and the inner width
of a basic block may be smaller than its outer width.

The stem's width is the first stage's: were they independent, the first block would need a
projection that the supernet lacks.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from supernet.arch import Arch
from supernet.blocks import BlockSequence, round_channels
from supernet.family import ChannelGroup, Family
from supernet.registry import register_family
from supernet.space import SearchSpace


@dataclass(frozen=True, kw_only=True)
class ResNetConfig:
    """Which supernet: its full size, and the choices below it. Square images of `resolution`."""

    num_classes: int = 10
    in_channels: int = 3
    resolution: int = 32
    widths: tuple[int, ...] = (16, 32, 64)
    depths: tuple[int, ...] = (3, 3, 3)
    min_depth: int = 1
    width_choices: tuple[float, ...] = (0.5, 0.75, 1.0)
    expand_choices: tuple[float, ...] = (0.5, 0.75, 1.0)

    def __post_init__(self) -> None:
        if len(self.widths) != len(self.depths) or not self.widths:
            raise ValueError(
                f"widths has {len(self.widths)} stages and depths {len(self.depths)}; "
                "expected the same number, at least one"
            )
        if not 1 <= self.min_depth <= min(self.depths):
            raise ValueError(f"min_depth is {self.min_depth}, allowed 1 to {min(self.depths)}")
        for name in ("width_choices", "expand_choices"):
            choices = getattr(self, name)
            if not choices or choices[-1] != 1.0:
                raise ValueError(f"{name} is {list(choices)}; the last choice must be 1.0")


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with a shortcut; a projection when the block strides."""

    def __init__(self, in_channels: int, mid_channels: int, out_channels: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, mid_channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(mid_channels)
        self.conv2 = nn.Conv2d(mid_channels, out_channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.downsample = None
        if stride != 1:
            self.downsample = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride, bias=False),
                nn.BatchNorm2d(out_channels),
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # (B, C, H, W)
        shortcut = x if self.downsample is None else self.downsample(x)
        x = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(x)) + shortcut)


class ResNet(nn.Module):
    """The network at one arch: (B, in_channels, H, W) float to (B, num_classes) logits."""

    def __init__(self, config: ResNetConfig, arch: Arch):
        super().__init__()
        widths = _stage_widths(config, arch)
        self.conv1 = nn.Conv2d(config.in_channels, widths[0], 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        expand = iter(arch.expand)
        in_channels = widths[0]
        for stage, (depth, width) in enumerate(zip(arch.depth, widths, strict=True)):
            blocks = BlockSequence()
            for i in range(depth):
                stride = 2 if stage > 0 and i == 0 else 1
                mid_channels = round_channels(width * next(expand))
                blocks[str(i)] = BasicBlock(in_channels, mid_channels, width, stride)
                in_channels = width
            setattr(self, f"layer{stage + 1}", blocks)
        self.num_stages = len(widths)
        self.fc = nn.Linear(in_channels, config.num_classes)
        self._init_weights()

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) images to (B, C', H', W') features."""
        x = F.relu(self.bn1(self.conv1(x)))
        for stage in range(self.num_stages):
            x = getattr(self, f"layer{stage + 1}")(x)
        return x

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.forward_features(x).mean((2, 3)))

    def _init_weights(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


def _stage_widths(config: ResNetConfig, arch: Arch) -> list[int]:
    return [round_channels(w * m) for w, m in zip(config.widths, arch.width, strict=True)]


def _space(config: ResNetConfig) -> SearchSpace:
    return SearchSpace(
        family="resnet",
        resolution=(config.resolution,),
        depth=tuple(tuple(range(config.min_depth, d + 1)) for d in config.depths),
        width=(config.width_choices,) * len(config.widths),
        expand=config.expand_choices,
    )


def _channel_groups(config: ResNetConfig) -> tuple[ChannelGroup, ...]:
    """Inner channels of each block, and each stage's stream with all that writes or reads it."""
    inner = [
        ChannelGroup(
            name=f"{block}.inner",
            produced=((f"{block}.conv1.weight", 0), *_norm(f"{block}.bn1")),
            consumed=((f"{block}.conv2.weight", 1),),
        )
        for stage, depth in enumerate(config.depths)
        for block in (f"layer{stage + 1}.{i}" for i in range(depth))
    ]
    return (*inner, *(_stream_group(config, stage) for stage in range(len(config.depths))))


def _stream_group(config: ResNetConfig, stage: int) -> ChannelGroup:
    blocks = [f"layer{stage + 1}.{i}" for i in range(config.depths[stage])]
    produced = [("conv1.weight", 0), *_norm("bn1")] if stage == 0 else []
    if stage > 0:
        first = f"{blocks[0]}.downsample"
        produced += [(f"{first}.0.weight", 0), *_norm(f"{first}.1")]
    for block in blocks:
        produced += [(f"{block}.conv2.weight", 0), *_norm(f"{block}.bn2")]
    readers = blocks if stage == 0 else blocks[1:]
    consumed = [(f"{block}.conv1.weight", 1) for block in readers]
    if stage + 1 < len(config.depths):
        following = f"layer{stage + 2}.0"
        consumed += [(f"{following}.conv1.weight", 1), (f"{following}.downsample.0.weight", 1)]
    else:
        consumed += [("fc.weight", 1)]
    return ChannelGroup(
        name=f"layer{stage + 1}.stream", produced=tuple(produced), consumed=tuple(consumed)
    )


def _norm(name: str) -> tuple[tuple[str, int], ...]:
    vectors = ("weight", "bias", "running_mean", "running_var")
    return tuple((f"{name}.{vector}", 0) for vector in vectors)


FAMILY = register_family(
    Family(
        name="resnet",
        module=ResNet,
        config=ResNetConfig,
        space=_space,
        channel_groups=_channel_groups,
        variants={
            "resnet20_cifar": ResNetConfig(),
            "resnet_digits": ResNetConfig(
                in_channels=1,
                widths=(64, 128, 256),
                depths=(2, 2, 2),
                width_choices=(0.25, 0.5, 0.75, 1.0),
                expand_choices=(0.25, 0.5, 0.75, 1.0),
            ),
            "resnet_tiny": ResNetConfig(
                in_channels=1,
                resolution=8,
                widths=(16, 16),
                depths=(2, 2),
                width_choices=(0.5, 1.0),
                expand_choices=(0.5, 1.0),
            ),
        },
    )
)
