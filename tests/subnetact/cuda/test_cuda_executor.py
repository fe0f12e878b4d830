"""The CUDA path with a CPU in place of the device: graphs, residency, no memory left."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch

from subnetact import load_executor, measure_profile
from subnetact.conv_geometry import ConvGeometry
from subnetact.cuda.accelerator import Accelerator, Replay
from subnetact.cuda.cuda_executor import CudaExecutor
from subnetact.cuda.cuda_supernet import CudaSupernet, resident_bytes, supernet_bytes
from supernet import Checkpoint, extract
from tests.subnetact.cuda.lane_accelerator import LaneAccelerator

TOLERANCE = {
    "shared": 1e-5,
    "folded": 2e-4,
    "one_copy": 1e-5,
}  # relative to the largest logit, float32
BF16_TOLERANCE = 0.05


def make_executor(
    checkpoint: Checkpoint, accelerator: Accelerator | None = None, **options: object
) -> CudaExecutor:
    options.setdefault("dtype", torch.float32)
    return CudaExecutor(checkpoint, accelerator or LaneAccelerator(), **options)  # type: ignore[arg-type]


def samples(rng: np.random.Generator, batch_size: int) -> np.ndarray:
    return rng.integers(0, 256, size=(batch_size, 1, 8, 8), dtype=np.uint8)


def oracle(checkpoint: Checkpoint, subnet_id: str, inputs: np.ndarray) -> np.ndarray:
    arch = checkpoint.subnet(subnet_id).arch
    static = extract(
        checkpoint.state, checkpoint.definition, arch, checkpoint.norm_statistics[subnet_id]
    )
    with torch.inference_mode():
        x = checkpoint.input.normalise(torch.from_numpy(inputs), arch.resolution)
        return static(x).numpy()


def difference(got: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(got - expected).max() / np.abs(expected).max())


def all_bytes(executor: CudaExecutor) -> int:
    return resident_bytes(s for i in executor.subnet_ids for s in executor.net.slices(i))


@pytest.mark.parametrize("packing", TOLERANCE)
def test_graph_eager_and_extracted_give_the_same(
    checkpoint: Checkpoint, rng: np.random.Generator, packing: str
) -> None:
    executor = make_executor(checkpoint, packing=packing, max_batch_size=8)
    eager = make_executor(checkpoint, packing=packing, max_batch_size=8, graph_budget_bytes=0)
    executor.warm_up()
    eager.warm_up()
    replays = executor.counts()["graph_replays"]
    assert replays == 12, "the warm-up replays what it captured"
    for subnet_id in executor.subnet_ids:
        for size in (8, 3, 1, 5):  # 3 and 5 are padded, beside what an earlier batch left there
            inputs = samples(rng, size)
            got = executor.run(subnet_id, inputs)
            replays += 1
            assert got.dtype == np.float32
            assert difference(got, oracle(checkpoint, subnet_id, inputs)) <= TOLERANCE[packing]
            assert difference(got, eager.run(subnet_id, inputs)) <= 1e-5
    assert executor.counts()["graph_replays"] == replays
    assert executor.counts()["eager_batches"] == 0
    assert eager.counts()["graph_replays"] == 0
    why = "none fused: a CPU in place of the device"
    assert executor.details == f"12 CUDA graphs, 0 pairs eager; {why}"


def test_what_lies_in_the_padding_rows_changes_nothing(
    checkpoint: Checkpoint, rng: np.random.Generator
) -> None:
    executor = make_executor(checkpoint, max_batch_size=8, batch_sizes=(8,))
    executor.warm_up()
    subnet_id = executor.subnet_ids[-1]
    inputs = samples(rng, 3)
    executor.run(subnet_id, np.zeros((8, 1, 8, 8), dtype=np.uint8))
    first = executor.run(subnet_id, inputs)
    executor.run(subnet_id, np.full((8, 1, 8, 8), 255, dtype=np.uint8))
    assert np.array_equal(executor.run(subnet_id, inputs), first)
    assert first.shape == (3, 10)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("packing", TOLERANCE)
def test_sixteen_bits_stay_near_float32(
    checkpoint: Checkpoint, rng: np.random.Generator, packing: str, dtype: torch.dtype
) -> None:
    executor = make_executor(checkpoint, packing=packing, dtype=dtype, max_batch_size=4)
    executor.warm_up()
    assert executor.dtype == str(dtype).removeprefix("torch.")
    for subnet_id in executor.subnet_ids:
        inputs = samples(rng, 4)
        got = executor.run(subnet_id, inputs)
        assert difference(got, oracle(checkpoint, subnet_id, inputs)) <= BF16_TOLERANCE


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


def test_two_batches_are_under_way_and_a_third_waits_for_a_result(
    checkpoint: Checkpoint, rng: np.random.Generator
) -> None:
    executor = make_executor(checkpoint, max_batch_size=4)
    executor.warm_up()
    executor.ring._patience_s = 0.01
    small, *_, large = executor.subnet_ids
    first, second = samples(rng, 4), samples(rng, 2)
    one, two = executor.launch(small, [first]), executor.launch(large, [second])
    with pytest.raises(
        RuntimeError, match=r"no room for a batch became free in 0\.01 s: take the resul"
    ):
        executor.launch(small, [first])
    assert difference(executor.result(two), oracle(checkpoint, large, second)) <= 2e-4
    assert difference(executor.result(one), oracle(checkpoint, small, first)) <= 2e-4
    assert executor.run(small, first).shape == (4, 10)


@pytest.mark.parametrize("graph_budget_bytes", [None, 0])
def test_a_batch_launched_before_the_last_result_changes_neither(
    checkpoint: Checkpoint, rng: np.random.Generator, graph_budget_bytes: int | None
) -> None:
    """As a server does under load; copies come as late as they may, rooms are taken in turn."""
    executor = make_executor(checkpoint, max_batch_size=4, graph_budget_bytes=graph_budget_bytes)
    executor.warm_up()
    assert executor.num_under_way == 2
    batches = [(executor.subnet_ids[n % 3], samples(rng, 1 + n % 4)) for n in range(8)]
    under_way = [executor.launch(batches[0][0], [batches[0][1]])]
    for n, (subnet_id, inputs) in enumerate(batches):
        if n + 1 < len(batches):
            ahead_id, ahead = batches[n + 1]
            under_way.append(executor.launch(ahead_id, [ahead[:1], ahead[1:]]))
        got = executor.result(under_way.pop(0))
        assert difference(got, oracle(checkpoint, subnet_id, inputs)) <= 2e-4


def test_wrong_requests_are_refused_and_cost_no_slot(
    checkpoint: Checkpoint, rng: np.random.Generator
) -> None:
    executor = make_executor(checkpoint, max_batch_size=4)
    for _ in range(3):
        with pytest.raises(KeyError, match="not registered"):
            executor.run("d9", samples(rng, 1))
        with pytest.raises(ValueError, match="the batch has 5 samples, allowed 1 to 4"):
            executor.run(executor.subnet_ids[0], samples(rng, 5))
        with pytest.raises(ValueError, match="expected uint8"):
            executor.run(executor.subnet_ids[0], samples(rng, 1).astype(float))
    assert executor.run(executor.subnet_ids[0], samples(rng, 4)).shape == (4, 10)
    with pytest.raises(ValueError, match="packing is 'views', allowed folded, shared"):
        make_executor(checkpoint, packing="views")
    with pytest.raises(ValueError, match="dtype is float64, allowed bfloat16, float16, float32"):
        make_executor(checkpoint, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"batch sizes are \[1, 8\], allowed 1 to max_batch_size"):
        make_executor(checkpoint, max_batch_size=4, batch_sizes=(1, 8))
    with pytest.raises(ValueError, match="budget_bytes is -1"):
        make_executor(checkpoint, budget_bytes=-1)


def out_of_memory_for(calls: int) -> Callable[[], None]:
    """Raise like a full device for the first calls."""
    left = [calls]

    def raise_while_full() -> None:
        if left[0] > 0:
            left[0] -= 1
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 MiB")

    return raise_while_full


def test_a_device_without_room_for_slices_streams_them(
    checkpoint: Checkpoint, rng: np.random.Generator
) -> None:
    accelerator = LaneAccelerator()
    accelerator.memory = out_of_memory_for(10**9)
    with pytest.warns(RuntimeWarning, match="no memory to pack") as seen:
        executor = make_executor(checkpoint, accelerator)
    assert len(seen) == 1
    accelerator.memory = lambda: None
    executor.warm_up()
    counts = executor.counts()
    assert counts["held_bytes"] == 0
    assert counts["graphs_live"] == 0
    assert counts["out_of_memory"] == sum(len(executor.net.slices(i)) for i in executor.subnet_ids)
    for subnet_id in executor.subnet_ids:
        inputs = samples(rng, 4)
        expected = oracle(checkpoint, subnet_id, inputs)
        assert difference(executor.run(subnet_id, inputs), expected) <= 2e-4


@pytest.mark.parametrize(("times", "keeps"), [(1, "all"), (2, "own"), (3, "none")])
def test_a_batch_that_finds_no_memory_is_run_with_less_resident(
    checkpoint: Checkpoint,
    rng: np.random.Generator,
    monkeypatch: pytest.MonkeyPatch,
    times: int,
    keeps: str,
) -> None:
    executor = make_executor(checkpoint, graph_budget_bytes=0)
    executor.warm_up()
    subnet_id, inputs = executor.subnet_ids[1], samples(rng, 3)
    fault, eager = out_of_memory_for(times), executor._eager

    def full(*args: Any) -> torch.Tensor:
        fault()
        return eager(*args)

    monkeypatch.setattr(executor, "_eager", full)
    whole = executor.net.cache.held_bytes
    with pytest.warns(RuntimeWarning, match="the device ran out of memory for") as seen:
        got = executor.run(subnet_id, inputs)
    assert len(seen) == 1
    assert difference(got, oracle(checkpoint, subnet_id, inputs)) <= 2e-4
    own = resident_bytes(executor.net.slices(subnet_id))
    assert executor.net.cache.held_bytes == {"all": whole, "own": own, "none": 0}[keeps]
    assert executor.counts()["out_of_memory"] == times


def test_a_batch_that_never_finds_memory_is_the_callers_to_split_and_costs_no_slot(
    checkpoint: Checkpoint, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    executor = make_executor(checkpoint, graph_budget_bytes=0)

    def full(*args: Any) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with monkeypatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        patch.setattr(executor, "_eager", full)
        for _ in range(3):
            with pytest.raises(torch.OutOfMemoryError):
                executor.run(executor.subnet_ids[0], samples(rng, 2))
    assert executor.run(executor.subnet_ids[0], samples(rng, 2)).shape == (2, 10)


def test_graphs_over_their_budget_or_out_of_memory_run_eagerly(
    checkpoint: Checkpoint, rng: np.random.Generator
) -> None:
    accelerator = LaneAccelerator()
    accelerator.graph_bytes = 3 * 2**20
    executor = make_executor(
        checkpoint, accelerator, max_batch_size=4, graph_budget_bytes=8 * 2**20
    )
    executor.warm_up()
    counts = executor.counts()
    assert counts["graphs_live"] == 2
    assert counts["graph_bytes"] <= 8 * 2**20
    assert counts["graphs_refused"] == 7
    for subnet_id in executor.subnet_ids:
        inputs = samples(rng, 4)
        expected = oracle(checkpoint, subnet_id, inputs)
        assert difference(executor.run(subnet_id, inputs), expected) <= 2e-4


@pytest.mark.parametrize("budget_bytes", [None, 2**40])
@pytest.mark.parametrize(
    "words",
    ["CUDA out of memory", "FIND was unable to find an engine to execute this computation"],
)
def test_what_a_spike_took_is_back_when_the_device_is_idle(
    checkpoint: Checkpoint,
    rng: np.random.Generator,
    monkeypatch: pytest.MonkeyPatch,
    words: str,
    budget_bytes: int | None,
) -> None:
    """A neighbour takes all memory for a while; libraries say so in words of their own."""
    accelerator = LaneAccelerator()
    executor = make_executor(
        checkpoint, accelerator, max_batch_size=3, batch_sizes=(1, 2), budget_bytes=budget_bytes
    )
    executor.warm_up()
    before, subnet_id, inputs = executor.counts(), executor.subnet_ids[1], samples(rng, 3)
    expected, eager, is_full = oracle(checkpoint, subnet_id, inputs), executor._eager, [True]

    def while_full(*args: Any) -> torch.Tensor:
        if is_full[0] and executor.net.cache.resident:
            raise RuntimeError(words)
        return eager(*args)

    copy = accelerator.copy

    def copy_while_full(into: torch.Tensor, source: torch.Tensor) -> None:
        is_slice = into.dim() == 1 and accelerator._lane == "compute"
        if is_full[0] and is_slice:
            raise torch.OutOfMemoryError("CUDA out of memory")
        copy(into, source)

    monkeypatch.setattr(executor, "_eager", while_full)
    with pytest.warns(RuntimeWarning, match="graphs, then resident slices are given up"):
        launched = executor.launch(subnet_id, [inputs])  # no graph takes three
    assert difference(executor.result(launched), expected) <= 2e-4
    counts = executor.counts()
    assert (counts["held_bytes"], counts["graphs_live"], counts["out_of_memory"]) == (0, 0, 3)
    monkeypatch.setattr(accelerator, "copy", copy_while_full)
    with pytest.warns(RuntimeWarning, match="no memory to pack"):
        assert difference(executor.run(subnet_id, inputs), expected) <= 2e-4
    assert executor.counts()["held_bytes"] == 0, "the neighbour is still there"
    is_full[0] = False
    assert difference(executor.run(subnet_id, inputs), expected) <= 2e-4
    counts = executor.counts()
    for name in ("held_bytes", "graphs_live"):
        assert counts[name] == before[name]
    replays = counts["graph_replays"]
    executor.launch(subnet_id, [inputs[:2]])
    assert executor.counts()["graph_replays"] == replays + 1


def test_another_fault_than_memory_gives_nothing_up(
    checkpoint: Checkpoint, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    executor = make_executor(checkpoint, max_batch_size=2, batch_sizes=(1,))
    executor.warm_up()
    before = executor.counts()

    def broken(*args: object) -> torch.Tensor:
        raise RuntimeError("an illegal memory access was encountered")

    monkeypatch.setattr(executor, "_eager", broken)
    with pytest.raises(RuntimeError, match="illegal memory access"):
        executor.run(executor.subnet_ids[0], samples(rng, 2))
    after = executor.counts()
    assert (after["held_bytes"], after["graphs_live"]) == (before["held_bytes"], 3)


class FusingAccelerator(LaneAccelerator):
    """Fuses convolutions, in ten units of time; refuses some shapes; parts take what is given."""

    has_fused_convolutions = True
    why_not_fused = ""

    def __init__(self, refuses: Callable[[ConvGeometry], bool], parts_take: float) -> None:
        super().__init__()
        self._refuses = refuses
        self._parts_take = parts_take
        self.num_fused = 0

    def convolve_fused(
        self,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor,
        other: torch.Tensor | None,
        geometry: ConvGeometry,
    ) -> torch.Tensor:
        assert x.is_contiguous(memory_format=torch.channels_last)
        if self._refuses(geometry):
            raise RuntimeError("FIND was unable to find an engine to execute this computation")
        self.num_fused += 1
        return super().convolve_fused(x, weight, bias, other, geometry)

    def time_s(self, call: Callable[[], object]) -> float:
        before = self.num_fused
        call()
        return 10.0 if self.num_fused > before else self._parts_take


@pytest.mark.parametrize(("parts_take", "is_faster"), [(20.0, True), (9.5, True), (5.0, False)])
def test_a_site_is_fused_where_the_warm_up_found_that_faster_on_its_own_shape(
    checkpoint: Checkpoint, rng: np.random.Generator, parts_take: float, is_faster: bool
) -> None:
    accelerator = FusingAccelerator(lambda geometry: geometry.stride[0] == 2, parts_take)
    executor = make_executor(checkpoint, accelerator, max_batch_size=2, graph_budget_bytes=0)
    executor.warm_up()
    counts = executor.counts()
    assert (
        0 < counts["fused_sites"] < counts["fusable_sites"]
        if is_faster
        else (counts["fused_sites"] == 0 < counts["fusable_sites"])
    )
    wanted = f"fused: {counts['fused_sites']} of {counts['fusable_sites']} sites"
    assert executor.details.endswith(wanted)
    accelerator.num_fused = 0
    for subnet_id in executor.subnet_ids:
        inputs = samples(rng, 2)
        expected = oracle(checkpoint, subnet_id, inputs)
        assert difference(executor.run(subnet_id, inputs), expected) <= 2e-4
    assert (accelerator.num_fused > 0) == is_faster


def test_a_refusal_while_serving_switches_fusion_off_for_no_longer_than_it_lasts(
    checkpoint: Checkpoint, rng: np.random.Generator
) -> None:
    """A library refuses in the same words when it finds no memory."""
    is_full = [False]
    accelerator = FusingAccelerator(lambda _: is_full[0], parts_take=20.0)
    executor = make_executor(checkpoint, accelerator, max_batch_size=2, graph_budget_bytes=0)
    executor.warm_up()
    subnet_id, inputs = executor.subnet_ids[0], samples(rng, 2)
    expected, fused = oracle(checkpoint, subnet_id, inputs), []
    for is_full[0] in (False, True, False):
        accelerator.num_fused = 0
        assert difference(executor.run(subnet_id, inputs), expected) <= 2e-4
        fused.append(accelerator.num_fused)
    assert fused[0] == fused[2] > 0 == fused[1]


class SpoiltPoolAccelerator(LaneAccelerator):
    """A capture that is invalidated leaves its pool recording, as CUDA's allocator does."""

    def __init__(self, invalid: int) -> None:
        super().__init__()
        self._left = invalid
        self._is_recording = False

    def capture(self, call: Callable[[], None]) -> tuple[Replay, int]:
        if self._is_recording:
            raise RuntimeError("beginAllocateToPool: already recording to mempool_id")
        if self._left:
            self._left -= 1
            self._is_recording = True
            raise RuntimeError("CUDA error: operation failed due to a previous error in capture")
        return super().capture(call)

    def renew_pool(self) -> None:
        self._is_recording = False


