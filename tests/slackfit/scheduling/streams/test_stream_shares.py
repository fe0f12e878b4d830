"""Tenants' shares and priorities of streams: the order of prompts, memory, a full queue."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from slackfit.policies.streams import create_stream_policy
from slackfit.scheduling.streams.stream_scheduler import StreamScheduler
from slackfit.streams.iteration_cost import IterationCosts
from slackfit.streams.stream_query import StreamQuery

SHARES = {"gold": 0.7, "free": 0.2}


def a_query(i: int, at_s: float = 0.0, prompt: int = 10, outputs: int = 3, **more: Any):
    fields = {"first_deadline_s": at_s + 1.0, "period_s": 0.25, **more}
    return StreamQuery(i, at_s, prompt, outputs, **fields)


def scheduler_of(costs: IterationCosts, policy: str = "fcfs", **settings: Any) -> StreamScheduler:
    return StreamScheduler(costs, create_stream_policy(policy, costs), **settings)


def parts_of_time(
    scheduler: StreamScheduler, kinds: list[dict[str, Any]], until_s: float
) -> dict[str, float]:
    """The part of the device's time that each tenant has while six streams of every kind wait."""
    now_s, i = 0.0, 0
    used_s: Counter[str] = Counter()
    queries: dict[int, StreamQuery] = {}
    while now_s < until_s:
        waiting = Counter(s.query.tenant for s in scheduler._live.values() if not s.is_running)
        for kind in kinds:
            for _ in range(6 - waiting[kind["tenant"]]):
                queries[i] = a_query(i, now_s, first_deadline_s=now_s + 9.0, **kind)
                assert scheduler.submit(queries[i], now_s) is None
                i += 1
        step = scheduler.poll(now_s).step
        assert step is not None
        for chunk in step.chunks:  # by tokens, as all streams are alike
            used_s[queries[chunk.query_id].tenant] += (
                step.expected_s * chunk.length / step.num_tokens
            )
        now_s += step.expected_s
        scheduler.complete(step.step_id, now_s)
    return {tenant: used_s[tenant] / now_s for tenant in used_s}


SHORT = {"prompt": 24, "outputs": 3}


@pytest.mark.parametrize("policy", ["fcfs", "slackwidth", "niyama"])
def test_tenants_have_their_shares_while_all_want_more(decoder_costs: IterationCosts, policy: str):
    kinds = [{"tenant": name, **SHORT} for name in ("gold", "free", "other")]
    scheduler = scheduler_of(decoder_costs, policy, max_running=4, tenant_shares=SHARES)
    found = parts_of_time(scheduler, kinds, 60.0)
    assert found["gold"] == pytest.approx(0.7, abs=0.04)
    assert found["free"] == pytest.approx(0.2, abs=0.04)
    assert found["other"] == pytest.approx(0.1, abs=0.04)


def test_no_priority_buys_another_tenants_share(decoder_costs: IterationCosts):
    kinds = [{"tenant": "gold", **SHORT}, {"tenant": "free", "query_class": 9, **SHORT}]
    scheduler = scheduler_of(decoder_costs, max_running=4, tenant_shares=SHARES)
    found = parts_of_time(scheduler, kinds, 60.0)
    assert found["gold"] > 0.6


def test_what_others_leave_is_anybodys(decoder_costs: IterationCosts):
    kinds = [{"tenant": "free", **SHORT}]
    scheduler = scheduler_of(decoder_costs, max_running=4, tenant_shares=SHARES)
    assert parts_of_time(scheduler, kinds, 20.0) == {"free": pytest.approx(1.0)}


def test_a_higher_class_goes_first(decoder_costs: IterationCosts):
    scheduler = scheduler_of(decoder_costs, max_running=1)
    for i, query_class in enumerate((0, 0, 1)):
        scheduler.submit(a_query(i, query_class=query_class), 0.0)
    step = scheduler.poll(0.0).step
    assert step is not None
    assert [chunk.query_id for chunk in step.chunks] == [2]


def test_in_a_full_queue_a_higher_class_takes_the_place_of_the_lowest(
    decoder_costs: IterationCosts,
):
    scheduler = scheduler_of(decoder_costs, max_running=1, max_waiting=2)
    assert scheduler.submit(a_query(0, outputs=50), 0.0) is None
    step = scheduler.poll(0.0).step  # it has its place
    assert step is not None
    assert scheduler.submit(a_query(1, query_class=1), 0.0) is None
    assert scheduler.submit(a_query(2), 0.0) is None
    equal = scheduler.submit(a_query(3), 0.0)
    assert equal is not None
    assert equal.reason == "queue_full"
    assert scheduler.submit(a_query(4, query_class=2), 0.0) is None
    assert scheduler.next_wakeup_s() == 0.0
    dropped = scheduler.poll(0.0).dropped
    assert [(o.query_id, o.status, o.reason) for o in dropped] == [(2, "dropped", "queue_full")]
    lower = scheduler.submit(a_query(5, query_class=1), 0.0)
    assert lower is not None
    scheduler.complete(step.step_id, 0.1)
    assert scheduler.num_running == 1
    assert scheduler.num_waiting == 2


def test_memory_is_taken_from_a_lower_class(decoder_costs: IterationCosts):
    """Though its next output is due before that of the higher one."""
    scheduler = scheduler_of(decoder_costs, kv_tokens=64, extent_tokens=16)
    scheduler.submit(a_query(0, prompt=15, outputs=30), 0.0)
    scheduler.submit(a_query(1, prompt=15, outputs=30, first_deadline_s=9.0, query_class=1), 0.0)
    now_s, preemptions = 0.0, dict[int, int]()
    while len(scheduler):
        step = scheduler.poll(now_s).step
        assert step is not None
        now_s += step.expected_s
        ended = scheduler.complete(step.step_id, now_s)
        preemptions |= {outcome.query_id: outcome.preemptions for outcome in ended}
    assert preemptions[1] == 0
    assert preemptions[0] >= 1


def test_shares_that_cannot_be(decoder_costs: IterationCosts):
    with pytest.raises(ValueError, match="the share of tenant 'gold' is 1.5, allowed more than 0"):
        scheduler_of(decoder_costs, tenant_shares={"gold": 1.5})
