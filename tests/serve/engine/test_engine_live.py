"""The engine with its device thread and an event loop, on an executor that sleeps."""

from __future__ import annotations

import asyncio
import gc
import io
import sys
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence

import numpy as np
import pytest

from serve.engine.device_turn import DeviceTurn
from serve.engine.engine import Engine
from serve.engine.reply import Reply, RequestOptions
from serve.hosts.tuned_process import SWITCH_INTERVAL_S, tuned_process
from slackfit.policies import create_policy
from slackfit.profile import LatencyProfile
from slackfit.scheduling.record import RecordingScheduler, replay_log
from slackfit.scheduling.scheduler import Scheduler
from subnetact.timed_executor import TimedExecutor, TimedLaunched
from supernet.sample import SampleSpec

pytestmark = pytest.mark.alone

SAMPLE = SampleSpec(shape=(1, 2, 2))
PAYLOAD = SAMPLE.zeros(1)


def run_live(
    profile: LatencyProfile,
    use: Callable[[Engine], Awaitable[None]],
    *,
    policy: str = "fixed:smallest",
    executor: TimedExecutor | None = None,
    log: io.StringIO | None = None,
) -> Engine:
    """Start an engine, use it, stop it; return it stopped."""
    chosen = create_policy(policy, profile)
    engine = Engine(
        Scheduler(profile, chosen)
        if log is None
        else RecordingScheduler(profile, chosen, sink=log),
        executor or TimedExecutor(profile, SAMPLE, 10),
    )

    async def main() -> None:
        await engine.start()
        try:
            await use(engine)
        finally:
            await engine.stop()

    asyncio.run(main())
    return engine


async def ask(engine: Engine, slo_s: float = 1.0, **wishes: object) -> Reply:
    now_s = engine.clock()
    options = RequestOptions(now_s + slo_s, **wishes)  # type: ignore[arg-type]
    (reply,) = await engine.infer(PAYLOAD, arrival_s=now_s, options=options)
    return reply


def test_reply_tells_queue_execution_and_slack(profile: LatencyProfile):
    async def use(engine: Engine) -> None:
        reply = await ask(engine)
        assert reply.outcome.status == "on_time"
        assert reply.outcome.subnet_id == "small"
        assert reply.execution_s >= 0.001
        assert 0 <= reply.queue_s < 0.1
        assert 0.8 < reply.slack_s < 1.0

    run_live(profile, use)


def test_recorded_live_run_decides_the_same_again(profile: LatencyProfile, rng):
    log = io.StringIO()

    async def use(engine: Engine) -> None:
        asks = []
        for gap_s in rng.exponential(0.0015, size=150):
            asks.append(asyncio.ensure_future(ask(engine, 0.012)))
            await asyncio.sleep(gap_s)
        for cancelled in asks[::10]:
            cancelled.cancel()
        await asyncio.gather(*asks, return_exceptions=True)

    run_live(profile, use, policy="slackfit", log=log)
    fresh = Scheduler(profile, create_policy("slackfit", profile))
    assert replay_log(log.getvalue().splitlines(), fresh) > 150


def test_batch_reaches_the_loop_with_one_wake_up(profile: LatencyProfile, monkeypatch):
    calls = []

    async def use(engine: Engine) -> None:
        loop = asyncio.get_running_loop()
        first = asyncio.ensure_future(ask(engine))
        await asyncio.sleep(0.01)
        others = [asyncio.ensure_future(ask(engine)) for _ in range(4)]
        wake = loop.call_soon_threadsafe
        monkeypatch.setattr(
            loop, "call_soon_threadsafe", lambda *args: (calls.append(args), wake(*args))[1]
        )
        await first
        replies = await asyncio.gather(*others)
        assert [reply.outcome.batch_size for reply in replies] == [4, 4, 4, 4]
        assert len({reply.batch_id for reply in replies}) == 1
        monkeypatch.undo()

    run_live(profile.select(["small"]), use, executor=SlowFirst(profile))
    assert len(calls) == 2, "one for the first batch, one for the batch of four"


class SlowFirst(TimedExecutor):
    """Takes 50 ms for its first batch, so that what comes meanwhile forms the second."""

    def __init__(self, profile: LatencyProfile) -> None:
        super().__init__(profile, SAMPLE, 10)
        self._is_first = True

    def launch(self, subnet_id: str, slots: Sequence[np.ndarray]) -> TimedLaunched:
        if self._is_first:
            self._is_first = False
            time.sleep(0.05)
        return super().launch(subnet_id, slots)


