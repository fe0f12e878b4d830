"""The best possible schedule of a tiny instance, by integer programming.

SuperServe's program (NSDI'25, equation 1) picks sets of queries; its slips are put right here: a
device runs one batch at a time whatever the subnet (1b sums over subnets too), and a batch starts
after the *latest* arrival in it (1c). Sets are not enumerated: n[s, b, t] batches of size b start
on subnet s at time t, x[q, s, b, t] says that query q is in one of them. With n whole, x is a
transportation problem, so it needs no integrality; identical workers need no numbers, since
intervals of which at most m overlap can be coloured with m colours.

Exact for instances on a grid: arrivals, deadlines and latencies are whole numbers of ticks, and
with those a best schedule starts its batches on ticks. Exponential at worst: for tens of queries.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import Any, NamedTuple

import numpy as np


class TinyQuery(NamedTuple):
    """A query in ticks: it may start at `arrival` and must end by `deadline`."""

    arrival: int
    deadline: int


def optimal_utility(
    queries: Sequence[TinyQuery],
    latency: Sequence[Sequence[int]],
    accuracy: Sequence[float],
    *,
    num_workers: int = 1,
    time_limit_s: float = 60.0,
) -> float:
    """Return the largest attainment x mean accuracy of any schedule (0 without queries).

    `latency[s][b]` is what subnet s takes for a batch of b, in ticks (entry 0 is not read). Raises
    ArithmeticError when the solver gives up within `time_limit_s`.
    """
    if not queries:
        return 0.0
    program = _IntegerProgram(queries, latency, accuracy, num_workers)
    return program.solve(time_limit_s) / len(queries)


class _IntegerProgram:
    """The rows and columns of the integer program."""

    def __init__(
        self,
        queries: Sequence[TinyQuery],
        latency: Sequence[Sequence[int]],
        accuracy: Sequence[float],
        num_workers: int,
    ) -> None:
        self._rows: list[int] = []
        self._columns: list[int] = []
        self._values: list[float] = []
        self._gain: list[float] = []
        self._is_whole: list[int] = []
        self._upper: list[float] = []
        begin, end = min(q.arrival for q in queries), max(q.deadline for q in queries)
        num_ticks = end - begin
        # Rows: each query once, then the workers at each tick, then the places in each batch.
        self._limits = [1.0] * len(queries) + [float(num_workers)] * max(num_ticks, 0)
        for subnet, row in enumerate(latency):
            for size in range(1, len(row)):
                for start in range(begin, end - row[size] + 1):
                    fitting = [
                        i
                        for i, q in enumerate(queries)
                        if q.arrival <= start and start + row[size] <= q.deadline
                    ]
                    if len(fitting) >= size:  # else a smaller batch is no slower
                        ticks = range(start - begin, start - begin + row[size])
                        shifted = [len(queries) + tick for tick in ticks]
                        self._add(accuracy[subnet], size, fitting, shifted, num_workers)

    def _add(
        self, accuracy: float, size: int, fitting: list[int], ticks: list[int], num_workers: int
    ) -> None:
        places = len(self._limits)
        self._limits.append(0.0)
        self._column(0.0, {**dict.fromkeys(ticks, 1.0), places: -float(size)}, num_workers)
        for query in fitting:
            self._column(-accuracy, {query: 1.0, places: 1.0}, 0)

    def _column(self, gain: float, entries: dict[int, float], whole_up_to: int) -> None:
        self._rows += entries.keys()
        self._values += entries.values()
        self._columns += [len(self._gain)] * len(entries)
        self._gain.append(gain)
        self._is_whole.append(int(whole_up_to > 0))
        self._upper.append(float(whole_up_to or 1))

    def solve(self, time_limit_s: float) -> float:
        """Return the sum of accuracies."""
        # Only here: slackfit itself needs numpy alone. By name: scipy has no complete types.
        optimize: Any = import_module("scipy.optimize")
        coo_array: Any = import_module("scipy.sparse").coo_array
        if not self._gain:
            return 0.0
        shape = (len(self._limits), len(self._gain))
        matrix = coo_array((self._values, (self._rows, self._columns)), shape=shape).tocsr()
        found = optimize.milp(
            np.array(self._gain),
            constraints=optimize.LinearConstraint(matrix, ub=np.array(self._limits)),
            integrality=np.array(self._is_whole),
            bounds=optimize.Bounds(0, np.array(self._upper)),
            options={"time_limit": time_limit_s, "mip_rel_gap": 1e-6},
        )
        if found.status != 0:
            raise ArithmeticError(f"the optimum was not found: {found.message}")
        return -float(found.fun)
