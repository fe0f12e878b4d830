"""The search: how few devices each candidate needs, and which fleet is the cheapest.

A candidate's count is found by galloping up from its certificate and bisecting. Candidates are put
in order on the busiest part of the trace; the first ones (finalists) are searched on all of it, and
each other one is asked once, on all of it: is one step below the best price enough? So none that is
cheaper is overlooked, as long as more devices never keep a promise less.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from slackfit.simulation.devices import AS_PROFILED, DeviceModel
from traces.planning.candidates import FleetCandidate
from traces.planning.catalog import DeviceOffer
from traces.planning.certificate import Certificate, certify
from traces.planning.mixed_bound import MixedBound
from traces.planning.promise import Promise
from traces.planning.traffic import Traffic
from traces.planning.trial import Trial, run_trial

NUM_FINALISTS = 3
_SMALL = 150_000  # queries that need no order first
_RUNGS = (0.02, 0.15)
MOST_DEVICES = 4096

Tell = Callable[[str], None]


class Fleet(NamedTuple):
    """So many devices of a candidate, those beside them not counted, and how all did."""

    candidate: FleetCandidate
    workers: int
    trial: Trial

    @property
    def cost(self) -> float:
        """The price an hour."""
        return self.candidate.cost(self.workers)

    @property
    def device(self) -> str:
        """The names of its types of device."""
        return " + ".join(part.offer.name for part in self.candidate.parts)

    @property
    def total(self) -> int:
        """Devices of every type."""
        return self.workers + self.candidate.num_beside

    def __str__(self) -> str:
        beside = self.candidate.beside
        own = f"{self.workers} x {self.candidate.offer.name}"
        if beside is None:
            return own
        return f"{own} + {beside.workers} x {beside.candidate.offer.name}"


class Dropped(NamedTuple):
    """What was tried and is not in the plan, and why."""

    candidate: str
    why: str


@dataclass(frozen=True, slots=True)
class Task:
    """What to search for: a promise on traffic, kept by so many redrawn traces at least."""

    traffic: Traffic
    promise: Promise
    confidence: float = 0.0
    max_devices: int = MOST_DEVICES
    devices: DeviceModel = AS_PROFILED
    seed: int = 0

    def most(self, candidate: FleetCandidate) -> int:
        """Return how many devices a candidate may have, beside those that it has anyway."""
        own = candidate.offer.max_devices or MOST_DEVICES
        return min(self.max_devices - candidate.num_beside, own)


class FoundFleets(NamedTuple):
    """The fleets that keep the promise, cheapest first, and what was dropped."""

    fleets: list[Fleet]
    dropped: list[Dropped]


class FleetSearch:
    """Searches one task; keeps each device's certificate."""

    def __init__(
        self, task: Task, tell: Tell = lambda text: None, *, programs: bool = False
    ) -> None:
        """Search `task`; with `programs` certificates are as tight as they can be."""
        self.task = task
        self._tell = tell
        self._programs = programs
        self._certificates: dict[str, Certificate] = {}
        self._bounds: dict[tuple[str, ...], MixedBound] = {}
        self.num_trials = 0

    def certificate(self, offer: DeviceOffer) -> Certificate:
        """Return what any policy needs of this device."""
        if offer.name not in self._certificates:
            self._certificates[offer.name] = certify(
                offer.profile, self.task.traffic, self.task.promise, programs=self._programs
            )
        return self._certificates[offer.name]

    def bound(self, offers: Sequence[DeviceOffer]) -> MixedBound:
        """Return what any policy needs of these types of device together."""
        names = tuple(offer.name for offer in offers)
        if names not in self._bounds:
            self._bounds[names] = MixedBound(offers, self.task.traffic, self.task.promise)
        return self._bounds[names]

    def least(self, candidate: FleetCandidate) -> int:
        """Return how few of its device any policy needs, beside those that it has anyway."""
        beside = candidate.beside
        if beside is None:
            return self.certificate(candidate.offer).workers
        offers = [part.offer for part in candidate.parts]
        found = self.bound(offers).fewest_beside([beside.workers], MOST_DEVICES)
        return MOST_DEVICES + 1 if found is None else max(found, 1)

    def run(self, candidates: Sequence[FleetCandidate]) -> FoundFleets:
        """Search all; the fleets found are those of finalists and of whoever is cheaper."""
        fleets: list[Fleet] = []
        dropped: list[Dropped] = []
        for at, candidate in enumerate(self._ordered(candidates)):
            best = min((fleet.cost for fleet in fleets), default=None)
            fleet = self.fewest(candidate, below=None if at < NUM_FINALISTS else best)
            if fleet is not None:
                fleets.append(fleet)
                self._tell(f"{candidate}: {fleet.workers} devices, {fleet.cost:g} an hour")
            elif best is None or at < NUM_FINALISTS:
                dropped.append(Dropped(str(candidate), f"{self.task.most(candidate)} do not do"))
            else:
                dropped.append(Dropped(str(candidate), f"not for less than {best:g} an hour"))
        fleets.sort(key=lambda f: (f.cost, -f.trial.accuracy, str(f.candidate)))
        return FoundFleets(fleets, dropped)

    def fewest(self, candidate: FleetCandidate, *, below: float | None = None) -> Fleet | None:
        """Return the smallest fleet that keeps the promise, at a price below `below` if given."""
        least, most = self.least(candidate), self.task.most(candidate)
        if below is not None:
            room = below - candidate.cost(0)
            most = min(most, round(room / candidate.offer.price_per_hour + 0.5))
            while most > 0 and candidate.cost(most) >= below:
                most -= 1
        if least > most:
            return None
        # Of two types more may keep it less, where they are less accurate: the price is no test.
        if below is not None and candidate.beside is None:
            best = self._kept(candidate, most)
            return None if best is None else self._bisected(candidate, least - 1, best)
        too_few, count, step = least - 1, least, 1
        while True:
            best = self._kept(candidate, count)
            if best is not None:
                return self._bisected(candidate, too_few, best)
            if count == most:
                return None
            too_few, count, step = count, min(count + step, most), step * 2

    def _bisected(self, candidate: FleetCandidate, too_few: int, best: Fleet) -> Fleet:
        while best.workers - too_few > 1:
            middle = (too_few + best.workers) // 2
            fleet = self._kept(candidate, middle)
            if fleet is None:
                too_few = middle
            else:
                best = fleet
        return best

    def _kept(self, candidate: FleetCandidate, count: int) -> Fleet | None:
        """Return the fleet if it keeps the promise, and in enough redrawn traces too."""
        task = self.task
        self.num_trials += 1
        trial = run_trial(
            candidate, count, task.traffic, promise=task.promise, devices=task.devices,
            seed=task.seed,
        )  # fmt: skip
        if not trial.keeps(task.promise):
            return None
        if task.confidence > 0 and trial.share_kept(task.promise) < task.confidence:
            return None
        return Fleet(candidate, count, trial)

    def _ordered(self, candidates: Sequence[FleetCandidate]) -> list[FleetCandidate]:
        """Return the candidates, those first that are cheapest on parts of the trace.

        Successive halving: each longer part is for the better half of those before; the others
        follow in the order that they had.
        """
        traffic = self.task.traffic
        order = list(candidates)
        if len(traffic.arrival_s) <= _SMALL or len(order) <= NUM_FINALISTS:
            return order
        tail: list[FleetCandidate] = []
        for share in _RUNGS:
            part = FleetSearch(replace(self.task, traffic=traffic.busiest(share), confidence=0.0))
            costs = {c: self._cost_on(part, c) for c in order}
            order.sort(key=lambda c: (costs[c], str(c)))
            half = max(NUM_FINALISTS, (len(order) + 1) // 2)
            tail = order[half:] + tail
            order = order[:half]
            self.num_trials += part.num_trials
            self._tell(f"{share:.0%} of the trace: {len(order)} of {len(candidates)} candidates")
        return order + tail

    @staticmethod
    def _cost_on(part: FleetSearch, candidate: FleetCandidate) -> float:
        fleet = part.fewest(candidate)
        return float("inf") if fleet is None else fleet.cost
