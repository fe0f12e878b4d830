"""One-bit layers: exact sums, the kernel's bits equal to the plain path's, prefixes of one table.

What needs the kernel is skipped where `supernet-serving-native` is not installed (`make native`).
"""

import logging
from importlib import import_module

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from subnetact.decoding import one_bit_linear as one_bit
from subnetact.decoding.one_bit_linear import (
    NativeOneBitLinear,
    OneBitTable,
    PlainOneBitLinear,
    one_bit_linear,
)
from supernet.low_bit.packed_bits import PackedBits
from supernet.low_bit.quantisers import Quantised, quantise

try:
    kernels = import_module(one_bit.NATIVE)
except ImportError:
    kernels = None
needs_kernels = pytest.mark.skipif(
    kernels is None, reason="supernet-serving-native is not installed: make native"
)

shapes = st.tuples(st.integers(1, 70), st.integers(1, 400))
shares = st.floats(0.01, 1.0)


def drawn(shape, seed):
    """A weight of random density, and the table of it."""
    rng = np.random.default_rng(seed)
    weight = torch.from_numpy(rng.normal(rng.normal(0, 0.5), 1.0, shape).astype(np.float32))
    quantised = quantise(weight, "signed_binary")
    return quantised, OneBitTable.of(PackedBits.of(quantised))


def activations(tokens, inputs, seed):
    """Rows of very different sizes, one of zeros among them."""
    rng = np.random.default_rng(seed + 1)
    x = rng.normal(size=(tokens, inputs)) * 10.0 ** rng.integers(-6, 7, (tokens, 1))
    x[rng.integers(tokens)] *= rng.integers(2)
    return torch.from_numpy(x.astype(np.float32))


def by_integers(quantised: Quantised, x: torch.Tensor, shape) -> np.ndarray:
    """The definition, in Python's integers: round, multiply, add, then scale."""
    codes = quantised.codes[: shape[0], : shape[1]].numpy().astype(np.int64)
    most = x.abs().amax(1).numpy()
    factor = np.divide(np.float32(127), most, out=np.zeros_like(most), where=most >= 1e-30)
    values = np.rint(x.numpy() * factor[:, None]).astype(np.int64)
    sums = values @ codes.T
    steps = np.where(most >= 1e-30, most / np.float32(127), np.float32(0))
    scale = quantised.scale.float().expand(len(quantised.codes))[: shape[0]].numpy()
    return sums.astype(np.float32) * steps[:, None].astype(np.float32) * scale


@settings(max_examples=60, deadline=None)
@given(whole=shapes, rows=shares, inputs=shares, tokens=st.integers(1, 9), seed=st.integers(0, 999))
def test_sums_are_exact_at_every_width(whole, rows, inputs, tokens, seed):
    quantised, table = drawn(whole, seed)
    shape = (max(1, int(whole[0] * rows)), max(1, int(whole[1] * inputs)))
    x = activations(tokens, shape[1], seed)
    assert np.array_equal(
        PlainOneBitLinear(table, shape)(x).numpy(), by_integers(quantised, x, shape)
    )


@needs_kernels
@settings(max_examples=60, deadline=None)
@given(whole=shapes, rows=shares, inputs=shares, tokens=st.integers(1, 9), seed=st.integers(0, 999))
def test_every_instruction_set_gives_the_plain_path_s_bits(whole, rows, inputs, tokens, seed):
    _, table = drawn(whole, seed)
    shape = (max(1, int(whole[0] * rows)), max(1, int(whole[1] * inputs)))
    x = activations(tokens, shape[1], seed)
    plain = PlainOneBitLinear(table, shape)(x)
    for name in kernels.INSTRUCTION_SETS:
        layer = NativeOneBitLinear(table, shape, kernels.OneBitLinear, name)
        assert torch.equal(layer(x), plain), name


