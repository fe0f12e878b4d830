"""The engine driven by hand, on a virtual clock: decisions, ends of queries, failures."""

from __future__ import annotations

import asyncio
import io
import json

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from serve.engine.reply import logits_of
from slackfit.policies import create_policy
from slackfit.profile import LatencyProfile
from slackfit.query import Decision
from slackfit.scheduling.record import RecordingScheduler, replay_log
from slackfit.scheduling.scheduler import Scheduler
from slackfit.simulation.simulate import simulate


def arrive_in_time(bench, arrival_s: np.ndarray, slo_s: float) -> None:
    """Let the queries arrive at their times, also while the device is busy, and run to the end."""
    pending = arrival_s.tolist()

    def meanwhile(until_s: float) -> None:
        while pending and pending[0] < until_s:
            bench.clock.now_s = pending.pop(0)
            bench.submit(slo_s)

    bench.device.meanwhile = meanwhile
    while pending or len(bench.scheduler):
        if pending:
            bench.clock.now_s = pending.pop(0)
            bench.submit(slo_s)
        while bench.engine.step():
            pass
        wakeup_s = bench.scheduler.next_wakeup_s()
        if wakeup_s is not None and not (pending and pending[0] <= wakeup_s):
            bench.clock.now_s = wakeup_s
            bench.engine.step()


@pytest.mark.parametrize("policy", ["slackfit", "fixed:largest"])
def test_engine_and_simulator_write_the_same_log(make_bench, profile: LatencyProfile, rng, policy):
    arrival_s = np.sort(rng.uniform(0.0, 0.5, size=400))
    slo_s = 0.012
    virtual, live = io.StringIO(), io.StringIO()
    chosen = create_policy(policy, profile)
    recorder = RecordingScheduler(profile, chosen, sink=virtual)
    simulate(arrival_s, profile, chosen, slo_s=slo_s, scheduler=recorder)
    bench = make_bench(profile, policy)
    bench.drive(RecordingScheduler(profile, create_policy(policy, profile), sink=live))
    arrive_in_time(bench, arrival_s, slo_s)
    assert live.getvalue().splitlines() == virtual.getvalue().splitlines()
    ended = bench.engine.status().ended
    assert sum(ended.values()) == 400
    assert len(ended) > 1, "a load at which every query ends alike shows little"


def test_recorded_run_with_cancellation_and_failure_replays_to_the_same_decisions(
    make_bench, profile: LatencyProfile
):
    log = io.StringIO()
    bench = make_bench(profile)
    bench.drive(RecordingScheduler(profile, create_policy("slackfit", profile), sink=log))
    bench.submit(0.5, count=1)
    bench.submit(0.02)
    bench.engine.withdraw(bench.last_job, "cancelled")
    bench.device.fail_next = RuntimeError("boom")
    bench.engine.step()
    bench.submit(0.01)
    bench.engine.step()
    fresh = Scheduler(profile, create_policy("slackfit", profile))
    assert replay_log(log.getvalue().splitlines(), fresh) == len(log.getvalue().splitlines()) - 1
    assert {json.loads(line).get("call") for line in log.getvalue().splitlines()} >= {
        "submit",
        "cancel",
        "poll",
        "complete",
        "fail",
    }


_SHARED = [HealthCheck.function_scoped_fixture]  # the guard against ray is one per test: fine

actions = st.lists(
    st.tuples(
        st.sampled_from(["submit", "submit_batch", "withdraw", "step", "fail", "wait", "drain"]),
        st.integers(0, 9),
    ),
    max_size=60,
)


