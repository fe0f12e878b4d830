"""Linear layers of the benchmark: ours of one bit, and what else reads few bits per weight.

Each is made of the same float weight (out, in) and takes (T, in) float32 to (T, out); what they do
to activations is inside. A layer that this build or processor does not have is left out.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

import numpy as np
import torch
from torch.nn import functional as F

from subnetact.decoding.linear_forms import Dense, Int8Linear
from subnetact.decoding.one_bit_linear import OneBitTable, native_kernels, one_bit_linear
from supernet.low_bit.packed_bits import PackedBits
from supernet.low_bit.quantisers import quantise

Layer = Callable[[torch.Tensor], torch.Tensor]
ONE_BIT, INT4 = "one_bit", "torch_int4"
INT8 = ("onednn_int8", "onednn_int8_dynamic", "torch_int8", "own_int8", "served_int8")
_GROUP = 64  # weights that share a scale in int4


def one_bit(weight: torch.Tensor) -> Layer:
    """Signed binary, by the kernel where it is installed."""
    table = OneBitTable.of(PackedBits.of(quantise(weight, "signed_binary")))
    return one_bit_linear(table, tuple(weight.shape))


def fp32(weight: torch.Tensor) -> Layer:
    """The float layer itself."""
    return lambda x: F.linear(x, weight)


def onednn_int8(weight: torch.Tensor) -> Layer:
    """oneDNN's int8 product as torch's compiler calls it; activations u8, one scale a call."""
    scale, rows = _int8_rows(weight)
    packed = torch.ops.onednn.qlinear_prepack(rows, [1, weight.shape[1]])
    zeros = torch.zeros(len(weight), dtype=torch.int64)

    def layer(x: torch.Tensor) -> torch.Tensor:
        step = float(x.abs().max()) / 127.0 or 1.0
        values = (x * (1.0 / step)).round_().add_(128).to(torch.uint8)
        return torch.ops.onednn.qlinear_pointwise(
            *(values, step, 128, packed, scale, zeros, None, 1.0, 0, torch.float32),
            *("none", [], ""),
        )

    return layer


def onednn_int8_dynamic(weight: torch.Tensor) -> Layer:
    """torch's dynamically quantised layer on oneDNN."""
    scale, rows = _int8_rows(weight)
    before = torch.backends.quantized.engine
    torch.backends.quantized.engine = "onednn"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # quantised tensors are to go
            zeros = torch.zeros(len(weight), dtype=torch.int64)
            whole = rows.float() * scale[:, None]
            quantised = torch.quantize_per_channel(whole, scale, zeros, 0, torch.qint8)
            packed = torch.ops.quantized.linear_prepack(quantised, None)
    finally:
        torch.backends.quantized.engine = before
    return lambda x: torch.ops.quantized.linear_dynamic(x, packed, False)


def own_int8(weight: torch.Tensor) -> Layer:
    """The same kernel with a byte per weight. Raises RuntimeError where it isn't installed."""
    kernels = native_kernels()
    if kernels is None:
        raise RuntimeError("supernet-serving-native is not installed")
    scale, rows = _int8_rows(weight)
    inner = kernels.Int8Linear(rows, scale)

    def layer(x: torch.Tensor) -> torch.Tensor:
        y = torch.empty(len(x), len(rows))
        inner.run_at(x.data_ptr(), *x.shape, y.data_ptr())
        return y

    return layer


def torch_int4(weight: torch.Tensor) -> Layer:
    """torch's four-bit weights in groups of 64, activations in bfloat16."""
    rows, inputs = weight.shape
    groups = weight.view(rows, inputs // _GROUP, _GROUP)
    scale = groups.abs().amax(2).clamp_min(1e-12) / 7.0
    values = ((groups / scale[..., None]).round() + 8).clamp(0, 15).to(torch.int32)
    packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(values.view(rows, inputs), 1)
    scales = torch.stack([scale, torch.zeros_like(scale)], 2).transpose(0, 1).contiguous()
    scales = scales.bfloat16()
    matmul = torch.ops.aten._weight_int4pack_mm_for_cpu
    return lambda x: matmul(x.bfloat16(), packed, _GROUP, scales).float()


def torch_int8(weight: torch.Tensor) -> Layer:
    """torch's weight-only int8 product; activations in bfloat16."""
    scale, rows = _int8_rows(weight)
    scale = scale.bfloat16()
    matmul = torch.ops.aten._weight_int8pack_mm
    return lambda x: matmul(x.bfloat16(), rows, scale).float()


def served_int8(weight: torch.Tensor) -> Layer:
    """The int8 form in which decoders are served; activations in 16 bit, as two bytes."""
    return Int8Linear(Dense(weight))


MAKERS: dict[str, Callable[[torch.Tensor], Layer]] = {
    ONE_BIT: one_bit,
    "onednn_int8": onednn_int8,
    "onednn_int8_dynamic": onednn_int8_dynamic,
    "torch_int8": torch_int8,
    "own_int8": own_int8,
    "served_int8": served_int8,
    INT4: torch_int4,
    "fp32": fp32,
}
_WITHIN = {"fp32": 1e-5, INT4: 0.15, ONE_BIT: 1e9}  # of the float product; of the others 0.02


def available() -> dict[str, Callable[[torch.Tensor], Layer]]:
    """Return the makers whose layers compute here what they should."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(128, 256, generator=generator)
    x = torch.randn(1, 256, generator=generator)
    expected = F.linear(x, weight)
    found = {}
    for name, make in MAKERS.items():
        try:
            error = (make(weight)(x) - expected).norm() / expected.norm()
        except (AttributeError, RuntimeError, TypeError):
            continue  # torch's private operators: not in this build, for this processor, or changed
        if error < _WITHIN.get(name, 0.02):
            found[name] = make
    return found


def _int8_rows(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Scales (out,) and int8 (out, in), symmetric per row."""
    scale = weight.abs().amax(1).clamp_min(1e-12) / 127.0
    return scale, (weight / scale[:, None]).round().to(torch.int8).contiguous()


def mismatches(cases: int, seed: int = 0) -> int:
    """Return how many of so many drawn layers, widths and batches differ from integer arithmetic.

    Compared bit for bit with sums of Python's wide integers, scaled in the same order.
    """
    rng = np.random.default_rng(seed)
    wrong = 0
    for _ in range(cases):
        rows, inputs = int(rng.integers(1, 200)), int(rng.integers(1, 1500))
        shift = rng.normal(0, 0.5)
        weight = torch.from_numpy(rng.normal(shift, 1.0, (rows, inputs)).astype(np.float32))
        quantised = quantise(weight, "signed_binary")
        shape = (int(rng.integers(1, rows + 1)), int(rng.integers(1, inputs + 1)))
        layer = one_bit_linear(OneBitTable.of(PackedBits.of(quantised)), shape)
        x = rng.normal(size=(int(rng.integers(1, 6)), shape[1])).astype(np.float32)
        most = np.abs(x).max(1, keepdims=True)
        values = np.rint(x * (np.float32(127) / most)).astype(np.int64)
        sums = values @ quantised.codes.numpy()[: shape[0], : shape[1]].T.astype(np.int64)
        scale = quantised.scale.float().expand(rows)[: shape[0]].numpy()
        expected = sums.astype(np.float32) * (most / np.float32(127)) * scale
        wrong += not np.array_equal(layer(torch.from_numpy(x)).numpy(), expected)
    return wrong
