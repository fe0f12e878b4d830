"""`FleetCandidate`: a way to serve on one type of device; only how many of them is still open."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from slackfit.metrics import as_good
from slackfit.policies import create_policy
from slackfit.profile import LatencyProfile
from slackfit.simulation.routing import ONE_QUEUE, Routing
from traces.planning.catalog import Catalog, DeviceOffer
from traces.planning.promise import Promise
from traces.trace import FloatArray, TraceError

DEFAULT_POLICIES = ("drainfit", "slackfit", "slackfit@num_buckets=40")


@dataclass(frozen=True)
class FleetCandidate:
    """A device, a policy with its parameters, the subnets that it may choose, and a batch cap.

    `routing` is how queries get to several of the device: to one queue, or to a queue each. With
    `beside` a given number of another device serves some of the queries.
    """

    offer: DeviceOffer
    policy: str
    subnet_ids: tuple[str, ...]
    max_batch: int
    routing: Routing = ONE_QUEUE
    beside: Beside | None = None

    @cached_property
    def profile(self) -> LatencyProfile:
        """The offer's profile with these subnets and batches."""
        return self.offer.profile.select(self.subnet_ids).capped(self.max_batch)

    @property
    def num_beside(self) -> int:
        """How many devices of another type there are."""
        return 0 if self.beside is None else self.beside.workers

    @cached_property
    def alone(self) -> FleetCandidate:
        """The same without what is beside it."""
        return self if self.beside is None else replace(self, beside=None)

    @property
    def parts(self) -> tuple[FleetCandidate, ...]:
        """A candidate for each type of device, the one whose number is open first."""
        return (self.alone, *(() if self.beside is None else self.beside.candidate.parts))

    def cost(self, count: int) -> float:
        """Return the price of `count` devices an hour, and of those beside them."""
        own = self.offer.price_per_hour * count
        return own if self.beside is None else own + self.beside.candidate.cost(self.num_beside)

    def share(self, count: int) -> float:
        """Return which part of the queries `count` devices get."""
        if self.beside is None:
            return 1.0
        return count / (count + self.beside.weight * self.beside.workers)

    def routed(self, routing: Routing) -> FleetCandidate:
        """Return the same with another routing, of each type of device."""
        beside = self.beside
        if beside is not None:
            beside = replace(beside, candidate=beside.candidate.routed(routing))
        return replace(self, routing=routing, beside=beside)

    def __str__(self) -> str:
        subnets, largest = len(self.subnet_ids), self.max_batch
        routed = "" if self.routing == ONE_QUEUE else f", {self.routing}"
        beside = "" if self.beside is None else f" beside {self.beside}"
        own = f"{self.offer.name} {self.policy}, {subnets} subnets, batches to {largest}{routed}"
        return own + beside


@dataclass(frozen=True)
class Beside:
    """So many devices of another type, in a fleet of two.

    Each type has queues of its own. A device of this one gets `weight` queries for each query that
    one of the other gets.
    """

    candidate: FleetCandidate
    workers: int
    weight: float

    def __str__(self) -> str:
        return f"{self.workers} x {self.candidate}, with {self.weight:.2f} times the queries each"


def candidates(
    catalog: Catalog,
    policies: Sequence[str],
    promise: Promise,
    slo_s: float | FloatArray,
    routings: Sequence[Routing] = (ONE_QUEUE,),
) -> list[FleetCandidate]:
    """Return what is to be tried: each device x policy x routing x front x batch cap.

    Fronts: the Pareto subnets, and those without the least accurate half, quarter and three
    quarters, where that leaves one that some deadline affords. Raises TraceError for a policy that
    is unknown.
    """
    found: list[FleetCandidate] = []
    tightest_s, longest_s = float(np.min(slo_s)), float(np.max(slo_s))
    for offer in catalog.offers:
        profile = offer.profile.pareto()
        ids = profile.subnet_ids
        fronts = {ids[len(ids) * part // 4 :] for part in range(4)}
        sizes = [b for b in profile.batch_sizes if 2 * profile.fastest().latency_s[b] <= tightest_s]
        caps = sorted({profile.max_batch_size, *sizes[-1:]}, reverse=True)
        least = max(
            promise.accuracy, promise.floor, *(max(p.accuracy, p.floor) for p in promise.parts)
        )
        for policy, routing in itertools.product(policies, routings):
            for front in sorted(fronts, key=len, reverse=True):
                most = max(profile.accuracy(i) for i in front)
                least_s = min(profile.table()[i][1] for i in front)
                if most < as_good(least) or least_s > longest_s:
                    continue
                found += [FleetCandidate(offer, policy, front, cap, routing) for cap in caps]
    for candidate in found:
        try:
            create_policy(candidate.policy, candidate.profile)
        except ValueError as error:
            raise TraceError(str(error)) from None
    return found