def test_a_capture_that_failed_costs_its_own_graph_only(
    checkpoint: Checkpoint, rng: np.random.Generator
) -> None:
    executor = make_executor(checkpoint, SpoiltPoolAccelerator(invalid=2), max_batch_size=4)
    with pytest.warns(RuntimeWarning, match="no CUDA graph for") as seen:
        executor.warm_up()
    assert len(seen) == 1
    status = executor.graphs.status
    assert (status.live, set(status.refusals.values())) == (7, {"capture failed"})
    inputs = samples(rng, 4)
    for subnet_id in executor.subnet_ids:
        expected = oracle(checkpoint, subnet_id, inputs)
        assert difference(executor.run(subnet_id, inputs), expected) <= 2e-4


def test_float32_is_never_tf32_whatever_the_process_allows(
    checkpoint: Checkpoint, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[object, object]] = []
    run = CudaSupernet.run

    def watched(net: CudaSupernet, *args: Any) -> torch.Tensor:
        backends = torch.backends
        seen.append((backends.cudnn.allow_tf32, backends.cuda.matmul.allow_tf32))
        return run(net, *args)

    monkeypatch.setattr(CudaSupernet, "run", watched)
    executor = make_executor(checkpoint, max_batch_size=2, batch_sizes=(1,))
    assert torch.backends.cudnn.allow_tf32, "torch's default"
    executor.warm_up()
    executor.run(executor.subnet_ids[0], samples(rng, 2))
    assert len(seen) > 6
    assert set(seen) == {(False, False)}
    assert torch.backends.cudnn.allow_tf32


