from __future__ import annotations

import asyncio
import dataclasses
import time
from collections import Counter

import numpy as np
import pytest

from slackfit.metrics import summarize
from traces.generators.arrivals import gamma, poisson
from traces.open_loop.payloads import Payloads
from traces.open_loop.replay import ReplayOptions, ReplayReply, replay
from traces.trace import Trace, TraceError

pytestmark = pytest.mark.alone

LABELS = np.arange(10)


def run(trace, target, payloads, *, labels=LABELS, progress=None, **options):
    chosen = ReplayOptions(**{"slo_s": 0.1, **options})
    return asyncio.run(replay(trace, target, Payloads(payloads, labels), chosen, progress=progress))


def test_every_query_is_sent_at_its_time_and_ends_once(fake_target, payloads):
    trace = poisson(200.0, 1.0, seed=1)
    target = fake_target()
    result = run(trace, target, payloads)
    assert [o.query_id for o in result.outcomes] == list(range(len(trace)))
    np.testing.assert_allclose([o.arrival_s for o in result.outcomes], trace.arrival_s)
    assert result.lag_s.min() >= 0
    assert result.measured_accuracy == 1.0
    assert result.num_judged == len(trace)
    assert not result.is_partial
    assert Counter(o.status for o in result.outcomes)["on_time"] > 0.9 * len(trace)


def test_a_server_stall_shows_in_the_latency_of_every_query_behind_it(fake_target, payloads):
    trace = gamma(100.0, 0.0, 1.5)
    result = run(trace, fake_target(stall=(0.5, 0.5)), payloads)
    latency_s = np.array([o.latency_s for o in result.outcomes])
    behind = (trace.arrival_s > 0.55) & (trace.arrival_s < 0.85)
    # What arrives t seconds into the stall waits at least the 0.5 - t that are left of it.
    left_s = 1.0 - trace.arrival_s[behind]
    assert (latency_s[behind] > left_s - 0.02).all()
    assert all(result.outcomes[i].status == "late" for i in np.flatnonzero(behind))
    # The generator itself never slowed down.
    assert np.median(result.lag_s) < 0.01


def test_on_time_is_judged_from_the_intended_send_and_the_deadline_passed_on(fake_target, payloads):
    trace = gamma(50.0, 0.0, 0.4)
    trace = dataclasses.replace(trace, slo_s=np.where(np.arange(len(trace)) % 2, 5.0, 0.01))
    target = fake_target(service_s=0.015)
    result = run(trace, target, payloads, slo_s=None)
    assert all(o.status == "late" for o in result.outcomes[::2])
    assert all(o.status == "on_time" for o in result.outcomes[1::2])
    for request, lag_s in zip(target.requests, result.lag_s, strict=True):
        left_s = trace.slo_s[request.query_id] - lag_s
        assert request.slo_s == pytest.approx(max(left_s, 0.0), abs=1e-5)


def test_replies_and_transport_errors_become_outcomes_with_reasons(fake_target, payloads):
    replies = [
        ReplayReply(status="dropped", reason="expired"),
        ReplayReply(status="rejected", reason="queue_full"),
        ReplayReply(status="teapot"),
        ConnectionError("refused"),
        None,
    ]
    target = fake_target(script=lambda request: replies[request.query_id % 5])
    outcomes = run(gamma(100.0, 0.0, 0.05), target, payloads).outcomes
    assert [o.status for o in outcomes] == ["dropped", "rejected", "failed", "failed", "on_time"]
    assert [o.reason for o in outcomes[:2]] == ["expired", "queue_full"]
    assert "unknown status 'teapot'" in outcomes[2].reason
    assert outcomes[3].reason == "ConnectionError: refused"


def test_a_query_without_answer_fails_at_its_timeout(fake_target, payloads):
    result = run(gamma(50.0, 0.0, 0.1), fake_target(service_s=30.0), payloads, timeout_s=0.1)
    assert {o.status for o in result.outcomes} == {"failed"}
    assert {o.reason for o in result.outcomes} == {"no answer within the timeout of 0.1 s"}
    assert result.measured_accuracy is None


def test_wrong_and_late_answers_count_in_the_measured_accuracy(fake_target, payloads):
    labels = np.where(LABELS < 5, LABELS, 0)
    result = run(gamma(100.0, 0.0, 0.2), fake_target(), payloads, labels=labels, slo_s=1e-5)
    assert {o.status for o in result.outcomes} == {"late"}
    assert result.measured_accuracy == pytest.approx(0.5)


def test_payloads_are_a_seeded_permutation_repeated(fake_target, payloads):
    sent = []
    for seed in (1, 1, 2):
        target = fake_target()
        run(gamma(200.0, 0.0, 0.1), target, payloads, seed=seed)
        target.requests.sort(key=lambda request: request.query_id)
        sent.append([int(request.payload.flat[0]) for request in target.requests])
    assert sent[0] == sent[1] != sent[2]
    assert sorted(sent[0][:10]) == list(range(10))
    assert sent[0][:10] == sent[0][10:]


