"""The gap to the exact optimum on tiny random instances."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from slackfit.bounds.tiny_instances import tiny_instance
from slackfit.profile import LatencyProfile
from traces.simulation.cells import estimate

OURS = "drainfit@expect=0.25@lead=0.25@reserve=1"
_NAMES = (OURS, "drainfit", "slackfit", "slackfit@num_buckets=40", "maxbatch", "maxacc", "infaas")


def rows(profile: Path, count: int) -> list[dict[str, Any]]:
    """Return the mean gap per policy over `count` instances, and the ratio that is asked for."""
    table = LatencyProfile.load(profile)
    instances = [tiny_instance(table, seed) for seed in range(count)]
    optima = [instance.optimum() for instance in instances]
    gaps = {
        name: [best - i.utility(name) for best, i in zip(optima, instances, strict=True)]
        for name in _NAMES
    }
    detail = f"{count} instances, optimum {estimate(optima).mean:.5f}"
    found: list[dict[str, Any]] = []
    for name, values in gaps.items():
        gap = estimate(values)
        text = f"95 % +-{gap.half_width:.5f}; {detail}; least gap {min(values):.6f}"
        found.append(_row(f"policies/tiny/gap/{name}", gap.mean, text))
    mean = {name: estimate(values).mean for name, values in gaps.items()}
    ratio = mean[OURS] / mean["slackfit"]
    found.append(_row("policies/bar/tiny_gap_of_slackfits", ratio, f"<= 0.5; {OURS}; {detail}"))
    separation = f">= 0.05 for the set to tell policies apart; {detail}"
    found.append(_row("policies/bar/tiny_gap_of_maxacc", mean["maxacc"], separation))
    least = min(min(values) for values in gaps.values())
    found.append(_row("policies/bar/tiny_least_gap", least, ">= 0: no policy exceeds the optimum"))
    return found


def _row(figure: str, value: float, detail: str) -> dict[str, Any]:
    return {"figure": figure, "value": round(value, 6), "unit": "fraction", "detail": detail}
