"""Two batches under way on a device that computes by itself: a virtual clock, no threads.

The device takes its batches one behind the other; `launch` costs the host `host_s` beside it.
"""

from __future__ import annotations

import asyncio
import io
from collections.abc import Callable, Sequence

import numpy as np
import pytest

from serve.engine.engine import Engine
from serve.engine.reply import Reply
from serve.security.loose_pins import LooseEngine, LoosePin
from slackfit.policies import create_policy
from slackfit.policy import ALONE, DeviceLoad
from slackfit.profile import LatencyProfile, SubnetProfile
from slackfit.scheduling.record import RecordingScheduler, replay_log
from slackfit.scheduling.scheduler import Scheduler
from subnetact.timed_executor import TimedExecutor, TimedLaunched
from supernet.sample import SampleSpec

SHAPE = (1, 2, 2)
FULL = 4


class AsyncDevice(TimedExecutor):
    """Computes behind the host's back; batches fail or hang as their first sample says."""

    def __init__(self, profile: LatencyProfile, clock, host_s: float, num_under_way: int) -> None:
        super().__init__(
            profile,
            SampleSpec(shape=SHAPE),
            10,
            clock=clock,
            sleep=self._pass,
            num_under_way=num_under_way,
        )
        self.virtual = clock
        self.host_s = host_s
        self.calls: list[str] = []
        self.waits: Callable[[], None] = lambda: None
        self.launch_poison: int | None = None
        self.result_poison: int | None = None
        self._samples: dict[int, np.ndarray] = {}

    def launch(self, subnet_id: str, slots: Sequence[np.ndarray]) -> TimedLaunched:
        self.virtual.now_s += self.host_s
        values = np.concatenate(slots)[:, 0, 0, 0]
        self.calls.append(f"launch {values.tolist()}")
        if self.launch_poison in values:
            raise RuntimeError("bad launch")
        launched = super().launch(subnet_id, slots)
        self._samples[id(launched)] = values
        return launched

    def result(self, launched: TimedLaunched) -> np.ndarray:
        self.waits()
        logits = super().result(launched)
        values = self._samples.pop(id(launched))
        self.calls.append(f"result {values.tolist()}")
        if self.result_poison in values:
            raise RuntimeError("bad kernel")
        return logits

    def _pass(self, duration_s: float) -> None:
        self.virtual.now_s += duration_s


class Under:
    """An engine on such a device, and whoever asks it; its replies come by the asked value."""

    def __init__(self, make_bench, profile, policy="fixed:small", *, host_s=0.0, most=2, **options):
        bench = make_bench(profile, policy, **options)
        self.clock, self.bench = bench.clock, bench
        self.device = bench.device = AsyncDevice(profile, bench.clock, host_s, most)
        self.drive(bench.scheduler)
        self.jobs: dict[int, list] = {}

    def drive(self, scheduler: Scheduler) -> None:
        self.engine: Engine = self.bench.drive(scheduler)

    def ask(self, *values: int, slo_s: float = 1.0) -> None:
        for value in values:
            self.jobs[value] = self.bench.submit(slo_s, first_bytes=[value])

    def reply(self, value: int) -> Reply | None:
        done = self.jobs[value]
        return done[0].replies[0] if done else None

    def statuses(self) -> dict[int, str]:
        replies = {value: self.reply(value) for value in self.jobs}
        return {value: r.outcome.status if r else "" for value, r in replies.items()}

    def run(self) -> None:
        while self.engine.step():
            pass


@pytest.fixture(scope="module")
def even() -> LatencyProfile:
    """One subnet; a batch of any size takes 5 ms."""
    subnet = SubnetProfile(
        subnet_id="small", accuracy=0.7, macs=0, latency_s={"p50": (5e-3, 5e-3, 5e-3)}
    )
    return LatencyProfile(
        name="even",
        device="nowhere",
        dtype="float32",
        batch_sizes=(1, 2, FULL),
        subnets=(subnet,),
    )


def test_at_full_load_the_device_never_waits_for_the_host(make_bench, even):
    """5 ms of the device and 5 ms of the host per batch: one beside the other, not in turn."""

    def taken_s(most: int) -> float:
        under = Under(make_bench, even, host_s=5e-3, most=most)
        under.ask(*range(200))
        under.run()
        assert set(under.statuses().values()) == {"on_time"}
        return under.clock.now_s

    assert taken_s(1) == pytest.approx(50 * 10e-3)
    assert taken_s(1) / taken_s(2) >= 1.8
    assert taken_s(2) == pytest.approx(50 * 5e-3 + 5e-3), "the host's part of the first only"


def test_results_come_in_the_order_of_launches_and_to_who_asked(make_bench, even):
    under = Under(make_bench, even)
    under.ask(*range(3 * FULL))
    under.run()
    names = [f"{[*range(start, start + FULL)]}" for start in (0, FULL, 2 * FULL)]
    assert under.device.calls == [
        f"launch {names[0]}", f"launch {names[1]}", f"result {names[0]}",
        f"launch {names[2]}", f"result {names[1]}", f"result {names[2]}",
    ]  # fmt: skip
    for value in range(3 * FULL):
        reply = under.reply(value)
        assert np.argmax(reply.output) == value % 10
        assert reply.batch_id == value // FULL


