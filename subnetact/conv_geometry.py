"""`ConvGeometry`: the shapes of one convolution, which its layout and its work depend on."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ConvGeometry:
    """What a convolution's packed layout depends on; `input_shape` is (C, H, W) of one sample."""

    weight_shape: tuple[int, ...]
    input_shape: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int

    @property
    def output_size(self) -> tuple[int, ...]:
        """(H', W') of the output."""
        sizes = zip(
            self.input_shape[1:],
            self.weight_shape[2:],
            self.stride,
            self.padding,
            self.dilation,
            strict=True,
        )
        return tuple((n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in sizes)

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one sample."""
        out, per_output = self.weight_shape[0], 1
        for size in self.weight_shape[1:]:
            per_output *= size
        height, width = self.output_size
        return out * per_output * height * width
