"""Weights and norms in 16 bit: half the bytes, nearly the same logits, used only when measured."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from subnetact.cache import SubgraphCache
from subnetact.cpu.packed_executor import PackedExecutor
from subnetact.cpu.packed_supernet import PackedSupernet
from subnetact.cpu.packing import is_available
from subnetact.cpu.precision import Bits, Precision, allowed_bits, bits_of, store, with_precision
from subnetact.cpu.resident_weights import resident_weights
from subnetact.norms import FoldedNorms
from supernet import Checkpoint, extract

PACKINGS = ("views", "shared", "folded") if is_available() else ("views",)


@pytest.mark.parametrize("packing", PACKINGS)
def test_a_subnet_of_16_bit_weights_is_the_one_extracted_from_the_same_store(
    checkpoint: Checkpoint, packing: str
) -> None:
    definition, arch = checkpoint.definition, checkpoint.subnets[-1].arch
    known = checkpoint.norm_statistics[arch.subnet_id]
    state, statistics = store(definition, checkpoint.state, arch, known, Bits(16, 16))
    net = PackedSupernet(
        definition, state, FoldedNorms(definition, state, torch.float16), SubgraphCache()
    )
    net.register(arch, known)
    x = torch.randn(definition.example_input(arch, 2).shape)
    with torch.inference_mode():
        if packing != "views":
            net.load(net.slices(arch.subnet_id, packing))
        got = net.run(arch.subnet_id, x)
        same_store = extract(state, definition, arch, statistics)
        assert {p.dtype for p in same_store.parameters()} == {torch.float32}
        expected = same_store(x)
        wide = extract(checkpoint.state, definition, arch, known)(x)
    scale = float(expected.abs().max())
    assert float((got - expected).abs().max()) <= 2e-4 * scale
    assert 0 < float((got - wide).abs().max()) <= 1e-2 * scale


def test_16_bit_convolutions_cost_half_and_nothing_else_changes(checkpoint: Checkpoint) -> None:
    kept = resident_weights(checkpoint.state, 16)
    for name, tensor in checkpoint.state.items():
        if tensor.dim() == 4:
            assert kept[name].nbytes * 2 == tensor.nbytes
        else:
            assert torch.equal(kept[name], tensor)
    large = {"conv.weight": torch.full((1, 1, 1, 1), 1e6)}
    assert resident_weights(large, 16)["conv.weight"].dtype == torch.float32
    with pytest.raises(ValueError, match="kept in 8 bits, allowed 16, 32"):
        resident_weights(checkpoint.state, 8)


@pytest.mark.parametrize(
    ("rows", "bits"),
    [
        ([Precision(0.9, 0.9, 0.9), Precision(0.8, 0.801, 0.7995)], Bits(16, 16)),
        ([Precision(0.9, 0.899, 0.898)], Bits(32, 16)),
        ([Precision(0.9, 0.9, 0.9), Precision(0.8, 0.7989, 0.8)], Bits(16, 16)),
        ([Precision(0.9, 0.898, 0.897)], Bits(32, 32)),
    ],
)
def test_a_loss_of_a_tenth_of_a_point_is_allowed(rows: list[Precision], bits: Bits) -> None:
    assert allowed_bits(rows) == bits


def test_an_executor_keeps_in_16_bit_what_was_measured_and_nothing_else(
    checkpoint: Checkpoint,
) -> None:
    assert bits_of(checkpoint) == Bits(32, 32)
    rows = {i: Precision(0.9, 0.9, 0.9) for i in checkpoint.subnet_ids}
    measured = replace(checkpoint, provenance=with_precision(checkpoint, rows, "digits"))
    assert bits_of(measured) == Bits(16, 16)
    assert bits_of(replace(measured, fingerprint="of another training")) == Bits(32, 32)
    partly = {i: rows[i] for i in checkpoint.subnet_ids[1:]}
    partly_measured = replace(checkpoint, provenance=with_precision(checkpoint, partly, "digits"))
    assert bits_of(partly_measured) == Bits(32, 32)
    inputs = np.zeros((2, *checkpoint.input.shape), dtype=np.uint8)
    narrow, wide = PackedExecutor(measured), PackedExecutor(checkpoint)
    assert narrow.net.norms.num_bytes * 2 == wide.net.norms.num_bytes
    for subnet_id in checkpoint.subnet_ids:
        ours, theirs = (e.run(subnet_id, inputs) for e in (narrow, wide))
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-2 * np.abs(theirs).max())
