"""Giving up whom only batches too small for their time could save: the rule, and what it saves."""

from __future__ import annotations

import numpy as np
import pytest

from slackfit import LatencyProfile, Query, Scheduler, create_policy, simulate
from slackfit.policy import WorkerView
from slackfit.profile import SubnetProfile
from slackfit.scheduling.decide import SchedulerView
from slackfit.scheduling.edf import EdfQueue
from slackfit.scheduling.standing import EQUALS, Ranks
from slackfit.scheduling.triage import Triage


def subnet(name: str, accuracy: float, row_s: tuple[float, ...]) -> SubnetProfile:
    return SubnetProfile(subnet_id=name, accuracy=accuracy, macs=0, latency_s={"p50": row_s})


# As the CPU of the demo: a batch of 16 is 5 times as efficient as one query alone.
PROFILE = LatencyProfile(
    name="cpu",
    device="nowhere",
    dtype="float32",
    batch_sizes=(1, 4, 16),
    subnets=(
        subnet("small", 0.90, (0.001, 0.0015, 0.003)),
        subnet("middle", 0.94, (0.003, 0.008, 0.028)),
        subnet("large", 0.98, (0.009, 0.034, 0.132)),
    ),
)
CAPACITY_QPS = 16 / 0.003
SLO_S = 0.045


def view(slacks_s: list[float], *, num_arrivals: int = 0, classes: dict[int, int] | None = None):
    """Return a view at time 0 with those that wait, and as many arrivals just before."""
    queue = EdfQueue()
    for i, slack_s in enumerate(slacks_s):
        query_class = (classes or {}).get(i, 0)
        queue.push(Query(i, slack_s - SLO_S, slack_s, query_class=query_class))
    seen = SchedulerView(queue, [WorkerView(0, 0.0, None)], PROFILE)
    seen.note_arrivals([-1e-3] * num_arrivals)
    return seen


def given_up(slacks_s: list[float], **more: object) -> list[int]:
    """Return the numbers of those given up."""
    seen = view(slacks_s, **more)  # type: ignore[arg-type]
    lost = Triage(PROFILE, "p50").given_up(seen, EQUALS, 0.0)
    return [query.query_id for query in lost]


def test_nobody_is_given_up_whom_the_full_batch_saves() -> None:
    assert given_up([0.003] * 16 + [0.02] * 100, num_arrivals=10_000) == []


def test_a_head_is_saved_by_a_small_batch_if_nobody_else_is_lost_by_it() -> None:
    assert given_up([0.001] + [0.02] * 16) == []  # 1 ms for one, and 3 ms for the others


def test_a_head_is_given_up_that_costs_others_theirs() -> None:
    # Behind 1 ms for one the batch of 16 ends at 4 ms: one saved, and sixteen lost.
    assert given_up([0.001] + [0.0035] * 16) == [0]


def test_beyond_capacity_only_full_batches_are_run() -> None:
    queue = [0.001] + [0.02] * 16
    beyond = int(SLO_S * CAPACITY_QPS) + 1
    assert given_up(queue, num_arrivals=beyond - 1) == []
    assert given_up(queue, num_arrivals=beyond) == [0]  # 1 ms there serves 5.3, not one


def test_a_higher_class_protects_itself_only() -> None:
    queue = [0.001, 0.0012] + [0.0035] * 16
    assert given_up(queue) == [0, 1]
    assert given_up(queue, classes={1: 1}) == [0], "the others in its way go all the same"
    assert given_up(queue, classes={0: 1, 1: 1}) == []
    assert given_up(queue, classes={2: 1}) == [0, 1], "it is saved anyhow"


def test_within_a_higher_class_the_rule_is_the_same() -> None:
    queue = [0.001] + [0.0035] * 16
    everybody = dict.fromkeys(range(17), 2)
    assert given_up(queue, classes=everybody) == [0]
    assert given_up(queue, classes={**everybody, 0: 3}) == []
    assert given_up(queue, classes={**everybody, 0: 1}) == [0]


def test_whoever_is_beyond_its_share_goes_first_whatever_its_class() -> None:
    seen = view([0.001, 0.0011] + [0.0035] * 16, classes={0: 9, 1: 0})
    queue = seen.queue
    greedy = queue.head()._replace(tenant="greedy")
    queue.pop(1)
    queue.push(greedy)
    lost = Triage(PROFILE, "p50").given_up(seen, Ranks(("greedy",), ("",)), 0.0)
    assert [query.query_id for query in lost] == [0, 1]
    classes = {0: 9, 1: 9}
    seen = view([0.001, 0.0011] + [0.0035] * 16, classes=classes)
    seen.queue.remove(seen.queue.head())
    seen.queue.push(greedy)
    lost = Triage(PROFILE, "p50").given_up(seen, Ranks(("greedy",), ("",)), 0.0)
    assert [query.query_id for query in lost] == [0], "the other one is protected by its class"


def test_a_few_priority_queries_cost_the_others_nothing() -> None:
    rng = np.random.default_rng(0)
    arrival_s = np.cumsum(rng.exponential(1 / (1.15 * CAPACITY_QPS), 20_000))
    is_urgent = rng.random(20_000) < 0.05

    def attainment(classes: np.ndarray) -> tuple[float, float]:
        policy = create_policy("drainfit", PROFILE)
        ended = simulate(arrival_s, PROFILE, policy, slo_s=SLO_S, query_class=classes)
        on_time = np.array([outcome.status == "on_time" for outcome in ended])
        return float(on_time[~is_urgent].mean()), float(on_time[is_urgent].mean())

    without = attainment(np.zeros(20_000, dtype=np.int64))
    others, urgent = attainment(is_urgent.astype(np.int64))
    assert without[0] == pytest.approx(0.87, abs=0.02)
    assert urgent > 0.999
    assert others > without[0] - 0.02


def test_the_last_chance_is_taken() -> None:
    assert given_up([0.0012] * 4) == []  # two of them, either way
    assert given_up([0.0009] * 4) == [], "hopeless ones are not its business"


@pytest.mark.parametrize("policy", ["slackfit", "drainfit"])
@pytest.mark.parametrize("load", [0.2, 0.6, 1.2, 2.0])
def test_goodput_at_any_load(policy: str, load: float) -> None:
    rng = np.random.default_rng(0)
    arrival_s = np.cumsum(rng.exponential(1 / (load * CAPACITY_QPS), int(load * 10_000)))

    def goodput(*, triage: bool) -> float:
        chosen = create_policy(policy, PROFILE)
        scheduler = Scheduler(PROFILE, chosen, drop_hopeless=True, triage=triage)
        ended = simulate(arrival_s, PROFILE, chosen, slo_s=SLO_S, scheduler=scheduler)
        return sum(o.status == "on_time" for o in ended) / arrival_s[-1] / CAPACITY_QPS

    with_it, without = goodput(triage=True), goodput(triage=False)
    assert with_it > 0.95 * min(load, 1.0)
    assert with_it > without - 0.005
    if policy == "slackfit" and load > 1:
        assert without < 0.35, "the chain that it breaks"


def test_the_policy_says_whether_it_wants_it_and_dropping_is_its_condition() -> None:
    slackfit, drainfit = (create_policy(name, PROFILE) for name in ("slackfit", "drainfit"))
    assert not Scheduler(PROFILE, slackfit, drop_hopeless=True).triage
    assert Scheduler(PROFILE, slackfit, drop_hopeless=True, triage=True).triage
    assert Scheduler(PROFILE, drainfit).triage
    assert not Scheduler(PROFILE, drainfit, drop_hopeless=False).triage