def test_cancelled_client_leaves_no_query_behind(profile: LatencyProfile):
    async def use(engine: Engine) -> None:
        running = asyncio.ensure_future(ask(engine))
        await asyncio.sleep(0.005)
        gone = asyncio.ensure_future(ask(engine))
        await asyncio.sleep(0)
        gone.cancel()
        await asyncio.gather(running, gone, return_exceptions=True)
        assert engine.status().ended == {"on_time": 1, "dropped": 1}

    run_live(profile, use, executor=SlowFirst(profile))


def test_hard_deadline_that_passes_in_the_queue_drops_the_query(profile: LatencyProfile):
    async def use(engine: Engine) -> None:
        running = asyncio.ensure_future(ask(engine))
        await asyncio.sleep(0.002)
        hard = engine.clock() + 0.005
        reply = await ask(engine, 0.005, hard_deadline_s=hard)
        assert (reply.outcome.status, reply.outcome.reason) == ("dropped", "expired")
        assert not running.done()
        await running

    run_live(profile, use, executor=SlowFirst(profile))


def test_draining_finishes_what_is_queued_and_refuses_the_rest(profile: LatencyProfile):
    async def use(engine: Engine) -> None:
        queued = [asyncio.ensure_future(ask(engine)) for _ in range(6)]
        await asyncio.sleep(0)
        drained = asyncio.ensure_future(engine.drain(1.0))
        await asyncio.sleep(0)
        refused = await ask(engine)
        assert (refused.outcome.status, refused.outcome.reason) == ("rejected", "draining")
        assert await drained
        assert {(await reply).outcome.status for reply in queued} == {"on_time"}

    engine = run_live(profile, use)
    assert engine.status().state == "stopped"


def test_stopping_answers_what_is_still_queued(profile: LatencyProfile):
    async def use(engine: Engine) -> None:
        running = asyncio.ensure_future(ask(engine))
        await asyncio.sleep(0.005)
        queued = asyncio.ensure_future(ask(engine))
        await asyncio.sleep(0)
        await engine.stop()
        await running
        assert (await queued).outcome.reason == "draining"

    run_live(profile, use, executor=SlowFirst(profile))


class BrokenScheduler(Scheduler):
    def complete(self, batch_id: int, now_s: float) -> tuple:
        raise AssertionError("lost count")


def test_device_thread_that_ends_answers_everyone_and_says_why(profile: LatencyProfile):
    policy = create_policy("fixed:smallest", profile)
    scheduler = BrokenScheduler(profile, policy)
    executor = TimedExecutor(profile, SAMPLE, 10)
    engine = Engine(scheduler, executor)

    async def main() -> None:
        await engine.start()
        replies = await asyncio.gather(*(ask(engine) for _ in range(5)))
        assert {reply.outcome.status for reply in replies} == {"failed"}
        assert {reply.outcome.reason for reply in replies} == {"device_failed"}
        assert "AssertionError" in engine.status().fault
        assert (await ask(engine)).outcome.reason == "device_failed"
        await engine.stop()

    asyncio.run(main())


class ColdExecutor(TimedExecutor):
    def warm_up(self) -> None:
        raise RuntimeError("out of memory")


def test_failed_warm_up_is_raised_to_who_starts_the_engine(profile: LatencyProfile):
    async def use(engine: Engine) -> None:
        pytest.fail("it must not start")

    with pytest.raises(RuntimeError, match="out of memory"):
        run_live(profile, use, executor=ColdExecutor(profile, SAMPLE, 10))


def test_process_settings_are_put_back():
    before_s = sys.getswitchinterval()
    with tuned_process():
        assert sys.getswitchinterval() == pytest.approx(SWITCH_INTERVAL_S)
        assert gc.get_freeze_count() > 0
    assert sys.getswitchinterval() == before_s
    assert gc.get_freeze_count() == 0


class HangingExecutor(TimedExecutor):
    """Hangs in its second batch until it is let go."""

    def __init__(self, profile: LatencyProfile) -> None:
        super().__init__(profile, SAMPLE, 10)
        self.let_go = threading.Event()
        self._num_runs = 0

    def launch(self, subnet_id: str, slots: Sequence[np.ndarray]) -> TimedLaunched:
        self._num_runs += 1
        if self._num_runs == 2:
            self.let_go.wait(20)
        return super().launch(subnet_id, slots)


