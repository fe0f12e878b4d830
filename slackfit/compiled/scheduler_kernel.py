"""One scheduler in arrays; the machine code of `slackfit.scheduling.scheduler` and `waiting`."""

from __future__ import annotations

import numpy as np

from slackfit.compiled.drainfit_kernel import decide_drain
from slackfit.compiled.end_codes import DROPPED, EXPIRED, INFEASIBLE, REJECTED
from slackfit.compiled.forms import Floats, PolicyForm, StepForm
from slackfit.compiled.groups_kernel import note_floored, show_groups
from slackfit.compiled.jit import compiled, inlined
from slackfit.compiled.queue_kernel import (
    bisect_left,
    bisect_right,
    compact,
    push,
    push_plain,
    remove,
)
from slackfit.compiled.state import (
    FIRST,
    FREE,
    HISTORY_FIRST,
    HISTORY_LAST,
    LAST,
    NO_WISH,
    NUM_FLOORED,
    PLAIN_WISH,
    SLO_BEFORE,
    SLO_NOW,
    SLO_UNTIL,
    TIGHTEST,
    Arriving,
    Results,
    Setup,
    State,
)
from slackfit.compiled.triage_kernel import find_lost
from slackfit.scheduling.decide import HISTORY, REMEMBER_SLO_S, SAME_SLO
from slackfit.scheduling.triage import LOOK_AT
from slackfit.scheduling.waiting import LOOK_AHEAD


@inlined
def end_unserved(
    setup: Setup, results: Results, number: int, status: int, reason: int, now_s: float
) -> None:
    """Note that a query ended without having run."""
    results.statuses[status] += 1
    results.reasons[reason] += 1
    if setup.keeps_columns:
        results.status[number] = status
        results.reason[number] = reason
        results.subnet[number] = -1
        results.size[number] = 0
        results.worker[number] = -1
        results.start_s[number] = np.nan
        results.finish_s[number] = now_s


@inlined
def note_arrivals(state: State, count: int) -> None:
    """Remember that the next `count` arrivals have come."""
    i = state.i
    i[HISTORY_LAST] += count
    if i[HISTORY_LAST] - i[HISTORY_FIRST] >= 2 * HISTORY:
        i[HISTORY_FIRST] = i[HISTORY_LAST] - HISTORY


@inlined
def submit(
    setup: Setup, state: State, results: Results, arriving: Arriving, at: int, number: int
) -> None:
    """Admit the query at place `at` of the piece, at its own arrival, or reject it."""
    now_s, deadline_s = arriving.arrival_s[at], arriving.deadline_s[at]
    floor = arriving.floor[at] if setup.has_floors else 0
    query_class = arriving.query_class[at] if setup.has_classes else 0
    note_arrivals(state, 1)
    is_hopeless = floor > len(setup.latency_s)
    if setup.drops and not is_hopeless:
        is_hopeless = _least_s(setup, floor) + now_s > deadline_s
    if is_hopeless:
        end_unserved(setup, results, number, REJECTED, INFEASIBLE, now_s)
        return
    if floor > 0:
        note_floored(state, floor, now_s)
    compact(state.queue, state.i)
    push(state.queue, state.i, deadline_s, now_s, number, floor, query_class)


@compiled
def _submit_alone(
    setup: Setup, state: State, results: Results, arriving: Arriving, at: int, number: int
) -> None:
    submit(setup, state, results, arriving, at, number)


@inlined
def _are_plain(setup: Setup, arriving: Arriving, begin: int, end: int) -> bool:
    """Return whether none has a floor, another class than the default, or is hopeless."""
    are_plain = True
    if setup.has_floors:
        for at in range(begin, end):
            are_plain &= arriving.floor[at] <= 0
    if setup.has_classes:
        for at in range(begin, end):
            are_plain &= arriving.query_class[at] == 0
    if setup.drops:
        least_s = setup.fastest_s[1]
        for at in range(begin, end):
            are_plain &= arriving.arrival_s[at] + least_s <= arriving.deadline_s[at]
    return are_plain


