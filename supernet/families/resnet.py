"""Elastic residual CNNs (He et al., CVPR 2016), for small images and for ImageNet.

Elastic in depth per stage, expand ratio (inner width) per block and width per stage. At full size
these are torchvision's and timm's ResNet-18, 34, 50 and 101 (v1.5: the stride is in the 3x3
convolution) under the same parameter names, and with the CIFAR stem the paper's ResNet-20 to 56,
with projections (shortcut B) or zero padding (shortcut A).

Differences from the papers: the inner width of a basic block may be smaller than its outer width.
With basic blocks the stem's width is the first stage's: were they independent, the first block
would need a projection that the supernet lacks. With shortcut A widths are fixed: padding on both
sides would move the channels of a narrower subnet.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from supernet.arch import Arch
from supernet.describe import Block
from supernet.family import ChannelGroup, norm_vectors
from supernet.layers.blocks import BlockSequence, conv2d, init_conv_weights, round_channels
from supernet.registry import supernet_family
from supernet.space import SearchSpace

_BOTTLENECK_RATIO = 4


@dataclass(frozen=True, kw_only=True)
class ResNetConfig:
    """Which supernet: its full size, and the choices below it. Square images of `resolution`.

    `block` is basic or bottleneck, `stem` cifar (3x3) or imagenet (7x7 and pooling), `shortcut`
    A (zero padding) or B (projection). `widths` are those of the stages' outputs.
    """

    num_classes: int = 10
    in_channels: int = 3
    resolution: int = 32
    widths: tuple[int, ...] = (16, 32, 64)
    depths: tuple[int, ...] = (3, 3, 3)
    min_depth: int = 1
    width_choices: tuple[float, ...] = (0.5, 0.75, 1.0)
    expand_choices: tuple[float, ...] = (0.5, 0.75, 1.0)
    block: str = "basic"
    stem: str = "cifar"
    shortcut: str = "B"

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
        for name, allowed in _ALLOWED.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} is {getattr(self, name)!r}, allowed {', '.join(allowed)}")
        if self.shortcut == "A" and (self.block != "basic" or len(self.width_choices) > 1):
            raise ValueError(
                "shortcut A needs basic blocks and fixed widths: set block to 'basic' and "
                "width_choices to (1.0,), or shortcut to 'B'"
            )

    @property
    def is_bottleneck(self) -> bool:
        """Whether blocks have three convolutions."""
        return self.block == "bottleneck"


_ALLOWED = {
    "block": ("basic", "bottleneck"),
    "stem": ("cifar", "imagenet"),
    "shortcut": ("A", "B"),
}


def projection(in_channels: int, out_channels: int, stride: int) -> nn.Sequential:
    """Shortcut B: a strided 1x1 convolution with BatchNorm."""
    return nn.Sequential(conv2d(in_channels, out_channels, 1, stride), nn.BatchNorm2d(out_channels))


class BasicBlock(Block):
    """Two 3x3 convolutions with a shortcut: a projection, or zero padding where it strides."""

    def __init__(
        self, in_channels: int, mid_channels: int, out_channels: int, stride: int, project: bool
    ):
        super().__init__()
        self.conv1 = conv2d(in_channels, mid_channels, 3, stride)
        self.bn1 = nn.BatchNorm2d(mid_channels)
        self.conv2 = conv2d(mid_channels, out_channels, 3)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.downsample = projection(in_channels, out_channels, stride) if project else None
        self._stride = stride

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # (B, C, H, W)
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        if self.downsample is not None:
            x = self.downsample(x)
        elif self._stride > 1:
            before = (y.shape[1] - x.shape[1]) // 2
            after = y.shape[1] - x.shape[1] - before
            x = F.pad(x[:, :, :: self._stride, :: self._stride], (0, 0, 0, 0, before, after))
        return F.relu(y + x)


class Bottleneck(Block):
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
        self.downsample = projection(in_channels, out_channels, stride) if project else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # (B, C, H, W)
        shortcut = x if self.downsample is None else self.downsample(x)
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(self.bn2(self.conv2(x)))
        return F.relu(self.bn3(self.conv3(x)) + shortcut)


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


def _has_projection(config: ResNetConfig, stage: int) -> bool:
    """Whether the stage's first block projects its shortcut."""
    return config.is_bottleneck or (stage > 0 and config.shortcut == "B")


def _channel_groups(config: ResNetConfig) -> tuple[ChannelGroup, ...]:
    """Inner channels of each block, and each stage's stream with all that writes or reads it."""
    inner = [
        ChannelGroup(
            name=f"{block}.inner" if not config.is_bottleneck else f"{block}.inner{i}",
            produced=((f"{block}.conv{i}.weight", 0), *norm_vectors(f"{block}.bn{i}")),
            consumed=((f"{block}.conv{i + 1}.weight", 1),),
        )
        for stage, depth in enumerate(config.depths)
        for block in (f"layer{stage + 1}.{n}" for n in range(depth))
        for i in range(1, 3 if config.is_bottleneck else 2)
    ]
    if config.shortcut == "A":  # one stream through all stages, of fixed width
        return tuple(inner)
    return (*inner, *(_stream_group(config, stage) for stage in range(len(config.depths))))


