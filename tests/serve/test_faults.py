"""Faults while queries keep coming, in virtual time: every query ends once, and the rest is served.

Each test runs an open-loop load on an engine, lets something break, and says what was lost and how
long after the fault the last query was lost. Faults of processes and connections are in
`test_faults_of_clients.py`, those of a cluster in `test_faults_on_ray.py`.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import time
import tracemalloc
from collections import Counter
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from slackfit.policies import create_policy
from slackfit.query import Decision

pytestmark = pytest.mark.alone

RATE_QPS, SLO_S, DURATION_S = 250.0, 0.03, 3.0
FAULT_S = (0.8, 1.0)  # from, to


AS_SERVED = {"max_queue": 1000, "drop_hopeless": True, "correct_latency": True}
"""What a server gives its scheduler unless told otherwise."""


class Load:
    """Queries that come at their times whatever happens, on a bench; and what became of each."""

    def __init__(self, bench: Any) -> None:
        self.bench = bench
        self._ids = itertools.count()
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self.jobs: list[tuple[float, Any]] = []  # arrival, job
        bench.device.meanwhile = self._meanwhile

    def at(self, time_s: float, action: Callable[[], None]) -> None:
        """Let something happen at a time."""
        heapq.heappush(self._events, (time_s, next(self._ids), action))

    def arrivals(
        self, rng: np.random.Generator, sample: Callable[[int], int] = lambda i: 0
    ) -> None:
        """Let Poisson arrivals come; `sample(i)` is the first byte of query i."""
        count = rng.poisson(RATE_QPS * DURATION_S)
        for i, time_s in enumerate(np.sort(rng.uniform(0.0, DURATION_S, size=count)).tolist()):
            self.at(time_s, lambda i=i: self.submit(sample(i)))

    def submit(self, value: int = 0, slo_s: float = SLO_S) -> Any:
        """Submit one query now."""
        self.bench.submit(slo_s, first_bytes=[value])
        job = self.bench.last_job
        self.jobs.append((self.bench.clock.now_s, job))
        return job

    def run(self) -> None:
        """Run until nothing is left to come or to end."""
        bench = self.bench
        while self._events or len(bench.scheduler):
            wakeup_s = bench.scheduler.next_wakeup_s()
            if self._events and (wakeup_s is None or self._events[0][0] <= wakeup_s):
                self._next()
            elif wakeup_s is not None:
                bench.clock.now_s = max(bench.clock.now_s, wakeup_s)
            while bench.engine.step():
                pass
        assert all(job.is_done for _, job in self.jobs)
        assert sum(bench.engine.status().ended.values()) == len(self.jobs)

    def ends(self) -> list[tuple[float, str, str]]:
        """Return (arrival, status, reason) of every query."""
        outcomes = [(at_s, job.replies[0].outcome) for at_s, job in self.jobs]
        return [(at_s, outcome.status, outcome.reason) for at_s, outcome in outcomes]

    def report(self, fault: str, end_s: float) -> float:
        """Print what was lost; return how long after the fault's end the last query was lost."""
        lost = [at_s for at_s, status, _ in self.ends() if status != "on_time"]
        back_s = max(0.0, max(lost, default=end_s) - end_s)
        counts = Counter(f"{status} {reason}".strip() for _, status, reason in self.ends())
        print(f"{fault}: {dict(counts)}, last lost query {back_s * 1e3:.0f} ms after its end")
        return back_s

    def _next(self) -> None:
        time_s, _, action = heapq.heappop(self._events)
        self.bench.clock.now_s = max(self.bench.clock.now_s, time_s)
        action()

    def _meanwhile(self, until_s: float) -> None:
        while self._events and self._events[0][0] < until_s:
            self._next()


class Raising:
    drop_hopeless = True
    name = "raising"

    def decide(self, view: object, now_s: float) -> Any:
        raise ZeroDivisionError


class Senseless(Raising):
    name = "senseless"

    def decide(self, view: object, now_s: float) -> Any:
        return Decision("nobody", 3)