@inlined
def submit_all(
    setup: Setup,
    state: State,
    results: Results,
    arriving: Arriving,
    begin: int,
    end: int,
    first_number: int,
) -> None:
    """Submit the queries from `begin` to `end`; the first one is number `first_number`."""
    if not _are_plain(setup, arriving, begin, end):
        for at in range(begin, end):
            _submit_alone(setup, state, results, arriving, at, first_number + at - begin)
        return
    note_arrivals(state, end - begin)
    compact(state.queue, state.i)
    push_plain(state.queue, state.i, arriving, begin, end, first_number)


@inlined
def _least_s(setup: Setup, floor: int) -> float:
    """Return what a query takes at the least, alone."""
    if floor == 0:
        return setup.fastest_s[1]
    return setup.latency_s[setup.fastest_of[floor - 1, 1], 1]


@compiled
def _drop(setup: Setup, state: State, results: Results, at: int, now_s: float) -> None:
    """Drop the waiting query at a place."""
    deadline_s, number = state.queue.deadline_s[at], state.queue.number[at]
    remove(state.queue, state.i, state.groups, at)
    reason = EXPIRED if deadline_s < now_s else INFEASIBLE
    end_unserved(setup, results, number, DROPPED, reason, now_s)


@compiled
def _drop_hopeless(setup: Setup, state: State, results: Results, now_s: float) -> None:
    """Drop the hopeless queries that could come into the next batch."""
    queue, i = state.queue, state.i
    if i[NUM_FLOORED] > 0:  # some may be hopeless behind a head that is not
        at = i[FIRST]
        end = min(i[LAST], at + LOOK_AHEAD * setup.max_batch)
        while at < end:
            if now_s + _least_s(setup, queue.floor[at]) > queue.deadline_s[at]:
                _drop(setup, state, results, at, now_s)
            at += 1  # what was before a dropped one has moved up by one place
    while i[FIRST] < i[LAST]:
        at = i[FIRST]
        if not now_s + _least_s(setup, queue.floor[at]) > queue.deadline_s[at]:
            return
        _drop(setup, state, results, at, now_s)


@inlined
def _note_head(state: State, now_s: float) -> None:
    """Take the SLO of the head in, as `SchedulerView.note_head`."""
    f, head = state.f, state.i[FIRST]
    slo_s = state.queue.deadline_s[head] - state.queue.arrival_s[head]
    if now_s >= f[SLO_UNTIL]:
        is_recent = now_s < f[SLO_UNTIL] + REMEMBER_SLO_S
        f[SLO_BEFORE] = f[SLO_NOW] if is_recent else np.inf
        f[SLO_NOW] = slo_s
        f[SLO_UNTIL] = now_s + REMEMBER_SLO_S
    elif slo_s < f[SLO_NOW] * SAME_SLO:
        f[SLO_NOW] = slo_s
    else:
        return
    f[TIGHTEST] = min(f[SLO_NOW], f[SLO_BEFORE])


@inlined
def _decide_step(
    form: StepForm, state: State, loaded: int, now_s: float
) -> tuple[int, int, int]:  # fmt: skip
    """Return (subnet, batch size, wish) of a step policy."""
    i, queue = state.i, state.queue
    head = i[FIRST]
    key = min(i[LAST] - head, form.most_waiting) - 1
    if form.num_floors > 1:
        key = key * form.num_floors + max(queue.floor[head] - 1, 0)
    if form.num_loaded > 1:
        key = key * form.num_loaded + loaded + 1
    slack_s = queue.deadline_s[head] - now_s
    count = len(form.limits_s)
    if form.closed:
        at = bisect_right(form.limits_s, slack_s, 0, count)
    else:
        at = bisect_left(form.limits_s, slack_s, 0, count)
    return form.subnet[key, at], form.size[key, at], NO_WISH


@inlined
def _take(state: State, worker: int, count: int, at: int) -> int:
    """Move the waiting query at a place into a worker's batch; return its new size."""
    slots, queue = state.slots, state.queue
    slots.deadlines_s[worker, count] = queue.deadline_s[at]
    slots.arrivals_s[worker, count] = queue.arrival_s[at]
    slots.numbers[worker, count] = queue.number[at]
    remove(queue, state.i, state.groups, at)
    return count + 1


