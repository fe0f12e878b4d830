"""Capacity and overload, simulated: ours against a fixed width, Niyama, Sarathi."""

from __future__ import annotations

from typing import NamedTuple

from serve.bench.rows import Row, Tell, row
from serve.bench.streams.setting import (
    OURS,
    RIVALS,
    SARATHIS,
    StreamSetting,
    mean_fluidity,
    mean_quality,
    on_time_share,
)
from traces.simulation.capacity import Goal, find_capacity
from traces.simulation.cells import estimate
from traces.trace import Trace

GOAL = Goal("attainment", 0.99)
OVERLOAD = 1.5
_BARS = {"fixed_largest": 1.25, "niyama": 1.2, "sarathi": 1.2}


class StreamCapacity(NamedTuple):
    """The highest rate at which 0.99 of the streams have a fluidity of 0.9, and the quality."""

    rate_qps: float
    quality: float


def capacity_of(setting: StreamSetting, policy: str, seed: int) -> StreamCapacity:
    """Find a policy's capacity on one seed's streams; ours must keep halfway quality there."""
    floor = setting.halfway_quality if policy.startswith(OURS) else 0.0
    quality: dict[float, float] = {}

    def measure(trace: Trace) -> float:
        outcomes = setting.simulated(setting.queries(seed, trace.rate_qps), policy)
        quality[trace.rate_qps] = mean_quality(outcomes)
        return on_time_share(outcomes) if quality[trace.rate_qps] >= floor else 0.0

    found = find_capacity(setting.trace(seed), GOAL, measure, precision=0.02)
    at = min(quality, key=lambda rate: abs(rate - found.rate_qps))
    return StreamCapacity(found.rate_qps, quality[at])


def capacity_rows(setting: StreamSetting, tell: Tell) -> tuple[list[Row], float]:
    """Return the figures of capacity, and ours as the mean over seeds (streams per second)."""
    found: dict[str, list[StreamCapacity]] = {}
    for policy in (OURS, "fixed:largest", "fixed:smallest", "niyama", *SARATHIS):
        found[policy] = [capacity_of(setting, policy, seed) for seed in setting.seeds]
        tell(f"{policy}: {[round(c.rate_qps, 3) for c in found[policy]]} streams/s")
    best = max(SARATHIS, key=lambda name: sum(c.rate_qps for c in found[name]))
    ours = found[OURS]
    against = {"fixed_largest": "fixed:largest", "niyama": "niyama", "sarathi": best}
    rows = [
        row(
            f"streams/capacity/{name}",
            estimate(c.rate_qps for c in found[policy]).mean,
            "streams/s",
            setting.detail(policy=policy, quality=estimate(c.quality for c in found[policy]).mean),
        )
        for name, policy in (("ours", OURS), ("fixed_smallest", "fixed:smallest"), *against.items())
    ]
    quality = estimate(c.quality for c in ours)
    for name, policy in against.items():
        ratios = [a.rate_qps / b.rate_qps for a, b in zip(ours, found[policy], strict=True)]
        ratio = estimate(ratios)
        rows.append(
            row(
                f"streams/capacity_over_{name}",
                ratio.mean,
                "ratio",
                setting.detail(
                    interval_95=f"+-{ratio.half_width:.3f}",
                    per_seed=[round(value, 3) for value in ratios],
                    rival=policy,
                    quality=round(quality.mean, 4),
                    least_quality=round(setting.halfway_quality, 4),
                    bar=_BARS[name],
                ),
            )
        )
    return rows, estimate(c.rate_qps for c in ours).mean


def overload_rows(setting: StreamSetting, capacity_qps: float, tell: Tell) -> list[Row]:
    """Return ours less each rival, fluidity and on-time share, at 1.5 times our capacity."""
    rate_qps = OVERLOAD * capacity_qps
    runs = {
        policy: [
            setting.simulated(setting.queries(seed, rate_qps), policy) for seed in setting.seeds
        ]
        for policy in (OURS, *RIVALS, "fixed:smallest", *SARATHIS)
    }
    tell(f"overload at {rate_qps:.2f} streams/s")
    rows: list[Row] = []
    for policy in runs:
        if policy == OURS:
            continue
        for name, figure in (("fluidity", mean_fluidity), ("on_time", on_time_share)):
            pairs = list(zip(runs[OURS], runs[policy], strict=True))
            difference = estimate(figure(ours) - figure(rival) for ours, rival in pairs)
            rows.append(
                row(
                    f"streams/overload/{name}_above/{policy}",
                    difference.mean,
                    "difference",
                    setting.detail(
                        interval_95=f"+-{difference.half_width:.3f}",
                        ours=[round(figure(ours), 4) for ours, _ in pairs],
                        rival=[round(figure(rival), 4) for _, rival in pairs],
                        quality_ours=round(
                            estimate(mean_quality(ours) for ours, _ in pairs).mean, 4
                        ),
                        quality_rival=round(
                            estimate(mean_quality(rival) for _, rival in pairs).mean, 4
                        ),
                        rate_qps=round(rate_qps, 3),
                        bar="not below 0 by more than the interval",
                    ),
                )
            )
    return rows
