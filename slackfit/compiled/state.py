"""What the kernels work on: named tuples of arrays, and the places of single numbers in them.

Machine code can't hold objects of ours, so a run's state is arrays. S subnets, B the largest batch,
W workers, Q places in the queue, N queries. Counts are int64, times float64 seconds; a floor is 0
for none, else one more than the index of the least accurate subnet that it allows.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from slackfit.compiled.end_codes import REASONS
from slackfit.compiled.forms import Floats, Ints
from slackfit.policies.drainfit import BEYOND_SLOS, QUEUE_DEMANDS
from slackfit.query import STATUSES
from slackfit.scheduling.triage import LOOK_AT
from slackfit.scheduling.wishes import MAX_TIMES

# Places of single numbers in `State.f`.
(NOW, SLO_NOW, SLO_BEFORE, SLO_UNTIL, TIGHTEST, NEXT_FINISH, MEMO_SLO, CREDIT, WINDOW, BEGIN,
 UNTIL, RATE, FANO, MEAN, NUM_FLOATS) = range(15)  # fmt: skip

# Places of single numbers in `State.i`. The queue's entries are `FIRST` to `LAST`, the remembered
# arrivals `HISTORY_FIRST` to `HISTORY_LAST`.
(FIRST, LAST, HISTORY_FIRST, HISTORY_LAST, NUM_WINDOWS, HAS_MEMO, NUM_ALIVE, NUM_RUNNING,
 NUM_DISPATCHED, EVENT, NUM_FLOORED, NEXT_WORKER, NUM_GROUPS, NUM_INTS) = range(14)  # fmt: skip

FREE, BUSY, RETIRED = range(3)

NO_WISH, PLAIN_WISH = -2, -1
"""Wishes of a decision that are not a group's."""


class Setup(NamedTuple):
    """What a scheduler knows: latencies (S, B + 1), and the fastest subnet by (floor, size)."""

    latency_s: Floats
    fastest_of: Ints
    fastest_s: Floats  # by batch size
    full: int
    capacity_qps: float
    num_workers: int
    max_batch: int
    drops: bool
    triages: bool
    has_floors: bool
    has_classes: bool
    keeps_columns: bool
    block_s: float  # of arrivals that are counted together


class Hardware(NamedTuple):
    """What devices add; empty arrays for what they do not. Events in order of their happening."""

    overhead_s: float
    tables_s: Floats  # (W, S, B + 1)
    residuals: Floats
    levels: Floats
    noise_s: Floats  # (levels, S, B + 1)
    switch_s: Floats  # (S)
    seed: int
    event_s: Floats
    event_worker: Ints
    event_factor: Floats  # 0: it fails


class Arriving(NamedTuple):
    """The queries of a piece, after the arrivals that are still remembered."""

    arrival_s: Floats
    deadline_s: Floats
    floor: Ints
    query_class: Ints


class Queue(NamedTuple):
    """The waiting queries, earliest deadline first."""

    deadline_s: Floats
    arrival_s: Floats
    number: Ints
    floor: Ints
    query_class: Ints


class Slots(NamedTuple):
    """The workers (W) and the queries of their batches (W, B)."""

    status: Ints
    until_s: Floats  # as policies see it
    loaded: Ints  # subnet, -1 for none
    finish_s: Floats
    batch: Ints
    subnet: Ints
    size: Ints
    start_s: Floats
    factor: Floats
    has_run: Ints
    deadlines_s: Floats
    arrivals_s: Floats
    numbers: Ints


class Groups(NamedTuple):
    """Queries with a floor by the subnet that it names; `order` is that of the first to come.

    `seen`, `head_s` (the deadline of the most urgent) and `rate_qps` are what the policy is shown.
    """

    order: Ints
    known: Ints
    waiting: Ints
    times_s: Floats  # (S, K): rings of the last arrivals
    begin: Ints
    remembered: Ints
    seen: Ints
    head_s: Floats
    rate_qps: Floats
    apart: Ints  # whether it is served apart


class Results(NamedTuple):
    """Outcomes by query, or (blocks, S) counts of those on time; and counts of all."""

    status: npt.NDArray[np.int8]
    reason: npt.NDArray[np.int32]
    subnet: npt.NDArray[np.int32]
    size: npt.NDArray[np.int32]
    worker: npt.NDArray[np.int32]
    start_s: npt.NDArray[np.float64]
    finish_s: npt.NDArray[np.float64]
    on_time: npt.NDArray[np.int64]
    statuses: npt.NDArray[np.int64]
    reasons: npt.NDArray[np.int64]


