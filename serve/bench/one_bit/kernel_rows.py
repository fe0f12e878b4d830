"""The one-bit kernel: exactness, a stack of layers against int8 and int4, and a convolution."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from functools import partial
from statistics import median

import torch
from torch.nn import functional as F

from serve.bench.actuation.rounds import medians_text, paired_ratio, rotated
from serve.bench.one_bit.rivals import INT4, INT8, ONE_BIT, Layer, available, mismatches, one_bit
from serve.bench.rows import Row, Tell, row
from subnetact.decoding.one_bit_linear import native_kernels
from subnetact.number_format import best_format

FULL_STACK = (8, 4096, 1024)  # layers, outputs, inputs: 33.6 million weights
CONVOLUTIONS = ((64, 56), (128, 28), (256, 14), (512, 7))  # channels, height: ResNet-18's
_TOKENS = (1, 2, 4)


def kernel_rows(
    *, stack: tuple[int, int, int] = FULL_STACK, cases: int = 300, at_least_s: float, tell: Tell
) -> list[Row]:
    """Exactness, then the stack at batch 1, 2 and 4, then what a convolution would take."""
    kernels = native_kernels()
    how = "torch, plain" if kernels is None else kernels.INSTRUCTION_SETS[0]
    found = [
        row(
            "actuation/onebit/mismatches",
            mismatches(cases),
            "layers",
            f"of {cases} drawn shapes, widths and signs, bit for bit against integers; {how}",
        )
    ]
    found += stack_rows(stack, how, at_least_s, tell)
    return found


def stack_rows(stack: tuple[int, int, int], how: str, at_least_s: float, tell: Tell) -> list[Row]:
    """Ours over the fastest int8, over each of them and over int4; one thread, interleaved.

    All take activations in float32 and answer float32, so rounding and scaling count.
    """
    num_layers, rows, inputs = stack
    makers = available()
    generator = torch.Generator().manual_seed(0)
    layers: dict[str, list[Layer]] = {name: [] for name in makers}
    for _ in range(num_layers):
        weight = torch.randn(rows, inputs, generator=generator) * 0.05
        for name, make in makers.items():
            layers[name].append(make(weight))
    found: list[Row] = []
    for tokens in _TOKENS:
        x = torch.randn(tokens, inputs, generator=generator)
        calls = {n: partial(_run, own, x) for n, own in layers.items()}
        # Once before the clock: each finds its own weights as near as the caches let them be.
        samples_s = rotated(calls, at_least_s, prepare=lambda name, calls=calls: calls[name]())
        best = min((n for n in INT8 if n in samples_s), key=lambda n: median(samples_s[n]))
        detail = (
            f"{num_layers} layers of {rows} x {inputs}, batch {tokens}, 1 thread, {how}; fastest "
            f"int8 {best}; {medians_text(samples_s)}"
        )
        figure = f"actuation/onebit/stack/b{tokens}"
        ratios = {"best_int8_over_one_bit": best}
        ratios |= {f"{n}_over_one_bit": n for n in samples_s if n != ONE_BIT}
        found += [
            row(f"{figure}/{name}", paired_ratio(samples_s, over, ONE_BIT), "ratio", detail)
            for name, over in ratios.items()
        ]
        for name in ("best_int8_over_one_bit", f"{INT4}_over_one_bit"):
            value = next((r["value"] for r in found if r["figure"] == f"{figure}/{name}"), None)
            tell(f"  {figure}/{name}: {value}")
    return found


def convolution_rows(
    shapes: Sequence[tuple[int, int]] = CONVOLUTIONS, *, at_least_s: float, tell: Tell
) -> list[Row]:
    """A 3x3 convolution by the one-bit kernel over oneDNN's int8 one, batch 1, one thread.

    `whole` counts the patches laid out (im2col) and rounding on our side, rounding on theirs;
    `product` is our product alone, its patches ready, against the same: what no layout would beat.
    """
    found: list[Row] = []
    for channels, height in shapes:
        generator = torch.Generator().manual_seed(0)
        weight = torch.randn(channels, channels, 3, 3, generator=generator) * 0.05
        x = torch.randn(1, channels, height, height, generator=generator).relu()
        layer = one_bit(weight.flatten(1))
        patches = _patches(x)
        calls: dict[str, Callable[[], object]] = {
            "whole": lambda layer=layer, x=x: layer(_patches(x)),
            "product": lambda layer=layer, patches=patches: layer(patches),
            "int8": partial(_int8_convolution(weight), x),
        }
        samples_s = rotated(calls, at_least_s)
        detail = (
            f"{channels} channels of {height} x {height}, 3x3, batch 1, 1 thread, int8 by oneDNN "
            f"({best_format().name} here); {medians_text(samples_s)}"
        )
        figure = f"actuation/onebit/convolution/{channels}x{height}"
        for name in ("whole", "product"):
            ratio = paired_ratio(samples_s, name, "int8")
            found.append(row(f"{figure}/{name}_over_int8", ratio, "ratio", detail))
            tell(f"  {figure}/{name}_over_int8: {ratio:.3f}")
    return found


def _run(layers: Sequence[Layer], x: torch.Tensor) -> None:
    for layer in layers:
        layer(x)


def _patches(x: torch.Tensor) -> torch.Tensor:
    """(1, C, H, W) to (H W, 9 C), padded by one."""
    return F.unfold(x, 3, padding=1)[0].t().contiguous()


def _int8_convolution(weight: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
    """oneDNN's int8 convolution, as its quantised operators call it: float in, float out."""
    before = torch.backends.quantized.engine
    torch.backends.quantized.engine = "onednn"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # quantised tensors are to go
            scale = weight.abs().flatten(1).amax(1).clamp_min(1e-12) / 127.0
            zeros = torch.zeros(len(weight), dtype=torch.int64)
            rounded = torch.quantize_per_channel(weight, scale, zeros, 0, torch.qint8)
            packed = torch.ops.quantized.conv2d_prepack(rounded, None, [1, 1], [1, 1], [1, 1], 1)
    finally:
        torch.backends.quantized.engine = before

    def convolve(x: torch.Tensor) -> torch.Tensor:
        x = x.contiguous(memory_format=torch.channels_last)
        values = torch.quantize_per_tensor(x, 0.02, 0, torch.quint8)
        return torch.ops.quantized.conv2d(values, packed, 0.05, 64).dequantize()

    return convolve
