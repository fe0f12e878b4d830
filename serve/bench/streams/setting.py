"""What the stream figures are measured with: costs, a trace of prompts and outputs, due times."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from serve.bench.rows import Row, row
from slackfit.policies.streams import create_stream_policy
from slackfit.scheduling.streams.stream_scheduler import StreamScheduler
from slackfit.simulation.simulate_streams import simulate_streams
from slackfit.streams.iteration_cost import IterationCosts
from slackfit.streams.stream_query import StreamOutcome, StreamQuery
from traces.simulation.stream_simulation import StreamSlo, stream_queries
from traces.trace import Trace

OURS = "slackwidth"
SARATHIS = ("sarathi", *(f"sarathi@budget={n}" for n in (32, 64, 128, 256)))
"""Its budget is chosen once; each figure stands against the best of them on that traffic."""
RIVALS = ("fixed:largest", "niyama", "fcfs", "edf", "lars")

READER = StreamSlo(ttft_s=1.0, tpot_s=0.2, ttft_per_token_s=0.004)

StreamRunner = Callable[[Sequence[StreamQuery], str], list[StreamOutcome]]
"""Serves streams by a policy, simulated or live, and returns their outcomes in order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamSetting:
    """`slo` is met by reading 5 tokens a second; a first output may take longer for more prompt."""

    costs: IterationCosts
    profile: str
    base: Trace
    seeds: tuple[int, ...] = (0, 1, 2)
    num_streams: int = 900
    length_scale: float = 0.125
    slo: StreamSlo = READER

    def trace(self, seed: int, rate_qps: float = 1.0) -> Trace:
        """Return `num_streams` of the trace's streams, thinned with `seed`, at a rate."""
        keep = min(1.0, self.num_streams / len(self.base))
        thinned = self.base.thin(keep, np.random.default_rng(seed))
        return thinned.scale_lengths(self.length_scale).rescale_rate(rate_qps)

    def queries(self, seed: int, rate_qps: float) -> list[StreamQuery]:
        """Return the streams of `trace`."""
        return stream_queries(self.trace(seed, rate_qps), self.slo)

    def simulated(self, queries: Sequence[StreamQuery], policy: str) -> list[StreamOutcome]:
        """Serve streams in virtual time; a `StreamRunner`."""
        scheduler = StreamScheduler(self.costs, create_stream_policy(policy, self.costs))
        return simulate_streams(queries, scheduler)

    @property
    def halfway_quality(self) -> float:
        """Halfway between the qualities of the smallest and the largest width."""
        return (self.costs.rungs[0].quality + self.costs.rungs[-1].quality) / 2

    def detail(self, **more: Any) -> dict[str, Any]:
        """Return what a row says of how its figure came."""
        return {
            "profile": self.profile,
            "quality_kind": self.costs.quality_kind,
            "trace": self.base.source,
            "length_scale": self.length_scale,
            "streams_per_seed": self.num_streams,
            "slo": f"ttft {self.slo.ttft_s:g} s + {self.slo.ttft_per_token_s * 1e3:g} ms per "
            f"prompt token, tpot {self.slo.tpot_s:g} s",
            **more,
        }


def drawn_conversation(seed: int = 0, count: int = 4000) -> Trace:
    """Return a drawn trace with the shape of the Azure conversation of 2023, where none is given.

    Gamma arrivals of CV^2 1.2 at 5.5 per second; lognormal lengths with its medians and tails
    (prompts 1,020 and 2,734 at 90 %, outputs 129 and 424).
    """
    rng = np.random.default_rng(seed)
    gaps_s = rng.gamma(1.0 / 1.2, 1.2 / 5.5, count)
    arrival_s = np.cumsum(gaps_s)
    prompts = np.clip(rng.lognormal(np.log(1020.0), 0.77, count), 1, 14_050)
    outputs = np.clip(rng.lognormal(np.log(129.0), 0.93, count), 1, 1000)
    return Trace(
        arrival_s=arrival_s,
        duration_s=float(arrival_s[-1]),
        prompt_tokens=prompts.astype(np.int64),
        output_tokens=outputs.astype(np.int64),
        source="drawn with the shape of the Azure LLM conversation of 2023",
        metadata={"synthetic": True, "seed": seed},
    )


def on_time_share(outcomes: Sequence[StreamOutcome]) -> float:
    """Return the share of streams with a fluidity of 0.9 or more."""
    return sum(outcome.status == "on_time" for outcome in outcomes) / max(len(outcomes), 1)


def mean_fluidity(outcomes: Sequence[StreamOutcome]) -> float:
    """Return the mean fluidity index of all streams."""
    return sum(outcome.fluidity for outcome in outcomes) / max(len(outcomes), 1)


def mean_quality(outcomes: Sequence[StreamOutcome]) -> float:
    """Return the mean quality of all outputs."""
    qualities = [quality for outcome in outcomes for quality in outcome.qualities]
    return sum(qualities) / max(len(qualities), 1)


def skipped(figure: str, reason: str) -> Row:
    """Return the row of a figure that was not measured, which says why."""
    return row(f"streams/{figure}", 0.0, "skipped", reason)
