"""Which pairs are captured, replayed, retired and freed: bookkeeping, no device needed."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch

from subnetact.cuda.cuda_graphs import CaptureError, CudaGraphs, GraphKey
from tests.subnetact.cuda.fake_capturer import MIB, FakeCapturer


def pairs(*sizes: int, subnets: str = "ab") -> list[GraphKey]:
    return [GraphKey(subnet, size) for subnet in subnets for size in sizes]


def test_the_largest_is_captured_first_so_that_the_pool_holds_the_largest_only() -> None:
    device = FakeCapturer()
    graphs = CudaGraphs(device)
    assert graphs.capture(pairs(1, 8, 4)) == 6
    assert [key.batch_size for key in device.captured] == [8, 8, 4, 4, 1, 1]
    assert graphs.status.held_bytes == device.held_bytes == 8 * MIB + 6 * device.per_graph
    assert graphs.capture(pairs(1, 8, 4)) == 0, "what is live is not captured again"


def test_a_batch_takes_the_smallest_graph_that_it_fits() -> None:
    graphs = CudaGraphs(FakeCapturer())
    graphs.capture(pairs(1, 4, 8))
    for num_samples, padded in ((1, 1), (2, 4), (4, 4), (5, 8), (8, 8)):
        lease = graphs.lease("a", num_samples)
        assert lease is not None
        with lease:
            assert lease.key == GraphKey("a", padded)
    assert graphs.lease("a", 9) is None
    assert graphs.lease("c", 1) is None
    status = graphs.status
    assert status.replays == 5
    assert status.fallbacks == {"larger than any captured batch": 1, "not captured": 1}


@pytest.mark.parametrize("budget", [0, MIB // 2, 2 * MIB, 4 * MIB, 6 * MIB, 10 * MIB, 12 * MIB])
def test_the_budget_is_never_exceeded_and_what_fits_is_captured(budget: int) -> None:
    device = FakeCapturer()
    graphs = CudaGraphs(device, budget)
    live = graphs.capture(pairs(1, 2, 4, 8))
    status = graphs.status
    assert device.held_bytes <= budget
    assert status.held_bytes == device.held_bytes
    assert live == status.live == 8 - len(status.refusals)
    assert set(status.refusals.values()) <= {"over the graph budget"}
    assert (live > 0) == (budget >= 2 * MIB)  # a MiB of intermediates and one set by for the graph
    if status.refusals:
        key = max(status.refusals, key=lambda k: k.batch_size)
        larger = graphs.lease(key.subnet_id, key.batch_size)
        assert larger is None
        assert graphs.status.fallbacks == {"over the graph budget": 1}


def test_what_a_pool_takes_in_blocks_is_no_sign_of_what_a_graph_takes() -> None:
    """The first one makes the pool grow by 30 MiB more than its intermediates."""
    device = FakeCapturer(per_graph=2 * MIB, block_bytes=30 * MIB)
    graphs = CudaGraphs(device, 60 * MIB)
    assert graphs.capture(pairs(8, 4, 2, 1)) == 8
    assert graphs.graph_bytes == 2 * MIB
    assert graphs.status.held_bytes == device.held_bytes == (8 + 30 + 8 * 2) * MIB


def test_a_look_up_costs_the_same_however_many_pairs_are_refused() -> None:
    """It is on the request path; a supernet has hundreds of subnets, most of them eager."""

    class Compared(str):
        __slots__ = ()
        compared = 0

        def __eq__(self, other: object) -> bool:
            Compared.compared += 1
            return str.__eq__(self, other)

        __hash__ = str.__hash__

    names = [Compared(f"s{n}") for n in range(300)]
    graphs = CudaGraphs(FakeCapturer(), 2 * MIB)
    graphs.capture(GraphKey(name, size) for name in names for size in (4, 8))
    assert len(graphs.status.refusals) == 600
    Compared.compared = 0
    assert graphs.lease(Compared("s123"), 5) is None
    assert Compared.compared < 10
    assert graphs.status.fallbacks == {"over the graph budget": 1}


def test_a_budget_below_zero_is_refused() -> None:
    with pytest.raises(ValueError, match="graph budget_bytes is -1, allowed 0 or more, or None"):
        CudaGraphs(FakeCapturer(), -1)


def test_pairs_that_fail_run_eagerly_for_a_reason_with_one_warning() -> None:
    device = FakeCapturer(
        faults={
            GraphKey("a", 8): lambda: torch.OutOfMemoryError("no 8 MiB left"),
            GraphKey("a", 4): lambda: RuntimeError("operation not permitted\nwhen capturing"),
            GraphKey("b", 8): lambda: CaptureError("streamed: not all of its slices are resident"),
        }
    )
    graphs = CudaGraphs(device)
    with pytest.warns(RuntimeWarning, match="no CUDA graph for a at batch 8 .out of memory.") as w:
        assert graphs.capture(pairs(8, 4, 1)) == 3
    assert len(w) == 1
    assert graphs.lease("a", 8) is None
    assert graphs.lease("a", 3) is None
    assert graphs.lease("b", 5) is None
    assert graphs.status.fallbacks == {
        "out of memory": 1,
        "capture failed": 1,
        "streamed: not all of its slices are resident": 1,
    }
    device.faults.clear()
    assert graphs.capture(pairs(8, 4, 1)) == 3, "a later warm-up tries again"
    assert graphs.status.refusals == {}


def test_a_retired_graph_is_kept_but_lets_go_of_its_slices_and_is_not_replayed() -> None:
    device = FakeCapturer()
    graphs = CudaGraphs(device)
    graphs.capture(pairs(1, 8))
    held = graphs.status.held_bytes
    assert graphs.retire(lambda reads: reads == "a") == 2
    assert all(device.pins[key].is_released == (key.subnet_id == "a") for key in device.pins)
    status = graphs.status
    assert (status.live, status.retired, status.held_bytes) == (2, 2, held)
    assert graphs.lease("a", 1) is None
    assert graphs.status.fallbacks == {"retired: its slices were evicted": 1}
    assert graphs.retire(lambda reads: reads == "a") == 0


def test_a_graph_in_use_is_retired_at_once_and_lets_go_after_its_last_replay() -> None:
    device = FakeCapturer()
    graphs = CudaGraphs(device)
    graphs.capture([GraphKey("a", 1)])
    first, second = graphs.lease("a", 1), graphs.lease("a", 1)
    assert first is not None
    assert second is not None
    graphs.retire(lambda reads: True)
    pin = device.pins[GraphKey("a", 1)]
    assert graphs.lease("a", 1) is None
    with first:
        pass
    assert not pin.is_released
    with second:
        pass
    assert pin.is_released


def test_memory_comes_back_only_when_all_is_dropped_while_idle() -> None:
    device = FakeCapturer()
    graphs = CudaGraphs(device, 40 * MIB)
    graphs.capture(pairs(1, 8))
    lease = graphs.lease("b", 1)
    assert lease is not None
    graphs.retire(lambda reads: reads == "a")
    with pytest.raises(RuntimeError, match="graphs are in use: drop them while"):
        graphs.drop()
    assert device.drops == 0
    with lease:
        pass
    held = graphs.status.held_bytes
    assert graphs.drop() == held == 8 * MIB + 4 * device.per_graph
    assert device.drops == 1
    assert graphs.status[:3] == (0, 0, 0)
    assert all(pin.is_released for pin in device.pins.values())
    assert graphs.capture(pairs(1, 8)) == 4, "and a warm-up captures anew"


def test_threads_that_lease_while_graphs_are_retired_never_hold_a_released_pin() -> None:
    """What may be replayed is pinned for as long as it is leased, and every lease is counted."""
    device = FakeCapturer()
    graphs = CudaGraphs(device)
    wrong: list[GraphKey] = []
    leased = [0, 0, 0]
    subnets = [str(n) for n in range(20)]
    graphs.capture(GraphKey(s, b) for s in subnets for b in (1, 4))
    stop = threading.Event()

    def look_up(thread: int) -> None:
        rng = np.random.default_rng(thread)
        while not stop.is_set():
            lease = graphs.lease(str(rng.integers(20)), int(rng.integers(1, 6)))
            if lease is not None:
                leased[thread] += 1
                with lease:
                    if device.pins[lease.key].is_released:
                        wrong.append(lease.key)

    threads = [threading.Thread(target=look_up, args=(n,)) for n in range(3)]
    for thread in threads:
        thread.start()
    for subnet in subnets:
        graphs.retire(lambda reads, subnet=subnet: reads == subnet)
        graphs.capture([GraphKey(subnet, 2)])
        graphs.retire(lambda reads, subnet=subnet: reads == subnet)
    stop.set()
    for thread in threads:
        thread.join()
    assert wrong == []
    status = graphs.status
    assert status.replays == sum(leased)
    assert (status.live, status.retired) == (0, 60)
    assert all(pin.is_released for pin in device.pins.values())
    assert graphs.drop() == 4 * MIB + 60 * device.per_graph


@pytest.mark.filterwarnings("ignore:no CUDA graph for")
def test_what_a_failed_capture_took_is_there_for_the_next_where_no_graph_is_kept() -> None:
    device = FakeCapturer(room=6 * MIB)
    graphs = CudaGraphs(device)
    assert graphs.capture(pairs(8, 4, 1, subnets="a")) == 2
    assert [key.batch_size for key in graphs.live] == [4, 1]
    assert graphs.status.held_bytes == device.held_bytes == 4 * MIB + 2 * device.per_graph
    drops = device.drops
    assert graphs.capture([GraphKey("a", 8)]) == 0
    assert device.drops == drops, "one graph may not be destroyed while others are kept"
