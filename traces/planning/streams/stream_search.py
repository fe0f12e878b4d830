"""`StreamSearch`: how few devices a candidate needs for a promise to readers of streams."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from slackfit.simulation.simulate_streams import STREAM_ROUTINGS
from slackfit.streams.iteration_cost import IterationCosts
from traces.planning.catalog import DeviceOffer
from traces.planning.search import MOST_DEVICES
from traces.planning.streams.stream_certificate import certify_streams
from traces.planning.streams.stream_promise import StreamPromise
from traces.planning.streams.stream_trial import StreamCandidate, StreamTrial, run_stream_trial
from traces.simulation.stream_simulation import StreamOptions
from traces.trace import Trace

DEFAULT_STREAM_POLICIES = ("slackwidth", "fixed:largest")


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamPlanOptions:
    """How to plan; `served` is how streams are served, `draws` the trace with other seeds."""

    served: StreamOptions
    policies: Sequence[str] = DEFAULT_STREAM_POLICIES
    routings: Sequence[str] = STREAM_ROUTINGS
    max_devices: int | None = None
    confidence: float = 0.95
    draws: Mapping[int, Trace] = field(default_factory=dict[int, Trace])


class StreamFleet(NamedTuple):
    """So many devices of a candidate, and how they did."""

    candidate: StreamCandidate
    workers: int
    trial: StreamTrial

    @property
    def cost(self) -> float:
        """The price an hour."""
        return self.candidate.cost(self.workers)

    def __str__(self) -> str:
        return f"{self.workers} x {self.candidate.offer.name}"


class StreamSearch:
    """Finds the smallest fleets for a promise on a trace."""

    def __init__(self, trace: Trace, promise: StreamPromise, options: StreamPlanOptions) -> None:
        """Search with draws, too: a fleet keeps the promise on all of them."""
        self.trace = trace
        self.promise = promise
        self.options = options
        self.num_trials = 0
        self._certificates: dict[str, int] = {}

    def most(self, candidate: StreamCandidate) -> int:
        """Return how many devices there may be."""
        own = candidate.offer.max_devices or MOST_DEVICES
        # More devices than streams are of no use.
        return min(self.options.max_devices or MOST_DEVICES, own, len(self.trace))

    def certificate(self, offer: DeviceOffer) -> int:
        """Return what any policy needs of a device."""
        if offer.name not in self._certificates:
            costs = IterationCosts.of(offer.profile)
            self._certificates[offer.name] = certify_streams(costs, self.trace, self.promise)
        return self._certificates[offer.name]

    def fewest(self, candidate: StreamCandidate, below: float | None = None) -> StreamFleet | None:
        """Return the smallest fleet that keeps the promise, at a price below `below` if given."""
        most = self.most(candidate)
        while below is not None and most > 0 and candidate.cost(most) >= below:
            most = min(most - 1, int(below / candidate.offer.price_per_hour) + 1)
        least = self.certificate(candidate.offer)
        too_few, count, step = least - 1, least, 1
        best: StreamFleet | None = None
        while count <= most and best is None:
            best = self.kept(candidate, count)
            if best is None:
                if count == most:
                    return None
                too_few, count, step = count, min(count + step, most), step * 2
        while best is not None and best.workers - too_few > 1:
            middle = (too_few + best.workers) // 2
            fleet = self.kept(candidate, middle)
            too_few, best = (middle, best) if fleet is None else (too_few, fleet)
        return best

    def kept(self, candidate: StreamCandidate, count: int) -> StreamFleet | None:
        """Return the fleet if it keeps the promise: on the trace, its redraws and every draw."""
        trial = self.run(candidate, count, self.trace)
        confidence = self.options.confidence
        if not trial.keeps(self.promise) or (
            confidence > 0 and trial.share_kept(self.promise) < confidence
        ):
            return None
        draws = self.options.draws.values()
        if not all(self.run(candidate, count, drawn).keeps(self.promise) for drawn in draws):
            return None
        return StreamFleet(candidate, count, trial)

    def run(self, candidate: StreamCandidate, count: int, trace: Trace) -> StreamTrial:
        """Serve a trace with the promise's due times."""
        self.num_trials += 1
        served = replace(self.options.served, slo=self.promise.slo)
        return run_stream_trial(candidate, count, trace, served)

    def share_at(self, fleet: StreamFleet, factor: float) -> float:
        """Return how many redrawn traces keep the promise at a load; 0 where this one does not."""
        trial = self._at(fleet, factor)
        return trial.share_kept(self.promise) if trial.keeps(self.promise) else 0.0

    def at_load(self, fleet: StreamFleet, factor: float) -> dict[str, float]:
        """Return what the fleet comes to at a load."""
        attainment, fluidity, accuracy = self._at(fleet, factor).figures
        return {
            "factor": factor, "rate_qps": self.trace.rate_qps * factor, "attainment": attainment,
            "fluidity": fluidity, "accuracy": accuracy,
        }  # fmt: skip

    def _at(self, fleet: StreamFleet, factor: float) -> StreamTrial:
        trace = self.trace.rescale_rate(self.trace.rate_qps * factor)
        return self.run(fleet.candidate, fleet.workers, trace)
