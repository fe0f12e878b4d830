"""Simulation by machine code where that can be: the same outcomes, a hundred times sooner.

`simulate_columns` is `slackfit.simulation.simulate.simulate` with arrays for outcomes; it says by
which path they came. `CompiledRun` takes arrivals in pieces and keeps counts alone.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from slackfit.compiled.end_codes import FAILED, REASONS
from slackfit.compiled.forms import policy_form
from slackfit.compiled.setup import make_hardware, make_setup, why_not
from slackfit.compiled.state import (
    FIRST,
    HISTORY_FIRST,
    HISTORY_LAST,
    LAST,
    Arriving,
    Queue,
    State,
    new_queue,
    new_results,
    new_state,
)
from slackfit.outcome_columns import OutcomeColumns
from slackfit.policy import Policy
from slackfit.profile import LatencyProfile
from slackfit.query import STATUSES
from slackfit.simulation.devices import AS_PROFILED, DeviceModel
from slackfit.simulation.simulate import check_queries, simulate

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
_NONE = np.zeros(0, np.int64)
_MOST_KEPT = 2**31 - 1  # queries whose outcomes are kept


class Simulated(NamedTuple):
    """Outcomes, and by which path: `why` is empty for machine code, else why it was Python."""

    columns: OutcomeColumns
    why: str

    @property
    def path(self) -> str:
        """`compiled` or `python`."""
        return "python" if self.why else "compiled"


def simulate_columns(
    arrival_s: Floats,
    profile: LatencyProfile,
    policy: Policy,
    *,
    slo_s: float | Floats,
    num_workers: int = 1,
    seed: int = 0,
    devices: DeviceModel = AS_PROFILED,
    drop_hopeless: bool | None = None,
    query_class: npt.NDArray[np.int64] | None = None,
    min_accuracy: float | Floats = 0.0,
    progress: Callable[[int, int], None] | None = None,
) -> Simulated:
    """Serve every arrival in virtual time; row i of the columns is arrival i.

    Options and errors are those of `simulate`; what has no compiled form runs there.
    """
    why = why_not(policy, profile, devices)
    if why:
        outcomes = simulate(
            arrival_s, profile, policy, slo_s=slo_s, num_workers=num_workers, seed=seed,
            devices=devices, drop_hopeless=drop_hopeless, query_class=query_class,
            min_accuracy=min_accuracy, progress=progress,
        )  # fmt: skip
        return Simulated(OutcomeColumns.of(outcomes), why)
    queries = check_queries(arrival_s, slo_s, min_accuracy, query_class)
    run = CompiledRun(
        profile, policy, num_workers=num_workers, seed=seed, devices=devices,
        drop_hopeless=drop_hopeless, has_floors=bool(np.any(np.asarray(min_accuracy) > 0.0)),
        has_classes=query_class is not None and bool(np.any(query_class)),
        keep=len(queries.arrival_s),
    )  # fmt: skip
    deadline_s = queries.arrival_s + queries.slo_s
    run.serve(queries.arrival_s, deadline_s, queries.min_accuracy, queries.query_class)
    if progress:
        progress(len(queries.arrival_s), len(queries.arrival_s))
    return Simulated(run.columns(queries.arrival_s, deadline_s), "")


class CompiledRun:
    """One simulation under way that is not `why_not`; arrivals come in pieces, in order.

    With `keep` the outcomes of so many queries are kept, for `columns`. Without, memory is flat in
    the trace's length, and `on_time` has the on-time queries by (block of `block_s` seconds of
    arrivals, subnet).
    """

    def __init__(
        self,
        profile: LatencyProfile,
        policy: Policy,
        *,
        num_workers: int = 1,
        seed: int = 0,
        devices: DeviceModel = AS_PROFILED,
        drop_hopeless: bool | None = None,
        has_floors: bool = False,
        has_classes: bool = False,
        keep: int | None = None,
        block_s: float = float("inf"),
        num_blocks: int = 1,
    ) -> None:
        """Begin at time 0. Raises ValueError for bad devices, a count below 1, too many to keep."""
        if keep is not None and keep > _MOST_KEPT:
            raise ValueError(f"outcomes of {keep} queries can't be kept, allowed {_MOST_KEPT}")
        setup = make_setup(
            profile, policy, num_workers=num_workers, drop_hopeless=drop_hopeless,
            has_floors=has_floors, has_classes=has_classes, keeps_columns=keep is not None,
            block_s=block_s,
        )  # fmt: skip
        hardware = make_hardware(profile, devices.under(policy), num_workers=num_workers, seed=seed)
        self._profile = profile
        self._accuracies = np.array([subnet.accuracy for subnet in profile.subnets])
        self._setup = setup
        self._keep = keep
        self._how = (setup, policy_form(policy, profile, has_floors=has_floors), hardware)
        self._results = new_results(setup, keep or 0, num_blocks)
        self._state: State | None = None
        self._remembered: Floats = np.zeros(0)
        self._count = 0
        self._kernel: Any = import_module("slackfit.compiled.driver_kernel")

    @property
    def num_fed(self) -> int:
        """How many queries have arrived."""
        return self._count

    def feed(
        self,
        arrival_s: Floats,
        deadline_s: Floats,
        min_accuracy: Floats | None = None,
        query_class: Ints | None = None,
    ) -> None:
        """Go on until the last of these has arrived; they are sorted, and follow those before."""
        self._run(arrival_s, deadline_s, min_accuracy, query_class, is_last=False)

    def finish(self) -> None:
        """Go on until every query has ended."""
        nothing = np.zeros(0)
        self._run(nothing, nothing, None, None, is_last=True)

    def serve(
        self, arrival_s: Floats, deadline_s: Floats, min_accuracy: Floats, query_class: Ints
    ) -> None:
        """Feed these and finish: one call, of which each takes a third of a millisecond."""
        self._run(arrival_s, deadline_s, min_accuracy, query_class, is_last=True)

    def _run(
        self,
        arrival_s: Floats,
        deadline_s: Floats,
        min_accuracy: Floats | None,
        query_class: Ints | None,
        *,
        is_last: bool,
    ) -> None:
        state = self._with_room(len(arrival_s))
        begin = self._forget(state)
        arrivals_s = _after(self._remembered, arrival_s)
        arriving = Arriving(
            arrivals_s,
            _after(np.zeros(begin), deadline_s),
            _NONE
            if min_accuracy is None or not self._setup.has_floors
            else _after(np.zeros(begin, np.int64), self._floors(min_accuracy)),
            _NONE
            if query_class is None or not self._setup.has_classes
            else _after(np.zeros(begin, np.int64), query_class),
        )
        self._kernel.run(
            *self._how, state, self._results, arriving, begin, self._count, is_last
        )  # fmt: skip
        self._count += len(arrival_s)
        self._remembered = arrivals_s

    @property
    def on_time(self) -> Ints:
        """Counts of on-time queries, (blocks, subnets)."""
        return self._results.on_time

    @property
    def statuses(self) -> dict[str, int]:
        """Counts of all queries that have ended, by status."""
        return dict(zip(STATUSES, self._results.statuses.tolist(), strict=True))

    @property
    def accuracies(self) -> Floats:
        """Of the subnets, ascending."""
        return self._accuracies

    def columns(self, arrival_s: Floats, deadline_s: Floats) -> OutcomeColumns:
        """Return the outcomes that were kept; these are the queries' times again."""
        results = self._results
        count = len(arrival_s)
        # The last one is that of no subnet, -1.
        accuracy = np.append(self._accuracies, 0.0)[results.subnet]
        if results.statuses[FAILED]:
            accuracy[results.status == FAILED] = 0.0
        return OutcomeColumns(
            query_id=np.arange(count),
            status=results.status,
            reason=results.reason,
            reasons=REASONS,
            arrival_s=arrival_s,
            deadline_s=deadline_s,
            start_s=results.start_s,
            finish_s=results.finish_s,
            subnet=results.subnet,
            subnet_ids=self._profile.subnet_ids,
            accuracy=accuracy,
            batch_size=results.size,
            worker=results.worker,
            samples=np.ones(count, dtype=np.int32),
        )

    def _floors(self, min_accuracy: Floats) -> Ints:
        """Return 0 for no floor, else one more than the least accurate subnet that it allows."""
        places = np.searchsorted(self._accuracies, min_accuracy, side="left").astype(np.int64)
        return np.where(min_accuracy > 0.0, places + 1, 0)

    def _with_room(self, count: int) -> State:
        """Return the state with room for `count` more that wait."""
        if self._state is None:
            self._state = new_state(self._setup, count, self._keep)
            return self._state
        state = self._state
        first, last = int(state.i[FIRST]), int(state.i[LAST])
        waiting = last - first
        old = state.queue
        room = len(old.deadline_s)
        queue = old if room >= waiting + count else new_queue(2 * (waiting + count))
        for column, before in zip(queue, old, strict=True):
            column[:waiting] = before[first:last].copy()
        state.i[[FIRST, LAST]] = 0, waiting
        self._state = state._replace(queue=Queue(*queue))
        return self._state

    def _forget(self, state: State) -> int:
        """Keep the arrivals that are still remembered only; return how many these are."""
        first, last = int(state.i[HISTORY_FIRST]), int(state.i[HISTORY_LAST])
        self._remembered = self._remembered[first:last]
        state.i[[HISTORY_FIRST, HISTORY_LAST]] = 0, last - first
        return last - first


def _after(before: npt.NDArray[Any], values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return the values after those before, in one piece of memory that may be written to.

    Numba compiles another form, half a minute of work, for arrays that are read only.
    """
    if not len(before):
        return np.require(values, before.dtype, ["C", "W"])
    return np.concatenate([before, values]).astype(before.dtype, copy=False)
