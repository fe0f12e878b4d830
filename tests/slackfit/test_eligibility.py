"""Pinned subnets and accuracy floors: who runs where, and with whom."""

from __future__ import annotations

import pytest

from slackfit.eligibility import Eligibility
from slackfit.query import PLAIN, Decision, Query, Wish
from slackfit.scheduling.scheduler import Scheduler


def query(query_id: int, deadline_s: float = 1.0, **wishes) -> Query:
    return Query(query_id=query_id, arrival_s=0.0, deadline_s=deadline_s, **wishes)


def polled(trio, policy, *queries: Query):
    scheduler = Scheduler(trio, policy)
    for each in queries:
        assert scheduler.submit(each, 0.0) is None
    batch = scheduler.poll(0.0).batch
    return batch.subnet_id, [q.query_id for q in batch.queries], scheduler


@pytest.mark.parametrize(
    ("wishes", "subnet_id"),
    [
        ({"min_accuracy": 0.6}, "small"),
        ({"min_accuracy": 0.7}, "small"),
        ({"min_accuracy": 0.71}, "medium"),
        ({"subnet_id": "large"}, "large"),
        ({"subnet_id": "large", "min_accuracy": 0.8}, "large"),
    ],
)
def test_the_head_raises_the_decided_subnet_to_the_fastest_that_it_may_run_on(
    trio, planned, wishes, subnet_id
):
    assert polled(trio, planned(Decision("small", 1)), query(0, **wishes))[0] == subnet_id


def test_a_decision_better_than_the_floor_stays(trio, planned):
    assert polled(trio, planned(Decision("large", 1)), query(0, min_accuracy=0.75))[0] == "large"


def test_queries_that_may_not_run_on_the_subnet_stay_queued_in_their_places(trio, planned):
    policy = planned(Decision("small", 3), Decision("small", 3))
    subnet_id, taken, scheduler = polled(
        trio,
        policy,
        query(0),
        query(1, min_accuracy=0.75),
        query(2),
        query(3, subnet_id="large"),
        query(4, subnet_id="small"),
        query(5),
    )
    assert (subnet_id, taken) == ("small", [0, 2, 4])
    scheduler.complete(0, 0.03)
    batch = scheduler.poll(0.03).batch
    assert (batch.subnet_id, [q.query_id for q in batch.queries]) == ("medium", [1])
    assert len(scheduler) == 2, "5 did not ask for a slower subnet"


def test_a_raised_batch_is_cut_to_what_meets_the_heads_deadline(trio, planned):
    queries = [query(0, 0.09, subnet_id="large")]
    queries += [query(i, subnet_id="large") for i in (1, 2, 3)]
    subnet_id, taken, _ = polled(trio, planned(Decision("small", 4)), *queries)
    assert (subnet_id, taken) == ("large", [0, 1])  # two take 80 ms, three 120 ms


def test_a_raised_batch_that_is_late_anyway_keeps_its_size(trio, planned):
    queries = [query(0, 0.01, subnet_id="large"), query(1, subnet_id="large"), query(2)]
    assert polled(trio, planned(Decision("small", 3)), *queries)[:2] == ("large", [0, 1])


def test_a_raised_batch_takes_whoever_could_not_have_gone_with_the_decided_one(trio, planned):
    queries = [query(0, min_accuracy=0.75), query(1), query(2, min_accuracy=0.8)]
    queries += [query(3, min_accuracy=0.9), query(4, subnet_id="medium")]
    subnet_id, taken, _ = polled(trio, planned(Decision("small", 4)), *queries)
    assert (subnet_id, taken) == ("medium", [0, 2, 4])


def test_a_decision_for_a_wish_passes_over_more_urgent_queries(trio, planned):
    queries = [query(0, 0.5), query(1, subnet_id="large"), query(2), query(3, subnet_id="large")]
    pinned = Decision("large", 4, wish=Wish("large"))
    _, taken, scheduler = polled(trio, planned(pinned, Decision("small", 4)), *queries)
    assert taken == [1, 3]
    scheduler.complete(0, 0.1)
    assert [q.query_id for q in scheduler.poll(0.1).batch.queries] == [0, 2]


def test_a_decision_for_those_without_a_wish_passes_over_a_pinned_head(trio, planned):
    queries = [query(0, 0.5, subnet_id="large"), query(1), query(2)]
    subnet_id, taken, _ = polled(trio, planned(Decision("small", 4, wish=PLAIN)), *queries)
    assert (subnet_id, taken) == ("small", [1, 2])


@pytest.mark.parametrize("wish", [Wish("large"), PLAIN])
def test_a_wish_that_nobody_has_is_no_reason_to_serve_nobody(trio, planned, wish):
    decision = Decision("small", 4, wish=wish)
    subnet_id, taken, _ = polled(trio, planned(decision), query(0, subnet_id="medium"))
    assert (subnet_id, taken) == ("medium", [0])


def test_policies_see_what_waits_and_arrives_by_wish(trio, planned):
    scheduler = Scheduler(trio, planned(Decision("small", 1), Decision("small", 1)))
    for each in (query(0), query(1, min_accuracy=0.75), query(2, min_accuracy=0.8)):
        scheduler.submit(each, 0.0)
    scheduler.submit(query(3, 2.0, subnet_id="large"), 0.0)
    seen = []
    scheduler.policy.decide = lambda view, now_s: seen.append(view.wishes)
    scheduler.poll(0.5)
    assert [(w.wish, w.num_samples, w.arriving_qps) for w in seen[0]] == [
        (Wish(None, 0.8), 2, 2.0),  # 0.75 is between two subnets
        (Wish("large"), 1, 1.0),
    ]
    assert seen[0][0].head.query_id == 1
    for query_id in (1, 2, 3):
        scheduler.cancel(query_id, 0.6)
    scheduler.poll(0.9)
    assert [(w.head, w.num_samples) for w in seen[1]] == [(None, 0), (None, 0)]
    scheduler.poll(1.5)
    assert seen[2] == (), "forgotten after a second"


def test_only_a_window_of_the_queue_is_searched_for_company(trio, planned):
    pinned = [query(i, subnet_id="large") for i in range(1, 30)]
    _, taken, _ = polled(trio, planned(Decision("small", 4)), query(0), *pinned, query(30))
    assert taken == [0]


def test_a_hopeless_pinned_query_leaves_though_the_head_is_not_hopeless(trio, planned):
    policy = planned(Decision("small", 4), drop_hopeless=True)
    scheduler = Scheduler(trio, policy)
    for each in (query(0, 0.05), query(1, 0.055, subnet_id="large"), query(2, 0.06)):
        scheduler.submit(each, 0.0)
    batch, dropped = scheduler.poll(0.02)
    assert [o.query_id for o in dropped] == [1]
    assert [q.query_id for q in batch.queries] == [0, 2]


def test_the_fastest_legal_subnet_may_be_the_more_accurate_one(trio):
    slow_but_poor = trio.subnets[0]
    odd = type(slow_but_poor)(
        subnet_id="odd", accuracy=0.75, macs=1, latency_s={"p50": (0.5, 0.6, 0.7)}
    )
    profile = type(trio)(
        name="odd",
        device="none",
        dtype="none",
        batch_sizes=(1, 2, 4),
        subnets=(odd, *trio.subnets),
    )
    eligible = Eligibility(profile, "p50")
    assert eligible.fastest(query(0, min_accuracy=0.72)) == "medium"
    assert eligible.earliest_finish_s(query(0, min_accuracy=0.72), 1.0) == 1.02
    assert eligible.earliest_finish_s(query(0, min_accuracy=0.95), 1.0) is None
