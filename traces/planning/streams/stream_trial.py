"""One fleet on some streams: how many were fluent, how fluent, how good, in blocks of time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from slackfit.metrics import as_good
from slackfit.simulation.simulate_streams import simulate_stream_replicas
from slackfit.streams.iteration_cost import IterationCosts
from slackfit.streams.stream_metrics import first_output_s, gaps_s
from slackfit.streams.stream_query import StreamOutcome
from traces.planning.catalog import DeviceOffer
from traces.planning.redrawn import redrawn_sums
from traces.planning.streams.stream_promise import StreamPromise
from traces.planning.trial import NUM_BLOCKS
from traces.simulation.stream_simulation import StreamOptions, stream_queries, stream_scheduler
from traces.trace import Trace

_QUANTILES = (50, 95, 99)


@dataclass(frozen=True)
class StreamCandidate:
    """A device, a policy of streams, and how streams get to several of the device."""

    offer: DeviceOffer
    policy: str
    routing: str

    @cached_property
    def costs(self) -> IterationCosts:
        """What iterations take on the device."""
        return IterationCosts.of(self.offer.profile)

    def cost(self, count: int) -> float:
        """Return the price of `count` devices an hour."""
        return self.offer.price_per_hour * count

    def __str__(self) -> str:
        return f"{self.offer.name} {self.policy}, {self.routing}"


class StreamTrial(NamedTuple):
    """Per block of arrivals: streams, fluent ones, sums of fluidity, of quality, and outputs."""

    arrived: np.ndarray
    fluent: np.ndarray
    fluidity: np.ndarray
    quality: np.ndarray
    outputs: np.ndarray
    first_output_ms: dict[str, float | None]
    gap_ms: dict[str, float | None]

    @property
    def figures(self) -> tuple[float, float, float]:
        """Attainment, mean fluidity, and mean quality of outputs."""
        arrived, fluent, fluidity, quality, outputs = (float(v.sum()) for v in self[:5])
        return fluent / max(arrived, 1), fluidity / max(arrived, 1), quality / max(outputs, 1)

    def keeps(self, promise: StreamPromise) -> bool:
        """Whether it kept the promise."""
        return promise.is_kept(*self.figures)

    def redrawn(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The figures of the redrawn traces, which are the same for all trials."""
        arrived, fluent, fluidity, quality, outputs = (redrawn_sums(v) for v in self[:5])
        streams = np.maximum(arrived, 1)
        return fluent / streams, fluidity / streams, quality / np.maximum(outputs, 1)

    def share_kept(self, promise: StreamPromise) -> float:
        """Return how many of the redrawn traces kept the promise, a fraction."""
        attainment, fluidity, accuracy = self.redrawn()
        kept = attainment >= as_good(promise.attainment)
        kept &= fluidity >= as_good(promise.fluidity)
        return float(np.mean(kept & (accuracy >= as_good(promise.accuracy))))

    def to_json(self) -> dict[str, Any]:
        """Return the figures, with what 90 of 100 redrawn traces lie within."""
        names = ("attainment", "fluidity", "accuracy")
        found: dict[str, Any] = dict(zip(names, self.figures, strict=True))
        for name, values in zip(names, self.redrawn(), strict=True):
            found[f"{name}_interval"] = np.quantile(values, (0.05, 0.95)).tolist()
        return {**found, "first_output_ms": self.first_output_ms, "gap_ms": self.gap_ms}


def run_stream_trial(
    candidate: StreamCandidate, count: int, trace: Trace, options: StreamOptions
) -> StreamTrial:
    """Serve the trace's streams on `count` devices, a scheduler each."""
    outcomes = simulate_stream_replicas(
        stream_queries(trace, options.slo),
        [stream_scheduler(candidate.policy, candidate.costs, options) for _ in range(count)],
        candidate.routing,
    )
    return stream_trial(outcomes, trace.duration_s)


def stream_trial(outcomes: Sequence[StreamOutcome], duration_s: float) -> StreamTrial:
    """Return the trial of streams that ended so."""
    arrival_s = np.array([o.query.arrival_s for o in outcomes])
    places = np.minimum((arrival_s / duration_s * NUM_BLOCKS).astype(np.int64), NUM_BLOCKS - 1)

    def summed(values: Sequence[float]) -> np.ndarray:
        return np.bincount(places, weights=np.array(values, dtype=np.float64), minlength=NUM_BLOCKS)

    return StreamTrial(
        np.bincount(places, minlength=NUM_BLOCKS),
        summed([o.status == "on_time" for o in outcomes]),
        summed([o.fluidity for o in outcomes]),
        summed([sum(o.qualities) for o in outcomes]),
        summed([len(o.qualities) for o in outcomes]),
        _quantiles_ms(first_output_s(outcomes)),
        _quantiles_ms(gaps_s(outcomes)),
    )


def _quantiles_ms(values_s: np.ndarray) -> dict[str, float | None]:
    found = np.percentile(values_s, _QUANTILES) * 1e3 if len(values_s) else [None] * 3
    return {
        f"p{q}": None if v is None else float(v) for q, v in zip(_QUANTILES, found, strict=True)
    }
