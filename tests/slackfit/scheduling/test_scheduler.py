"""The scheduler, call by call."""

from __future__ import annotations

import re

import numpy as np
import pytest

from slackfit.policies import create_policy
from slackfit.query import Decision, Query
from slackfit.scheduling.scheduler import PolicyError, Scheduler
from slackfit.simulation.simulate import simulate_queries


def query(query_id: int, deadline_s: float = 1.0, **wishes) -> Query:
    return Query(query_id=query_id, arrival_s=0.0, deadline_s=deadline_s, **wishes)


def submitted(scheduler: Scheduler, *queries: Query) -> Scheduler:
    for each in queries:
        assert scheduler.submit(each, 0.0) is None
    return scheduler


def ids(batch) -> list[int]:
    return [q.query_id for q in batch.queries]


def test_a_batch_takes_the_most_urgent_queries_of_any_order_of_arrival(trio, planned):
    scheduler = Scheduler(trio, planned(Decision("small", 2)))
    submitted(scheduler, query(0, 3.0), query(1, 1.0), query(2, 2.0))
    batch = scheduler.poll(0.0).batch
    assert ids(batch) == [1, 2]
    assert (batch.subnet_id, batch.worker_id, batch.expected_latency_s) == ("small", 0, 0.02)
    assert (len(scheduler), scheduler.num_running) == (1, 1)


def test_a_decided_size_larger_than_the_queue_is_cut(trio, planned):
    scheduler = submitted(Scheduler(trio, planned(Decision("large", 4))), query(0), query(1))
    batch = scheduler.poll(0.0).batch
    assert (len(batch.queries), batch.expected_latency_s) == (2, 0.08)


def test_completing_ends_queries_on_time_or_late(trio, planned):
    scheduler = Scheduler(trio, planned(Decision("large", 2)))
    submitted(scheduler, query(0, 0.05), query(1, 0.08))
    batch = scheduler.poll(0.0).batch
    late, on_time = scheduler.complete(batch.batch_id, 0.08)
    assert late == (0, "late", "", 0.0, 0.05, 0.0, 0.08, "large", 0.9, 2, 0, 1)
    assert (on_time.status, on_time.latency_s) == ("on_time", 0.08)
    assert scheduler.num_running == 0


def test_a_failed_batch_ends_its_queries_with_the_reason(trio, planned):
    scheduler = submitted(Scheduler(trio, planned(Decision("small", 1))), query(0))
    scheduler.poll(0.5)
    (outcome,) = scheduler.fail(0, 0.6, "device lost")
    assert outcome == (0, "failed", "device lost", 0.0, 1.0, 0.5, 0.6, "small", 0.0, 1, 0, 1)


def test_a_batch_ends_only_once(trio, planned):
    scheduler = submitted(Scheduler(trio, planned(Decision("small", 1))), query(0))
    scheduler.poll(0.0)
    scheduler.complete(0, 0.01)
    with pytest.raises(ValueError, match=r"^batch 0 does not run \(running: none\)$"):
        scheduler.fail(0, 0.02, "again")


def test_polling_without_work_or_worker_does_nothing(trio, planned):
    scheduler = Scheduler(trio, planned(Decision("small", 1)))
    assert scheduler.poll(0.0) == (None, ())
    submitted(scheduler, query(0), query(1))
    scheduler.poll(0.0)
    assert scheduler.poll(0.0) == (None, ())
    assert scheduler.poll(0.0, worker_id=0) == (None, ())


def test_workers_are_taken_in_order_or_by_name_and_predict_when_they_are_free(trio, planned):
    policy = planned(*[Decision("small", 1)] * 4)
    scheduler = Scheduler(trio, policy, num_workers=3)
    submitted(scheduler, *map(query, range(4)))
    assert scheduler.poll(0.0).batch.worker_id == 0
    assert scheduler.poll(0.0, worker_id=2).batch.worker_id == 2
    assert scheduler.poll(0.0).batch.worker_id == 1
    scheduler.complete(1, 0.5)
    assert scheduler.poll(0.5).batch.worker_id == 2
    assert policy.seen[-1]["worker"] == (2, 0.5, "small")
    with pytest.raises(ValueError, match=r"^worker 3 is unknown, allowed 0 to 2$"):
        scheduler.poll(0.5, worker_id=3)


