"""Random instances that are small enough for the exact optimum, on a grid of ticks.

Two workers, batches of at most 4, 14 to 18 queries that arrive uniformly at 0.7 to 1.3 times what
the fastest subnet serves in full batches, each with an SLO of 2 to 6 times its batch-4 latency. The
latencies are a profile's, rounded up to whole ticks. Times are ticks, kept in floats as seconds:
whole numbers add up exactly, so a policy and the optimum mean the same moments.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from slackfit.bounds.optimum import TinyQuery, optimal_utility
from slackfit.policies import create_policy
from slackfit.profile import LatencyProfile, SubnetProfile
from slackfit.simulation.simulate import simulate

NUM_WORKERS = 2
_SIZES = (1, 2, 3, 4)


class TinyInstance(NamedTuple):
    """Queries and a profile whose "seconds" are ticks."""

    profile: LatencyProfile
    queries: tuple[TinyQuery, ...]

    def optimum(self, time_limit_s: float = 120.0) -> float:
        """Return the best utility of any schedule. Raises ArithmeticError when out of time."""
        rows = self.profile.table()
        latency = [[round(t) for t in rows[s.subnet_id]] for s in self.profile.subnets]
        accuracy = [subnet.accuracy for subnet in self.profile.subnets]
        return optimal_utility(
            self.queries, latency, accuracy, num_workers=NUM_WORKERS, time_limit_s=time_limit_s
        )

    def utility(self, policy_name: str) -> float:
        """Return attainment x mean accuracy of a policy."""
        arrivals = np.array([float(q.arrival) for q in self.queries])
        slos = np.array([float(q.deadline - q.arrival) for q in self.queries])
        policy = create_policy(policy_name, self.profile)
        outcomes = simulate(arrivals, self.profile, policy, slo_s=slos, num_workers=NUM_WORKERS)
        return sum(o.accuracy for o in outcomes if o.status == "on_time") / len(outcomes)


def tiny_instance(
    profile: LatencyProfile, seed: int, *, tick_s: float = 0.5e-3, num_queries: int | None = None
) -> TinyInstance:
    """Return the instance that `seed` draws; `num_queries` None draws 14 to 18."""
    rng = np.random.default_rng(seed)
    rows = profile.table()
    subnets = tuple(
        SubnetProfile(
            subnet_id=s.subnet_id,
            accuracy=s.accuracy,
            macs=s.macs,
            latency_s={
                "p50": tuple(float(math.ceil(rows[s.subnet_id][b] / tick_s - 1e-9)) for b in _SIZES)
            },
        )
        for s in profile.subnets
    )
    tiny = LatencyProfile(
        name=f"{profile.name}-tiny",
        device=profile.device,
        dtype=profile.dtype,
        batch_sizes=_SIZES,
        subnets=subnets,
        source=f"{profile.source} In ticks of {tick_s * 1e3:g} ms, rounded up.",
    )
    count = int(rng.integers(14, 19)) if num_queries is None else num_queries
    full = min(s.latency_s["p50"][-1] for s in subnets)
    load = rng.uniform(0.7, 1.3)
    span = count / (load * NUM_WORKERS * _SIZES[-1] / full)
    arrivals = np.sort(np.floor(rng.uniform(0.0, span, count))).astype(int)
    slos = np.round(rng.uniform(2.0, 6.0, count) * full).astype(int)
    queries = (TinyQuery(int(a), int(a + d)) for a, d in zip(arrivals, slos, strict=True))
    return TinyInstance(tiny, tuple(queries))
