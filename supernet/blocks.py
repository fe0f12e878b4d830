"""Shared building pieces of the families: a stage of named blocks, channel rounding."""

from __future__ import annotations

import torch
from torch import nn


class BlockSequence(nn.ModuleDict):
    """Blocks run in order, each under its supernet name even when others are absent.

    Elastic depth needs names with gaps: block "3" stays "3" when "2" is not built, so its
    parameters are slices of the supernet's parameters of the same name.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.values():
            x = block(x)
        return x


def round_channels(channels: float, divisor: int = 8) -> int:
    """Round to the nearest multiple of `divisor`, at least one, never below 90 % of the value.

    The rounding of MobileNetV2 (Sandler et al., CVPR 2018), which OFA and timm share.

    >>> round_channels(20.0), round_channels(3), round_channels(96 * 0.65)
    (24, 8, 64)
    """
    rounded = max(divisor, int(channels + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * channels else rounded
