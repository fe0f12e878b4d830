"""Part `routing`: what the way from clients to replicas costs, in virtual time and live.

Simulated: eight devices with a queue each, the same bursty arrivals under every routing, with the
rule of our clients as several processes that know only what their own answers told them. Live: two
replica processes on timed devices of which one sleeps three times as long as its profile says;
client processes that spread, and such that take turns. Needs no checkpoint.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from serve.bench.journal import Journal
from serve.bench.rows import Row, Tell, row
from serve.bench.serving.routing_live import (
    CLIENTS,
    POLICY,
    SLO_S,
    SLOWER,
    STRETCH,
    WARMUP_S,
    InTurn,
    replayed,
    two_replicas,
)
from slackfit.policies import create_policy
from slackfit.profile import LatencyProfile
from slackfit.query import Outcome
from slackfit.simulation.devices import AS_PROFILED, DeviceModel, Slowdown
from slackfit.simulation.replicas import simulate_replicas
from slackfit.simulation.routing import parse_routing
from traces.spec.spec import parse_spec

PROFILE = Path(__file__).parents[3] / "profiles" / "superserve_resnet_2080ti.json"
_DEVICES = 8
_QPS, _CV2 = 11_000, 8
_RULES = {
    "one_queue": "one-queue",
    "round_robin": "round-robin",
    "power_of_two": "power-of-two",
    "predicted_finish": "predicted-finish",
    "client": "client:4",  # with eight replicas 32 connections
    "client1": "client:1",
    "client32": "client:32",
    "sticky32": "sticky:32",
}
_SLOWED_QPS, _SLOWED_CV2 = 9_000, 4
_SLOWED_RULES = ("one_queue", "round_robin", "predicted_finish", "client")
_LIVE_LOAD, _LIVE_CV2 = 0.7, 4


class RoutingScale(NamedTuple):
    """How much is measured."""

    num_seeds: int = 3
    simulated_s: float = 5.0
    live_s: float = 25.0
    live_seeds: int = 2


QUICK = RoutingScale()
FULL = RoutingScale(num_seeds=10, simulated_s=10.0, live_s=60.0, live_seeds=5)


class RoutedScore(NamedTuple):
    """Queries, those on time, and the sum of their accuracies."""

    num_queries: int
    on_time: int
    accuracy_sum: float

    @property
    def attainment(self) -> float:
        """On-time over all arrived."""
        return self.on_time / self.num_queries

    @property
    def accuracy(self) -> float:
        """The mean accuracy of those on time, a fraction."""
        return self.accuracy_sum / max(self.on_time, 1)

    @classmethod
    def of(cls, outcomes: Sequence[Outcome]) -> RoutedScore:
        """Count outcomes."""
        on_time = [o.accuracy for o in outcomes if o.status == "on_time"]
        return cls(len(outcomes), len(on_time), math.fsum(on_time))


class RoutingBench:
    """The cells by name; what the journal has is not measured again."""

    def __init__(self, journal: Journal, *, scale: RoutingScale, tell: Tell) -> None:
        self._journal = journal
        self._scale = scale
        self._tell = tell
        self._profile = LatencyProfile.load(PROFILE)

    def run(self) -> None:
        """Measure what the journal lacks."""
        for name in _RULES:
            self._cell(name, lambda n=name: self._simulated(n, is_slowed=False))
        for name in _SLOWED_RULES:
            self._cell(f"slowed/{name}", lambda n=name: self._simulated(n, is_slowed=True))
        for name, chooser in (("spreading", None), ("round_robin", InTurn)):
            self._cell(f"live/{name}", lambda c=chooser: self._live(c))

    def rows(self) -> list[Row]:
        """Return the rows of what is measured so far."""
        rows = [r for name in self._measured(_RULES) for r in self._score_rows(name)]
        slowed = self._measured(f"slowed/{name}" for name in _SLOWED_RULES)
        rows += [r for name in slowed for r in self._score_rows(name)]
        if {"one_queue", "client"} <= set(self._measured(_RULES)):
            below = self._tally("one_queue").accuracy - self._tally("client").accuracy
            figure = "serving/routing/client/points_below_one_queue"
            detail = "<= 0.2 asked for; our clients' accuracy below one queue's"
            rows.append(row(figure, 100 * below, "points", detail))
        live = self._measured(("live/spreading", "live/round_robin"))
        rows += [r for name in live for r in self._score_rows(name)]
        if len(live) == 2:
            ours, turns = (1 - self._tally(name).attainment for name in live)
            detail = f"<= 0.5 asked for; misses {ours:.4f} over {turns:.4f}, of the same traces"
            ratio = ours / turns if turns else 1.0
            figure = "serving/routing/live/spreading_misses_over_round_robin"
            rows.append(row(figure, ratio, "ratio", detail))
        return rows

    def _cell(self, name: str, measure: Callable[[], RoutedScore]) -> None:
        tally = RoutedScore(*self._journal.once(name, measure))
        self._tell(f"{name}: {tally.attainment:.5f} on time at accuracy {tally.accuracy:.4f}")

    def _measured(self, names: Iterable[str]) -> list[str]:
        return [name for name in names if name in self._journal]

    def _tally(self, name: str) -> RoutedScore:
        return RoutedScore(*self._journal.get(name))

    def _score_rows(self, name: str) -> list[Row]:
        tally, scale = self._tally(name), self._scale
        kind, _, short = name.rpartition("/")
        if kind == "live":
            detail = (
                f"live, TIMED devices, two replicas, one {SLOWER:g} times slower than profiled; "
                f"profile and SLO {STRETCH:g} times the published; {CLIENTS} client processes, "
                f"gamma with CV^2 {_LIVE_CV2} at {_LIVE_LOAD:g} of what both do, "
                f"{scale.live_seeds} x {scale.live_s:g} s"
            )
        else:
            rate, cv2 = (_SLOWED_QPS, _SLOWED_CV2) if kind else (_QPS, _CV2)
            detail = (
                f"simulated, --replicas {_DEVICES} --routing {_RULES[short]}, {POLICY}, "
                f"{PROFILE.stem}, SLO {SLO_S * 1e3:g} ms, gamma at {rate}/s with CV^2 {cv2}, "
                f"{scale.num_seeds} seeds of {scale.simulated_s:g} s"
            )
            detail += f", one device {SLOWER:g} times slower than profiled" if kind else ""
        figure = f"serving/routing/{name}"
        return [
            row(f"{figure}/attainment", tally.attainment, "fraction", detail),
            row(f"{figure}/accuracy", tally.accuracy, "fraction", detail),
        ]

    # --- in virtual time -------------------------------------------------------------------------

    def _simulated(self, name: str, *, is_slowed: bool) -> RoutedScore:
        rate, cv2 = (_SLOWED_QPS, _SLOWED_CV2) if is_slowed else (_QPS, _CV2)
        spec = f"gamma:rate={rate},cv2={cv2},duration={self._scale.simulated_s:g}"
        devices = DeviceModel(events=(Slowdown(0.0, 0, SLOWER),)) if is_slowed else AS_PROFILED
        outcomes: list[Outcome] = []
        for seed in range(self._scale.num_seeds):
            outcomes += simulate_replicas(
                parse_spec(spec, seed=seed).arrival_s,
                self._profile,
                create_policy(POLICY, self._profile),
                parse_routing(_RULES[name]),
                slo_s=SLO_S,
                num_replicas=_DEVICES,
                seed=seed,
                devices=devices,
                correct_latency=is_slowed,
            )
        return RoutedScore.of(outcomes)

    # --- live ------------------------------------------------------------------------------------

    def _live(self, chooser: Callable[[], InTurn] | None) -> RoutedScore:
        profile, scale = self._profile.scaled(STRETCH), self._scale
        capacity_qps = profile.fastest().capacity_qps * (1 + 1 / SLOWER)
        spec = (
            f"gamma:rate={_LIVE_LOAD * capacity_qps:.3f},cv2={_LIVE_CV2},"
            f"duration={WARMUP_S + scale.live_s:g}"
        )
        outcomes: list[Outcome] = []
        with two_replicas(profile) as urls:
            for seed in range(scale.live_seeds):
                outcomes += asyncio.run(replayed(",".join(urls), spec, seed, chooser))
        return RoutedScore.of(outcomes)