@pytest.mark.parametrize("policy", [Raising(), Senseless()], ids=lambda p: p.name)
def test_policy_that_breaks_loses_nothing_and_is_put_back(make_bench, profile, rng, policy):
    bench = make_bench(profile, **AS_SERVED)
    load = Load(bench)
    load.arrivals(rng)
    good = create_policy("slackfit", profile)
    load.at(FAULT_S[0], lambda: bench.engine.reconfigure(policy=policy))
    load.at(FAULT_S[1] - 0.01, lambda: fallbacks.append(bench.engine.status().fallback))
    load.at(FAULT_S[1], lambda: bench.engine.reconfigure(policy=good))
    fallbacks: list[str] = []
    load.run()
    load.report(f"{policy.name} policy", FAULT_S[1])
    assert f"policy {policy.name} failed" in fallbacks[0]
    assert bench.engine.status().fallback == ""
    during = {
        job.replies[0].outcome.subnet_id
        for at_s, job in load.jobs
        if FAULT_S[0] + SLO_S < at_s < FAULT_S[1] - SLO_S
    }
    assert during == {"small"}, "the fallback's subnet"
    assert {status for _, status, _ in load.ends()} == {"on_time"}


def make_failing(device: Any, is_bad: Callable[[Sequence[np.ndarray]], bool]) -> None:
    """Have a device take its time and then fail on some batches."""
    launch, result = device.launch, device.result

    def launch_with_slots(subnet_id: str, slots: Sequence[np.ndarray]) -> Any:
        return SimpleNamespace(launched=launch(subnet_id, slots), slots=slots, form="timed")

    def failing_result(launched: Any) -> np.ndarray:
        logits = result(launched.launched)
        if is_bad(launched.slots):
            raise RuntimeError("device-side assert")
        return logits

    device.launch, device.result = launch_with_slots, failing_result


def test_model_that_fails_for_a_while_fails_those_queries_and_comes_back(make_bench, profile, rng):
    bench = make_bench(profile, **AS_SERVED)
    load = Load(bench)
    load.arrivals(rng)
    make_failing(bench.device, lambda _: FAULT_S[0] <= bench.clock.now_s < FAULT_S[1])
    load.run()
    back_s = load.report("model that fails for 200 ms", FAULT_S[1])
    failed = [(at_s, reason) for at_s, status, reason in load.ends() if status == "failed"]
    assert failed
    assert {reason for _, reason in failed} == {
        "execution failed: RuntimeError: device-side assert"
    }
    lost = [at_s for at_s, status, _ in load.ends() if status != "on_time"]
    assert min(lost) > FAULT_S[0] - SLO_S
    assert back_s <= SLO_S, "what waited in vain is gone with its slack"


def test_poisonous_queries_fail_alone_and_their_neighbours_are_served(make_bench, profile, rng):
    bench = make_bench(profile, **AS_SERVED)
    load = Load(bench)
    load.arrivals(rng, sample=lambda i: 255 if i % 50 == 7 else i % 10)
    make_failing(bench.device, lambda slots: any((slot == 255).any() for slot in slots))
    load.run()
    load.report("poison in one query of 50", DURATION_S)
    for number, (_, job) in enumerate(load.jobs):
        reply = job.replies[0]
        if number % 50 == 7:
            assert reply.outcome.status in ("failed", "dropped", "rejected")
        elif reply.is_executed:
            assert int(np.argmax(reply.output)) == number % 10, "its own answer, not a neighbour's"
        else:
            assert reply.outcome.status in ("dropped", "rejected"), (
                "for its deadline, not for poison"
            )
    statuses = Counter(status for _, status, _ in load.ends())
    assert statuses["failed"] >= 0.9 * len(load.jobs) / 50
    assert statuses["on_time"] >= 0.9 * len(load.jobs)


def test_storm_of_disconnects_costs_the_device_nothing(make_bench, profile, rng):
    """1,000 clients send within 10 ms and hang up within the next 10 ms."""
    bench = make_bench(profile, **AS_SERVED | {"max_queue": 2000})
    load = Load(bench)
    load.arrivals(rng)
    gone: list[Any] = []

    def send_and_leave(leaves_s: float) -> None:
        job = load.submit(slo_s=5.0)  # later than all others': the storm does not overtake them
        gone.append(job)
        load.at(leaves_s, lambda: bench.engine.withdraw(job, "cancelled"))

    for i in range(1000):
        sent_s = FAULT_S[0] + 1e-5 * i
        load.at(sent_s, lambda sent_s=sent_s: send_and_leave(sent_s + 0.01))
    load.run()
    others = [(at_s, job.replies[0].outcome) for at_s, job in load.jobs if job not in gone]
    load.report("1,000 clients that hang up", FAULT_S[0] + 0.02)
    ends = Counter(job.replies[0].outcome.reason for job in gone)
    assert ends["cancelled"] > 900
    assert sum(job.replies[0].is_executed for job in gone) < 50, "those that ran before they left"
    assert all(outcome.status == "on_time" for at_s, outcome in others if at_s > FAULT_S[0] + 0.05)
    assert bench.engine.status().queue_depth == 0


