"""Drawn subnets and deadlines: pins are kept while they can be, and no deadline suffers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import numpy as np
import pytest

from serve.engine.engine import Engine
from serve.engine.reply import RequestOptions
from serve.security.loose_pins import LooseEngine, LoosePin, front_of, gathered, loosened
from slackfit.policies import create_policy
from slackfit.profile import LatencyProfile
from slackfit.query import Query
from slackfit.scheduling.scheduler import Scheduler
from subnetact.timed_executor import TimedExecutor
from supernet.sample import SampleSpec

SHAPE = (1, 2, 2)


class VirtualRun:
    """An engine in virtual time that gets queries at given times; what became of each."""

    def __init__(self, profile: LatencyProfile, kind: type[Engine]) -> None:
        self.now_s = 0.0
        executor = TimedExecutor(
            profile, SampleSpec(shape=SHAPE), 10, clock=lambda: self.now_s, sleep=self._sleep
        )
        scheduler = Scheduler(profile, create_policy("drainfit", profile), drop_hopeless=True)
        self.engine = kind(scheduler, executor, clock=lambda: self.now_s)
        self.engine._state = "ready"
        self._arrivals: Iterator[tuple[float, RequestOptions]] = iter(())
        self._next: tuple[float, RequestOptions] | None = None
        self.jobs: list = []

    def serve(self, arrivals: list[tuple[float, RequestOptions]]) -> list:
        """Serve queries at their times; return each one's outcome."""
        self._arrivals = iter(arrivals)
        self._next = next(self._arrivals, None)
        while self._next is not None or self.engine._ledger.open:
            if not self.engine.step() and self._next is not None:
                self._advance(max(self._next[0], self.now_s))
        return [job.replies[0].outcome for job in self.jobs]

    def _sleep(self, duration_s: float) -> None:
        end_s = self.now_s + duration_s
        while self._next is not None and self._next[0] <= end_s:
            self._advance(self._next[0])
        self.now_s = end_s

    def _advance(self, until_s: float) -> None:
        self.now_s = until_s
        while self._next is not None and self._next[0] <= until_s:
            arrival_s, options = self._next
            samples = np.zeros((1, *SHAPE), dtype=np.uint8)
            job = self.engine.submit(
                samples, arrival_s=arrival_s, options=options, on_done=lambda job: None
            )
            self.jobs.append(job)
            self._next = next(self._arrivals, None)


def trace(
    ten: LatencyProfile, rate_qps: float, seed: int, *, is_pinned: bool, slo_s: float = 0.08
) -> list[tuple[float, RequestOptions]]:
    rng = np.random.default_rng(seed)
    gaps_s = rng.gamma(0.25, 4.0 / rate_qps, size=800)  # bursts: CV^2 4
    times_s = np.cumsum(gaps_s)
    pins = rng.integers(4, 10, size=len(times_s))
    return [
        (
            float(time_s),
            RequestOptions(
                float(time_s) + slo_s,
                subnet_id=LoosePin(f"secretnet{pin}") if is_pinned else None,
            ),
        )
        for time_s, pin in zip(times_s, pins, strict=True)
    ]


@pytest.mark.parametrize("rate_qps", [60.0, 200.0, 500.0, 900.0])
def test_drawn_subnets_cost_no_deadline(ten, rate_qps):
    for seed in range(2):
        plain = VirtualRun(ten, Engine).serve(trace(ten, rate_qps, seed, is_pinned=False))
        drawn = VirtualRun(ten, LooseEngine).serve(trace(ten, rate_qps, seed, is_pinned=True))
        missed = sum(o.status != "on_time" for o in plain)
        assert sum(o.status != "on_time" for o in drawn) <= missed, (rate_qps, seed)


def test_pins_that_are_not_let_go_would_cost_deadlines(ten):
    """The same pins, kept whatever happens: what the engine is for."""
    plain = VirtualRun(ten, Engine).serve(trace(ten, 500.0, 0, is_pinned=False))
    kept = VirtualRun(ten, Engine).serve(trace(ten, 500.0, 0, is_pinned=True))
    missed = [sum(o.status != "on_time" for o in run) for run in (plain, kept)]
    assert missed[1] > missed[0] + 20