def test_hung_device_fails_everyone_at_once_and_is_told_by_health(profile: LatencyProfile):
    policy = create_policy("fixed:smallest", profile)
    executor = HangingExecutor(profile)
    engine = Engine(Scheduler(profile, policy), executor, hung_after_s=0.2)

    async def main() -> None:
        await engine.start()
        assert (await ask(engine)).outcome.status == "on_time"
        hung_s = engine.clock()
        asks = []
        for _ in range(20):  # open loop: they keep coming while it hangs
            asks.append(asyncio.ensure_future(ask(engine, 5.0)))
            await asyncio.sleep(0.002)
        outcomes = [reply.outcome for reply in await asyncio.gather(*asks)]
        assert {(o.status, o.reason) for o in outcomes} == {("failed", "device_failed")}
        print(f"a hung device is told after {engine.clock() - hung_s:.2f} s, lost {len(outcomes)}")
        assert engine.clock() - hung_s < 2.0
        assert engine.status().fault == "the device hangs"
        assert (await ask(engine)).outcome.reason == "device_failed"
        executor.let_go.set()  # it comes back: nobody is answered twice
        await asyncio.sleep(0.05)
        assert sum(engine.status().ended.values()) == 22
        await engine.stop()

    asyncio.run(main())


class FailingExecutor(TimedExecutor):
    """Works, until it is told not to."""

    is_broken = False

    def launch(self, subnet_id: str, slots: Sequence[np.ndarray]) -> TimedLaunched:
        if self.is_broken:
            raise RuntimeError("the bus is gone")
        return super().launch(subnet_id, slots)


@pytest.mark.parametrize("how", ["raises", "hangs"])
def test_idle_device_that_went_away_is_told_before_a_query_comes(profile: LatencyProfile, how: str):
    policy = create_policy("fixed:smallest", profile)
    is_broken = how == "raises"
    executor = FailingExecutor(profile, SAMPLE, 10) if is_broken else HangingExecutor(profile)
    engine = Engine(Scheduler(profile, policy), executor, hung_after_s=0.2, probe_after_s=0.02)

    async def main() -> str:
        await engine.start()
        if isinstance(executor, FailingExecutor):
            await asyncio.sleep(0.1)  # some probes
            assert (await ask(engine)).outcome.status == "on_time"
            assert not engine.status().fault
            executor.is_broken = True
        for _ in range(100):
            if engine.status().fault:
                break
            await asyncio.sleep(0.02)
        assert (await ask(engine)).outcome.reason == "device_failed"
        if isinstance(executor, HangingExecutor):
            executor.let_go.set()
        await engine.stop()
        return engine.status().fault

    ended = "the device thread ended: RuntimeError"
    assert asyncio.run(main()) == {"raises": ended, "hangs": "the device hangs"}[how]
    assert sum(engine.status().ended.values()) == 1 + is_broken


class PoisonedExecutor(TimedExecutor):
    """Fails on every batch that holds a sample of 255s."""

    def launch(self, subnet_id: str, slots: Sequence[np.ndarray]) -> TimedLaunched:
        if any((slot == 255).all() for slot in slots):
            raise RuntimeError("poison")
        return super().launch(subnet_id, slots)


def test_poisonous_input_fails_alone_and_its_neighbours_are_served(profile: LatencyProfile):
    async def use(engine: Engine) -> None:
        payloads = [np.full((1, 1, 2, 2), 255 * (row == 2), dtype=np.uint8) for row in range(4)]
        options = RequestOptions(engine.clock() + 5.0)
        requests = [
            engine.infer(payload, arrival_s=engine.clock(), options=options) for payload in payloads
        ]
        replies = [reply for (reply,) in await asyncio.gather(*requests)]
        statuses = [reply.outcome.status for reply in replies]
        assert statuses == ["on_time", "on_time", "failed", "on_time"]
        assert "poison" in replies[2].outcome.reason
        assert (await ask(engine)).outcome.status == "on_time"

    run_live(profile, use, executor=PoisonedExecutor(profile, SAMPLE, 10))


class InfiniteExecutor(TimedExecutor):
    """Answers infinity or NaN for samples of 253s or 254s."""

    def result(self, launched: TimedLaunched) -> np.ndarray:
        logits = super().result(launched)
        logits[logits[:, (4 * 253) % 10] == 1.0, 0] = np.inf
        logits[logits[:, (4 * 254) % 10] == 1.0, 3] = np.nan
        return logits