# --- the ways in ---------------------------------------------------------------------------------


def test_a_profile_says_dtype_packing_and_graphs(checkpoint: Checkpoint) -> None:
    executor = make_executor(
        checkpoint, dtype=torch.bfloat16, max_batch_size=2, packing="shared", batch_sizes=(1, 2)
    )
    profile = measure_profile(executor, checkpoint, batch_sizes=(1, 2), repeats=2)
    assert (profile.dtype, profile.packing, profile.threads) == ("bfloat16", "shared", None)
    assert profile.source.endswith(
        "; 6 CUDA graphs, 0 pairs eager; none fused: a CPU in place of the device"
    )
    assert all(len(subnet.latency_s["steady"]) == 2 for subnet in profile.subnets)


def test_a_dtype_that_is_not_computed_there_is_refused(checkpoint: Checkpoint) -> None:
    with pytest.raises(ValueError, match="dtype is 'bfloat16', allowed float32 on cpu with packi"):
        load_executor(checkpoint, dtype="bfloat16")
    with pytest.raises(ValueError, match="dtype is 'int8', allowed bfloat16, float16, float32 on"):
        load_executor(checkpoint, device="cuda", dtype="int8")
    with pytest.raises(ValueError, match="dtype is 'float16', allowed float32 on cuda with packin"):
        load_executor(checkpoint, device="cuda", packing="views", dtype="float16")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
@pytest.mark.parametrize("packing", [None, "shared", "views"])
def test_cuda_where_there_is_none_is_refused(checkpoint: Checkpoint, packing: str | None) -> None:
    with pytest.raises(ValueError, match="no CUDA device is available; use cpu"):
        load_executor(checkpoint, device="cuda", packing=packing)
