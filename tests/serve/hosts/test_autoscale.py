"""How many replicas: the signals that a replica reports, and what is decided by them."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from serve.config import ServeConfigError, parse_config
from serve.engine.reply import Reply
from serve.hosts.autoscale import MissPolicy, combined, reported, wanted_replicas
from serve.observe.demand import Demand, Signals, total
from slackfit.profile import LatencyProfile
from slackfit.query import Outcome, Query, Status
from slackfit.scheduling.backlog import hopeless

# At 1 device the best subnet takes all of 0.8 s/s at 80 % utilisation.
CALM = Signals(arrived=100, missed=0, given_up=0, work_best=0.5, work_least=0.1)


@pytest.mark.parametrize(
    ("change", "current", "wanted"),
    [
        ({}, 1, 1),
        ({"missed": 0.5}, 1, 1),  # tolerated: below 1 %
        ({"missed": 5}, 1, 2),
        ({"missed": 5, "work_least": 3.3}, 1, 5),  # even the fastest subnet needs five devices
        ({"missed": 50, "work_best": 0.1}, 1, 1),  # deadlines that no device could meet
        ({"given_up": 5, "work_best": 2.0}, 1, 3),
        ({"given_up": 5, "work_best": 0.7}, 1, 1),  # the device could: the policy does not wish
        ({"given_up": 1, "work_best": 2.0}, 2, 2),  # a hundredth is tolerated
        ({"work_best": 1.5}, 3, 3),  # two could do it, without room to spare
        ({"work_best": 1.0}, 3, 2),
        ({"work_best": 0.3}, 4, 1),
        ({"work_best": 0.3, "missed": 0.8}, 4, 4),  # not calm: misses between half and all
        ({"work_best": 0.3, "given_up": 1.5}, 4, 4),
        ({"arrived": 0, "work_best": 0, "work_least": 0}, 3, 1),
    ],
)
def test_replicas_follow_misses_and_accuracy_given_up(change, current, wanted):
    assert wanted_replicas(CALM._replace(**change), current) == wanted


def test_a_steady_load_never_swings():
    """Whatever the load: the number that one load leads to from below is kept from above."""
    for tenths in range(1, 80):
        signals = CALM._replace(work_best=tenths / 10, work_least=tenths / 50)
        up = 1
        for _ in range(20):
            overloaded = signals.work_best > 0.8 * up
            now = signals._replace(given_up=10.0 if overloaded else 0.0)
            up, before = wanted_replicas(now, up), up
            if up == before:
                break
        history = [up]
        for _ in range(10):
            overloaded = signals.work_best > 0.8 * history[-1]
            now = signals._replace(given_up=10.0 if overloaded else 0.0)
            history.append(wanted_replicas(now, history[-1]))
        assert set(history) == {up}, f"work {signals.work_best}: {history}"


def test_policy_adds_up_what_the_replicas_report_and_waits_for_the_first():
    policy = MissPolicy(max_missed=0.01)
    busy = reported(CALM._replace(missed=20))
    by_metric = {name: {"a": value, "b": value} for name, value in busy.items()}
    context = SimpleNamespace(
        aggregated_metrics=by_metric, current_num_replicas=2, target_num_replicas=2
    )
    assert combined(by_metric) == total([CALM._replace(missed=20)] * 2)
    assert policy(context) == (3, {})
    context.aggregated_metrics = {}
    assert policy(context) == (2, {})


def query(query_id: int, deadline_s: float) -> Query:
    return Query(query_id, 0.0, deadline_s)


def test_backlog_is_lost_from_where_the_fastest_subnet_is_late(profile: LatencyProfile):
    """The fastest takes 1, 1.5 and 2.5 ms for one, two and four."""
    fastest = profile.fastest()
    queries = [query(i, 0.0026) for i in range(6)]
    assert [q.query_id for q in hopeless(fastest, queries, 0.0)] == [4, 5]
    assert [q.query_id for q in hopeless(fastest, queries, 0.0012)] == [1, 2, 3, 4, 5]
    first_is_hopeless = [query(0, 0.0005), *(query(i, 0.0026) for i in range(1, 5))]
    assert [q.query_id for q in hopeless(fastest, first_is_hopeless, 0.0)] == [0]
    late = {"until_s": 0.002, "is_late_hopeless": False}
    assert [q.query_id for q in hopeless(fastest, queries, 0.0, **late)] == [3, 4, 5]
    assert fastest.duration_s(9) == pytest.approx(0.006)


def ended(
    at_s: float, accuracy: float = 0.9, status: Status = "on_time", reason: str = ""
) -> Reply:
    outcome = Outcome(0, status, reason, at_s, at_s + 1, at_s, at_s, "large", accuracy, 1)
    return Reply(outcome, None if status in ("dropped", "rejected") else np.zeros(1))


def test_demand_is_that_of_the_last_seconds(profile: LatencyProfile):
    demand = Demand(profile, slo_s=0.1, window_s=10)
    for i in range(100):
        demand.observe(ended(i / 10, accuracy=0.7 if i % 2 else 0.9))
    demand.observe(ended(9.9, status="rejected", reason="infeasible"))
    demand.observe(ended(9.9, status="dropped", reason="cancelled"))  # no load
    signals = demand.signals(9.95, [], 9.95)
    assert signals.arrived == pytest.approx(10.1)
    assert signals.missed == pytest.approx(0.1)
    assert signals.given_up == pytest.approx(50 * 0.2 / 10)
    assert signals.work_best == pytest.approx(10.1 * 0.010 / 4)  # the largest: 10 ms for four
    assert signals.work_least == pytest.approx(10.1 * 0.0025 / 4)
    waiting = [query(i, 9.9526) for i in range(6)]
    assert demand.signals(9.95, waiting, 9.95).missed == pytest.approx(0.3)
    assert demand.signals(30.0, [], 30.0) == Signals()


def test_best_subnet_is_one_that_the_slo_allows(profile: LatencyProfile):
    demand = Demand(profile, slo_s=0.0025, window_s=10)
    demand.observe(ended(0.0, accuracy=0.8))
    assert demand.signals(0.5, [], 0.5).given_up == 0.0, "the largest one takes 4 ms"
    demand.use(profile, 1.0)
    demand.observe(ended(0.1, accuracy=0.8))
    assert demand.signals(0.5, [], 0.5).given_up == pytest.approx(0.01)


def test_settings_are_checked():
    with pytest.raises(ServeConfigError, match="autoscaling: max_replicas is 1, allowed min_repl"):
        parse_config({"checkpoint": "x", "autoscaling": {"min_replicas": 2, "max_replicas": 1}})
    with pytest.raises(ServeConfigError, match=r"autoscaling.max_replicas"):
        parse_config({"checkpoint": "x", "autoscaling": {}})


def test_clients_that_hang_up_at_their_own_limit_are_load(profile: LatencyProfile):
    """They had not counted, so that nobody's patience brought a replica."""
    demand = Demand(profile, slo_s=0.1, window_s=10)
    for finish_s in (0.05, 0.15):  # before, and after the deadline
        outcome = Outcome(0, "dropped", "cancelled", 0.0, 0.1, None, finish_s, None, 0.0, 0)
        demand.observe(Reply(outcome))
    assert demand.signals(1.0, (), 0.0).missed == pytest.approx(0.1)