def test_cancellation_gives_a_valid_partial_result(fake_target, payloads):
    async def cancelled():
        trace = gamma(100.0, 0.0, 30.0)
        target = fake_target()
        task = asyncio.create_task(
            replay(trace, target, Payloads(payloads, LABELS), ReplayOptions(slo_s=0.1))
        )
        await asyncio.sleep(0.5)
        task.cancel()
        return await task, len(target.requests)

    result, num_sent = asyncio.run(cancelled())
    assert result.is_partial
    assert 20 < len(result.outcomes) == num_sent < 60
    assert result.duration_s == pytest.approx(0.5, abs=0.1)
    report = summarize(
        result.outcomes,
        policy="p",
        slo_s=0.1,
        duration_s=result.duration_s,
        seed=None,
        profile="",
        **result.extra(),
    )
    assert report["is_partial"]
    assert sum(report["outcomes"].values()) == num_sent


def test_cancellation_ends_unanswered_queries_as_failed(fake_target, payloads):
    async def cancelled():
        target, options = fake_target(service_s=60.0), ReplayOptions(slo_s=0.1)
        trace = gamma(50.0, 0.0, 30.0)
        task = asyncio.create_task(replay(trace, target, Payloads(payloads), options))
        await asyncio.sleep(0.2)
        task.cancel()
        return await task

    result = asyncio.run(cancelled())
    assert {o.reason for o in result.outcomes} == {"interrupted before an answer came"}


def test_the_warm_up_is_sent_but_not_counted(fake_target, payloads):
    trace = gamma(100.0, 0.0, 0.4)
    target = fake_target()
    result = run(trace, target, payloads, warmup_s=0.2)
    assert (len(target.requests), len(result.outcomes), result.num_warmup) == (40, 20, 20)
    assert result.outcomes[0].arrival_s == pytest.approx(0.0)
    assert result.duration_s == pytest.approx(0.2)


def test_a_late_generator_makes_the_run_invalid(fake_target, payloads):
    result = run(gamma(100.0, 0.0, 0.2), fake_target(), payloads, max_lag_s=1e-7)
    assert not result.is_valid
    assert "lag p99" in result.extra()["invalid_reason"]
    assert set(result.lag_ms) == {"p50", "p99", "max"}


def test_members_of_a_batch_share_a_start(fake_target, payloads):
    def script(request):
        return ReplayReply(
            status="ok", subnet_id="s", batch_size=2, accuracy=0.9, execution_s=0.004
        )

    result = run(gamma(200.0, 0.0, 0.05), fake_target(script=script), payloads)
    starts = Counter(o.start_s for o in result.outcomes)
    assert list(starts.values()) == [2] * 5


def test_progress_is_told_from_the_first_send_to_the_last_answer(fake_target, payloads):
    seen = []
    run(gamma(100.0, 0.0, 0.3), fake_target(), payloads, progress=seen.append)
    assert seen[-1].sent == seen[-1].ended == seen[-1].total == 30
    assert len(seen) >= 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"slo_s": None}, "carries no deadlines; give slo_s"),
        ({"slo_s": 0.0}, "slo_s must be a finite number of seconds above 0"),
        ({"labels": np.arange(3)}, "labels has 3 values for 10 payloads"),
        ({"warmup_s": 2.0}, "warmup_s 2 must be"),
        ({"timeout_s": 0.0}, "timeout_s must be above 0"),
    ],
)
def test_inputs_that_do_not_fit_are_refused_before_anything_is_sent(
    fake_target, payloads, change, message
):
    target = fake_target()
    with pytest.raises(TraceError, match=message):
        run(gamma(10.0, 0.0, 1.0), target, payloads, **change)
    assert target.requests == []


def test_an_empty_trace_or_no_payload_is_refused(fake_target, payloads):
    with pytest.raises(TraceError, match="no arrivals"):
        run(Trace(arrival_s=np.empty(0), duration_s=1.0), fake_target(), payloads)
    with pytest.raises(TraceError, match="payloads is empty"):
        run(gamma(10.0, 0.0, 1.0), fake_target(), payloads[:0], labels=None)


def test_a_client_short_of_time_shows_in_its_loops_lag(fake_target, payloads):
    """A target that keeps the event loop busy for 30 ms at a time: a slow client, not a server."""
    trace = gamma(20.0, 0.0, 0.5)
    quiet = run(trace, fake_target(), payloads)

    def work(_request):
        time.sleep(0.03)

    busy = run(trace, fake_target(script=work), payloads)
    assert busy.loop_lag_ms["max"] > 15
    assert busy.loop_lag_ms["p99"] > quiet.loop_lag_ms["p50"]
    assert busy.extra()["generator_loop_lag_ms"] == busy.loop_lag_ms