def test_cancelled_while_waiting_is_dropped_and_while_running_is_not(trio, planned):
    scheduler = Scheduler(trio, planned(Decision("small", 1)))
    submitted(scheduler, query(0), query(1))
    scheduler.poll(0.0)
    assert scheduler.cancel(0, 0.001) is None
    outcome = scheduler.cancel(1, 0.001, reason="expired")
    assert (outcome.status, outcome.reason, outcome.start_s) == ("dropped", "expired", None)
    assert scheduler.cancel(1, 0.002) is None
    assert len(scheduler) == 0
    assert [o.status for o in scheduler.complete(0, 0.01)] == ["on_time"]


def test_admission_refuses_and_says_why(trio, planned):
    scheduler = Scheduler(trio, planned(), max_queue=2)

    def reason(new: Query) -> str:
        outcome = scheduler.submit(new, 0.25)
        assert (outcome.status, outcome.finish_s) == ("rejected", 0.25)
        return outcome.reason

    assert reason(query(0, subnet_id="huge")) == "unknown_subnet"
    assert reason(query(1, min_accuracy=0.95)) == "infeasible"
    assert reason(query(2, min_accuracy=0.8, subnet_id="small")) == "infeasible"
    submitted(scheduler, query(3), query(4))
    assert reason(query(5)) == "queue_full"
    scheduler.drain()
    assert scheduler.is_draining
    assert reason(query(6)) == "draining"
    assert len(scheduler) == 2


def test_a_refused_id_may_come_again_and_a_waiting_one_may_not(trio, planned):
    scheduler = Scheduler(trio, planned())
    scheduler.submit(query(0, subnet_id="huge"), 0.0)
    submitted(scheduler, query(0))
    with pytest.raises(ValueError, match=r"^query_id 0 waits or runs already; ids must differ$"):
        scheduler.submit(query(0), 0.0)


def test_a_deadline_that_is_no_number_is_refused(trio, planned):
    scheduler = Scheduler(trio, planned())
    for submit in (
        lambda q: scheduler.submit(q, 0.0),
        lambda q: scheduler.submit_all([q]),
    ):
        with pytest.raises(ValueError, match=r"^deadline_s of query 0 is NaN"):
            submit(query(0, float("nan")))


def test_bad_settings_are_refused(trio, planned):
    with pytest.raises(ValueError, match=r"^num_workers is 0, allowed 1 or more$"):
        Scheduler(trio, planned(), num_workers=0)
    with pytest.raises(ValueError, match=r"^max_queue is 0, allowed 1 or more, or None"):
        Scheduler(trio, planned(), max_queue=0)


def test_late_queries_still_run_unless_the_hopeless_are_dropped(trio, planned):
    scheduler = submitted(Scheduler(trio, planned(Decision("small", 1))), query(0, 0.1))
    assert ids(scheduler.poll(5.0).batch) == [0]


def test_the_hopeless_leave_before_the_policy_is_asked(trio, planned):
    policy = planned(Decision("small", 1), drop_hopeless=True)
    scheduler = Scheduler(trio, policy)
    submitted(scheduler, query(0, 0.1), query(1, 0.205), query(2, 0.2 + 0.01))
    batch, dropped = scheduler.poll(0.2)
    assert [(o.query_id, o.status, o.reason) for o in dropped] == [
        (0, "dropped", "expired"),
        (1, "dropped", "infeasible"),  # 0.2 + 0.01 > 0.205
    ]
    assert ids(batch) == [2]  # just in time


