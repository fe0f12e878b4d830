"""The inverted residual block (Sandler et al., CVPR 2018; Howard et al., ICCV 2019) and its kin.

Parameter names are timm's, but for the depthwise kernel, which carries its size:
`conv_dw.5.weight` (docs/decisions/004-elastic-kernels.md). Elastic in the inner width and in the
kernel; the outer widths are the config's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from supernet.arch import Arch
from supernet.describe import Block
from supernet.family import ChannelGroup, norm_vectors
from supernet.layers.blocks import ACTIVATIONS, BlockSequence, KernelChoice, conv2d, round_channels


class SqueezeExcite(Block):
    """Channel gates from pooled features: 1x1 reduce, ReLU, 1x1 expand, hard sigmoid."""

    def __init__(self, channels: int, hidden: int):
        super().__init__()
        self.conv_reduce = nn.Conv2d(channels, hidden, 1)
        self.conv_expand = nn.Conv2d(hidden, channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # (B, C, H, W)
        gates = self.conv_expand(F.relu(self.conv_reduce(x.mean((2, 3), keepdim=True))))
        return x * F.hardsigmoid(gates)


class DepthwiseSeparable(Block):
    """Depthwise convolution, then a linear 1x1; a shortcut where the shape is kept."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        stride: int = 1,
        se_hidden: int = 0,
        act: str = "relu",
        bn_eps: float = 1e-5,
        same_padding: bool = False,
    ):
        super().__init__()
        self._has_skip = stride == 1 and in_channels == out_channels
        self._act = ACTIVATIONS[act]
        self.conv_dw = conv2d(
            in_channels, in_channels, 3, stride, groups=in_channels, same_padding=same_padding
        )
        self.bn1 = nn.BatchNorm2d(in_channels, eps=bn_eps)
        self.se = SqueezeExcite(in_channels, se_hidden) if se_hidden else None
        self.conv_pw = conv2d(in_channels, out_channels, 1)
        self.bn2 = nn.BatchNorm2d(out_channels, eps=bn_eps)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self._act(self.bn1(self.conv_dw(x)))
        if self.se is not None:
            y = self.se(y)
        y = self.bn2(self.conv_pw(y))
        return y + x if self._has_skip else y


class InvertedResidual(Block):
    """1x1 expansion, depthwise convolution, gates, linear 1x1; a shortcut where it fits."""

    def __init__(
        self,
        in_channels: int,
        mid_channels: int,
        out_channels: int,
        *,
        kernels: tuple[int, ...],
        stride: int = 1,
        se_hidden: int = 0,
        act: str = "relu",
        bn_eps: float = 1e-5,
        same_padding: bool = False,
    ):
        super().__init__()
        self._has_skip = stride == 1 and in_channels == out_channels
        self._act = ACTIVATIONS[act]
        self.conv_pw = conv2d(in_channels, mid_channels, 1)
        self.bn1 = nn.BatchNorm2d(mid_channels, eps=bn_eps)
        self.conv_dw = KernelChoice(mid_channels, kernels, stride, same_padding)
        self.bn2 = nn.BatchNorm2d(mid_channels, eps=bn_eps)
        self.se = SqueezeExcite(mid_channels, se_hidden) if se_hidden else None
        self.conv_pwl = conv2d(mid_channels, out_channels, 1)
        self.bn3 = nn.BatchNorm2d(out_channels, eps=bn_eps)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # (B, C, H, W)
        y = self._act(self.bn1(self.conv_pw(x)))
        y = self._act(self.bn2(self.conv_dw(y)))
        if self.se is not None:
            y = self.se(y)
        y = self.bn3(self.conv_pwl(y))
        return y + x if self._has_skip else y


def inverted_residual_groups(
    block: str, kernels: tuple[int, ...], has_se: bool
) -> tuple[ChannelGroup, ...]:
    """Inner channels, and the hidden units of the gates.

    The importance of an inner channel is what the linear 1x1 reads of it (OFA, ICLR 2020); the
    gates follow its order.
    """
    produced = [(f"{block}.conv_pw.weight", 0), *norm_vectors(f"{block}.bn1")]
    produced += [(f"{block}.conv_dw.{kernel}.weight", 0) for kernel in kernels]
    produced += norm_vectors(f"{block}.bn2")
    gates: tuple[ChannelGroup, ...] = ()
    if has_se:
        reduce, expand = f"{block}.se.conv_reduce", f"{block}.se.conv_expand"
        produced += [(f"{reduce}.weight", 1), (f"{expand}.weight", 0), (f"{expand}.bias", 0)]
        gates = (
            ChannelGroup(
                name=f"{block}.se",
                produced=((f"{reduce}.weight", 0), (f"{reduce}.bias", 0)),
                consumed=((f"{expand}.weight", 1),),
            ),
        )
    consumed = ((f"{block}.conv_pwl.weight", 1),)
    return (
        ChannelGroup(name=f"{block}.inner", produced=tuple(produced), consumed=consumed),
        *gates,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """A stage of inverted residuals at full size, as MobileNet papers tabulate it.

    `expand` has one ratio of inner to incoming width per block; only the first block strides.
    """

    channels: int
    kernel: int
    expand: tuple[float, ...]
    stride: int = 1
    has_se: bool = False
    act: str = "relu"

    def kernels(self, choices: Sequence[int]) -> tuple[int, ...]:
        """The elastic kernel sizes: those of `choices` below the full one, and the full one."""
        return (*(k for k in choices if k < self.kernel), self.kernel)


def append_stages(
    blocks: BlockSequence,
    stages: Sequence[Stage],
    arch: Arch,
    *,
    in_channels: int,
    kernel_choices: Sequence[int],
    bn_eps: float,
    same_padding: bool,
) -> int:
    """Append the blocks of `arch` as `1.0`, `1.1`, `2.0`, ...; return the outgoing width.

    Here an arch's `expand` is a part of each block's full inner width.
    """
    part, kernel = iter(arch.expand), iter(arch.kernel)
    for number, (stage, depth) in enumerate(zip(stages, arch.depth, strict=True), start=1):
        kept = BlockSequence()
        for i in range(depth):
            full = round_channels(in_channels * stage.expand[i])
            mid_channels = round_channels(full * next(part))
            chosen = next(kernel, None)
            kept[str(i)] = InvertedResidual(
                in_channels,
                mid_channels,
                stage.channels,
                kernels=(chosen,) if chosen else stage.kernels(kernel_choices),
                stride=stage.stride if i == 0 else 1,
                se_hidden=round_channels(mid_channels / 4) if stage.has_se else 0,
                act=stage.act,
                bn_eps=bn_eps,
                same_padding=same_padding,
            )
            in_channels = stage.channels
        blocks[str(number)] = kept
    return in_channels


def stage_groups(
    stages: Sequence[Stage], kernel_choices: Sequence[int]
) -> tuple[ChannelGroup, ...]:
    """Channel groups of the blocks that `append_stages` appends at full depth."""
    return tuple(
        group
        for number, stage in enumerate(stages, start=1)
        for i in range(len(stage.expand))
        for group in inverted_residual_groups(
            f"blocks.{number}.{i}", stage.kernels(kernel_choices), stage.has_se
        )
    )
