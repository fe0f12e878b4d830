"""The attacks on a server that is simulated: what they find, and what they can not."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import numpy as np
import pytest

from serve.audit.fingerprint import fingerprint
from serve.audit.prober import Probe, Seen
from serve.audit.shares import adaptive_share, best_share, label_gain, perturbed, repetition

IMAGES = np.zeros((20, 3, 4, 4), dtype=np.uint8)
FRONT = [(f"net{n}", 0.70 + 0.013 * n, 3.0 * (n + 2)) for n in range(14)]

Choose = Callable[[list[tuple[str, float, float]], np.random.Generator], tuple[str, float, float]]


class SimulatedServer:
    """Serves what fits a specification, by a rule; the prober's methods."""

    def __init__(self, choose: Choose) -> None:
        self.num_queries = 0
        self._choose = choose
        self._rng = np.random.default_rng(0)

    async def ask(self, image: np.ndarray, asked: Probe) -> Seen:
        self.num_queries += 1
        slo_ms = asked.slo_ms or 1e9
        fits = [net for net in FRONT if net[1] >= asked.min_accuracy and net[2] <= slo_ms]
        if not fits:
            return Seen(None, 0.0, reason="infeasible")
        name, accuracy, takes_ms = self._choose(fits, self._rng)
        return Seen(np.eye(10)[int(name[3:]) % 10], takes_ms * 1e-3, name, accuracy)

    async def ask_all(self, images, asked, in_flight: int) -> list[Seen]:
        return [await self.ask(image, one) for image, one in zip(images, asked, strict=True)]


def best(fits, rng):
    return fits[-1]


def spread(fits, rng):
    return fits[-6:][rng.integers(len(fits[-6:]))]


def test_an_open_server_is_walked_within_300_queries():
    server = SimulatedServer(best)
    found = asyncio.run(fingerprint(server, IMAGES, most_queries=300, most_subnets=14))
    assert found["queries_one"] <= 30
    assert found["queries_all"] <= 300
    assert found["pinned"] == 14
    assert [corner["subnet"] for corner in found["corners"]] == [n[0] for n in FRONT[::-1]]


def test_each_corner_holds_its_subnet_alone():
    server = SimulatedServer(lambda fits, rng: fits[rng.integers(len(fits))])
    found = asyncio.run(fingerprint(server, IMAGES, most_queries=300, most_subnets=14))
    for corner in found["corners"]:
        fits = [
            name
            for name, accuracy, takes_ms in FRONT
            if accuracy >= corner["min_accuracy"] and takes_ms <= corner["slo_ms"]
        ]
        assert fits == [corner["subnet"]]


def test_a_server_that_tells_tiers_only_is_not_pinned():
    class Tiered(SimulatedServer):
        async def ask(self, image: np.ndarray, asked: Probe) -> Seen:
            if asked.min_accuracy > 0.80:
                return Seen(None, 0.0, reason="accuracy_floor")
            return await super().ask(image, Probe(0.0, max(asked.slo_ms or 0, 1e3)))

    found = asyncio.run(fingerprint(Tiered(spread), IMAGES, most_queries=300, most_subnets=14))
    assert found["queries_one"] is None
    assert found["queries_all"] is None
    assert found["pinned"] == 0


def test_the_adaptive_attacker_finds_the_one_specification_that_leaks():
    def leaky(fits, rng):
        return fits[0] if len(fits) == 3 else spread(fits, rng)

    images = np.zeros((4000, 3, 4, 4), dtype=np.uint8)
    share, found = asyncio.run(
        adaptive_share(SimulatedServer(leaky), images, (0.0, 0.8, 0.84), (1000.0, 50.0), 4)
    )
    assert share == 1.0
    assert found == Probe(0.84, 1000.0)
    share, _ = asyncio.run(
        adaptive_share(SimulatedServer(spread), images, (0.0, 0.75), (1000.0, 500.0), 4)
    )
    assert share == pytest.approx(1 / 6, abs=0.03)


def test_repetition_gains_nothing_on_independent_or_sticky_draws_and_is_seen_where_it_does():
    images = np.zeros((100, 3, 4, 4), dtype=np.uint8)
    found = asyncio.run(
        repetition(SimulatedServer(spread), images, Probe(0.0, 1e3), None, 1 / 6, 4, 0)
    )
    assert found["repetition_gain"] < 0.02

    class Tiring(SimulatedServer):  # a server that gives in: repeated often, it serves the best
        async def ask(self, image: np.ndarray, asked: Probe) -> Seen:
            self._choose = spread if self.num_queries < 100 else best
            return await super().ask(image, asked)

    found = asyncio.run(repetition(Tiring(spread), images, Probe(0.0, 1e3), None, 1 / 6, 4, 0))
    assert found["repetition_gain"] > 0.5


def test_majorities_are_nearer_to_the_victim_where_errors_are_independent(rng):
    victim = rng.integers(0, 10, 400)

    def answer(label: int) -> Seen:
        wrong = rng.random() < 0.3
        return Seen(np.eye(10)[rng.integers(10) if wrong else label], 0.0, "net")

    independent = [[answer(label) for label in victim] for _ in range(9)]
    assert label_gain(independent, victim) > 0.15
    assert label_gain([independent[0]] * 9, victim) == 0.0


def test_shares_are_of_answers_and_perturbation_is_by_one(rng):
    seen = [Seen(np.zeros(2), 0.0, name) for name in "aab"] + [Seen(None, 0.0)]
    assert best_share(seen) == pytest.approx(2 / 3)
    assert best_share([Seen(None, 0.0)]) == 0.0
    images = rng.integers(0, 256, (5, 3, 8, 8), dtype=np.uint8)
    changed = perturbed(images, rng)
    assert changed.dtype == np.uint8
    assert 0 < np.abs(changed.astype(int) - images).max() <= 1
