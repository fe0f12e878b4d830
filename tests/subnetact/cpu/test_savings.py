"""Measured savings, and a residency policy that drives the real cache by them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from slackfit.residency import Candidate, Savings, ValuePerByte
from subnetact.cache import SliceKey, SubgraphCache
from subnetact.cpu.packed_supernet import PackedSlice, PackedSupernet
from subnetact.cpu.packing import is_available
from subnetact.cpu.savings import measure_savings
from subnetact.norms import FoldedNorms
from supernet import Arch, Checkpoint

pytestmark = [
    pytest.mark.alone,
    pytest.mark.skipif(not is_available(), reason="this torch packs no oneDNN weights"),
]


def test_a_policy_drives_the_real_cache_within_its_budget(
    checkpoint: Checkpoint, statistics_of: Callable[[Arch, int], dict[str, torch.Tensor]]
) -> None:
    definition, state = checkpoint.definition, checkpoint.state
    archs = definition.space.ladder()[:3]
    norms = FoldedNorms(definition, state)
    whole = sum(tensor.nbytes for tensor in state.values())
    cache = SubgraphCache(int(0.4 * whole))
    net = PackedSupernet(definition, state, norms, cache)
    ids = [net.register(arch, statistics_of(arch, seed)) for seed, arch in enumerate(archs)]
    savings, slices = measure_savings(net, ids, repeats=3)
    assert slices.keys() == {form.key for i in ids for form in _forms(net, i)}
    assert cache.held_bytes == 0, "measuring leaves nothing resident"
    assert {slices[key].key for key in savings.candidates} == set(savings.candidates)  # type: ignore[index]
    x = torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = {i: net.run(i, x) for i in ids}
        # Times of so small a network are noise, so they are set here: only the mix decides.
        policy = ValuePerByte(_by_size(slices, ids, net), int(0.4 * whole))
        changes = 0
        for i in np.random.default_rng(0).integers(3, size=60):
            torch.testing.assert_close(net.run(ids[i], x), expected[ids[i]], rtol=1e-3, atol=1e-4)
            wanted = policy.observe(ids[i])
            if wanted is None:
                continue
            changes += 1
            net.evict_others(wanted)  # type: ignore[arg-type]
            assert net.load(slices[key] for key in wanted) == len(wanted)  # type: ignore[index]
            assert cache.resident == wanted
    assert changes > 0
    assert cache.counts.hits > 0
    assert cache.peak_bytes <= int(0.4 * whole)


def _forms(net: PackedSupernet, subnet_id: str) -> list[PackedSlice]:
    return [*net.slices(subnet_id, "shared"), *net.slices(subnet_id, "folded")]


def _by_size(slices: dict[SliceKey, PackedSlice], ids: list[str], net: PackedSupernet) -> Savings:
    """Savings that grow with a slice's bytes; loading costs nothing."""
    users = {key: [i for i in ids if key in {f.key for f in _forms(net, i)}] for key in slices}
    return Savings(
        Candidate(
            key, key.layer, form.num_bytes, 0.0, dict.fromkeys(users[key], 1e-9 * form.num_bytes)
        )
        for key, form in slices.items()
    )
