"""A trace of leaves and hubs: one latency per subnet against predicted work.

Half of the queries ask for any node, half for one that is drawn by its degree, as popular nodes
are. The timed device takes what a profile with work says, of the nodes that were really asked;
the scheduler knows it (`aware`) or only the subnets' own latencies (`blind`). The same live, on
this CPU: queries at their times, batches really run.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from serve.bench.graphs.large_graph import FULL, LargeGraph
from serve.bench.rows import Row, Tell, row
from slackfit.policies import create_policy
from slackfit.profile import LatencyProfile
from slackfit.query import Outcome, Query
from slackfit.scheduling.scheduler import Scheduler
from slackfit.simulation.devices import DeviceModel
from slackfit.simulation.simulate import simulate
from subnetact import measure_profile
from subnetact.nodes.node_executor import NodeExecutor

SERVED = ("mlp", "5", "5-5", "15-10", FULL)
_SIZES = (1, 2, 4, 8, 16)
_SLO_OVER_SAMPLED = 12.0  # the SLO over a full batch of the slowest sampled rung
_LOAD = 0.5
_MOST_QUERIES = 100_000
_MOST_LIVE_QPS = 2000.0  # above it the loop in Python that submits them is what is late
_POLICIES = ("slackfit", "drainfit")


class SkewedTrace:
    """One large graph, its profile with work, and queries for its nodes."""

    def __init__(
        self, large: LargeGraph, *, repeats: int, simulated_s: float, live_s: float, tell: Tell
    ):
        tell("profile with work")
        self._executor: NodeExecutor = large.executor(_SIZES[-1], SERVED)
        self._profile = measure_profile(
            self._executor, large.checkpoint, batch_sizes=_SIZES, repeats=repeats
        )
        sampled = large.subnet_ids["15-10"]
        self._slo_s = _SLO_OVER_SAMPLED * self._profile.latency_s(sampled, _SIZES[-1])
        self._full = large.subnet_ids[FULL]
        self._simulated_s, self._live_s, self._tell = simulated_s, live_s, tell
        self._by_degree = np.repeat(np.arange(large.graph.num_nodes), large.graph.degrees)

    def rows(self) -> list[Row]:
        """Misses and accuracies of both, simulated and live, and the ratio of the misses."""
        made: list[Row] = []
        for name in _POLICIES:
            self._tell(f"{name}, simulated")
            arms = {arm: self._simulated(name, arm) for arm in ("blind", "aware")}
            made += self._compared(f"graphs/predicted_work/{name}/timed", arms)
            if self._live_s:
                self._tell(f"{name}, live")
                arms = {arm: self._live(name, arm) for arm in ("blind", "aware")}
                made += self._compared(f"graphs/predicted_work/{name}/live", arms)
        return made

    def _known(self, arm: str) -> LatencyProfile:
        return self._profile if arm == "aware" else replace(self._profile, work=None)

    def _asked(
        self, duration_s: float, most_qps: float = math.inf
    ) -> tuple[np.ndarray, np.ndarray]:
        """Arrivals (seconds) and nodes; the rate is half of what the whole graph's rung affords."""
        rng = np.random.default_rng(0)
        full_s = self._profile.latency_s(self._full, _SIZES[-1]) / _SIZES[-1]
        rate_qps = min(_LOAD / full_s, most_qps)
        count = min(max(50, round(rate_qps * duration_s)), _MOST_QUERIES)
        arrivals = np.sort(rng.random(count)) * count / rate_qps
        anyone = rng.integers(0, self._executor.graph.num_nodes, count)
        popular = self._by_degree[rng.integers(0, len(self._by_degree), count)]
        return arrivals, np.where(rng.random(count) < 0.5, anyone, popular)

    def _work(self, nodes: np.ndarray) -> np.ndarray:
        return np.array([self._executor.work_of(np.array([[node]])) for node in nodes])

    def _simulated(self, policy: str, arm: str) -> list[Outcome]:
        arrivals, nodes = self._asked(self._simulated_s)
        known = self._known(arm)
        return simulate(
            arrivals,
            known,
            create_policy(policy, known),
            slo_s=self._slo_s,
            work=self._work(nodes),
            devices=DeviceModel(profiles=[self._profile]),
        )

    def _live(self, policy: str, arm: str) -> list[Outcome]:
        arrivals, nodes = self._asked(self._live_s, _MOST_LIVE_QPS)
        known = self._known(arm)
        scheduler = Scheduler(known, create_policy(policy, known))
        works, slo_s = self._work(nodes), self._slo_s
        queries = [
            Query(i, float(at_s), float(at_s) + slo_s, work=float(works[i]))
            for i, at_s in enumerate(arrivals)
        ]
        return run_live(queries, nodes, scheduler, self._executor)

    def _compared(self, figure: str, arms: dict[str, list[Outcome]]) -> list[Row]:
        made: list[Row] = []
        missed: dict[str, float] = {}
        for arm, outcomes in arms.items():
            told: dict[str, Any] = _told(outcomes)
            missed[arm] = told["missed"]
            detail = {**told, "slo_ms": round(self._slo_s * 1e3, 3), "accuracies": "given"}
            made.append(row(f"{figure}/{arm}/missed", told["missed"], "fraction", detail))
        least = 1.0 / len(arms["aware"])  # none missed: the ratio is at least this one
        ratio = missed["blind"] / max(missed["aware"], least)
        made.append(row(f"{figure}/blind_over_aware", ratio, "x", {"queries": len(arms["aware"])}))
        return made


def run_live(
    queries: Sequence[Query], nodes: np.ndarray, scheduler: Scheduler, executor: NodeExecutor
) -> list[Outcome]:
    """Submit queries at their times, run batches on this thread; one outcome each, in any order.

    What still waits when twice the time is over is cancelled: it was missed long before.
    """
    outcomes: list[Outcome] = []
    start_s, at = time.perf_counter(), 0
    until_s = 2.0 * queries[-1].deadline_s
    while at < len(queries) or len(scheduler):
        now_s = time.perf_counter() - start_s
        if now_s > until_s:
            return [*outcomes, *scheduler.cancel_all(now_s)]
        while at < len(queries) and queries[at].arrival_s <= now_s:
            refused = scheduler.submit(queries[at], now_s)
            outcomes += [refused] if refused else []
            at += 1
        batch, dropped = scheduler.poll(now_s)
        outcomes += dropped
        if batch is None:
            if at < len(queries):
                time.sleep(max(0.0, min(1e-3, queries[at].arrival_s - now_s)))
            continue
        ids = nodes[[query.query_id for query in batch.queries]].reshape(-1, 1)
        executor.run(batch.subnet_id, ids)
        outcomes += scheduler.complete(batch.batch_id, time.perf_counter() - start_s)
    return outcomes


def _told(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    counts: dict[str, int] = {}
    on_time = [outcome.accuracy for outcome in outcomes if outcome.status == "on_time"]
    for outcome in outcomes:
        if outcome.subnet_id is not None:
            counts[outcome.subnet_id] = counts.get(outcome.subnet_id, 0) + 1
    return {
        "missed": 1.0 - len(on_time) / len(outcomes),
        "mean_accuracy": round(float(np.mean(on_time)), 4) if on_time else 0.0,
        "subnets": counts,
        "queries": len(outcomes),
    }
