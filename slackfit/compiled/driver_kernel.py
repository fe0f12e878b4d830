"""Virtual time in arrays; the machine code of `slackfit.simulation.driver`.

No policy with a compiled form ever waits. So a worker is free only while nothing waits, and the
driver's wake-ups have no counterpart here.
"""

from __future__ import annotations

import numpy as np

from slackfit.compiled.end_codes import (
    CANCELLED,
    DROPPED,
    FAILED,
    LATE,
    ON_TIME,
    WORKER_FAILED,
)
from slackfit.compiled.forms import PolicyForm
from slackfit.compiled.hardware_kernel import batch_s
from slackfit.compiled.jit import compiled, entry, inlined
from slackfit.compiled.queue_kernel import remove
from slackfit.compiled.scheduler_kernel import end_unserved, poll, submit, submit_all
from slackfit.compiled.state import (
    BUSY,
    EVENT,
    FIRST,
    FREE,
    LAST,
    NEXT_FINISH,
    NEXT_WORKER,
    NOW,
    NUM_ALIVE,
    NUM_DISPATCHED,
    NUM_RUNNING,
    RETIRED,
    Arriving,
    Hardware,
    Results,
    Setup,
    State,
)
from slackfit.simulation.simulate import FEED_AT_ONCE


@inlined
def _find_next(state: State) -> None:
    """Find the batch that ends next; of several that end together the one that began first."""
    slots = state.slots
    best = -1
    for worker in range(len(slots.status)):
        if slots.status[worker] == BUSY and (
            best < 0
            or slots.finish_s[worker] < slots.finish_s[best]
            or (
                slots.finish_s[worker] == slots.finish_s[best]
                and slots.batch[worker] < slots.batch[best]
            )
        ):
            best = worker
    state.i[NEXT_WORKER] = best
    state.f[NEXT_FINISH] = slots.finish_s[best] if best >= 0 else np.inf


@inlined
def _start_batch(setup: Setup, hardware: Hardware, state: State, worker: int, now_s: float) -> None:
    """Run the batch that a worker was given."""
    f, i, slots = state.f, state.i, state.slots
    subnet, size = slots.subnet[worker], slots.size[worker]
    predicted_s = setup.latency_s[subnet, size]
    finish_s = now_s + batch_s(hardware, slots, worker, subnet, size, predicted_s)
    slots.finish_s[worker] = finish_s
    slots.status[worker] = BUSY
    slots.batch[worker] = i[NUM_DISPATCHED]
    i[NUM_DISPATCHED] += 1
    i[NUM_RUNNING] += 1
    if finish_s < f[NEXT_FINISH]:
        f[NEXT_FINISH] = finish_s
        i[NEXT_WORKER] = worker


@inlined
def _end_batch(setup: Setup, state: State, results: Results, worker: int, now_s: float) -> None:
    """End the batch of a worker with results."""
    slots = state.slots
    subnet, size, start_s = slots.subnet[worker], slots.size[worker], slots.start_s[worker]
    num_blocks = len(results.on_time)
    num_on_time = 0
    for k in range(size):
        is_on_time = now_s <= slots.deadlines_s[worker, k]
        num_on_time += is_on_time
        if num_blocks > 1 and is_on_time:
            block = int(slots.arrivals_s[worker, k] / setup.block_s)
            results.on_time[min(block, num_blocks - 1), subnet] += 1
        if setup.keeps_columns:
            number = slots.numbers[worker, k]
            results.status[number] = ON_TIME if is_on_time else LATE
            _note_run(results, number, subnet, size, worker, start_s, now_s)
    if num_blocks == 1:
        results.on_time[0, subnet] += num_on_time
    results.statuses[ON_TIME] += num_on_time
    results.statuses[LATE] += size - num_on_time
    _release(state, worker, now_s)


@compiled
def _fail_batch(setup: Setup, state: State, results: Results, worker: int, now_s: float) -> None:
    """End the batch of a worker without results."""
    slots = state.slots
    subnet, size, start_s = slots.subnet[worker], slots.size[worker], slots.start_s[worker]
    results.statuses[FAILED] += size
    results.reasons[WORKER_FAILED] += size
    if setup.keeps_columns:
        for k in range(size):
            number = slots.numbers[worker, k]
            results.status[number] = FAILED
            results.reason[number] = WORKER_FAILED
            _note_run(results, number, subnet, size, worker, start_s, now_s)
    _release(state, worker, now_s)