@needs_kernels
def test_a_width_reads_the_words_of_the_whole():
    """No copy: a change to the whole weight's words is seen by the layer of a part."""
    _, table = drawn((64, 256), 0)
    layer = NativeOneBitLinear(table, (32, 192), kernels.OneBitLinear)
    x = torch.ones(1, 192)
    before = layer(x)
    table.words[0, 0] = 0
    assert layer(x)[0, 0] != before[0, 0]
    assert torch.equal(layer(x)[:, 1:], before[:, 1:])


@pytest.mark.parametrize("form", ["plain", pytest.param("native", marks=needs_kernels)])
def test_a_row_that_is_not_finite_answers_nan_and_no_other(form):
    _, table = drawn((8, 70), 0)
    make = PlainOneBitLinear if form == "plain" else native
    x = torch.ones(4, 70)
    x[1, 3], x[2, 69] = torch.nan, -torch.inf
    y = make(table, (8, 70))(x)
    assert y.isnan().all(1).tolist() == [False, True, True, False]
    assert torch.equal(y[0], y[3])


def native(table, shape):
    return NativeOneBitLinear(table, shape, kernels.OneBitLinear)


@needs_kernels
@pytest.mark.parametrize("name", ["scalar", "avx2", "avx512_vnni"])
def test_the_int8_layer_that_it_is_measured_against_is_exact(name):
    if name not in kernels.INSTRUCTION_SETS:
        pytest.skip(f"this processor has no {name}")
    rng = np.random.default_rng(0)
    for rows, inputs, tokens in ((1, 1, 1), (5, 63, 2), (6, 64, 3), (9, 200, 5)):
        weights = rng.integers(-128, 128, (rows, inputs), dtype=np.int8)
        x = rng.integers(-127, 128, (tokens, inputs)).astype(np.float32)
        x[:, 0] = 127  # so that rounding is the identity
        y = np.empty((tokens, rows), np.float32)
        kernels.Int8Linear(weights, np.ones(rows, np.float32), name)(x, y)
        assert np.array_equal(y, (x.astype(np.int64) @ weights.T.astype(np.int64)))


@needs_kernels
def test_what_does_not_fit_is_refused_by_name():
    _, table = drawn((8, 70), 0)
    with pytest.raises(ValueError, match=r"x is torch.float32 \(1, 64\) on cpu, expected .* 70\)"):
        native(table, (8, 70))(torch.ones(1, 64))
    with pytest.raises(ValueError, match=r"x is torch.float64 \(1, 70\)"):
        native(table, (8, 70))(torch.ones(1, 70, dtype=torch.float64))
    with pytest.raises(ValueError, match="instruction set is 'sse', this processor has .*scalar"):
        NativeOneBitLinear(table, (8, 70), kernels.OneBitLinear, "sse")
    layer = kernels.OneBitLinear(table.words, table.scales)
    with pytest.raises(ValueError, match="x has 200 inputs, the layer's rows 2 words of 64"):
        layer(torch.ones(1, 200), torch.ones(1, 8))
    with pytest.raises(ValueError, match=r"y has shape \(1, 7\), expected \(1, 8\)"):
        layer(torch.ones(1, 70), torch.ones(1, 7))


def test_without_the_kernel_the_plain_path_runs_and_says_so_once(monkeypatch, caplog):
    monkeypatch.setattr(one_bit, "NATIVE", "a_module_that_is_not_there")
    one_bit.native_kernels.cache_clear()
    _, table = drawn((8, 70), 0)
    try:
        with caplog.at_level(logging.WARNING):
            layers = [one_bit_linear(table, (8, 70)) for _ in range(3)]
    finally:
        one_bit.native_kernels.cache_clear()
    assert all(isinstance(layer, PlainOneBitLinear) for layer in layers)
    assert [r.getMessage() for r in caplog.records] == [
        "one-bit layers run by torch, slower and with the same results: No module named "
        "'a_module_that_is_not_there'; pip install ./native (docs/one_bit.md)"
    ]


@needs_kernels
def test_with_the_kernel_it_is_taken():
    _, table = drawn((8, 70), 0)
    assert isinstance(one_bit_linear(table, (8, 70)), NativeOneBitLinear)