def _stream_group(config: ResNetConfig, stage: int) -> ChannelGroup:
    blocks = [f"layer{stage + 1}.{i}" for i in range(config.depths[stage])]
    projects = _has_projection(config, stage)
    first = f"{blocks[0]}.downsample"
    stem = [("conv1.weight", 0), *norm_vectors("bn1")]
    produced = [(f"{first}.0.weight", 0), *norm_vectors(f"{first}.1")] if projects else stem
    last_conv = 3 if config.is_bottleneck else 2
    for block in blocks:
        produced += [(f"{block}.conv{last_conv}.weight", 0)]
        produced += norm_vectors(f"{block}.bn{last_conv}")
    consumed = [(f"{block}.conv1.weight", 1) for block in (blocks[1:] if projects else blocks)]
    if stage + 1 < len(config.depths):
        following = f"layer{stage + 2}.0"
        consumed += [(f"{following}.conv1.weight", 1), (f"{following}.downsample.0.weight", 1)]
    else:
        consumed += [("fc.weight", 1)]
    return ChannelGroup(
        name=f"layer{stage + 1}.stream", produced=tuple(produced), consumed=tuple(consumed)
    )


def _cifar(num_blocks: int) -> ResNetConfig:
    """The paper's CIFAR-10 network of 6 * num_blocks + 2 layers, shortcut A."""
    return ResNetConfig(depths=(num_blocks,) * 3, width_choices=(1.0,), shortcut="A")


def _imagenet(block: str, depths: tuple[int, ...]) -> ResNetConfig:
    widths = (64, 128, 256, 512) if block == "basic" else (256, 512, 1024, 2048)
    return ResNetConfig(
        num_classes=1000,
        resolution=224,
        widths=widths,
        depths=depths,
        block=block,
        stem="imagenet",
    )


@supernet_family(
    "resnet",
    config=ResNetConfig,
    space=_space,
    channel_groups=_channel_groups,
    variants={
        "resnet20_cifar": ResNetConfig(),
        "resnet20_cifar_a": _cifar(3),
        "resnet32_cifar_a": _cifar(5),
        "resnet44_cifar_a": _cifar(7),
        "resnet56_cifar_a": _cifar(9),
        "resnet18": _imagenet("basic", (2, 2, 2, 2)),
        "resnet34": _imagenet("basic", (3, 4, 6, 3)),
        "resnet50": _imagenet("bottleneck", (3, 4, 6, 3)),
        "resnet101": _imagenet("bottleneck", (3, 4, 23, 3)),
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
    letters={
        "d": "blocks per stage (1 up to the full depth of the stage)",
        "w": "width of a stage's output as a part of the full one (0.5, 0.75, 1)",
        "e": "inner width of a block as a part of the full one (0.5, 0.75, 1)",
        "r": "resolution (one per variant)",
    },
)
class ResNet(nn.Module):
    """The network at one arch: (B, in_channels, H, W) float to (B, num_classes) logits."""

    def __init__(self, config: ResNetConfig, arch: Arch):
        super().__init__()
        widths = _stage_widths(config, arch)
        stem = config.widths[0] // _BOTTLENECK_RATIO if config.is_bottleneck else widths[0]
        self._pools = config.stem == "imagenet"
        kernel, stride = (7, 2) if self._pools else (3, 1)
        self.conv1 = conv2d(config.in_channels, stem, kernel, stride)
        self.bn1 = nn.BatchNorm2d(stem)
        block: Callable[..., nn.Module] = Bottleneck if config.is_bottleneck else BasicBlock
        ratio = _BOTTLENECK_RATIO if config.is_bottleneck else 1
        expand = iter(arch.expand)
        in_channels = stem
        for stage, (depth, width) in enumerate(zip(arch.depth, widths, strict=True)):
            blocks = BlockSequence()
            for i in range(depth):
                stride = 2 if stage > 0 and i == 0 else 1
                mid_channels = round_channels(width / ratio * next(expand))
                project = i == 0 and _has_projection(config, stage)
                blocks[str(i)] = block(in_channels, mid_channels, width, stride, project)
                in_channels = width
            setattr(self, f"layer{stage + 1}", blocks)
        self.num_stages = len(widths)
        self.fc = nn.Linear(in_channels, config.num_classes)
        init_conv_weights(self)

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) images to (B, C', H', W') features."""
        x = F.relu(self.bn1(self.conv1(x)))
        if self._pools:
            x = F.max_pool2d(x, 3, 2, 1)
        for stage in range(self.num_stages):
            x = getattr(self, f"layer{stage + 1}")(x)
        return x

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.forward_features(x).mean((2, 3)))
