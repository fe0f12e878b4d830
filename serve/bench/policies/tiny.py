"""The gap to the exact optimum on tiny random instances."""

from __future__ import annotations

from pathlib import Path

from serve.bench.rows import Row, row
from slackfit.bounds.tiny_instances import tiny_instance
from slackfit.profile import LatencyProfile
from traces.simulation.cells import estimate

OURS = "drainfit@expect=0.25@lead=0.25@reserve=1"
_NAMES = (OURS, "drainfit", "slackfit", "slackfit@num_buckets=40", "maxbatch", "maxacc", "infaas")


def rows(profile: Path, count: int) -> list[Row]:
    """Return the mean gap per policy over `count` instances, and the ratio that is asked for."""
    table = LatencyProfile.load(profile)
    instances = [tiny_instance(table, seed) for seed in range(count)]
    optima = [instance.optimum() for instance in instances]
    gaps = {
        name: [best - i.utility(name) for best, i in zip(optima, instances, strict=True)]
        for name in _NAMES
    }
    detail = f"{count} instances, optimum {estimate(optima).mean:.5f}"
    found: list[Row] = []
    for name, values in gaps.items():
        gap = estimate(values)
        text = f"95 % +-{gap.half_width:.5f}; {detail}; least gap {min(values):.6f}"
        found.append(row(f"policies/tiny/gap/{name}", gap.mean, "fraction", text))
    mean = {name: estimate(values).mean for name, values in gaps.items()}
    ratio = mean[OURS] / mean["slackfit"]
    found.append(
        row("policies/bar/tiny_gap_of_slackfits", ratio, "fraction", f"<= 0.5; {OURS}; {detail}")
    )
    separation = f">= 0.05 for the set to tell policies apart; {detail}"
    found.append(row("policies/bar/tiny_gap_of_maxacc", mean["maxacc"], "fraction", separation))
    least = min(min(values) for values in gaps.values())
    found.append(
        row("policies/bar/tiny_least_gap", least, "fraction", ">= 0: no policy exceeds the optimum")
    )
    return found