def test_the_scheduler_can_overrule_the_policys_wish(trio, planned):
    policy = planned(Decision("small", 1), drop_hopeless=True)
    scheduler = submitted(Scheduler(trio, policy, drop_hopeless=False), query(0, 0.1))
    assert scheduler.poll(5.0).batch is not None


def test_with_dropping_a_hopeless_query_is_refused_at_once(trio, planned):
    scheduler = Scheduler(trio, planned(drop_hopeless=True))
    assert scheduler.submit(query(0, 0.005), 0.0).reason == "infeasible"
    assert scheduler.submit(query(1, 0.015, subnet_id="medium"), 0.0).reason == "infeasible"
    assert scheduler.submit(query(2, 0.01), 0.0) is None


@pytest.mark.parametrize("deadline_s", [0.05, 1e6, 1e-3 + 0.01])
def test_a_poll_at_the_wake_up_drops_the_query_for_which_the_policy_waited(
    trio, planned, deadline_s
):
    scheduler = Scheduler(trio, planned(None, None, None, drop_hopeless=True))
    assert scheduler.next_wakeup_s() is None
    submitted(scheduler, query(0, deadline_s))
    assert scheduler.poll(0.0) == (None, ())
    wakeup_s = scheduler.next_wakeup_s()
    assert wakeup_s == pytest.approx(deadline_s - 0.01)
    assert [o.reason for o in scheduler.poll(wakeup_s).dropped] == ["infeasible"]
    assert scheduler.next_wakeup_s() is None


def test_what_a_policy_remembers_comes_back_in_the_next_view(trio, planned):
    policy = planned(Decision("small", 1, memo="first"), None, Decision("small", 1))
    scheduler = submitted(Scheduler(trio, policy, num_workers=2), query(0), query(1))
    scheduler.poll(0.0)
    scheduler.poll(0.0)
    scheduler.poll(0.0)
    assert [seen["memo"] for seen in policy.seen] == [None, "first", "first"]


def test_arrivals_are_counted_over_recent_windows(trio, planned):
    scheduler = Scheduler(trio, planned(Decision("small", 1)))
    for i in range(5):
        scheduler.submit(query(i), float(i))
    counts = []
    scheduler.policy.decide = lambda view, now_s: counts.extend(
        view.arrivals_within(window_s) for window_s in (0.5, 2.5, 100.0)
    )
    scheduler.poll(4.0)
    assert counts == [1, 3, 5]


def test_reconfiguring_keeps_the_queue_and_the_running_batch(trio, planned):
    scheduler = submitted(Scheduler(trio, planned(Decision("large", 1))), query(0), query(1))
    scheduler.poll(0.0)
    scheduler.reconfigure(
        policy=planned(Decision("small", 1)), profile=trio.select(["small", "medium"])
    )
    assert scheduler.complete(0, 0.04)[0].accuracy == 0.9
    assert scheduler.poll(0.04).batch.subnet_id == "small"


def test_a_query_that_a_new_profile_cannot_serve_is_dropped(trio, planned):
    scheduler = Scheduler(trio, planned(Decision("small", 4)))
    submitted(scheduler, query(0), query(1, subnet_id="large"), query(2, min_accuracy=0.85))
    scheduler.reconfigure(profile=trio.select(["small"]))
    batch, dropped = scheduler.poll(0.0)
    assert [(o.query_id, o.reason) for o in dropped] == [(1, "infeasible"), (2, "infeasible")]
    assert ids(batch) == [0]


def test_a_bad_reconfiguration_changes_nothing(trio, planned):
    policy = planned()
    scheduler = Scheduler(trio, policy)
    with pytest.raises(ValueError, match=r"^max_queue is -1"):
        scheduler.reconfigure(policy=planned(), max_queue=-1)
    assert scheduler.policy is policy


