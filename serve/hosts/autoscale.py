"""Autoscaling on predicted misses and served accuracy: how many replicas, and Ray Serve's policy.

Accuracy bends within milliseconds; a replica takes seconds to come. So replicas follow what bending
costs: they are added when queries miss their deadlines, or when more accuracy is given up than is
tolerated, up to as many as would serve everything on the best subnet. One is taken away only when
the rest could do all that with room to spare. Between the two nothing happens.

Ray holds a change back until it has lasted for `upscale_delay_s` or `downscale_delay_s`, and within
`min_replicas` and `max_replicas`. This module imports nothing of Ray: the controller calls it with
what the replicas' `record_autoscaling_stats` returned.
"""

from __future__ import annotations

import math
from typing import Any

from serve.observe.demand import Signals

PREFIX = "supernet_"


def wanted_replicas(
    signals: Signals,
    current: int,
    *,
    max_missed: float = 0.01,
    max_given_up: float = 0.02,
    utilisation: float = 0.8,
    margin: float = 0.7,
) -> int:
    """Return how many replicas should serve what `signals` (of all replicas together) say.

    `max_missed`: tolerated share of queries that are not on time. `max_given_up`: tolerated mean
    loss of accuracy. `utilisation`: how busy a device may be. `margin`: a replica leaves when the
    others would be less busy than this share of `utilisation`, on the best subnet.
    """
    if signals.arrived <= 0.0:
        return 1
    missed = signals.missed / signals.arrived
    given_up = signals.given_up / signals.arrived
    for_best = max(1, math.ceil(signals.work_best / utilisation))
    for_least = max(1, math.ceil(signals.work_least / utilisation))
    if missed > max_missed and signals.work_best > utilisation * 0.5 * current:
        # Misses on a device that has time to spare would not be cured by another one.
        return max(current + 1, for_least)
    if given_up > max_given_up and for_best > current:
        return for_best
    is_calm = missed <= max_missed / 2 and given_up <= max_given_up / 2
    if is_calm and current > 1:
        with_room = max(1, math.ceil(signals.work_best / (utilisation * margin)))
        return min(current, with_room)
    return current


def combined(by_metric: dict[str, dict[Any, float]]) -> Signals:
    """Add up what the replicas report: {metric: {replica: mean over the look-back period}}."""
    return Signals(*(sum(by_metric.get(PREFIX + f, {}).values()) for f in Signals._fields))


def reported(signals: Signals) -> dict[str, float]:
    """Return what a replica's `record_autoscaling_stats` returns."""
    return {PREFIX + name: float(value) for name, value in signals._asdict().items()}


class MissPolicy:
    """Ray Serve's autoscaling policy; keyword arguments are those of `wanted_replicas`."""

    def __init__(self, **tolerances: float) -> None:
        self._tolerances = tolerances

    def __call__(self, context: Any) -> tuple[int, dict[str, Any]]:
        """Return the wanted number of replicas and the state to keep (none)."""
        by_metric = context.aggregated_metrics or {}
        if not context.current_num_replicas or not by_metric.get(PREFIX + "arrived"):
            return context.target_num_replicas, {}  # nobody has reported yet
        signals = combined(by_metric)
        return wanted_replicas(signals, context.current_num_replicas, **self._tolerances), {}
