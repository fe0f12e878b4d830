"""Which graphs are captured when, and which go: no device, a clock that the test moves."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from slackfit.graph_forms import EAGER
from slackfit.profile import LatencyProfile, ProfileError, SubnetProfile
from subnetact.cuda.cuda_graphs import CaptureError, CudaGraphs, GraphKey
from subnetact.cuda.hot_graphs import HotGraphs
from tests.subnetact.cuda.fake_capturer import MIB, FakeCapturer

SIZES = (1, 4, 8)
KEYS = [GraphKey(subnet_id, size) for subnet_id in "ab" for size in SIZES]
CAPTURE_S = 0.02


def subnet(subnet_id: str, replayed_ms: list[float], eager_ms: list[float]) -> SubnetProfile:
    rows = {"p50": replayed_ms, EAGER: eager_ms}
    latency_s = {name: tuple(ms * 1e-3 for ms in row) for name, row in rows.items()}
    return SubnetProfile(subnet_id=subnet_id, accuracy=0.5, macs=0, latency_s=latency_s)


PROFILE = LatencyProfile(
    name="two subnets",
    device="none",
    dtype="float32",
    batch_sizes=SIZES,
    padded=True,
    subnets=(subnet("a", [1, 2, 3], [5, 5, 6]), subnet("b", [2, 4, 9], [8, 8, 9])),
)


class Bench:
    """`HotGraphs` after a warm-up, and a clock; a capture takes 20 ms."""

    def __init__(
        self,
        budget_bytes: int | None = None,
        *,
        mib: dict[str, int] | None = None,
        faults: dict[GraphKey, Callable[[], Exception]] | None = None,
    ) -> None:
        self.now_s = 0.0
        self.device = FakeCapturer(
            per_graph=MIB, takes=self._take, mib=mib or {}, faults=faults or {}
        )
        self.graphs = CudaGraphs(self.device, budget_bytes, clock=self.clock)
        self.hot = HotGraphs(PROFILE, self.graphs, clock=self.clock)
        self.hot.begin(KEYS)

    def clock(self) -> float:
        return self.now_s

    def launch(self, subnet_id: str, size: int, times: int) -> None:
        for _ in range(times):
            self.hot.note(subnet_id, size)
            self.hot.next_errand()  # there was a gap, and no time in it

    def run_errands(self) -> list[bool]:
        """Run all that there are now; whether each made the device slower."""
        ran: list[bool] = []
        while (errand := self.hot.next_errand()) is not None:
            ran.append(errand.slows)
            self.hot.run_errand()
            assert len(ran) < 50, "it does not end"
        return ran

    @property
    def live(self) -> set[GraphKey]:
        return set(self.graphs.live)

    def _take(self) -> None:
        self.now_s += CAPTURE_S


TRIALS = {GraphKey("a", 8), GraphKey("b", 8)}


def test_a_warm_up_captures_the_two_largest_and_nothing_more_without_traffic() -> None:
    bench = Bench()
    assert bench.live == TRIALS
    assert bench.run_errands() == []
    bench.hot.begin(KEYS)
    assert bench.live == TRIALS, "nor does the warm-up of another thread"


def test_what_is_launched_is_captured_and_nothing_else() -> None:
    bench = Bench()
    bench.launch("a", 1, 32)
    bench.launch("b", 4, 32)
    assert bench.live == TRIALS, "noting captures nothing"
    errand = bench.hot.next_errand()
    assert errand is not None
    assert (errand.takes_s, errand.slows) == (pytest.approx(CAPTURE_S), False)
    assert bench.run_errands() == [False, False]
    assert bench.live == TRIALS | {GraphKey("a", 1), GraphKey("b", 4)}
    assert bench.hot.num_missing == 0


def test_a_capture_has_to_pay_for_itself_while_the_mix_lasts() -> None:
    bench = Bench()
    bench.launch("a", 1, 15)
    bench.launch("b", 1, 1)
    assert bench.run_errands() == [False]
    assert GraphKey("a", 1) in bench.live, "15 of 16 save 4 ms each"
    assert GraphKey("b", 1) not in bench.live, "one of 16 saves 6 ms, a capture takes 20"


def test_until_it_has_its_own_a_pair_runs_as_fast_as_it_can() -> None:
    bench = Bench()
    size = bench.hot.graph_size
    assert (size("a", 1), size("a", 8)) == (8, 8), "3 ms on the graph of eight, 5 without"
    assert (size("b", 1), size("b", 8)) == (None, 8), "9 ms on the graph of eight, 8 without"
    assert size("a", 3) == 3, "no profiled size: whatever graph takes it"
    bench.launch("a", 1, 32)
    bench.launch("b", 1, 32)
    bench.run_errands()
    assert (size("a", 1), size("b", 1)) == (1, 1)


def test_plans_are_made_with_the_graphs_that_there_are() -> None:
    bench = Bench()

    def planned_ms(subnet_id: str) -> list[float]:
        profile = bench.hot.planned(PROFILE)
        return [round(profile.latency_s(subnet_id, size) * 1e3, 6) for size in (1, 2, 4, 8)]

    before = bench.hot.version
    assert planned_ms("a") == [3, 3, 3, 3]
    assert planned_ms("b") == [8, 8, 8, 9]
    bench.launch("b", 4, 32)
    assert planned_ms("b") == [8, 8, 8, 9], "not there yet"
    bench.run_errands()
    assert planned_ms("b") == [4, 4, 4, 9]
    assert bench.hot.version > before
    bench.graphs.drop()
    assert (planned_ms("a"), planned_ms("b")) == ([5, 5, 5, 6], [8, 8, 8, 9])
    assert bench.hot.graph_size("b", 4) is None


def test_plans_for_smaller_batches_count_on_no_graph_that_is_not_there() -> None:
    """The largest batch can be set while the server runs; graphs of larger ones are no others."""
    bench = Bench()

    def planned_ms(subnet_id: str) -> list[float]:
        profile = bench.hot.planned(PROFILE.capped(3))
        return [round(profile.latency_s(subnet_id, size) * 1e3, 6) for size in (1, 2, 3)]

    assert bench.live == TRIALS
    assert planned_ms("a") == [5, 5, 5], "not the 2 ms of a graph of four"
    bench.launch("a", 4, 32)
    bench.run_errands()
    assert planned_ms("a") == [2, 2, 2]


def test_cold_graphs_go_where_hot_ones_need_their_memory() -> None:
    """A budget for a pool of eight samples and three graphs: two are taken by the warm-up's."""
    budget = 11 * MIB
    bench = Bench(budget)
    assert bench.live == TRIALS
    bench.launch("a", 1, 40)
    bench.launch("a", 4, 40)
    slows = bench.run_errands()
    assert slows.count(True) == 1
    assert bench.live == {GraphKey("a", 1), GraphKey("a", 4)}
    assert bench.device.drops == 1
    assert bench.device.captured[-2:] == [GraphKey("a", 4), GraphKey("a", 1)], "largest first"
    for subnet_id in "bab":
        for _ in range(20):
            bench.launch(subnet_id, 1, 15)
            bench.launch(subnet_id, 4, 15)
            bench.run_errands()
        assert {GraphKey(subnet_id, 1), GraphKey(subnet_id, 4)} <= bench.live
        assert bench.device.held_bytes <= budget
        assert bench.graphs.status.held_bytes == bench.device.held_bytes


