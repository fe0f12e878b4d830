"""Shared building pieces of the families: sequences of named blocks, kernels, channel rounding."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import nn
from torch.nn import functional as F

from supernet.describe import Block

ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "relu": F.relu,
    "relu6": F.relu6,
    "hard_swish": F.hardswish,
}


class BlockSequence(nn.ModuleDict):
    """Blocks run in order, each under its supernet name even when others are absent.

    Elastic depth needs names with gaps: block "3" stays "3" when "2" is not built, so its
    parameters are slices of the supernet's parameters of the same name.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.values():
            x = block(x)
        return x


class SamePadConv2d(nn.Conv2d):
    """A convolution padded as TensorFlow's SAME: the odd row and column go below and right."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int, stride: int, groups: int):
        super().__init__(in_channels, out_channels, kernel, stride, 0, groups=groups, bias=False)

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # (B, C, H, W)
        return super().forward(pad_same(input, self.kernel_size[0], self.stride[0]))


class KernelChoice(BlockSequence):
    """One depthwise convolution per kernel size, named by the size; exactly one of them runs.

    A subnet holds the convolution of its own kernel size only. The stored supernet holds all of
    them, and run plainly uses the largest.
    """

    def __init__(
        self, channels: int, kernels: Iterable[int], stride: int, same_padding: bool = False
    ):
        super().__init__()
        for kernel in sorted(kernels):
            self[str(kernel)] = conv2d(
                channels, channels, kernel, stride, groups=channels, same_padding=same_padding
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        *_, largest = self.values()
        return largest(x)


class ConvNormAct(Block):
    """Convolution, BatchNorm, activation; (B, C, H, W) to (B, C', H / stride, W / stride)."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int = 3,
        stride: int = 1,
        *,
        act: str = "relu",
        bn_eps: float = 1e-5,
        same_padding: bool = False,
    ):
        super().__init__()
        self.conv = conv2d(in_channels, out_channels, kernel, stride, same_padding=same_padding)
        self.bn = nn.BatchNorm2d(out_channels, eps=bn_eps)
        self._act = ACTIVATIONS[act]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self._act(self.bn(self.conv(x)))


def conv2d(
    in_channels: int,
    out_channels: int,
    kernel: int,
    stride: int = 1,
    *,
    groups: int = 1,
    same_padding: bool = False,
) -> nn.Conv2d:
    """Make a convolution without bias that keeps the size at stride 1 (odd kernels)."""
    if same_padding and stride > 1:
        return SamePadConv2d(in_channels, out_channels, kernel, stride, groups)
    return nn.Conv2d(
        in_channels, out_channels, kernel, stride, kernel // 2, groups=groups, bias=False
    )


def pad_same(x: torch.Tensor, kernel: int, stride: int) -> torch.Tensor:
    """Pad (B, C, H, W) so that the output is ceil(H / stride) by ceil(W / stride)."""
    height, width = (
        max((-(-size // stride) - 1) * stride + kernel - size, 0) for size in x.shape[-2:]
    )
    return F.pad(x, (width // 2, width - width // 2, height // 2, height - height // 2))


def init_conv_weights(net: nn.Module) -> None:
    """Draw every convolution from He's normal distribution by fan-out; nothing on meta."""
    if torch.get_default_device().type == "meta":
        return
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def round_channels(channels: float, divisor: int = 8) -> int:
    """Round to the nearest multiple of `divisor`, at least one, never below 90 % of the value.

    The rounding of MobileNetV2 (Sandler et al., CVPR 2018), which OFA and timm share.

    >>> round_channels(20.0), round_channels(3), round_channels(96 * 0.65)
    (24, 8, 64)
    """
    rounded = max(divisor, int(channels + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * channels else rounded
