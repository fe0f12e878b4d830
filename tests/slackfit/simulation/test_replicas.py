"""Replicas behind a router: each is what `simulate` makes of its part; what every rule costs."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest

from slackfit.policies import create_policy
from slackfit.profile import LatencyProfile
from slackfit.query import Outcome
from slackfit.simulation.device_residency import SimulatedResidency
from slackfit.simulation.devices import DeviceModel, Failure, Slowdown
from slackfit.simulation.replicas import simulate_replicas
from slackfit.simulation.routing import ONE_QUEUE, Routing, create_router, parse_routing
from slackfit.simulation.simulate import simulate

RULES = ("round-robin", "power-of-two", "predicted-finish", "sticky:8", "client", "client:4")
SLO_S = 0.036


def bursty(rate_qps: float, duration_s: float, cv2: float = 8.0, seed: int = 0) -> np.ndarray:
    """Arrivals with gamma-distributed gaps."""
    rng = np.random.default_rng(seed)
    gaps_s = rng.gamma(1 / cv2, cv2 / rate_qps, int(1.5 * rate_qps * duration_s))
    arrival_s = np.cumsum(gaps_s)
    return arrival_s[arrival_s < duration_s]


def served(
    profile: LatencyProfile, arrival_s: np.ndarray, routing: str, num_replicas: int, **options
) -> list[Outcome]:
    policy = create_policy("drainfit", profile)
    return simulate_replicas(
        arrival_s,
        profile,
        policy,
        parse_routing(routing),
        slo_s=SLO_S,
        num_replicas=num_replicas,
        **options,
    )


def score(outcomes: Sequence[Outcome]) -> tuple[float, float]:
    """Attainment and mean accuracy."""
    on_time = [o.accuracy for o in outcomes if o.status == "on_time"]
    return len(on_time) / len(outcomes), math.fsum(on_time) / len(on_time)


@pytest.mark.parametrize("rule", RULES)
def test_one_replica_is_the_plain_simulation(resnet: LatencyProfile, rule: str):
    arrival_s = bursty(2000, 0.5)
    policy = create_policy("drainfit", resnet)
    plain = simulate(arrival_s, resnet, policy, slo_s=SLO_S, num_workers=2)
    assert served(resnet, arrival_s, rule, 1, num_workers=2) == plain


def test_one_queue_is_the_plain_simulation_with_all_devices(resnet: LatencyProfile):
    arrival_s = bursty(5000, 0.5)
    policy = create_policy("drainfit", resnet)
    plain = simulate(arrival_s, resnet, policy, slo_s=SLO_S, num_workers=6)
    assert served(resnet, arrival_s, str(ONE_QUEUE), 3, num_workers=2) == plain


def test_each_replica_serves_its_part_as_if_alone(resnet: LatencyProfile):
    """Round robin over three: every third arrival, by the plain simulation."""
    arrival_s = bursty(5000, 0.5)
    policy = create_policy("drainfit", resnet)
    outcomes = served(resnet, arrival_s, "round-robin", 3, num_workers=2)
    for index in range(3):
        alone = simulate(arrival_s[index::3], resnet, policy, slo_s=SLO_S, num_workers=2)
        part = outcomes[index::3]
        ends = [(o.status, o.start_s, o.finish_s, o.subnet_id, o.batch_size) for o in part]
        assert ends == [(o.status, o.start_s, o.finish_s, o.subnet_id, o.batch_size) for o in alone]
        workers = {o.worker_id for o in part if o.worker_id is not None}
        assert workers <= {2 * index, 2 * index + 1}


@pytest.mark.parametrize("rule", RULES)
def test_every_query_ends_once_and_the_seed_says_how(resnet: LatencyProfile, rule: str):
    arrival_s = bursty(9000, 0.3)
    first, again = (served(resnet, arrival_s, rule, 4, seed=3) for _ in range(2))
    assert first == again
    assert [o.query_id for o in first] == list(range(len(arrival_s)))
    other = served(resnet, arrival_s, rule, 4, seed=4)
    draws = rule not in ("round-robin", "predicted-finish")
    assert (other != first) == draws


class _Fixed:
    """A replica with so many open queries, which notes whether it was brought up to date."""

    def __init__(self, num_open: int) -> None:
        self.num_open = num_open
        self.advanced_s: list[float] = []

    def advance(self, now_s: float) -> None:
        self.advanced_s.append(now_s)


def test_power_of_two_takes_the_less_loaded_of_two_as_they_are_then(resnet: LatencyProfile):
    from slackfit.query import Query

    replicas = [_Fixed(n) for n in (5, 1, 9)]
    router = create_router(Routing("power-of-two"), replicas, np.random.default_rng(0))  # type: ignore[arg-type]
    chosen = [router.choose(Query(i, float(i), 99.0)) for i in range(600)]
    assert chosen.count(2) == 0, "the most loaded is never the less loaded of two"
    assert chosen.count(1) / 600 == pytest.approx(2 / 3, abs=0.06)
    assert sum(len(replica.advanced_s) for replica in replicas) == 1200


def test_spreading_costs_next_to_nothing_and_pinned_connections_much(resnet: LatencyProfile):
    arrival_s = bursty(11_000, 1.0)
    whole, sticky = (score(served(resnet, arrival_s, r, 8)) for r in ("one-queue", "sticky:32"))
    for rule in ("round-robin", "power-of-two", "predicted-finish", "client:4"):
        attainment, accuracy = score(served(resnet, arrival_s, rule, 8))
        assert attainment >= 0.9998
        assert accuracy >= whole[1] - 0.003
    assert sticky[0] < 0.99
    assert sticky[1] < whole[1] - 0.01


def test_clients_leave_a_slow_replica_what_it_can_do(resnet: LatencyProfile):
    arrival_s = bursty(9000, 1.5, cv2=4)
    devices = DeviceModel(events=(Slowdown(0.0, 5, 3.0),))
    options = {"devices": devices, "correct_latency": True}
    whole, turns, clients = (
        score(served(resnet, arrival_s, rule, 8, **options))
        for rule in ("one-queue", "round-robin", "client:4")
    )
    assert whole[0] > 0.9, "what devices take does not grow with what is predicted"
    assert 1 - clients[0] <= (1 - turns[0]) / 2


def test_devices_are_numbered_through_the_replicas(resnet: LatencyProfile):
    arrival_s = bursty(4000, 0.5)
    devices = DeviceModel(events=(Slowdown(0.0, 3, 2.0),))
    slow = served(resnet, arrival_s, "round-robin", 2, num_workers=2, devices=devices)
    plain = served(resnet, arrival_s, "round-robin", 2, num_workers=2)
    assert slow[0::2] == plain[0::2], "workers 0 and 1 are of the first replica"
    assert slow[1::2] != plain[1::2]


def test_what_replicas_can_not_have_is_refused(resnet: LatencyProfile):
    arrival_s = np.array([0.0, 0.1])
    residency = SimulatedResidency.__new__(SimulatedResidency)
    for devices, message in (
        (DeviceModel(residency=residency), "a residency goes with one queue only"),
        (DeviceModel(events=(Failure(0.1, 0),)), "failures go with one queue only"),
        (DeviceModel(events=(Slowdown(0.1, 4, 2.0),)), "unknown worker, allowed 0 to 3"),
        (DeviceModel(profiles=[resnet] * 3), "profiles has 3 for 4 workers"),
    ):
        with pytest.raises(ValueError, match=message):
            served(resnet, arrival_s, "round-robin", 2, num_workers=2, devices=devices)


@pytest.mark.parametrize("text", ["", "sticky", "sticky:0", "round-robin:3", "random", "client:x"])
def test_an_unknown_routing_is_refused_with_what_is_allowed(text: str):
    with pytest.raises(ValueError, match=r"is unknown, allowed one-queue, .*sticky:CONNECTIONS"):
        parse_routing(text)


@pytest.mark.parametrize("text", [*RULES[:4], "client:4", "one-queue"])
def test_a_routing_is_written_as_it_is_read(text: str):
    assert str(parse_routing(text)) == text
    assert parse_routing("client") == parse_routing("client:1")
