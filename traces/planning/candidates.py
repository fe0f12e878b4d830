"""`FleetCandidate`: a way to serve on one type of device; only how many of them is still open."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from slackfit.policies import create_policy
from slackfit.profile import LatencyProfile
from slackfit.simulation.routing import ONE_QUEUE, Routing
from traces.planning.catalog import Catalog, DeviceOffer
from traces.planning.promise import Promise
from traces.trace import TraceError

DEFAULT_POLICIES = ("drainfit", "slackfit", "slackfit@num_buckets=40")


@dataclass(frozen=True)
class FleetCandidate:
    """A device, a policy with its parameters, the subnets that it may choose, and a batch cap.

    `routing` is how queries get to several of the device: to one queue, or to a queue each.
    """

    offer: DeviceOffer
    policy: str
    subnet_ids: tuple[str, ...]
    max_batch: int
    routing: Routing = ONE_QUEUE

    @cached_property
    def profile(self) -> LatencyProfile:
        """The offer's profile with these subnets and batches."""
        return self.offer.profile.select(self.subnet_ids).capped(self.max_batch)

    def cost(self, count: int) -> float:
        """Return the price of `count` devices an hour."""
        return self.offer.price_per_hour * count

    def __str__(self) -> str:
        subnets, largest = len(self.subnet_ids), self.max_batch
        routed = "" if self.routing == ONE_QUEUE else f", {self.routing}"
        return f"{self.offer.name} {self.policy}, {subnets} subnets, batches to {largest}{routed}"


def candidates(
    catalog: Catalog,
    policies: Sequence[str],
    promise: Promise,
    slo_s: float,
    routings: Sequence[Routing] = (ONE_QUEUE,),
) -> list[FleetCandidate]:
    """Return what is to be tried: each device x policy x routing x front x batch cap.

    Fronts: the Pareto subnets, and those without the least accurate half, quarter and three
    quarters, where that leaves one that a deadline affords. Raises TraceError for a policy that is
    unknown.
    """
    found: list[FleetCandidate] = []
    for offer in catalog.offers:
        profile = offer.profile.pareto()
        ids = profile.subnet_ids
        fronts = {ids[len(ids) * part // 4 :] for part in range(4)}
        sizes = [b for b in profile.batch_sizes if 2 * profile.fastest().latency_s[b] <= slo_s]
        caps = sorted({profile.max_batch_size, *sizes[-1:]}, reverse=True)
        least = max(
            promise.accuracy, promise.floor, *(max(p.accuracy, p.floor) for p in promise.parts)
        )
        for policy, routing in itertools.product(policies, routings):
            for front in sorted(fronts, key=len, reverse=True):
                most = max(profile.accuracy(i) for i in front)
                least_s = min(profile.table()[i][1] for i in front)
                if most < least or least_s > slo_s:
                    continue
                found += [FleetCandidate(offer, policy, front, cap, routing) for cap in caps]
    for candidate in found:
        try:
            create_policy(candidate.policy, candidate.profile)
        except ValueError as error:
            raise TraceError(str(error)) from None
    return found