@pytest.mark.parametrize("value", [253, 254])
def test_an_output_that_is_not_finite_fails_its_own_query(profile: LatencyProfile, value: int):
    """It had been answered: as bytes, or as NaN, for which JSON has no word."""
    executor = InfiniteExecutor(profile, SAMPLE, 10)

    async def use(engine: Engine) -> None:
        samples = [np.full((2, 1, 2, 2), value * (row == 1), dtype=np.uint8) for row in range(3)]
        options = RequestOptions(engine.clock() + 5.0)
        requests = [
            engine.infer(sample, arrival_s=engine.clock(), options=options) for sample in samples
        ]
        replies = [reply for (reply,) in await asyncio.gather(*requests)]
        assert [r.outcome.status for r in replies] == ["on_time", "failed", "on_time"]
        assert "holds NaN or infinity" in replies[1].outcome.reason
        assert replies[1].output is None
        assert [len(replies[i].output) for i in (0, 2)] == [2, 2]

    run_live(profile, use, executor=executor)


def test_a_batch_that_outlives_the_end_is_answered_once_and_raises_nothing(
    profile: LatencyProfile, caplog: pytest.LogCaptureFixture
):
    """Its queries were answered at the end; their tickets had been missed when it came back."""
    released = threading.Event()

    def sleep(_: float) -> None:
        released.wait(10)

    executor = TimedExecutor(profile, SAMPLE, 10, sleep=sleep)
    engine = Engine(Scheduler(profile, create_policy("slackfit", profile)), executor)

    async def main() -> list[str]:
        await engine.start()
        options = RequestOptions(engine.clock() + 5.0)
        asked = asyncio.ensure_future(
            engine.infer(PAYLOAD, arrival_s=engine.clock(), options=options)
        )
        await asyncio.sleep(0.05)
        await engine.stop(timeout_s=0.05)
        replies = await asked
        released.set()
        assert engine._thread is not None
        await asyncio.to_thread(engine._thread.join, 5)
        return [f"{reply.outcome.status} {reply.outcome.reason}" for reply in replies]

    assert asyncio.run(main()) == ["failed device_failed"]
    assert "Traceback" not in caplog.text


def test_stopping_finishes_both_batches_that_are_under_way(profile: LatencyProfile):
    """Ten queries, four a batch: two batches run on, the rest is answered as dropped."""
    small = profile.select(["small"]).scaled(20.0)  # 50 ms for a full batch

    async def use(engine: Engine) -> None:
        asks = [asyncio.ensure_future(ask(engine)) for _ in range(10)]
        while engine.status().num_running < 2:
            await asyncio.sleep(0.001)
        await engine.stop()
        outcomes = [(await reply).outcome for reply in asks]
        statuses = Counter((outcome.status, outcome.reason) for outcome in outcomes)
        assert statuses == {("on_time", ""): 8, ("dropped", "draining"): 2}

    run_live(small, use, executor=TimedExecutor(small, SAMPLE, 10, num_under_way=2))


class Shared:
    """A device that knows whose batches are under way."""

    def __init__(self) -> None:
        self.users: list[object] = []
        self.most = 0
        self.were_mixed = False

    def executor(self, profile: LatencyProfile) -> TimedExecutor:
        shared = self

        class User(TimedExecutor):
            def launch(self, subnet_id: str, slots: Sequence[np.ndarray]) -> TimedLaunched:
                shared.users.append(self)
                shared.most = max(shared.most, len(shared.users))
                shared.were_mixed |= len(set(map(id, shared.users))) > 1
                return super().launch(subnet_id, slots)

            def result(self, launched: TimedLaunched) -> np.ndarray:
                logits = super().result(launched)
                shared.users.remove(self)
                return logits

        return User(profile, SAMPLE, 10, num_under_way=2)


def test_models_that_take_turns_do_not_queue_behind_each_other(profile: LatencyProfile):
    """One alone has two batches under way; never are those of two models."""
    small, turn, shared = profile.select(["small"]), DeviceTurn(), Shared()
    engines = [
        Engine(
            Scheduler(small, create_policy("fixed:small", small)), shared.executor(small), turn=turn
        )
        for _ in range(2)
    ]

    async def main() -> None:
        for engine in engines:
            await engine.start()
        alone = await asyncio.gather(*(ask(engines[0]) for _ in range(40)))
        assert shared.most == 2
        both = await asyncio.gather(*(ask(engines[n % 2]) for n in range(80)))
        assert {reply.outcome.status for reply in alone + both} == {"on_time"}
        assert not shared.were_mixed
        for engine in engines:
            await engine.stop()

    asyncio.run(main())