def test_an_idle_device_keeps_every_pin(ten):
    arrivals = trace(ten, 5.0, 1, is_pinned=True)[:200]
    served = VirtualRun(ten, LooseEngine).serve(arrivals)
    kept = [o.subnet_id == a[1].subnet_id for o, a in zip(served, arrivals, strict=True)]
    assert np.mean(kept) > 0.95


def test_a_pin_that_can_not_be_kept_from_the_start_is_left_out(ten):
    run = VirtualRun(ten, LooseEngine)
    options = RequestOptions(0.008, subnet_id=LoosePin("secretnet9"))
    (outcome,) = run.serve([(0.0, options)])
    assert outcome.status == "on_time"
    assert outcome.subnet_id != "secretnet9"


def test_a_floor_is_kept_when_the_pin_goes(ten):
    run = VirtualRun(ten, LooseEngine)
    floor = 0.80
    arrivals = [
        (
            0.001 * number,
            RequestOptions(0.1 + 0.001 * number, None, floor, 0, LoosePin("secretnet9")),
        )
        for number in range(40)
    ]
    outcomes = run.serve(arrivals)
    served = [o for o in outcomes if o.subnet_id is not None]
    assert len({o.subnet_id for o in served}) > 1
    assert all(o.accuracy >= floor - 1e-9 for o in served)


def test_only_loose_pins_are_let_go(ten):
    strict = Query(1, 0.0, 0.02, subnet_id="secretnet9")
    loose = [
        Query(2, 0.0, 0.02, subnet_id=LoosePin("secretnet8")),
        Query(3, 0.0, 9.0, subnet_id=LoosePin("secretnet8")),
    ]
    assert [q.query_id for q in loosened([strict, *loose], ten, 0.0)] == [2]
    assert loosened([strict], ten, 0.0) == []
    assert loosened([loose[1]], ten, 0.0) == []


@pytest.mark.parametrize("rate_qps", [120.0, 300.0])
def test_what_loses_its_pin_is_no_clue_to_one_subnet(ten, rate_qps):
    """Left to the policy, one subnet gave 0.44 of the answers at both rates."""
    shares: list[float] = []
    for seed in range(6):  # a draw that gathers many on one subnet gives it 0.3
        run = VirtualRun(ten, LooseEngine)
        assert isinstance(run.engine, LooseEngine)
        run.engine._rng = np.random.default_rng(seed)
        served = run.serve(trace(ten, rate_qps, 0, is_pinned=True))
        counts = Counter(str(o.subnet_id) for o in served if o.status == "on_time")
        shares.append(max(counts.values()) / sum(counts.values()))
    assert np.mean(shares) <= 0.25


@pytest.mark.parametrize(
    ("slo_s", "floor", "allowed"), [(0.1, 0.0, range(4, 8)), (0.2, 0.82, range(6, 10))]
)
def test_a_common_pin_keeps_floors_and_deadlines_and_is_drawn(ten, rng, slo_s, floor, allowed):
    pins = (LoosePin(f"secretnet{n}") for n in range(4, 10))
    queries = [Query(n, 0.0, slo_s, floor, subnet_id=pin) for n, pin in enumerate(pins)]
    drawn = {gathered(queries, queries, front_of(ten), ten, 0.0, rng) for _ in range(80)}
    assert drawn == {f"secretnet{n}" for n in allowed}
    for pin in drawn:
        assert loosened([q._replace(subnet_id=pin) for q in queries], ten, 0.0) == []


def test_without_two_that_fit_there_is_no_common_pin(ten, rng):
    queries = [Query(n, 0.0, 0.02, 0.86, subnet_id=LoosePin("secretnet8")) for n in range(3)]
    assert gathered(queries, queries, front_of(ten), ten, 0.0, rng) is None
