"""Errands of a device between batches: a clock, a CUDA executor on a stand-in, no threads.

The stand-in's replay is four times as fast as its call, and a capture takes 20 ms.
"""

from __future__ import annotations

import asyncio
import io
import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from serve.engine.engine import Engine
from serve.engine.job import Job, Ticket
from serve.engine.reply import Reply, RequestOptions
from slackfit.errand import Errand
from slackfit.graph_forms import EAGER, as_captured
from slackfit.policies import create_policy
from slackfit.policies.drainfit import DrainFit
from slackfit.policies.slackfit import SlackFit
from slackfit.policy import ALONE, DeviceLoad
from slackfit.profile import LatencyProfile
from slackfit.query import Batch
from slackfit.scheduling.record import RecordingScheduler, replay_log
from slackfit.scheduling.scheduler import Scheduler
from subnetact.timed_executor import TimedExecutor, TimedLaunched
from supernet import Checkpoint
from supernet.sample import SampleSpec
from tests.subnetact.cuda.clocked_accelerator import (
    ClockedAccelerator,
    ClockedExecutor,
    both_forms,
)

CAPTURE_S = 0.02
MIB = 2**20
INPUT = np.zeros((1, 1, 8, 8), dtype=np.uint8)


class Served:
    """An engine, and queries that arrive while the device is busy with whatever it is."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        policy: str = "slackfit",
        *,
        follows: bool = True,
        graph_budget_bytes: int | None = None,
        scheduler: Callable[..., Scheduler] = Scheduler,
        capture_s: float = CAPTURE_S,
    ) -> None:
        self.profile = both_forms(checkpoint)
        self.device = ClockedAccelerator(self.profile, capture_s)
        self.device.graph_bytes = MIB
        self.executor = ClockedExecutor(
            checkpoint, self.device, graph_budget_bytes=graph_budget_bytes if follows else 0
        )
        self.executor.num_under_way = 1  # the stand-in computes in `launch`
        if follows:
            assert self.executor.follow(self.profile, clock=self.device.clock)
        self.executor.warm_up()
        offered = self.profile if follows else as_captured(self.profile, {})
        self.engine = Engine(
            scheduler(offered, create_policy(policy, offered)),
            self.executor,
            clock=self.device.clock,
        )
        self.engine._upkeep.catch_up()  # as the device thread does after the warm-up
        self.engine._state = "ready"
        self.start_s = self.device.now_s
        self.device.pass_s = self._pass
        self.pending: list[tuple[float, float]] = []  # arrival, SLO
        self.replies: list[Reply] = []
        self.batches: dict[int, Batch] = {}
        self.waiting_at_capture: list[int] = []
        launch = self.engine._runner.launch

        def watched(batch: Batch, tickets: Sequence[Ticket]) -> None:
            self.batches[batch.batch_id] = batch
            launch(batch, tickets)

        self.engine._runner.launch = watched

    def arrive(self, arrivals_s: list[float], slo_s: float) -> None:
        """Have queries arrive at times from the start on."""
        self.pending += [(self.start_s + at_s, slo_s) for at_s in arrivals_s]
        self.pending.sort()

    def run(self, until_s: float = 0.0) -> None:
        """Serve all there is, as the device thread would; errands where they are allowed."""
        while True:
            if self.engine.step() or self.run_errand():
                continue
            if not self.pending:
                break
            self._pass(max(0.0, self.pending[0][0] - self.device.now_s))
        self._pass(max(0.0, self.start_s + until_s - self.device.now_s))

    def run_errand(self, others: DeviceLoad = ALONE) -> bool:
        waiting, captures = self.engine.status().queue_depth, len(self.device.captures)
        did = self.engine._upkeep.run_errand(lambda: others)
        self.waiting_at_capture += [waiting] * (len(self.device.captures) - captures)
        return did

    @property
    def statuses(self) -> dict[str, int]:
        found = [reply.outcome.status for reply in self.replies]
        return {status: found.count(status) for status in sorted(set(found))}

    @property
    def num_captured(self) -> int:
        return len(self.waiting_at_capture)

    def _pass(self, duration_s: float) -> None:
        finish_s = self.device.now_s + duration_s
        while self.pending and self.pending[0][0] <= finish_s:
            arrival_s, slo_s = self.pending.pop(0)
            self.device.now_s = max(self.device.now_s, arrival_s)
            options = RequestOptions(arrival_s + slo_s)
            self.engine.submit(INPUT, arrival_s=arrival_s, options=options, on_done=self._end)
        self.device.now_s = finish_s

    def _end(self, job: Job) -> None:
        self.replies += job.replies


def evenly(count: int, every_s: float) -> list[float]:
    return [n * every_s for n in range(count)]


def test_hot_pairs_are_captured_between_batches_and_no_deadline_suffers(
    checkpoint: Checkpoint,
) -> None:
    served = Served(checkpoint)
    served.arrive(evenly(150, 0.03), slo_s=0.1)
    served.run()
    assert served.statuses == {"on_time": 150}
    assert served.waiting_at_capture == [0] * served.num_captured
    assert 1 <= served.num_captured <= 2, "one query at a time on the largest: one pair"
    first, last = served.replies[0].execution_s, served.replies[-1].execution_s
    assert first / last > 2.0


def test_each_batch_takes_what_was_predicted_whether_captured_or_not(
    checkpoint: Checkpoint, rng: np.random.Generator
) -> None:
    served = Served(checkpoint, "drainfit")
    for burst in range(90):
        start_s = burst * 0.12
        served.arrive((start_s + rng.uniform(0, 0.01, rng.integers(1, 9))).tolist(), slo_s=0.1)
    served.run()
    assert served.num_captured > 2
    forms = set()
    for reply in served.replies:
        if reply.is_executed:
            batch = served.batches[reply.batch_id]
            assert reply.execution_s == pytest.approx(batch.expected_latency_s)
            forms.add(reply.form)
    assert forms == {"graph", "eager"}
    assert served.statuses.keys() == {"on_time"}


@pytest.mark.parametrize(("slo_s", "captures"), [(0.03, 0), (0.06, 1)])
def test_an_slo_that_a_capture_would_cost_is_kept(
    checkpoint: Checkpoint, slo_s: float, captures: int
) -> None:
    """Half of the SLO has to hold the capture and what comes meanwhile."""
    served = Served(checkpoint)
    served.arrive(evenly(100, 0.02), slo_s)
    served.run()
    assert served.statuses == {"on_time": 100}
    assert min(served.num_captured, 1) == captures
    served.engine._upkeep.probe(lambda: False)  # nothing came for ten seconds
    assert served.executor.counts()["graphs_missing"] == 0
    assert len(served.device.captures) > 2


def test_a_probe_that_finds_no_memory_is_not_the_end(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A neighbour on the device has all of it; when that is over, queries are served as before."""
    served = Served(checkpoint)
    served.arrive(evenly(100, 0.02), slo_s=0.03)
    served.run()
    captures = len(served.device.captures)

    def full(*_: object) -> np.ndarray:
        raise RuntimeError("CUDA error: out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(served.executor, "run", full)
        served.engine._upkeep.probe(lambda: False)
    assert len(served.device.captures) == captures, "that would take what is missing"
    served.start_s = served.device.now_s
    served.arrive(evenly(10, 0.02), slo_s=0.03)
    served.run()
    assert served.statuses == {"on_time": 110}


def test_a_probe_stops_where_a_query_comes(checkpoint: Checkpoint) -> None:
    served = Served(checkpoint)
    served.arrive(evenly(100, 0.02), slo_s=0.03)
    served.run()
    captures = len(served.device.captures)
    served.engine._upkeep.probe(lambda: True)
    assert len(served.device.captures) == captures


def test_no_graph_is_captured_while_queries_wait(checkpoint: Checkpoint) -> None:
    served = Served(checkpoint)
    served.arrive(evenly(150, 0.001), slo_s=10.0)
    while served.pending or served.engine.status().queue_depth:
        if not served.engine.step():
            served._pass(1e-4)
        if served.engine.status().queue_depth:
            assert not served.run_errand()
    assert served.num_captured == 0


def test_others_on_the_device_are_asked_too(checkpoint: Checkpoint) -> None:
    served = Served(checkpoint)
    served.arrive(evenly(100, 0.005), slo_s=0.2)
    while served.pending or served.engine.status().queue_depth:
        if not served.engine.step():
            served._pass(1e-4)
    assert not served.run_errand(DeviceLoad(1, slo_s=0.02))
    assert not served.run_errand(DeviceLoad(1, waiting_s=0.5, slo_s=0.2))
    assert served.run_errand(DeviceLoad(1, slo_s=0.2))


@pytest.mark.parametrize(("policy", "budget_mib"), [("slackfit", None), ("drainfit", 4)])
def test_no_more_is_late_than_without_graphs(
    checkpoint: Checkpoint, rng: np.random.Generator, policy: str, budget_mib: int | None
) -> None:
    """Random bursts that change what is hot; the oracle runs the same ones eagerly."""
    arrivals = np.sort(rng.gamma(0.3, 0.1, size=150).cumsum()).repeat(2).tolist()

    def served(follows: bool) -> Served:
        budget = None if budget_mib is None else budget_mib * MIB
        bench = Served(checkpoint, policy, follows=follows, graph_budget_bytes=budget)
        bench.arrive(arrivals, slo_s=0.12)
        bench.run()
        assert len(bench.replies) == 300
        return bench

    hot, plain = served(follows=True), served(follows=False)
    assert hot.num_captured > 0
    assert hot.waiting_at_capture == [0] * hot.num_captured
    assert hot.statuses.get("on_time", 0) >= plain.statuses.get("on_time", 0)
    late = {"late", "failed"} & hot.statuses.keys()
    assert not late, "planned with what batches take"


def test_plans_change_with_the_graphs_and_what_is_offered_stays_as_measured(
    checkpoint: Checkpoint,
) -> None:
    served = Served(checkpoint, "maxacc")
    engine, large = served.engine, served.profile.subnet_ids[-1]

    def planned_s() -> float:
        return engine._scheduler.profile.latency_s(large, 1)

    served.arrive([0.0], slo_s=0.1)
    served.run()
    served.executor.graphs.drop()
    served.arrive([1.0], slo_s=0.1)
    served.run()
    assert planned_s() == pytest.approx(served.profile.latency_s(large, 1, EAGER))
    served.arrive([n * 0.03 + 2.0 for n in range(64)], slo_s=0.1)
    served.run()
    assert planned_s() == pytest.approx(served.profile.latency_s(large, 1))
    assert engine.profile is served.profile
    offered = served.profile.select([large])
    engine.reconfigure(policy=create_policy("maxacc", offered), profile=offered)
    assert engine.profile is offered
    assert planned_s() == pytest.approx(served.profile.latency_s(large, 1))
    served.executor.graphs.drop()
    with engine._lock:
        engine._upkeep.replan()  # as before each decision
    assert planned_s() == pytest.approx(served.profile.latency_s(large, 1, EAGER))


@pytest.mark.parametrize("policy", [DrainFit, SlackFit])
def test_tables_are_laid_out_with_the_capture_not_when_a_query_waits(
    checkpoint: Checkpoint, policy: type[DrainFit | SlackFit], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With hundreds of subnets that takes milliseconds."""
    served = Served(checkpoint, policy.name)
    lay_out, waiting = policy.lay_out, []

    def watched(self: Any, profile: LatencyProfile) -> None:
        waiting.append(served.engine._scheduler.num_samples)
        lay_out(self, profile)

    monkeypatch.setattr(policy, "lay_out", watched)
    served.arrive(evenly(60, 0.03), slo_s=0.1)
    served.run()
    assert served.num_captured > 0
    assert waiting == [0] * served.num_captured


def test_a_recorded_run_with_captures_decides_the_same_again(checkpoint: Checkpoint) -> None:
    log = io.StringIO()

    def recording(profile, policy) -> Scheduler:
        return RecordingScheduler(profile, policy, sink=log, correct_latency=True)

    served = Served(checkpoint, "drainfit", scheduler=recording)
    served.arrive(evenly(120, 0.03), slo_s=0.1)
    served.run()
    assert served.num_captured > 0
    lines = log.getvalue().splitlines()
    fresh = Scheduler(
        served.profile, create_policy("drainfit", served.profile), correct_latency=True
    )
    assert replay_log(lines, fresh) == len(lines) - 1


def test_the_correction_learns_nothing_from_a_change_of_form(checkpoint: Checkpoint) -> None:
    def correcting(profile, policy) -> Scheduler:
        return Scheduler(profile, policy, correct_latency=True)

    served = Served(checkpoint, "drainfit", scheduler=correcting)
    served.arrive(evenly(150, 0.03), slo_s=0.1)
    served.run()
    assert served.num_captured > 0
    assert served.engine.status().latency_factor == pytest.approx(1.0, rel=0.11)


class Chores:
    """A background with three errands after the first launch, `takes_s` each as it says."""

    version = 0

    def __init__(self, takes_s: float) -> None:
        self.takes_s = takes_s
        self.left = 0
        self.ran_by: list[str] = []

    def planned(self, profile: LatencyProfile, errand: Errand | None = None) -> LatencyProfile:
        return profile

    def next_errand(self) -> Errand | None:
        return Errand(self.takes_s) if self.left else None

    def run_errand(self) -> None:
        self.left -= 1
        self.ran_by.append(threading.current_thread().name)


class Evicted(Chores):
    """Loses a graph to another thread whenever a plan is being made, three times."""

    def planned(self, profile: LatencyProfile, errand: Errand | None = None) -> LatencyProfile:
        planned = profile.scaled(1.0 + self.version)
        self.version = min(3, self.version + 1)
        return planned


class WithChores(TimedExecutor):
    def __init__(self, profile: LatencyProfile, takes_s: float) -> None:
        super().__init__(profile, SampleSpec(shape=(1, 2, 2)), 10)
        self.chores = Chores(takes_s)

    @property
    def background(self) -> Chores:
        return self.chores

    def launch(self, subnet_id: str, slots: Sequence[np.ndarray]) -> TimedLaunched:
        if not self.chores.ran_by:
            self.chores.left = 3
        return super().launch(subnet_id, slots)


@pytest.mark.parametrize("takes_s", [1e-3, 10.0])
def test_the_device_thread_runs_errands_between_batches_or_when_idle(
    profile: LatencyProfile, takes_s: float
) -> None:
    """Short ones at once, long ones when nobody came for a while."""
    executor = WithChores(profile, takes_s)

    async def serve() -> None:
        scheduler = Scheduler(profile, create_policy("slackfit", profile))
        engine = Engine(scheduler, executor, probe_after_s=10.0 if takes_s < 1 else 0.05)
        await engine.start()
        now_s = engine.clock()
        sample, options = np.zeros((1, 1, 2, 2), dtype=np.uint8), RequestOptions(now_s + 0.5)
        await engine.infer(sample, arrival_s=now_s, options=options)
        while executor.chores.left and engine.clock() < now_s + 5.0:
            await asyncio.sleep(0.005)
        assert engine.status().state == "ready"
        await engine.stop()

    asyncio.run(serve())
    assert executor.chores.ran_by == ["device"] * 3


def test_a_plan_that_was_overtaken_while_it_was_made_is_made_again(profile: LatencyProfile) -> None:
    executor = WithChores(profile, 1e-3)
    executor.chores = Evicted(1e-3)
    scheduler = Scheduler(profile, create_policy("slackfit", profile))
    engine = Engine(scheduler, executor)
    engine._upkeep.catch_up()
    for _ in range(4):
        with engine._lock:
            engine._upkeep.replan()
    fastest = profile.subnet_ids[0]
    assert scheduler.profile.latency_s(fastest, 1) == pytest.approx(
        4.0 * profile.latency_s(fastest, 1)
    )
