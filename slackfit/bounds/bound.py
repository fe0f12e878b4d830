"""How good could any schedule of a trace be? A linear relaxation that bounds its utility.

Every schedule of SuperServe's program (NSDI'25, section 4.1) respects what is kept here: a query
served on time on subnet s in a batch of b takes latency(s, b) / b of one worker's time between its
arrival and its deadline, all workers together have `num_workers` seconds per second, and the
members of a batch must all have arrived when it starts and be due when it ends at the earliest: b
needs b arrivals within a window of SLO - latency(s, b). What is dropped: that a batch is not
preempted, starts at once for all members, and runs on one worker. Time is cut into bins; arrivals
count from the start of their bin, deadlines to the end of theirs, both in favour of the bound.

Cost: one linear program (HiGHS) per 2,048 bins of about (subnets + SLO / bin) variables per bin;
pieces of a trace are bounded on their own and summed, which can only raise the bound.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from slackfit.profile import LatencyProfile

FloatArray = npt.NDArray[np.float64]
_BINS_PER_SLO = 9
_BINS_PER_PROGRAM = 2048


class _Offer(NamedTuple):
    """One way to serve: worker seconds per query, accuracy, batch latency, batch size."""

    cost_s: float
    accuracy: float
    latency_s: float
    size: int


class _Group(NamedTuple):
    """Queries that arrive in one bin with one SLO (rounded up), and how they may be served."""

    first_bin: int
    last_bin: int
    num_queries: int
    hull: tuple[tuple[float, float], ...]  # (worker seconds, accuracy), ascending, concave


def utility_bound(
    arrival_s: FloatArray,
    profile: LatencyProfile,
    *,
    slo_s: float | FloatArray,
    num_workers: int = 1,
    bin_s: float | None = None,
    quantile: str = "p50",
) -> float:
    """Return an upper bound of attainment x mean accuracy over all schedules of this trace.

    `slo_s` is one value or one per arrival; `bin_s` None takes a ninth of the shortest SLO. Valid
    for devices that take what the profile says at `quantile`, or longer. Raises ValueError for
    arrivals that are not sorted, or an SLO or bin that is not positive.
    """
    arrivals = np.asarray(arrival_s, dtype=np.float64)
    slos = np.broadcast_to(np.asarray(slo_s, dtype=np.float64), arrivals.shape)
    if np.any(np.diff(arrivals) < 0):
        raise ValueError("arrival_s must be sorted")
    if not np.all(slos > 0) or (bin_s is not None and not bin_s > 0):
        raise ValueError(f"slo_s and bin_s must be above 0, got slo_s {slo_s} and bin_s {bin_s}")
    if not len(arrivals):
        return 0.0
    width_s = float(slos.min()) / _BINS_PER_SLO if bin_s is None else bin_s
    groups = _groups(arrivals, slos, width_s, _offers(profile, quantile))
    total = 0.0
    piece: list[_Group] = []
    for group in groups:
        if piece and group.first_bin - piece[0].first_bin >= _BINS_PER_PROGRAM:
            total += _solve(piece, num_workers * width_s)
            piece = []
        piece.append(group)
    return (total + _solve(piece, num_workers * width_s)) / len(arrivals)


def _offers(profile: LatencyProfile, quantile: str) -> list[_Offer]:
    rows = profile.table(quantile)
    return [
        _Offer(rows[s.subnet_id][b] / b, s.accuracy, rows[s.subnet_id][b], b)
        for s in profile.subnets
        for b in range(1, profile.max_batch_size + 1)
    ]


def _groups(
    arrivals: FloatArray, slos: FloatArray, width_s: float, offers: Sequence[_Offer]
) -> list[_Group]:
    """Return the queries by bin and SLO, in order of bins."""
    bins = np.floor((arrivals - arrivals[0]) / width_s).astype(np.int64)
    # The least number of bins that surely reaches the deadline from anywhere in the first bin.
    spans = np.ceil(slos / width_s - 1e-9).astype(np.int64)
    keys, counts = np.unique(np.stack([bins, spans], axis=1), axis=0, return_counts=True)
    crowds = _Crowds(arrivals, bins, width_s)
    longest_s = float(slos.max())
    hulls: dict[tuple[int, bytes], tuple[tuple[float, float], ...]] = {}
    latencies = np.array([offer.latency_s for offer in offers])
    sizes = np.array([offer.size for offer in offers])
    most = crowds.most(longest_s - latencies)  # (offers, bins)
    groups: list[_Group] = []
    for (at, span), count in zip(keys.tolist(), counts.tolist(), strict=True):
        possible = (latencies <= span * width_s + 1e-12) & (most[:, at] >= sizes)
        key = (span, possible.tobytes())
        if key not in hulls:
            hulls[key] = _hull([o for o, is_in in zip(offers, possible, strict=True) if is_in])
        groups.append(_Group(at, at + span, count, hulls[key]))
    return groups


class _Crowds:
    """How many arrivals a window can hold that touches a bin."""

    def __init__(self, arrivals: FloatArray, bins: npt.NDArray[np.int64], width_s: float) -> None:
        self._arrivals = arrivals
        self._bins = bins
        self._width_s = width_s

    def most(self, windows_s: FloatArray) -> npt.NDArray[np.int64]:
        """Return, per window length and bin, the largest count of a window that touches it."""
        num_bins = int(self._bins[-1]) + 1
        result = np.zeros((len(windows_s), num_bins), dtype=np.int64)
        known: dict[float, npt.NDArray[np.int64]] = {}
        for row, window_s in zip(result, windows_s.tolist(), strict=True):
            if window_s < 0:
                continue
            if window_s not in known:
                known[window_s] = self._most(window_s, num_bins)
            row[:] = known[window_s]
        return result

    def _most(self, window_s: float, num_bins: int) -> npt.NDArray[np.int64]:
        arrivals = self._arrivals
        # A window may begin at an arrival; a hair wider, for rounding in favour of the bound.
        ends = np.searchsorted(arrivals, arrivals + window_s * (1 + 1e-9) + 1e-12, side="right")
        counts = ends - np.arange(len(arrivals))
        per_bin = np.zeros(num_bins, dtype=np.int64)
        np.maximum.at(per_bin, self._bins, counts)
        most = per_bin.copy()
        for back in range(1, int(np.ceil(window_s / self._width_s)) + 1):
            if back >= num_bins:
                break
            np.maximum(most[back:], per_bin[:-back], out=most[back:])
        return most


def _hull(offers: Sequence[_Offer]) -> tuple[tuple[float, float], ...]:
    """Return the offers on the upper concave hull of (cost, accuracy), from not serving on."""
    hull: list[tuple[float, float]] = [(0.0, 0.0)]
    for cost_s, accuracy, _, _ in sorted(offers):
        if accuracy <= hull[-1][1]:
            continue
        while len(hull) > 1 and _is_below(hull[-2], hull[-1], (cost_s, accuracy)):
            hull.pop()
        hull.append((cost_s, accuracy))
    return tuple(hull[1:])


def _is_below(a: tuple[float, float], b: tuple[float, float], c: tuple[float, float]) -> bool:
    """Whether b lies on or below the line from a to c."""
    return (b[1] - a[1]) * (c[0] - a[0]) <= (c[1] - a[1]) * (b[0] - a[0])


def _solve(groups: Sequence[_Group], supply_s: float) -> float:
    """Return the most accuracy that the groups can get, summed over queries."""
    # Only here: slackfit itself needs numpy alone. By name: scipy has no complete types.
    linprog: Any = import_module("scipy.optimize").linprog
    coo_array: Any = import_module("scipy.sparse").coo_array
    first = groups[0].first_bin
    num_bins = max(group.last_bin for group in groups) - first + 1
    # Rows: a group's queries, a group's work, a bin's supply. Columns: serve so, work then.
    rows: list[int] = []
    columns: list[int] = []
    values: list[float] = []
    gain: list[float] = []

    def entry(row: int, value: float) -> None:
        rows.append(row)
        columns.append(len(gain))
        values.append(value)

    for i, group in enumerate(groups):
        for cost_s, accuracy in group.hull:
            entry(i, 1.0)
            entry(len(groups) + i, cost_s / supply_s)
            gain.append(-accuracy)
        for at in range(group.first_bin - first, group.last_bin - first + 1):
            entry(len(groups) + i, -1.0)  # work in units of one bin's supply
            entry(2 * len(groups) + at, 1.0)
            gain.append(0.0)
    limits = [float(group.num_queries) for group in groups] + [0.0] * len(groups) + [1.0] * num_bins
    matrix = coo_array((values, (rows, columns)), shape=(len(limits), len(gain))).tocsr()
    found = linprog(gain, A_ub=matrix, b_ub=limits, bounds=(0, None), method="highs")
    if found.status != 0:
        raise ArithmeticError(f"the bound's linear program was not solved: {found.message}")
    return -float(found.fun)
