"""Profiles made from a profile: with a fixed cost per batch, and with subnets in between.

SuperServe (NSDI'25) publishes six of its about 1,000 Pareto subnets, and no time outside the GPU.
`densified` stands in for the rest of the front, `with_overhead` for dispatch, copies and launch.
Both say in the new profile's name, `source` and subnet rows what was not measured.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import replace

from slackfit.profile import LatencyProfile, SubnetProfile


def with_overhead(profile: LatencyProfile, overhead_s: float) -> LatencyProfile:
    """Return `profile` with `overhead_s` seconds added to every batch, 0 for no change.

    Raises ValueError for an overhead below 0 or not finite.
    """
    if not 0 <= overhead_s < float("inf"):
        raise ValueError(f"overhead_s is {overhead_s}, allowed a finite time of 0 or more")
    if overhead_s == 0:
        return profile
    subnets = tuple(
        replace(s, latency_s={q: tuple(t + overhead_s for t in r) for q, r in s.latency_s.items()})
        for s in profile.subnets
    )
    added = f"{overhead_s * 1e3:g} ms per batch added to every latency (assumed, not measured)"
    return replace(
        profile,
        name=f"{profile.name}+{overhead_s * 1e3:g}ms",
        source=f"{profile.source} {added}.".strip(),
        subnets=subnets,
    )


def densified(profile: LatencyProfile, num_subnets: int) -> LatencyProfile:
    """Return the Pareto set of `profile` with interpolated subnets, evenly spaced in accuracy.

    The measured subnets stay; `num_subnets` less their number more are spaced evenly over their
    range of accuracy, and those that fall on a measured one (the ends always do) are left out, so
    6 measured subnets densified to 66 make 64. Latency and MACs are linear in accuracy between
    neighbours. A new subnet's id starts with `interpolated-` and ends in its accuracy in percent,
    and its row has `interpolated: true`.

    Raises ValueError unless `num_subnets` is more than the measured ones, of which two are needed.
    """
    measured = profile.pareto().subnets
    if len(measured) < 2 or num_subnets < len(measured) + 2:
        raise ValueError(
            f"num_subnets is {num_subnets} for {len(measured)} measured Pareto subnets; allowed "
            f"{max(len(measured), 2) + 2} or more, between at least 2 measured ones"
        )
    accuracies = [s.accuracy for s in measured]
    steps = num_subnets - len(measured) - 1
    low, high = accuracies[0], accuracies[-1]
    grid = {round(low + (high - low) * i / steps, 9) for i in range(1, steps)} - set(accuracies)
    made = tuple(_between(measured, accuracies, accuracy) for accuracy in sorted(grid))
    return replace(
        profile,
        name=f"{profile.name}-dense{len(measured) + len(made)}",
        source=f"{profile.source} {len(made)} subnets interpolated (not measured).".strip(),
        subnets=measured + made,
    )


def _between(
    measured: tuple[SubnetProfile, ...], accuracies: list[float], accuracy: float
) -> SubnetProfile:
    """Return a subnet of the given accuracy between its two measured neighbours."""
    at = bisect_right(accuracies, accuracy) - 1
    low, high = measured[at], measured[at + 1]
    share = (accuracy - low.accuracy) / (high.accuracy - low.accuracy)
    return SubnetProfile(
        subnet_id=f"interpolated-{accuracy * 100:.4f}",
        accuracy=accuracy,
        macs=round(low.macs + (high.macs - low.macs) * share),
        latency_s=_mix(low.latency_s, high.latency_s, share),
        extra={"interpolated": True},
    )


def _mix(
    low: Mapping[str, tuple[float, ...]], high: Mapping[str, tuple[float, ...]], share: float
) -> dict[str, tuple[float, ...]]:
    return {
        quantile: tuple(a + (b - a) * share for a, b in zip(low[quantile], row, strict=True))
        for quantile, row in high.items()
        if quantile in low
    }