@compiled
def _take_first(state: State, worker: int, size: int, least: int, below: int, group: int) -> int:
    """Take up to `size` queries from the head that a subnet suits; return how many.

    Suits: of a floor of at most `least` (0: only plain ones) and more than `below`; with a `group`
    of 0 or more, only its own, wherever they are.
    """
    i, queue = state.i, state.queue
    at = i[FIRST]
    end = i[LAST] if group >= 0 else min(i[LAST], at + LOOK_AHEAD * size)
    count = 0
    while at < end and count < size:
        floor = queue.floor[at]
        if below < floor <= least and (group < 0 or floor - 1 == group):
            count = _take(state, worker, count, at)
        at += 1
    return count


@inlined
def _fill(
    setup: Setup, state: State, worker: int, subnet: int, size: int, wish: int, now_s: float
) -> tuple[int, int]:
    """Move the queries of a decision into a worker's batch; return the subnet and how many."""
    i, queue, slots = state.i, state.queue, state.slots
    if i[NUM_FLOORED] == 0:
        count = min(size, i[LAST] - i[FIRST])
        for k in range(count):
            at = i[FIRST] + k
            slots.deadlines_s[worker, k] = queue.deadline_s[at]
            slots.arrivals_s[worker, k] = queue.arrival_s[at]
            slots.numbers[worker, k] = queue.number[at]
        i[FIRST] += count
        return subnet, count
    if wish >= 0:
        count = _take_first(state, worker, size, subnet + 1, 0, wish)
        if count > 0:
            return subnet, count
    head = i[FIRST]
    if wish == PLAIN_WISH or queue.floor[head] <= subnet + 1:
        count = _take_first(state, worker, size, subnet + 1, -1, -1)
        if count > 0:
            return subnet, count
    legal = setup.fastest_of[max(queue.floor[head] - 1, 0), size]
    fitting = size
    while fitting > 0 and not now_s + setup.latency_s[legal, fitting] <= queue.deadline_s[head]:
        fitting -= 1
    if fitting == 0:
        fitting = size
    return legal, _take_first(state, worker, fitting, legal + 1, subnet + 1, -1)


@inlined
def _free_worker(state: State) -> int:
    """Return the free worker with the lowest number, -1 for none."""
    for worker in range(len(state.slots.status)):
        if state.slots.status[worker] == FREE:
            return worker
    return -1


@inlined
def poll(
    setup: Setup,
    form: PolicyForm,
    state: State,
    results: Results,
    arrival_s: Floats,
    now_s: float,
) -> int:
    """Decide one batch for the first free worker, and fill it; return the worker, -1 for none."""
    i, slots = state.i, state.slots
    worker = _free_worker(state)
    if worker < 0:
        return -1
    if setup.drops:
        _drop_hopeless(setup, state, results, now_s)
    if setup.has_floors:
        show_groups(state, now_s)
    if i[FIRST] == i[LAST]:
        return -1
    _note_head(state, now_s)
    if setup.triages and find_lost(setup, state, arrival_s, now_s):
        looked_at = min(i[LAST] - i[FIRST], LOOK_AT)
        first = i[FIRST]
        for k in range(looked_at):
            if state.lost[k]:
                _drop(setup, state, results, first + k, now_s)
        if i[FIRST] == i[LAST]:
            return -1
    if form.is_drain:
        subnet, size, wish = decide_drain(setup, form.drain, state, arrival_s, now_s)
    else:
        subnet, size, wish = _decide_step(form.step, state, slots.loaded[worker], now_s)
    subnet, count = _fill(setup, state, worker, subnet, size, wish, now_s)
    slots.subnet[worker] = subnet
    slots.size[worker] = count
    slots.start_s[worker] = now_s
    slots.until_s[worker] = now_s + setup.latency_s[subnet, count]
    slots.loaded[worker] = subnet
    return worker
