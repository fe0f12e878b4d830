"""The inverted residual block (Sandler et al., CVPR 2018; Howard et al., ICCV 2019) and its kin.

Parameter names are timm's, but for the depthwise kernel, which carries its size:
`conv_dw.5.weight` (docs/decisions/003-elastic-kernels.md). Elastic in the inner width and in the
kernel; the outer widths are the config's.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from supernet.blocks import ACTIVATIONS, KernelChoice, conv2d
from supernet.describe import Block
from supernet.family import ChannelGroup, norm_vectors


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