def test_after_a_drop_the_pair_with_the_largest_intermediates_comes_first() -> None:
    """Of the same batch, one of a larger subnet: the pool would grow to the sum of both."""
    bench = Bench(26 * MIB, mib={"b": 3})
    bench.launch("b", 4, 20)
    bench.launch("a", 4, 100)  # saves more, is captured first where there is a pool
    bench.launch("b", 4, 20)
    bench.graphs.drop()
    bench.run_errands()
    assert bench.device.captured[2:] == [GraphKey("b", 4), GraphKey("a", 4)]
    assert bench.device.held_bytes == (3 * 4 + 2) * MIB


def test_nothing_is_dropped_for_a_pair_that_no_drop_makes_room_for() -> None:
    bench = Bench(10 * MIB, mib={"b": 3})
    assert bench.live == {GraphKey("a", 8), GraphKey("a", 4)}, "24 MiB never fit"
    bench.launch("b", 4, 400)
    bench.run_errands()
    assert bench.device.drops == 0
    assert bench.live == {GraphKey("a", 8), GraphKey("a", 4)}
    assert bench.hot.num_missing == 0, "given up"


@pytest.mark.filterwarnings("ignore:no CUDA graph for")
def test_what_is_given_up_is_no_gain_of_a_drop() -> None:
    bench = Bench()
    bench.device.capture_faults[GraphKey("b", 1)] = lambda: RuntimeError("not while capturing")
    for _ in range(3):
        bench.launch("b", 1, 40)
        bench.run_errands()
        bench.now_s += 60.0
    assert bench.device.tries.count(GraphKey("b", 1)) == 3
    bench.graphs.budget_bytes = 10 * MIB  # full, with the two of the warm-up
    bench.launch("b", 1, 300)
    bench.launch("a", 4, 14)
    bench.launch("b", 1, 60)
    assert GraphKey("a", 4) in bench.hot._missing
    bench.run_errands()
    assert bench.device.drops == 0, "a millisecond of few batches, beside the graph of eight"


