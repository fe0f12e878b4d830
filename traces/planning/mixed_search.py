"""Fleets of two types of device: does one cost less than the cheapest fleet of one type?

Each type keeps queues of its own, and queries are dealt out by weight, in turn. So a fleet of two
is a candidate like another, of whose dearer device there is a given number (`Beside`): so many of
those, at so much of the queries, and the cheaper device is counted. Numbers of the dearer one with
which no policy could be cheaper (`MixedBound`) cost no trial.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from slackfit.compiled.setup import why_not
from slackfit.policies import create_policy
from slackfit.simulation.routing import ONE_QUEUE, ROUND_ROBIN
from traces.planning.candidates import Beside, FleetCandidate
from traces.planning.catalog import DeviceOffer
from traces.planning.certificate import query_s
from traces.planning.possible import alone_s
from traces.planning.search import MOST_DEVICES, Dropped, Fleet, FleetSearch, FoundFleets, Tell

WEIGHTS = (1.0, 0.7, 1.4)
"""Times the ratio of the devices' speeds at the promised accuracy."""
_MOST_NUMBERS = 12
_SAME_PRICE = 1e-9
_ROUTINGS = (ONE_QUEUE, ROUND_ROBIN)


class _DevicePair(NamedTuple):
    """Two candidates of different devices, the dearer one second."""

    cheap: FleetCandidate
    dear: FleetCandidate

    def __str__(self) -> str:
        return f"{self.cheap} beside {self.dear}"


def usable_offers(offers: Sequence[DeviceOffer], search: FleetSearch) -> list[DeviceOffer]:
    """Return the types that could serve some of the queries on time, above the floor."""
    promise, longest_s = search.task.promise, float(np.max(search.task.traffic.slo_s))
    return [
        offer
        for offer in offers
        if any(
            s.accuracy >= promise.floor and alone_s(offer.profile, s.subnet_id) <= longest_s
            for s in offer.profile.subnets
        )
    ]


def with_mixed(
    search: FleetSearch,
    found: FoundFleets,
    offers: Sequence[DeviceOffer],
    policy: str,
    tell: Tell = lambda text: None,
) -> FoundFleets:
    """Return what was found, with the fleets of two of these types that are cheaper than all.

    A type is served as in its cheapest fleet, and by `policy` with all its subnets.
    """
    fleets, dropped = list(found.fleets), list(found.dropped)
    for pair in _pairs(found.fleets, usable_offers(offers, search), policy):
        best = min((fleet.cost for fleet in fleets), default=None)
        fleet, why = _tried(search, pair, best)
        if fleet is None:
            dropped.append(Dropped(str(pair), why))
            continue
        tell(f"{fleet}: {fleet.cost:g} an hour")
        fleets.append(fleet)
    fleets.sort(key=lambda f: (f.cost, -f.trial.accuracy, str(f.candidate)))
    return FoundFleets(fleets, dropped)


def _tried(search: FleetSearch, pair: _DevicePair, below: float | None) -> tuple[Fleet | None, str]:
    """Return the cheapest fleet of a pair, at a price below `below` if given, or why none is."""
    why = _why_not(pair, search)
    if why:
        return None, f"not tried: {why}"
    least = _least_cost(search, pair)
    if least is None:
        return None, "no numbers of both keep the promise"
    if below is not None and least > below - _SAME_PRICE:
        return None, f"no policy does for less than {least:g} an hour"
    asked = "" if below is None else f" for less than {below:g} an hour"
    return _cheaper(search, pair, below), f"none that was tried does{asked}"


def _pairs(
    fleets: Sequence[Fleet], offers: Sequence[DeviceOffer], policy: str
) -> Iterator[_DevicePair]:
    """Yield the pairs to try, each of two types."""
    served = {offer.name: _served(offer, fleets, policy) for offer in offers}
    for first, second in itertools.combinations(offers, 2):
        dear, cheap = sorted((first, second), key=lambda o: (-o.price_per_hour, o.name))
        for one, other in itertools.product(served[cheap.name], served[dear.name]):
            if one.routing == other.routing:
                yield _DevicePair(one, other)


def _served(offer: DeviceOffer, fleets: Sequence[Fleet], policy: str) -> list[FleetCandidate]:
    """Return how a type is served: as in its cheapest fleet, and with all its subnets."""
    profile = offer.profile.pareto()
    whole = FleetCandidate(offer, policy, profile.subnet_ids, profile.max_batch_size)
    own = [f.candidate for f in fleets if f.candidate.offer == offer][:1]
    return list(dict.fromkeys([*(c for c in own if c.routing in _ROUTINGS), whole]))


def _why_not(pair: _DevicePair, search: FleetSearch) -> str:
    """Return why a pair is not tried: there are dozens of trials, too many for Python."""
    for candidate in pair:
        try:
            policy = create_policy(candidate.policy, candidate.profile)
        except ValueError as error:  # a subnet that one of two devices has
            return str(error)
        why = why_not(policy, candidate.profile, search.task.devices)
        if why:
            return why
    return ""


def _least_cost(search: FleetSearch, pair: _DevicePair) -> float | None:
    """Return what both cost at the least, whatever the policy; None where nothing does."""
    bound = search.bound([candidate.offer for candidate in pair])
    most = [candidate.offer.max_devices or MOST_DEVICES for candidate in pair]
    numbers = bound.cheapest(most, search.task.max_devices)
    return None if numbers is None else bound.cost(numbers)


def _cheaper(search: FleetSearch, pair: _DevicePair, below: float | None) -> Fleet | None:
    """Return the cheapest fleet of a pair, at a price below `below` if given; None: there is none.

    Of many numbers of the dearer device some are tried, evenly.
    """
    best: Fleet | None = None
    for number in _numbers(search, pair, below):
        for weight in WEIGHTS:
            beside = Beside(pair.dear, number, weight * _faster(search, pair))
            fleet = search.fewest(replace(pair.cheap, beside=beside), below=below)
            if fleet is not None:
                best, below = fleet, fleet.cost
    return best


def _numbers(search: FleetSearch, pair: _DevicePair, below: float | None) -> list[int]:
    """Return the numbers of the dearer device to try."""
    most = min(search.task.most(pair.dear), search.task.max_devices - 1)
    if below is not None:
        most = min(most, int((below - pair.cheap.cost(1)) / pair.dear.offer.price_per_hour))
    if most < 1:
        return []
    return sorted({round(n) for n in np.linspace(1, most, min(most, _MOST_NUMBERS)).tolist()})


def _faster(search: FleetSearch, pair: _DevicePair) -> float:
    """Return how many queries the dearer device serves while the cheaper one serves one."""
    cheap_s, dear_s = (
        query_s(c.profile, min(search.task.promise.accuracy, _best(c))) for c in pair
    )
    return cheap_s / dear_s


def _best(candidate: FleetCandidate) -> float:
    return max(subnet.accuracy for subnet in candidate.profile.subnets)
