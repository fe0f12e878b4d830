"""One report from the outcomes of streams, simulated or live: `metrics` and what streams add.

A stream is on time when its fluidity index is 0.9 or more, so `slo_attainment` is the share of
streams that were; its accuracy is the mean quality of its outputs. With one output per stream this
is the report of `metrics`. Times are seconds unless a key says `_ms`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from slackfit.metrics import summarize
from slackfit.query import Outcome
from slackfit.streams.fluidity import StreamTimeline, fluid_token_rate
from slackfit.streams.stream_query import FLUENT, StreamOutcome

Floats = npt.NDArray[np.float64]
_QUANTILES = (50, 95, 99, 100)
_NAMES = ("p50", "p95", "p99", "max")


def summarize_streams(
    outcomes: Sequence[StreamOutcome],
    *,
    policy: str,
    quality_kind: str,
    duration_s: float,
    seed: int | None,
    profile: str,
    wall_s: float | None = None,
    **extra: Any,
) -> dict[str, Any]:
    """Return the report of one run as plain data, ready for JSON.

    Besides the keys of `metrics.summarize`: `fluidity` and `weighted_fluidity` (means over all
    streams that arrived; one that did not complete counts 0), `fluid_tokens_per_s` (that 0.99 of
    the complete ones sustain), `ttft_ms` and `gap_ms` quantiles, `mean_quality` over all outputs
    and its `quality_kind`, `outputs`, `outputs_per_s`, `preemptions`, `relegated`. `subnets` counts
    outputs, `outputs_over_time` in the bins of the series. Raises ValueError as
    `metrics.summarize`.
    """
    report = summarize(
        [as_outcome(outcome) for outcome in outcomes],
        policy=policy,
        slo_s=_median([o.query.first_deadline_s - o.query.arrival_s for o in outcomes]),
        duration_s=duration_s,
        seed=seed,
        profile=profile,
        wall_s=wall_s,
        **extra,
    )
    report["kind"] = "streams"
    report["batch_sizes"] = {}
    report["subnets"] = _subnets(outcomes)
    report["streams"] = {
        **_stream_figures(outcomes, quality_kind, duration_s),
        "outputs_over_time": _outputs_over_time(outcomes, report["series"]),
    }
    return report


def as_outcome(outcome: StreamOutcome) -> Outcome:
    """Return a stream's outcome as that of a query: the width of most outputs, their mean quality.

    Its deadline is that of the first output.
    """
    ids = Counter(outcome.subnet_ids).most_common(1)
    qualities = outcome.qualities
    return Outcome(
        query_id=outcome.query_id,
        status=outcome.status,
        reason=outcome.reason,
        arrival_s=outcome.query.arrival_s,
        deadline_s=outcome.query.first_deadline_s,
        start_s=outcome.start_s,
        finish_s=outcome.finish_s,
        subnet_id=ids[0][0] if ids else None,
        accuracy=sum(qualities) / len(qualities) if qualities else 0.0,
        batch_size=1,
        worker_id=0 if ids else None,
    )


def gaps_s(outcomes: Sequence[StreamOutcome]) -> Floats:
    """Return the seconds between consecutive outputs of the same stream, over all streams."""
    parts = [np.diff(outcome.output_s) for outcome in outcomes if len(outcome.output_s) > 1]
    return np.concatenate(parts) if parts else np.zeros(0)


def first_output_s(outcomes: Sequence[StreamOutcome]) -> Floats:
    """Return the seconds from arrival to the first output, of the streams that had one."""
    return np.array([o.output_s[0] - o.query.arrival_s for o in outcomes if o.output_s])


def _stream_figures(
    outcomes: Sequence[StreamOutcome], quality_kind: str, duration_s: float
) -> dict[str, Any]:
    qualities = [quality for outcome in outcomes for quality in outcome.qualities]
    complete = [outcome for outcome in outcomes if outcome.is_complete]
    timelines = [StreamTimeline(o.query.first_deadline_s, o.output_s) for o in complete]
    count = max(len(outcomes), 1)
    return {
        "fluidity": sum(outcome.fluidity for outcome in outcomes) / count,
        "weighted_fluidity": sum(outcome.weighted_fluidity for outcome in outcomes) / count,
        "least_fluidity_on_time": FLUENT,
        "fluid_tokens_per_s": fluid_token_rate(timelines, precision=1e-2),
        "ttft_ms": _quantiles_ms(first_output_s(outcomes)),
        "gap_ms": _quantiles_ms(gaps_s(outcomes)),
        "mean_quality": sum(qualities) / max(len(qualities), 1),
        "quality_kind": quality_kind,
        "outputs": len(qualities),
        "outputs_per_s": len(qualities) / duration_s,
        "preemptions": sum(outcome.preemptions for outcome in outcomes),
        "relegated": sum(outcome.relegated for outcome in outcomes),
    }


def _quantiles_ms(values_s: Floats) -> dict[str, float | None]:
    if not len(values_s):
        return dict.fromkeys(_NAMES)
    found = np.percentile(values_s, _QUANTILES) * 1e3
    return dict(zip(_NAMES, found.tolist(), strict=True))


def _subnets(outcomes: Sequence[StreamOutcome]) -> dict[str, dict[str, float]]:
    """Return per width its outputs (as `queries`) and quality, in order of (quality, id)."""
    counts: Counter[tuple[float, str]] = Counter()
    iterations: dict[str, set[float]] = {}
    for outcome in outcomes:
        counts.update(zip(outcome.qualities, outcome.subnet_ids, strict=True))
        for subnet_id, output_s in zip(outcome.subnet_ids, outcome.output_s, strict=True):
            iterations.setdefault(subnet_id, set()).add(output_s)
    return {
        subnet_id: {"queries": n, "batches": len(iterations[subnet_id]), "accuracy": quality}
        for (quality, subnet_id), n in sorted(counts.items())
    }


def _outputs_over_time(
    outcomes: Sequence[StreamOutcome], series: dict[str, Any]
) -> dict[str, list[int]]:
    """Return how many outputs each width computed in each bin of the series."""
    bins = len(series["t_s"])
    times: dict[str, list[float]] = {}
    for outcome in outcomes:
        for subnet_id, output_s in zip(outcome.subnet_ids, outcome.output_s, strict=True):
            times.setdefault(subnet_id, []).append(output_s)
    return {
        subnet_id: np.bincount(
            np.clip((np.array(times[subnet_id]) / series["bin_s"]).astype(np.int64), 0, bins - 1),
            minlength=bins,
        ).tolist()
        for subnet_id in _subnets(outcomes)
    }


def _median(values: Sequence[float]) -> float:
    return float(np.median(values)) if values else 0.0