def test_until_a_capture_was_seen_one_is_taken_to_be_slow() -> None:
    """Where memory is short at the start there may be no slices to capture anything of."""
    streamed = {key: lambda: CaptureError("streamed: not all are resident") for key in KEYS}
    bench = Bench(faults=dict(streamed))
    assert not bench.live
    bench.device.faults.clear()
    bench.launch("a", 1, 400)
    errand = bench.hot.next_errand()
    assert errand is not None
    assert errand.takes_s == 1.0
    bench.run_errands()
    bench.launch("b", 1, 2000)
    errand = bench.hot.next_errand()
    assert errand is not None
    assert errand.takes_s == pytest.approx(CAPTURE_S)


def test_a_drop_says_that_it_slows_the_device() -> None:
    bench = Bench(11 * MIB)
    bench.launch("a", 1, 40)
    bench.launch("a", 4, 40)
    while not (errand := bench.hot.next_errand()).slows:  # type: ignore[union-attr]
        bench.hot.run_errand()
    after, now = (bench.hot.planned(PROFILE, each).latency_s("a", 8) for each in (errand, None))
    assert (after, now) == (pytest.approx(6e-3), pytest.approx(3e-3))


def test_what_would_not_pay_for_capturing_all_anew_is_left_eager() -> None:
    """The warm-up's two graphs fill the budget; that of eight saves two of three milliseconds."""
    bench = Bench(10 * MIB)
    bench.launch("a", 4, 16)
    assert bench.run_errands() == [False]
    assert (bench.live, bench.hot.num_missing) == (TRIALS, 0)
    bench.launch("a", 4, 48)
    assert bench.run_errands() == [], "it is not tried at every pause"
    bench.now_s += 11.0
    assert bench.run_errands() == [False, True, False], "by now it saves more than it takes"
    assert bench.live == {GraphKey("a", 4)}


@pytest.mark.filterwarnings("ignore:no CUDA graph for")
def test_a_pair_that_can_not_be_captured_is_given_up() -> None:
    bench = Bench()
    bench.device.capture_faults[GraphKey("a", 1)] = lambda: RuntimeError("not while capturing")
    bench.launch("a", 1, 40)
    bench.launch("a", 4, 40)
    tried_at: list[float] = []
    while bench.now_s < 10_000.0:
        before = bench.device.tries.count(GraphKey("a", 1))
        bench.launch("a", 1, 1)
        bench.launch("a", 4, 1)
        bench.run_errands()
        if bench.device.tries.count(GraphKey("a", 1)) > before:
            tried_at.append(bench.now_s)
        bench.now_s += 1.0
    assert len(tried_at) == 3
    assert tried_at[1] - tried_at[0] == pytest.approx(10.0, abs=1.5)
    assert tried_at[2] - tried_at[1] == pytest.approx(20.0, abs=1.5)
    assert GraphKey("a", 4) in bench.live, "its neighbour has one"
    assert bench.hot.graph_size("a", 1) == 4
    assert bench.hot.num_missing == 0


@pytest.mark.filterwarnings("ignore:no CUDA graph for")
def test_while_memory_is_short_nothing_is_captured_and_later_all_is() -> None:
    bench = Bench()
    full = {key: lambda: torch.OutOfMemoryError("CUDA out of memory") for key in KEYS}
    bench.device.capture_faults.update(full)
    bench.launch("a", 1, 40)
    bench.launch("b", 1, 40)
    assert bench.run_errands() == [False]
    tries = len(bench.device.tries)
    bench.now_s += 5.0
    assert bench.run_errands() == [], "one refusal pauses them all"
    bench.now_s += 6.0
    assert bench.run_errands() == [False], "still none"
    bench.now_s += 15.0
    assert bench.run_errands() == [], "twice as long"
    assert len(bench.device.tries) == tries + 1
    bench.device.capture_faults.clear()
    bench.now_s += 30.0
    assert bench.run_errands() == [False, False]
    assert bench.live == TRIALS | {GraphKey("a", 1), GraphKey("b", 1)}


def test_one_slow_capture_does_not_keep_others_from_their_turn() -> None:
    bench = Bench()
    bench.device.takes = lambda: setattr(bench, "now_s", bench.now_s + 5.0)
    bench.launch("a", 1, 40)
    bench.run_errands()
    bench.device.takes = bench._take
    bench.launch("b", 1, 400)
    errand = bench.hot.next_errand()
    assert errand is not None
    assert errand.takes_s == pytest.approx(CAPTURE_S)


def test_a_profile_of_before_says_what_it_lacks() -> None:
    old = subnet("a", [1, 2, 3], [5, 5, 6])
    del old.latency_s[EAGER]  # type: ignore[attr-defined]
    profile = LatencyProfile(
        name="old", device="none", dtype="float32", batch_sizes=SIZES, subnets=(old,)
    )
    with pytest.raises(ProfileError, match="does not say what 'a' takes without a graph"):
        HotGraphs(profile, CudaGraphs(FakeCapturer()))
