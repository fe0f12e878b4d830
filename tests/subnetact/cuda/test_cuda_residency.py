"""Slices on a CUDA device that come and go, with a CPU in its place: results stay."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch

from subnetact.cuda.cuda_supernet import resident_bytes, supernet_bytes
from supernet import Checkpoint
from tests.subnetact.cuda.executor_case import (
    TOLERANCE,
    all_bytes,
    difference,
    make_executor,
    oracle,
    samples,
)
from tests.subnetact.cuda.lane_accelerator import LaneAccelerator


@pytest.mark.parametrize("packing", TOLERANCE)
@pytest.mark.parametrize("share", [0.0, 0.2, 0.5, 0.8, 1.0])
def test_residency_at_any_budget_changes_no_result(
    checkpoint: Checkpoint, rng: np.random.Generator, packing: str, share: float
) -> None:
    whole = make_executor(checkpoint, packing=packing, budget_bytes=2**40)
    fixed = whole.net.fixed_bytes
    budget = fixed + int(share * all_bytes(whole))
    executor = make_executor(checkpoint, packing=packing, budget_bytes=budget, max_batch_size=4)
    executor.warm_up()
    for _ in range(2):  # the second run prefetches in the order that the first one had
        for subnet_id in executor.subnet_ids:
            inputs = samples(rng, 3)
            got = executor.run(subnet_id, inputs)
            assert difference(got, oracle(checkpoint, subnet_id, inputs)) <= TOLERANCE[packing]
    cache, counts = executor.net.cache, executor.counts()
    assert cache.peak_bytes + fixed <= budget
    assert counts["held_bytes"] + counts["fixed_bytes"] <= budget
    assert cache.counts.hits + cache.counts.misses == cache.counts.lookups
    stream = executor.net.stream
    assert (stream.num_copies > 0) == (share < 1.0) == (counts["slice_refusals"] > 0)
    if share == 0.0:
        assert counts["hits"] == 0
        assert stream.num_prefetched > stream.num_copies // 2
        reasons = {"streamed: not all of its slices are resident"}
        assert set(executor.graphs.status.fallbacks) == reasons


def test_a_budget_below_what_cannot_be_streamed_is_said_once(checkpoint: Checkpoint) -> None:
    with pytest.warns(RuntimeWarning, match="can't be streamed, the budget is 10") as seen:
        executor = make_executor(checkpoint, budget_bytes=10)
    assert len(seen) == 1
    assert executor.counts()["held_bytes"] == 0


def test_a_slice_is_shared_between_subnets_only_where_its_norm_is_not_folded_in(
    checkpoint: Checkpoint,
) -> None:
    shared, folded = (
        make_executor(checkpoint, packing=packing) for packing in ("shared", "folded")
    )
    assert all_bytes(shared) < all_bytes(folded)
    assert shared.counts()["held_bytes"] == all_bytes(shared)
    whole = supernet_bytes(checkpoint.definition, torch.bfloat16)
    assert whole == 2 * sum(
        int(np.prod(shape)) for shape in checkpoint.definition.parameter_shapes().values()
    )


class SearchingAccelerator(LaneAccelerator):
    """Says whether algorithms may be searched for."""

    is_searching = False

    @contextmanager
    def searching(self) -> Iterator[None]:
        self.is_searching = True
        try:
            yield
        finally:
            self.is_searching = False


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_no_batch_has_a_shape_that_the_warm_up_did_not_search_for(
    checkpoint: Checkpoint, rng: np.random.Generator, share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever is streamed, retired or has no graph: a search on the request path takes seconds."""
    accelerator = SearchingAccelerator()
    whole = make_executor(checkpoint, max_batch_size=6, budget_bytes=2**40)
    budget = whole.net.fixed_bytes + int(share * all_bytes(whole))
    executor = make_executor(checkpoint, accelerator, max_batch_size=6, budget_bytes=budget)
    ran: dict[bool, set[tuple[str, int]]] = {True: set(), False: set()}
    compute = executor._eager

    def watched(binding: object, subnet_id: str, inputs: torch.Tensor) -> torch.Tensor:
        ran[accelerator.is_searching].add((subnet_id, len(inputs)))
        return compute(binding, subnet_id, inputs)  # type: ignore[arg-type]

    monkeypatch.setattr(executor, "_eager", watched)
    executor.warm_up()
    executor.make_resident([])  # every graph is retired
    for subnet_id in executor.subnet_ids:
        for size in range(1, 7):
            executor.run(subnet_id, samples(rng, size))
    assert ran[False]
    assert ran[False] <= ran[True]