@pytest.mark.parametrize("max_queue", [1000, None])
def test_10000_queries_at_once_are_served_or_refused_in_bounded_memory(
    make_bench, profile, rng, max_queue
):
    bench = make_bench(profile, **AS_SERVED | {"max_queue": max_queue})
    load = Load(bench)
    load.arrivals(rng)
    depths: list[int] = []
    elapsed_s = [0.0]

    def flood() -> None:
        started_s = time.perf_counter()
        for _ in range(10_000):
            load.submit(slo_s=0.5)
        elapsed_s[0] = time.perf_counter() - started_s
        depths.append(bench.engine.status().queue_depth)

    load.at(FAULT_S[0], flood)
    tracemalloc.start()
    load.run()
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    load.report(f"10,000 at once, queue of {max_queue}", FAULT_S[0])
    print(f"10,000 submitted in {elapsed_s[0] * 1e3:.0f} ms, {peak_bytes / 2**20:.1f} MiB in all")
    assert depths[0] <= (max_queue or 11_000)
    assert peak_bytes < 11_000 * 6_000, "payload, job, query, reply: some KB each"
    reasons = {reason for _, status, reason in load.ends() if status not in ("on_time", "late")}
    assert reasons <= {"queue_full", "infeasible", "expired"}
    assert bench.engine.status().queue_depth == 0
    calm = [status for at_s, status, _ in load.ends() if at_s > FAULT_S[0] + 0.6]
    assert calm.count("on_time") == len(calm), "once the flood's deadlines are past, all is well"


def settled_attainment(make_bench: Any, told: Any, truth: Any, *, correct_latency: bool) -> float:
    """Return the attainment after half a second with a profile, on a device with another one."""
    bench = make_bench(told, **AS_SERVED | {"correct_latency": correct_latency})
    bench.device._profile = truth
    load = Load(bench)
    load.arrivals(np.random.default_rng(0))
    load.run()
    settled = [status for at_s, status, _ in load.ends() if at_s > 0.5]
    return settled.count("on_time") / len(settled)


def test_profile_off_by_2_is_corrected_while_serving(make_bench, profile):
    truth = profile.scaled(2.0)
    right = settled_attainment(make_bench, truth, truth, correct_latency=False)
    wrong = settled_attainment(make_bench, profile, truth, correct_latency=False)
    corrected = settled_attainment(make_bench, profile, truth, correct_latency=True)
    print(f"attainment: profile right {right:.3f}, off by 2 {wrong:.3f}, corrected {corrected:.3f}")
    assert wrong < right - 0.3, "else the load would show nothing"
    assert corrected > right - 0.05


def test_steps_of_the_wall_clock_change_nothing(serve_timed, monkeypatch):
    """The clock on the wall jumps by a day, to and fro, between any two looks at it."""
    truth, jumps = time.time, itertools.cycle((0.0, 86_400.0, -86_400.0))
    monkeypatch.setattr(time, "time", lambda: truth() + next(jumps))
    body = {
        "inputs": [{"name": "input", "datatype": "UINT8", "shape": [1, 1, 2, 2], "data": [0] * 4}],
        "parameters": {"slo_ms": 20_000},
    }

    async def main() -> None:
        async with serve_timed() as client:
            asks = []
            for _ in range(60):
                asks.append(asyncio.ensure_future(client.post("/v2/models/tiny/infer", json=body)))
                await asyncio.sleep(0.002)
            answers = [(await ask).json()["parameters"] for ask in asks]
            assert {answer["status"] for answer in answers} == {"on_time"}
            assert all(0 < answer["slack_s"] < 20 for answer in answers)
            assert all(0 <= answer["queue_s"] < 20 for answer in answers)
            ended = (await client.get("/admin/config")).json()["tiny"]["ended"]
            assert ended == {"on_time": 60}
        print("60 queries under a clock that jumps by a day: all on time")

    asyncio.run(main())
