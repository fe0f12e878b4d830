"""A keeper changes what is resident while batches run: slice by slice, never a wrong answer."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch

from slackfit.residency import Candidate, FixedResidency, Savings, ValuePerByte
from subnetact.cache import SliceKey, SubgraphCache
from subnetact.cpu.packed_executor import PackedExecutor
from subnetact.cpu.packed_supernet import PackedSlice, PackedSupernet
from subnetact.cpu.packing import is_available
from subnetact.cpu.residency_keeper import ResidencyKeeper
from subnetact.norms import FoldedNorms
from supernet import Arch, Checkpoint

pytestmark = [
    pytest.mark.alone,
    pytest.mark.skipif(not is_available(), reason="this torch packs no oneDNN weights"),
]


class Rig:
    """A supernet with three subnets and savings that grow with a slice's bytes."""

    def __init__(self, checkpoint: Checkpoint, statistics_of: Callable[[Arch, int], dict]) -> None:
        definition, state = checkpoint.definition, checkpoint.state
        norms = FoldedNorms(definition, state)
        self.net = PackedSupernet(definition, state, norms, SubgraphCache())
        archs = definition.space.ladder()[:3]
        self.ids = [self.net.register(a, statistics_of(a, n)) for n, a in enumerate(archs)]
        self.slices: dict[SliceKey, PackedSlice] = {
            form.key: form for i in self.ids for form in self.net.slices(i) if form.key.owner
        }
        self.savings = _by_size(self.slices)

    def keys(self, n: int) -> frozenset[SliceKey]:
        return frozenset(k for k, f in self.slices.items() if f.subnet_id == self.ids[n])


@pytest.fixture
def rig(checkpoint: Checkpoint, statistics_of: Callable[[Arch, int], dict]) -> Rig:
    return Rig(checkpoint, statistics_of)


@pytest.fixture(autouse=True)
def _no_gradients() -> Iterator[None]:
    with torch.inference_mode():
        yield


def test_one_step_loads_one_slice_the_most_valuable_first(rig: Rig) -> None:
    keeper = ResidencyKeeper(rig.net, FixedResidency(rig.keys(0)), rig.savings, rig.slices)
    assert not keeper.step(), "no batch has run, so nothing is to be done"
    with keeper.batch(rig.ids[0]):
        assert rig.net.cache.counts.loads == 0
    for loaded in range(1, len(rig.keys(0)) + 1):
        more = keeper.step()
        assert rig.net.cache.counts.loads == loaded
        assert more == (loaded < len(rig.keys(0)))
    assert rig.net.cache.resident == rig.keys(0)


def test_what_is_not_wanted_any_more_goes_before_what_is_wanted_comes(rig: Rig) -> None:
    rig.net.load(rig.slices[key] for key in rig.keys(1))
    keeper = ResidencyKeeper(rig.net, FixedResidency(rig.keys(0)), rig.savings, rig.slices)
    with keeper.batch(rig.ids[0]):
        pass
    keeper.step()
    assert rig.net.cache.resident < rig.keys(0)
    while keeper.step():
        pass
    assert rig.net.cache.resident == rig.keys(0)


def test_a_slice_that_finds_no_room_is_tried_again_when_a_batch_let_go(rig: Rig) -> None:
    rig.net.load(rig.slices[key] for key in rig.keys(1))
    rig.net.cache.budget_bytes = rig.net.cache.held_bytes
    running = rig.net.actuate(rig.ids[1])  # a batch that still reads what is evicted
    keeper = ResidencyKeeper(rig.net, FixedResidency(rig.keys(0)), rig.savings, rig.slices)
    with keeper.batch(rig.ids[0]):
        pass
    assert keeper.step()
    assert rig.net.cache.counts.refusals == 1
    assert rig.net.cache.resident == frozenset()
    del running
    while keeper.step():
        pass
    assert rig.net.cache.counts.loads > len(rig.keys(1))


def test_the_thread_waits_for_a_gap_but_not_for_ever(rig: Rig) -> None:
    keeper = ResidencyKeeper(
        rig.net, FixedResidency(rig.keys(0)), rig.savings, rig.slices, patience_s=0.02
    )
    keeper.start()
    with keeper.batch(rig.ids[0]):
        pass
    with keeper.batch(rig.ids[0]):  # as under overload: a batch always runs
        _until(lambda: rig.net.cache.resident == rig.keys(0))
    keeper.close()
    assert not [t for t in threading.enumerate() if t.name == "residency" and t.is_alive()]


def test_a_server_under_a_small_budget_follows_its_mix(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    def by_size(net: PackedSupernet, subnet_ids: tuple[str, ...], **_: object) -> object:
        slices = {f.key: f for i in subnet_ids for f in net.slices(i) if f.key.owner}
        return _by_size(slices), slices

    # Times of so small a network are noise, so what slices save is set here.
    monkeypatch.setattr("subnetact.cpu.packed_executor.measure_savings", by_size)
    whole = PackedExecutor(checkpoint)
    budget = whole.cache.held_bytes // 3
    executor = PackedExecutor(checkpoint, budget_bytes=budget)
    first = executor.cache.resident
    assert first, "before any query all subnets count alike"
    inputs = np.random.default_rng(0).integers(0, 256, (2, *checkpoint.input.shape), dtype=np.uint8)
    for subnet_id in checkpoint.subnet_ids:
        for _ in range(40):
            got, expected = (e.run(subnet_id, inputs) for e in (executor, whole))
            np.testing.assert_allclose(got, expected, rtol=0, atol=2e-4 * np.abs(expected).max())
    executor.close()
    counts = executor.cache.counts
    assert executor.cache.peak_bytes <= budget
    assert counts.hits + counts.misses == counts.lookups
    assert counts.hits > 0
    assert executor.cache.held_bytes == 0
    whole.close()


def test_a_policy_that_starts_with_slices_keeps_them_while_they_are_right(rig: Rig) -> None:
    budget = sum(f.num_bytes for f in rig.slices.values())
    mix = dict.fromkeys(rig.ids, 1 / 3)
    chosen = rig.savings.fill(mix, budget)
    policy = ValuePerByte(rig.savings, budget, resident=chosen)
    assert [policy.observe(i) for _ in range(10) for i in rig.ids] == [None] * 30


def _by_size(slices: dict[SliceKey, PackedSlice]) -> Savings:
    """Savings that grow with a slice's bytes; loading costs nothing."""
    return Savings(
        Candidate(key, key.layer, f.num_bytes, 0.0, {f.subnet_id: 1e-9 * f.num_bytes})
        for key, f in slices.items()
    )


def _until(condition: Callable[[], bool], timeout_s: float = 20.0) -> None:
    end_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end_s, "it did not come"
        time.sleep(0.005)