def test_a_batch_that_would_grow_is_not_decided_early(make_bench, even):
    under = Under(make_bench, even)
    under.ask(0, 1, 2)
    assert under.engine.step()
    assert under.device.calls == ["launch [0, 1, 2]", "result [0, 1, 2]"]
    under.ask(*range(3, 3 + FULL + 2))
    assert under.engine.step()
    assert len(under.engine._under_way) == 0, "two are left, and may become four"
    assert under.engine.status().queue_depth == 2


def test_an_executor_that_computes_in_launch_has_one_under_way(make_bench, even):
    under = Under(make_bench, even, most=1)
    under.ask(*range(4 * FULL))
    while under.engine.step():
        assert len(under.engine._under_way) == 0
    assert [call.split()[0] for call in under.device.calls] == ["launch", "result"] * 4


def test_a_batch_that_fails_costs_the_one_behind_it_nothing(make_bench, even):
    under = Under(make_bench, even)
    under.device.result_poison = 2
    under.ask(*range(3 * FULL))
    under.run()
    statuses = under.statuses()
    assert statuses.pop(2) == "failed"
    assert under.reply(2).outcome.reason == "execution failed: RuntimeError: bad kernel"
    assert set(statuses.values()) == {"on_time"}
    assert [np.argmax(under.reply(value).output) for value in (1, 3, 5)] == [1, 3, 5]


def test_a_launch_that_fails_costs_the_batch_under_way_nothing(make_bench, even):
    under = Under(make_bench, even)
    under.device.launch_poison = FULL + 1
    under.ask(*range(3 * FULL))
    under.run()
    statuses = under.statuses()
    assert statuses.pop(FULL + 1) == "failed"
    assert set(statuses.values()) == {"on_time"}
    assert under.device.calls[:3] == [
        "launch [0, 1, 2, 3]", "launch [4, 5, 6, 7]", "result [0, 1, 2, 3]"
    ]  # fmt: skip


def test_predictions_know_of_both(make_bench, even):
    under = Under(make_bench, even)
    engine = under.engine
    seen: list[tuple[float, float, int]] = []

    def look() -> None:
        answer = engine.earliest_answer()
        seen.append((engine.backlog()[1], answer.finish_s, engine.status().num_running))

    under.device.waits = look
    under.ask(*range(2 * FULL))
    under.run()
    assert seen == [
        (pytest.approx(0.010), pytest.approx(0.015), 2),
        (pytest.approx(0.010), pytest.approx(0.010), 1),
    ]


def test_a_device_that_ended_before_its_time_is_free_at_once(make_bench, even):
    under = Under(make_bench, even)
    under.device = under.bench.device = AsyncDevice(even.scaled(0.5, 0.0), under.clock, 0.0, 2)
    under.drive(under.bench.scheduler)
    under.ask(*range(FULL))
    under.run()
    assert under.clock.now_s == pytest.approx(2.5e-3)
    assert under.engine.backlog() == ((), under.clock.now_s)


def test_replies_tell_a_batch_s_own_time_apart_from_its_wait(make_bench, even):
    under = Under(make_bench, even)
    under.ask(*range(2 * FULL))
    under.run()
    first, second = under.reply(0), under.reply(FULL)
    assert (first.queue_s, first.execution_s) == (0.0, pytest.approx(0.005))
    assert (second.queue_s, second.execution_s) == (pytest.approx(0.005), pytest.approx(0.005))


def test_the_correction_sees_a_device_as_profiled_as_such(make_bench, even):
    under = Under(make_bench, even, host_s=1e-3, correct_latency=True)
    under.ask(*range(252))
    under.run()
    factor = under.engine.status().latency_factor
    predicted_s = under.engine._scheduler.profile.latency_s("small", FULL)
    print(f"factor {factor:.2f}: {1e3 * predicted_s:.2f} ms for 5 ms, 1 ms of the host hidden")
    assert predicted_s == pytest.approx(0.005, rel=0.11)


def test_the_watchdog_gives_each_batch_its_own_time(make_bench, even):
    """A device that takes each of two in 8 s is slow; one that takes 10 s for one hangs."""
    under = Under(make_bench, even)
    watchdog = under.engine._watchdog
    told: list[bool] = []

    def slow() -> None:
        told.append(watchdog.is_hung(under.clock() + 8.0))
        told.append(watchdog.is_hung(under.clock() + 10.1))
        under.clock.now_s += 8.0

    under.device.waits = slow
    under.ask(*range(2 * FULL), slo_s=100.0)
    under.run()
    assert told == [False, True] * 2
    assert not watchdog.is_hung(under.clock() + 100.0), "nothing runs"