@inlined
def _note_run(
    results: Results,
    number: int,
    subnet: int,
    size: int,
    worker: int,
    start_s: float,
    finish_s: float,
) -> None:
    """Note where and when a query ran."""
    results.subnet[number] = subnet
    results.size[number] = size
    results.worker[number] = worker
    results.start_s[number] = start_s
    results.finish_s[number] = finish_s


@inlined
def _release(state: State, worker: int, now_s: float) -> None:
    state.slots.status[worker] = FREE
    state.slots.until_s[worker] = now_s
    state.i[NUM_RUNNING] -= 1
    _find_next(state)


@compiled
def _happen(setup: Setup, hardware: Hardware, state: State, results: Results) -> None:
    """Let the next event happen to its device."""
    at = state.i[EVENT]
    state.i[EVENT] += 1
    now_s, worker = hardware.event_s[at], hardware.event_worker[at]
    state.f[NOW] = now_s
    slots = state.slots
    if hardware.event_factor[at] > 0.0:
        slots.factor[worker] = hardware.event_factor[at]
        return
    if slots.status[worker] == BUSY:
        _fail_batch(setup, state, results, worker, now_s)
    slots.status[worker] = RETIRED
    slots.until_s[worker] = np.inf
    state.i[NUM_ALIVE] -= 1


@inlined
def _event_s(hardware: Hardware, state: State) -> float:
    """Return when the next event happens, inf for never."""
    at = state.i[EVENT]
    return hardware.event_s[at] if at < len(hardware.event_s) else np.inf


@entry
def run(
    setup: Setup,
    form: PolicyForm,
    hardware: Hardware,
    state: State,
    results: Results,
    arriving: Arriving,
    begin: int,
    first_number: int,
    is_last: bool,
) -> None:
    """Go on until the last query of the piece has arrived; those before `begin` are history.

    With `is_last` go on until every query has ended.
    """
    f, i, arrival_s = state.f, state.i, arriving.arrival_s
    end = len(arrival_s)
    at = begin
    while True:
        if at == end and (not is_last or (i[NUM_RUNNING] == 0 and i[FIRST] == i[LAST])):
            return
        event_s, finish_s = _event_s(hardware, state), f[NEXT_FINISH]
        next_s = arrival_s[at] if at < end else np.inf
        if finish_s <= min(event_s, next_s) and finish_s < np.inf:
            now_s = finish_s
            _end_batch(setup, state, results, i[NEXT_WORKER], now_s)
        elif event_s <= next_s and event_s < np.inf:
            _happen(setup, hardware, state, results)
            continue
        elif at == end:
            _cancel_all(setup, state, results)
            return
        elif i[NUM_RUNNING] < i[NUM_ALIVE]:
            now_s = next_s
            submit(setup, state, results, arriving, at, first_number + at - begin)
            at += 1
        else:
            until_s = min(finish_s, event_s)
            stop = at + 1
            fed = min(end, at + FEED_AT_ONCE - (at - begin) % FEED_AT_ONCE)
            while stop < fed and arrival_s[stop] < until_s:
                stop += 1
            submit_all(setup, state, results, arriving, at, stop, first_number + at - begin)
            f[NOW] = arrival_s[stop - 1]
            at = stop
            continue
        f[NOW] = now_s
        while i[NUM_RUNNING] < i[NUM_ALIVE]:
            worker = poll(setup, form, state, results, arrival_s, now_s)
            if worker < 0:
                break
            _start_batch(setup, hardware, state, worker, now_s)
            if i[FIRST] == i[LAST]:
                break


@compiled
def _cancel_all(setup: Setup, state: State, results: Results) -> None:
    """End what still waits when every worker has failed."""
    i, queue = state.i, state.queue
    while i[FIRST] < i[LAST]:
        number = queue.number[i[FIRST]]
        remove(queue, i, state.groups, i[FIRST])
        end_unserved(setup, results, number, DROPPED, CANCELLED, state.f[NOW])
