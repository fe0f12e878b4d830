"""The scheduler, call by call."""

from __future__ import annotations

import re

import pytest

from slackfit.policies import create_policy
from slackfit.query import Decision, Query
from slackfit.scheduling.scheduler import PolicyError, Scheduler


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
    assert late == (0, "late", "", 0.0, 0.05, 0.0, 0.08, "large", 0.9, 2, 0)
    assert (on_time.status, on_time.latency_s) == ("on_time", 0.08)
    assert scheduler.num_running == 0


def test_a_failed_batch_ends_its_queries_with_the_reason(trio, planned):
    scheduler = submitted(Scheduler(trio, planned(Decision("small", 1))), query(0))
    scheduler.poll(0.5)
    (outcome,) = scheduler.fail(0, 0.6, "device lost")
    assert outcome == (0, "failed", "device lost", 0.0, 1.0, 0.5, 0.6, "small", 0.0, 1, 0)


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