def test_a_hard_deadline_ends_queries_of_both_batches(make_bench, even):
    under = Under(make_bench, even)
    under.ask(*range(FULL - 1))
    under.ask(FULL - 1)
    first = under.bench.last_job
    under.ask(*range(FULL, 2 * FULL))
    second = under.bench.last_job
    under.ask(*range(2 * FULL, 2 * FULL + 1))
    third = under.bench.last_job

    def give_up() -> None:
        under.device.waits = lambda: None
        for job, reason in ((first, "expired"), (second, "expired"), (third, "cancelled")):
            under.engine.withdraw(job, reason)

    under.device.waits = give_up
    under.run()
    ended = {v: s for v, s in under.statuses().items() if s != "on_time"}
    assert ended == dict.fromkeys((FULL - 1, 2 * FULL - 1, 2 * FULL), "dropped")
    assert sum(under.engine.status().ended.values()) == 2 * FULL + 1


def test_drain_counts_both_batches_and_finishes_them(make_bench, even):
    under = Under(make_bench, even, drop_hopeless=True)

    def drain() -> None:
        under.device.waits = lambda: None
        asyncio.run(_drain_now(under.engine, 0.016))

    under.device.waits = drain
    under.ask(*range(4 * FULL), slo_s=1.0)
    under.run()
    statuses = list(under.statuses().values())
    assert statuses == ["on_time"] * 3 * FULL + ["dropped"] * FULL, "10 ms of the device are taken"
    assert under.reply(4 * FULL - 1).outcome.reason == "draining"


async def _drain_now(engine: Engine, timeout_s: float) -> None:
    drain = asyncio.ensure_future(engine.drain(timeout_s))
    await asyncio.sleep(0)
    drain.cancel()
    await asyncio.wait([drain])


def test_a_device_that_others_want_is_given_no_batch_ahead(make_bench, even, monkeypatch):
    under = Under(make_bench, even)
    load = DeviceLoad(num_models=1, waiting_s=0.1)
    monkeypatch.setattr(under.engine._slot, "others", lambda: load)
    under.ask(*range(3 * FULL))
    assert under.engine.step()
    assert len(under.engine._under_way) == 0
    monkeypatch.setattr(under.engine._slot, "others", lambda: ALONE)
    assert under.engine.step()
    assert len(under.engine._under_way) == 1
    names = [call.split()[0] for call in under.device.calls]
    assert names == ["launch", "result", "launch", "launch", "result"]


@pytest.mark.parametrize("loose", [False, True])
@pytest.mark.parametrize("policy", ["slackfit", "drainfit", "maxbatch"])
def test_decisions_are_those_of_launch_and_wait_where_predictions_hold(
    make_bench, profile, policy, loose
):
    """All has arrived, the host takes no time: deciding ahead and deciding at the end are one."""

    def served(most: int) -> list:
        under = Under(make_bench, profile, policy, most=most, drop_hopeless=True)
        if loose:
            engine = LooseEngine(under.bench.scheduler, under.device, clock=under.clock)
            engine._rng = np.random.default_rng(0)
            engine._state = "ready"
            under.engine = under.bench.engine = engine
        rng = np.random.default_rng(1)
        wishes = {"subnet_id": LoosePin("large")} if loose else {}
        done = [under.bench.submit(float(slo_s), **wishes) for slo_s in rng.uniform(5e-3, 0.1, 80)]
        ahead: list[bool] = []
        under.device.waits = lambda: ahead.append(len(under.engine._under_way) == 2)
        under.run()
        assert any(ahead) == (most == 2)
        outcomes = [job.replies[0].outcome for (job,) in done]
        return [
            (o.status, o.reason, o.subnet_id, o.batch_size, round(o.start_s or 0.0, 9))
            for o in outcomes
        ]

    assert served(2) == served(1)


@pytest.mark.parametrize("policy", ["slackfit", "drainfit", "maxbatch", "infaas"])
def test_bursts_end_every_query_once_and_replay(make_bench, profile, rng, policy):
    log = io.StringIO()
    under = Under(make_bench, profile, policy, host_s=5e-4)
    chosen = create_policy(policy, profile)
    under.drive(RecordingScheduler(profile, chosen, sink=log, correct_latency=True))
    arrivals = np.sort(rng.gamma(0.3, 0.02, size=60).cumsum()).tolist()
    pending = [(at_s, number) for at_s in arrivals for number in range(4)]

    def arrive() -> None:
        while pending and pending[0][0] <= under.clock():
            under.jobs[len(under.jobs)] = under.bench.submit(float(rng.uniform(0.002, 0.03)))
            pending.pop(0)

    under.device.waits = arrive
    most = 0
    while pending or len(under.engine._scheduler):
        under.clock.now_s = max(under.clock(), pending[0][0] if pending else 0.0)
        arrive()
        while under.engine.step():
            most = max(most, len(under.engine._under_way))
        wakeup_s = under.engine._scheduler.next_wakeup_s()
        if wakeup_s is not None and not pending:
            under.clock.now_s = max(under.clock(), wakeup_s)
    assert most == 1, "beside the one that ended"
    assert all(under.jobs.values())
    assert sum(under.engine.status().ended.values()) == 240
    fresh = Scheduler(profile, create_policy(policy, profile), correct_latency=True)
    lines = log.getvalue().splitlines()
    assert '"poll_behind"' in log.getvalue()
    assert replay_log(lines, fresh) == len(lines) - 1