@pytest.mark.parametrize(
    ("answer", "fault"),
    [
        (KeyError("x"), "raised KeyError('x')"),
        (Decision("huge", 1), "decided on unknown subnet 'huge', allowed small, medium, large"),
        (Decision("small", 0), "decided on batch size 0, allowed 1 to 4"),
        (Decision("small", 5), "decided on batch size 5, allowed 1 to 4"),
        (Decision("small", 1.5), "decided on batch size 1.5, allowed 1 to 4"),
        ("small", "returned 'small', allowed a Decision or None"),
    ],
)
def test_a_faulty_policy_is_reported_and_loses_no_query(trio, planned, answer, fault):
    scheduler = Scheduler(trio, planned(answer, Decision("small", 4)), num_workers=2)
    submitted(scheduler, query(7), query(8, 2.0))
    message = (
        f"policy 'planned' {fault}; 2 queries wait (all stay queued), the head is query 7 with "
        "0.750000 s of slack, worker 0 is free at 0.250000 s"
    )
    with pytest.raises(PolicyError, match=f"^{re.escape(message)}$") as caught:
        scheduler.poll(0.25)
    assert (caught.value.num_waiting, caught.value.head.query_id) == (2, 7)
    assert ids(scheduler.poll(0.25).batch) == [7, 8]


def test_queries_dropped_before_the_policy_failed_come_with_the_next_poll(trio, planned):
    policy = planned(RuntimeError("no"), None, drop_hopeless=True)
    scheduler = submitted(Scheduler(trio, policy), query(0, 0.1), query(1, 9.0))
    with pytest.raises(PolicyError):
        scheduler.poll(0.2)
    assert scheduler.next_wakeup_s() == 0.2
    assert [o.query_id for o in scheduler.poll(0.3).dropped] == [0]


def test_submitting_many_is_submitting_each(resnet):
    queries = [query(i, deadline_s=0.02 + (i % 7) * 0.01) for i in range(50)]
    for wishes in ({}, {"min_accuracy": 0.79}, {"subnet_id": "none"}):
        some = [q._replace(**wishes) if i % 5 == 0 else q for i, q in enumerate(queries)]
        for settings in ({}, {"max_queue": 20}, {"drop_hopeless": True}):
            one, many = (
                Scheduler(resnet, create_policy("slackfit", resnet), **settings) for _ in "ab"
            )
            refused = [one.submit(q, q.arrival_s) for q in some]
            assert many.submit_all(some) == [o for o in refused if o]
            assert many.poll(0.0) == one.poll(0.0)
            assert len(many) == len(one)


@pytest.mark.parametrize("drops", [True, False])
def test_what_the_policy_gives_up_leaves_before_the_batch_where_dropping_is_on(
    trio, planned, drops
):
    decision = Decision("small", 2, None, drop_before_s=0.05)
    scheduler = Scheduler(trio, planned(decision), drop_hopeless=drops)
    for i, slo_s in enumerate((0.02, 0.049, 0.05, 0.3)):
        scheduler.submit(Query(i, 0.0, slo_s), 0.0)
    batch, dropped = scheduler.poll(0.0)
    assert batch is not None
    assert [q.query_id for q in batch.queries] == ([2, 3] if drops else [0, 1])
    assert [(o.query_id, o.status, o.reason) for o in dropped] == (
        [(0, "dropped", "infeasible"), (1, "dropped", "infeasible")] if drops else []
    )


def test_giving_up_everything_leaves_no_batch(trio, planned):
    scheduler = Scheduler(trio, planned(Decision("small", 2, None, 9.0)), drop_hopeless=True)
    scheduler.submit(Query(0, 0.0, 0.5, min_accuracy=0.8), 0.0)
    batch, dropped = scheduler.poll(0.0)
    assert (batch, len(dropped), len(scheduler)) == (None, 1, 0)


def full(trio, planned, *queries: Query, **settings) -> Scheduler:
    """Return a scheduler whose queue of four is full of `queries`, with one more running."""
    plan = planned(Decision("small", 1), *[Decision("small", 4)] * 9)
    scheduler = submitted(Scheduler(trio, plan, max_queue=4, **settings), query(99, 0.01))
    scheduler.poll(0.0)
    return submitted(scheduler, *queries)