def test_evicting_retires_the_graphs_that_read_it_and_a_warm_up_captures_again(
    checkpoint: Checkpoint, rng: np.random.Generator
) -> None:
    executor = make_executor(checkpoint, max_batch_size=2)
    executor.warm_up()
    first, *others = executor.subnet_ids
    own = executor.net.slices(first)
    assert executor.make_resident(own) == len(own)
    status = executor.graphs.status
    assert (status.live, status.retired) == (2, 4)
    assert executor.net.cache.held_bytes == resident_bytes(own), "graphs pin nothing any more"
    inputs = samples(rng, 2)
    for subnet_id in others:
        expected = oracle(checkpoint, subnet_id, inputs)
        assert difference(executor.run(subnet_id, inputs), expected) <= TOLERANCE["folded"]
    assert executor.graphs.status.fallbacks["retired: its slices were evicted"] == 2
    executor.make_resident(s for i in executor.subnet_ids for s in executor.net.slices(i))
    assert executor.graphs.status.live == 2, "not captured on the way"
    executor.warm_up()
    assert executor.graphs.status.live == 6
    for subnet_id in executor.subnet_ids:
        expected = oracle(checkpoint, subnet_id, inputs)
        assert difference(executor.run(subnet_id, inputs), expected) <= TOLERANCE["folded"]
    executor.close()
    assert executor.net.cache.held_bytes == 0
    assert executor.graphs.status[:3] == (0, 0, 0)


def test_threads_run_while_slices_come_and_go(
    checkpoint: Checkpoint, rng: np.random.Generator
) -> None:
    """No wrong result, never a byte over the budget, whatever is evicted under a running batch."""
    whole = make_executor(checkpoint, budget_bytes=2**40)
    budget = whole.net.fixed_bytes + int(0.7 * all_bytes(whole))
    executor = make_executor(checkpoint, budget_bytes=budget, max_batch_size=4)
    executor.warm_up()
    inputs = samples(rng, 3)
    expected = {i: oracle(checkpoint, i, inputs) for i in executor.subnet_ids}
    wrong: list[str] = []

    def run(seed: int) -> None:
        draw = np.random.default_rng(seed)
        for _ in range(40):
            subnet_id = executor.subnet_ids[draw.integers(len(executor.subnet_ids))]
            if difference(executor.run(subnet_id, inputs), expected[subnet_id]) > 2e-4:
                wrong.append(subnet_id)

    threads = [threading.Thread(target=run, args=(seed,)) for seed in range(2)]
    for thread in threads:
        thread.start()
    every = [s for i in executor.subnet_ids for s in executor.net.slices(i)]
    while any(thread.is_alive() for thread in threads):
        kept = [every[n] for n in rng.permutation(len(every))[: len(every) // 2]]
        executor.net.cache.evict(s.key for s in every if s not in kept)
        executor.make_resident(kept)
        executor.warm_up()
    for thread in threads:
        thread.join()
    assert wrong == []
    cache = executor.net.cache
    assert cache.peak_bytes + executor.net.fixed_bytes <= budget
    assert cache.counts.hits + cache.counts.misses == cache.counts.lookups
    assert cache.counts.evictions > 0