class State(NamedTuple):
    """All that changes during a run."""

    f: Floats
    i: Ints
    queue: Queue
    slots: Slots
    groups: Groups
    memo_arrivals: Floats  # DrainFit's: (horizons, 4)
    free_s: Floats  # (W + 1) scratch: when workers are free, ascending
    until_s: Floats  # (W + 1) scratch: its running sum
    demands: Floats  # (demands, 2) scratch
    slacks_s: Floats  # scratch of triage
    lost: Ints  # scratch of triage
    places: Ints  # scratch of triage: places in the queue


def new_state(setup: Setup, num_places: int, num_queries: int | None) -> State:
    """Return the state before anything has happened, with room for so many waiting queries.

    `num_queries` is how many are to come in all; None: nobody knows.
    """
    workers, sizes = setup.num_workers, setup.max_batch
    f = np.zeros(NUM_FLOATS)
    f[[SLO_NOW, SLO_BEFORE, TIGHTEST, NEXT_FINISH]] = np.inf
    f[SLO_UNTIL] = -np.inf
    i = np.zeros(NUM_INTS, dtype=np.int64)
    i[NUM_ALIVE] = workers
    i[NEXT_WORKER] = -1
    subnets = len(setup.latency_s) if setup.has_floors else 1
    remembered = MAX_TIMES if num_queries is None else min(MAX_TIMES, num_queries)
    ring = remembered + 1 if setup.has_floors else 1
    return State(
        f,
        i,
        new_queue(num_places),
        Slots(
            status=np.zeros(workers, np.int64),
            until_s=np.zeros(workers),
            loaded=np.full(workers, -1),
            finish_s=np.full(workers, np.inf),
            batch=np.zeros(workers, np.int64),
            subnet=np.zeros(workers, np.int64),
            size=np.zeros(workers, np.int64),
            start_s=np.zeros(workers),
            factor=np.ones(workers),
            has_run=np.full(workers, -1),
            deadlines_s=np.zeros((workers, sizes)),
            arrivals_s=np.zeros((workers, sizes)),
            numbers=np.zeros((workers, sizes), np.int64),
        ),
        Groups(
            order=np.zeros(subnets, np.int64),
            known=np.zeros(subnets, np.int64),
            waiting=np.zeros(subnets, np.int64),
            times_s=np.zeros((subnets, ring)),
            begin=np.zeros(subnets, np.int64),
            remembered=np.zeros(subnets, np.int64),
            seen=np.zeros(subnets, np.int64),
            head_s=np.zeros(subnets),
            rate_qps=np.zeros(subnets),
            apart=np.zeros(subnets, np.int64),
        ),
        memo_arrivals=np.zeros((len(BEYOND_SLOS), 4)),
        free_s=np.zeros(workers + 1),
        until_s=np.zeros(workers + 1),
        demands=np.zeros((len(BEYOND_SLOS) + QUEUE_DEMANDS, 2)),
        slacks_s=np.zeros(LOOK_AT),
        lost=np.zeros(LOOK_AT, np.int64),
        places=np.zeros(LOOK_AT, np.int64),
    )


def new_queue(num_places: int) -> Queue:
    """Return an empty queue with room for so many; a place is written before it is read."""
    ints = (np.empty(num_places, np.int64) for _ in range(3))
    return Queue(np.empty(num_places), np.empty(num_places), *ints)


def new_results(setup: Setup, num_queries: int, num_blocks: int) -> Results:
    """Return results with room for so many queries, or blocks of arrivals.

    What is empty here is written when a query ends, however it does.
    """
    count = num_queries if setup.keeps_columns else 1
    return Results(
        status=np.empty(count, np.int8),
        reason=np.zeros(count, np.int32),
        subnet=np.empty(count, np.int32),
        size=np.empty(count, np.int32),
        worker=np.empty(count, np.int32),
        start_s=np.empty(count),
        finish_s=np.empty(count),
        on_time=np.zeros((num_blocks, len(setup.latency_s)), np.int64),
        statuses=np.zeros(len(STATUSES), np.int64),
        reasons=np.zeros(len(REASONS), np.int64),
    )