@settings(
    max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(script=actions, max_queue=st.sampled_from([None, 3]))
def test_every_query_ends_exactly_once_whatever_happens(make_bench, profile, script, max_queue):
    bench = make_bench(profile, max_queue=max_queue)
    jobs, count = [], 0
    for action, n in script:
        if action.startswith("submit"):
            size = 1 if action == "submit" else 1 + n % 4
            bench.submit(0.001 * (n + 1), count=size)
            jobs.append(bench.last_job)
            count += size
        elif action == "withdraw" and jobs:
            bench.engine.withdraw(jobs[n % len(jobs)], "cancelled")
        elif action == "fail":
            bench.device.fail_next = RuntimeError("boom")
        elif action == "wait":
            bench.clock.now_s += 0.001 * n
        elif action == "drain" and n == 0:
            bench.scheduler.drain()
        else:
            bench.engine.step()
    for _ in range(count + 1):
        bench.engine.step()
    bench.clock.now_s += 100.0
    bench.engine.step()
    assert all(job.is_done for job in jobs)
    assert sum(bench.engine.status().ended.values()) == count


def test_answers_go_to_the_samples_that_asked(make_bench, profile: LatencyProfile):
    bench = make_bench(profile)
    bench.engine.step()
    done = bench.submit(1.0, count=3, first_bytes=[3, 1, 2])  # the timed executor answers the sum
    while bench.engine.step():
        pass
    (job,) = done
    (reply,) = job.replies
    assert np.argmax(reply.output, axis=1).tolist() == [3, 1, 2]
    assert (reply.outcome.status, reply.outcome.samples) == ("on_time", 3)


def test_exception_of_the_model_fails_its_batch_only(make_bench, profile: LatencyProfile):
    bench = make_bench(profile)
    first = bench.submit()
    bench.device.fail_next = RuntimeError("bad kernel")
    bench.engine.step()
    (reply,) = first[0].replies
    assert reply.outcome.status == "failed"
    assert reply.outcome.reason == "execution failed: RuntimeError: bad kernel"
    second = bench.submit()
    bench.engine.step()
    assert second[0].replies[0].outcome.status == "on_time"
    assert bench.engine.status().state == "ready"


def test_wrong_number_of_outputs_fails_the_batch(make_bench, profile: LatencyProfile, monkeypatch):
    bench = make_bench(profile)
    monkeypatch.setattr(bench.device, "result", lambda launched: np.zeros((0, 10)))
    done = bench.submit()
    bench.engine.step()
    assert done[0].replies[0].outcome.reason.endswith("0 outputs for 1 inputs")


class BrokenPolicy:
    name = "broken"
    drop_hopeless = True

    def decide(self, view: object, now_s: float) -> Decision:
        raise KeyError("no such bucket")


def test_policy_that_fails_is_replaced_by_the_fastest_subnet(make_bench, profile: LatencyProfile):
    bench = make_bench(profile)
    bench.engine.reconfigure(policy=BrokenPolicy())
    done = bench.submit()
    bench.engine.step()
    reply = done[0].replies[0]
    status = bench.engine.status()
    assert (reply.outcome.status, reply.outcome.subnet_id) == ("on_time", "small")
    assert status.policy == "fixed:small"
    assert "policy broken failed" in status.fallback
    assert "no such bucket" in status.fallback
    bench.engine.reconfigure(policy=create_policy("slackfit", profile))
    assert bench.engine.status().fallback == ""


def test_withdrawn_query_is_dropped_before_launch(make_bench, profile: LatencyProfile):
    bench = make_bench(profile)
    done = bench.submit()
    bench.engine.withdraw(bench.last_job, "cancelled")
    assert done[0].replies[0].outcome.reason == "cancelled"
    assert not bench.engine.step()


def test_a_request_is_one_query_that_counts_its_samples(make_bench, profile: LatencyProfile):
    bench = make_bench(profile, max_queue=2)
    done = bench.submit(count=3)
    assert [reply.outcome.reason for reply in done[0].replies] == ["queue_full"]
    assert bench.submit(count=2) == []
    assert bench.engine.status().queue_depth == 2
    assert bench.engine.step()
    assert bench.engine.status().ended == {"rejected": 3, "on_time": 2}


def test_a_request_beyond_the_largest_batch_is_several_queries(make_bench, profile: LatencyProfile):
    largest = profile.max_batch_size
    bench = make_bench(profile)
    done = bench.submit(count=largest + 3, first_bytes=[1] * largest + [2, 3, 1])
    while bench.engine.step():
        pass
    (job,) = done
    assert [reply.outcome.samples for reply in job.replies] == [largest, 3]
    assert np.argmax(logits_of(job.replies), axis=1).tolist() == [1] * largest + [2, 3, 1]


def test_a_hard_deadline_is_answered_while_the_batch_runs(make_bench, profile: LatencyProfile):
    bench = make_bench(profile)
    done = bench.submit(1.0)
    job = bench.last_job
    neighbour = bench.submit(1.0)
    bench.device.meanwhile = lambda until_s: bench.engine.withdraw(job, "expired")
    assert bench.engine.step()
    assert [(r.outcome.status, r.outcome.reason) for r in done[0].replies] == [
        ("dropped", "expired")
    ]
    assert neighbour[0].replies[0].outcome.status == "on_time"
    assert bench.engine.status().ended == {"dropped": 1, "on_time": 1}


@pytest.mark.parametrize(("given", "status"), [(1.1, "on_time"), (0.95, "late")])
def test_the_end_is_judged_by_the_deadline_that_was_given(
    make_bench, profile: LatencyProfile, given, status
):
    bench = make_bench(profile, "fixed:largest")
    took_s = profile.latency_s(profile.subnet_ids[-1], 1)
    given_s = bench.clock() + given * took_s
    done = bench.submit(0.9 * took_s, given_deadline_s=given_s)
    bench.engine.step()
    (reply,) = done[0].replies
    assert reply.outcome.status == status
    assert reply.outcome.deadline_s == given_s
    assert reply.slack_s == pytest.approx((given - 1) * took_s)


def test_queue_is_kept_when_policy_and_subnets_change(make_bench, profile: LatencyProfile):
    bench = make_bench(profile)
    done = bench.submit(slo_s=1.0)
    offered = profile.select(["small", "middle"])
    bench.engine.reconfigure(policy=create_policy("fixed:largest", offered), profile=offered)
    bench.engine.step()
    assert done[0].replies[0].outcome.subnet_id == "middle"


def test_queries_before_warm_up_are_refused_as_not_ready(make_bench, profile: LatencyProfile):
    bench = make_bench(profile)
    bench.engine._state = "starting"
    assert bench.submit()[0].replies[0].outcome.reason == "not_ready"


def test_drain_finishes_what_can_be_in_time_and_refuses_the_rest_at_once(make_bench, profile):
    """The fastest subnet takes 2.5 ms for four; the device is free."""
    bench = make_bench(profile, "fixed:smallest", drop_hopeless=True)
    kept = [bench.submit(slo_s=0.0051) for _ in range(8)]
    lost = [bench.submit(slo_s=0.0052) for _ in range(4)]
    asyncio.run(_drain_for(bench, 1.0))
    assert all(job for (job,) in lost), "refused at once"
    assert {job.replies[0].outcome.reason for (job,) in lost} == {"draining"}
    assert {job.replies[0].outcome.status for (job,) in lost} == {"dropped"}
    assert not any(kept), "these wait for the device"
    while bench.engine.step():
        pass
    assert {job.replies[0].outcome.status for (job,) in kept} == {"on_time"}


def test_drain_serves_late_what_may_be_late_but_not_beyond_its_time(make_bench, profile):
    bench = make_bench(profile, "maxbatch", drop_hopeless=False)
    jobs = [bench.submit(slo_s=0.001) for _ in range(12)]
    asyncio.run(_drain_for(bench, 0.0051))
    ended = [job.replies[0].outcome for done in jobs for job in done]
    assert [outcome.reason for outcome in ended] == ["draining"] * 4
    while bench.engine.step():
        pass
    assert all(jobs)


async def _drain_for(bench, timeout_s: float) -> None:
    """Drain with a clock that stands still, and stop waiting for the end."""
    drain = asyncio.ensure_future(bench.engine.drain(timeout_s))
    await asyncio.sleep(0)
    if not drain.done():
        drain.cancel()
        await asyncio.wait([drain])