def refused_and_evicted(scheduler: Scheduler, newcomer: Query) -> tuple[str | None, list[int]]:
    refused = scheduler.submit(newcomer, 0.0)
    dropped = scheduler.poll(0.0).dropped
    assert {(o.status, o.reason) for o in dropped} <= {("dropped", "queue_full")}
    return refused and refused.reason, [outcome.query_id for outcome in dropped]


def test_in_a_full_queue_the_latest_due_makes_room_for_whoever_is_due_earlier(trio, planned):
    loose = [query(i, 60.0 + i) for i in range(4)]
    scheduler = full(trio, planned, *loose)
    assert refused_and_evicted(scheduler, query(10, 1.0)) == (None, [3])
    assert refused_and_evicted(scheduler, query(11, 62.0)) == ("queue_full", [])
    assert refused_and_evicted(scheduler, query(12, 61.5)) == (None, [2])
    assert len(scheduler) == 4


def test_in_a_full_queue_a_lower_class_makes_room_for_a_higher_one(trio, planned):
    waiting = [query(0, 1.0), query(1, 0.5), query(2, 9.0, query_class=1), query(3, 8.0)]
    scheduler = full(trio, planned, *waiting)
    assert refused_and_evicted(scheduler, query(10, 20.0, query_class=1)) == (None, [3])
    assert refused_and_evicted(scheduler, query(11, 20.0, query_class=1)) == (None, [0])
    assert refused_and_evicted(scheduler, query(12, 0.4)) == (None, [1])
    assert refused_and_evicted(scheduler, query(13, 0.3, query_class=-1)) == ("queue_full", [])


def test_a_queue_is_full_of_samples(trio, planned):
    scheduler = full(trio, planned, query(0, 5.0, samples=2), query(1, 6.0))
    assert refused_and_evicted(scheduler, query(2, 9.0, samples=2)) == ("queue_full", [])
    assert refused_and_evicted(scheduler, query(3, 5.5, samples=2)) == (None, [1])
    assert refused_and_evicted(scheduler, query(4, 1.0, samples=4)) == (None, [3, 0])
    assert scheduler.num_samples == 4


def test_one_tenant_fills_its_own_part_of_the_queue_only(trio, planned):
    own = [query(i, 5.0 + i, tenant="a") for i in range(2)]
    scheduler = full(trio, planned, *own, max_tenant_queue=2)
    assert refused_and_evicted(scheduler, query(10, 9.0, tenant="a")) == ("queue_full", [])
    assert refused_and_evicted(scheduler, query(11, 1.0, tenant="a")) == (None, [1])
    assert refused_and_evicted(scheduler, query(12, 9.0, tenant="b")) == (None, [])


def test_an_evicted_query_can_be_submitted_again_and_is_told_once(trio, planned):
    scheduler = full(trio, planned, *[query(i, 60.0 + i) for i in range(4)])
    assert refused_and_evicted(scheduler, query(10, 1.0)) == (None, [3])
    assert scheduler.cancel(3, 0.0) is None
    assert refused_and_evicted(scheduler, query(3, 0.9)) == (None, [2])


def test_a_flood_of_loose_queries_does_not_lock_tight_ones_out(resnet):
    rng = np.random.default_rng(0)
    flood_s = np.cumsum(rng.exponential(1 / 4400, 8800))  # twice what one device serves
    tight_s = np.cumsum(rng.exponential(1 / 40, 80))
    arrivals = sorted([(at, 60.0) for at in flood_s] + [(at, 0.036) for at in tight_s])
    queries = [Query(i, at, at + slo) for i, (at, slo) in enumerate(arrivals)]
    policy = create_policy("slackfit", resnet)
    scheduler = Scheduler(resnet, policy, max_queue=1000, drop_hopeless=True)
    ended = simulate_queries(queries, scheduler)
    tight = [o.status for o, (_, slo) in zip(ended, arrivals, strict=True) if slo < 1]
    assert tight.count("on_time") >= 0.98 * len(tight)


def test_a_tenant_within_its_share_is_served_beside_one_that_floods(resnet):
    rng = np.random.default_rng(0)
    flood_s = np.cumsum(rng.exponential(1 / 6600, 13_200))  # three times what one device serves
    modest_s = np.cumsum(rng.exponential(1 / 400, 800))  # a fifth of it
    arrivals = sorted([(at, "flood") for at in flood_s] + [(at, "modest") for at in modest_s])
    queries = [
        Query(i, at, at + 0.036, tenant=tenant, query_class=5 * (tenant == "flood"))
        for i, (at, tenant) in enumerate(arrivals)
    ]

    def attainment(shares: dict[str, float] | None) -> float:
        policy = create_policy("drainfit", resnet)
        scheduler = Scheduler(resnet, policy, tenant_shares=shares)
        ended = simulate_queries(queries, scheduler)
        modest = [o.status for o, (_, t) in zip(ended, arrivals, strict=True) if t == "modest"]
        return modest.count("on_time") / len(modest)

    assert attainment(None) < 0.5
    assert attainment({"flood": 0.5, "modest": 0.5}) > 0.95
    assert attainment({"modest": 0.5}) > 0.95, "whoever has no share has what is left"


def test_a_request_of_many_samples_is_served_whole(trio, planned):
    plan = planned(Decision("small", 4), Decision("small", 1), Decision("small", 4))
    scheduler = Scheduler(trio, plan)
    submitted(scheduler, query(0, 0.5), query(1, 0.6, samples=4), query(2, 0.7, samples=3))
    batch = scheduler.poll(0.0).batch
    assert (ids(batch), batch.num_samples, batch.expected_latency_s) == ([0, 2], 4, 0.04)
    outcomes = scheduler.complete(0, 0.04)
    assert [(o.samples, o.batch_size) for o in outcomes] == [(1, 4), (3, 4)]
    batch = scheduler.poll(0.04).batch
    assert (ids(batch), batch.expected_latency_s) == ([1], 0.04), "more than the policy wanted"


def test_more_samples_than_a_batch_holds_or_than_the_deadline_affords_are_refused(trio, planned):
    scheduler = Scheduler(trio, planned(drop_hopeless=True))
    assert scheduler.submit(query(0, samples=5), 0.0).reason == "infeasible"
    assert scheduler.submit(query(1, 0.039, samples=4), 0.0).reason == "infeasible"
    assert scheduler.submit(query(2, 0.04, samples=4), 0.0) is None


def test_what_was_learned_of_the_device_outlives_a_change_of_the_subnets(resnet):
    policy = create_policy("slackfit", resnet)
    scheduler = Scheduler(resnet, policy, correct_latency=True)
    now_s = 0.0
    for i in range(200):
        scheduler.submit(query(i, now_s + 10.0), now_s)
        batch = scheduler.poll(now_s).batch
        now_s += 2.0 * resnet.latency_s(batch.subnet_id, 1)
        scheduler.complete(batch.batch_id, now_s)
    learned, delay_s = scheduler.latency_factor, scheduler.latency_delay_s
    assert learned > 1.5
    scheduler.reconfigure(profile=resnet.select(resnet.subnet_ids[:3]))
    assert scheduler.latency_factor == pytest.approx(learned, rel=0.11)
    assert scheduler.latency_delay_s == pytest.approx(delay_s, abs=0.001)


@pytest.mark.parametrize("share", [0.0, 1.1, -1.0])
def test_a_share_that_is_none_is_refused(trio, planned, share):
    message = f"the share of tenant 'a' is {share}, allowed more than 0, at most 1"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        Scheduler(trio, planned(), tenant_shares={"a": share})
