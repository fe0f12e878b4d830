"""DrainFit's decision; the machine code of `slackfit.policies.drainfit` and its `pace`."""

from __future__ import annotations

import numpy as np

from slackfit.compiled.forecast_kernel import remember
from slackfit.compiled.forms import DrainForm, Floats
from slackfit.compiled.jit import compiled, inlined
from slackfit.compiled.queue_kernel import bisect_left, bisect_right
from slackfit.compiled.state import (
    CREDIT,
    FIRST,
    LAST,
    MEMO_SLO,
    NO_WISH,
    NUM_GROUPS,
    PLAIN_WISH,
    Setup,
    State,
)
from slackfit.policies.drainfit import BEYOND_SLOS, LOOK_AT, QUEUE_DEMANDS

_NUM_BEYOND = len(BEYOND_SLOS)


@inlined
def _lay_supply(form: DrainForm, state: State, now_s: float) -> None:
    """Sort when the workers are free, and add it up."""
    slots, free_s = state.slots, state.free_s
    count = len(slots.until_s)
    for k in range(count):
        time_s = max(slots.until_s[k] - now_s, 0.0) + form.lead_s
        at = k
        while at > 0 and free_s[at - 1] > time_s:
            free_s[at] = free_s[at - 1]
            at -= 1
        free_s[at] = time_s
    total_s = 0.0
    state.until_s[0] = 0.0
    for k in range(count):
        total_s = free_s[k] if k == 0 else total_s + free_s[k]
        state.until_s[k + 1] = total_s


@inlined
def _supply_s(state: State, horizon_s: float) -> float:
    count = len(state.slots.until_s)
    known = bisect_left(state.free_s, horizon_s, 0, count)
    return known * horizon_s - state.until_s[known]


@inlined
def _lay_demands(form: DrainForm, state: State, now_s: float, slack_s: float) -> int:
    """Set the demands (horizon, count) and return how many there are."""
    i, queue = state.i, state.queue
    waiting = i[LAST] - i[FIRST]
    for k in range(_NUM_BEYOND):
        state.demands[k, 0] = state.memo_arrivals[k, 0]
        state.demands[k, 1] = waiting + state.memo_arrivals[k, 1]
    if waiting <= len(form.latency_s) - 1:
        return _NUM_BEYOND
    step_s = max(state.f[MEMO_SLO] - slack_s, 0.0) / QUEUE_DEMANDS
    for k in range(QUEUE_DEMANDS):
        horizon_s = slack_s + (k + 1) * step_s
        due = bisect_right(queue.deadline_s, now_s + horizon_s, i[FIRST], i[LAST]) - i[FIRST]
        state.demands[_NUM_BEYOND + k, 0] = horizon_s
        state.demands[_NUM_BEYOND + k, 1] = due
    return _NUM_BEYOND + QUEUE_DEMANDS


@inlined
def _pace_alone(form: DrainForm, state: State, num_demands: int) -> tuple[float, float]:
    waiting = state.i[LAST] - state.i[FIRST]
    query_s = form.full_s[0]
    pace_s = reserved_s = np.inf
    for k in range(num_demands):
        count = state.demands[k, 1]
        supply_s = _supply_s(state, state.demands[k, 0])
        if supply_s < pace_s * count:
            pace_s = supply_s / count
        if k < _NUM_BEYOND:
            mean, sigma = state.memo_arrivals[k, 2], state.memo_arrivals[k, 3]
            left_s = supply_s - query_s * (mean + form.reserve * sigma)
            if left_s < reserved_s * waiting:
                reserved_s = left_s / waiting
    return pace_s, reserved_s


@inlined
def _can_wait(form: DrainForm, state: State, now_s: float, size: int, batch_s: float) -> bool:
    """Return whether a batch leaves time for whom it leaves waiting, as `Rest.can_wait`."""
    first, last = state.i[FIRST], state.i[LAST]
    left = last - first - size
    if left <= 0:
        return True
    next_free_s = state.free_s[1] - form.lead_s if len(state.slots.until_s) > 1 else np.inf
    served_s = min(batch_s, next_free_s) + form.latency_s[min(left, len(form.latency_s) - 1), 0]
    return bisect_right(state.queue.deadline_s, now_s + served_s, first, last) - first <= size


@inlined
def _waited_for(
    form: DrainForm, state: State, now_s: float, size: int, place: int, above: int
) -> int:
    """Return the most accurate place up to `place` that leaves the rest time; else `above`."""
    while place > above and not _can_wait(form, state, now_s, size, form.latency_s[size, place]):
        place -= 1
    return place


@inlined
def _bounded(form: DrainForm, credit_s: float, place: int) -> float:
    bound_s = form.steps_s[place]
    return max(-bound_s, min(bound_s, credit_s))


@compiled
def _cut_short(
    form: DrainForm,
    state: State,
    now_s: float,
    pace_s: float,
    reserved_s: float,
    slack_s: float,
    size: int,
    floor: int,
    wanted: int,
) -> tuple[int, int]:
    """Return (place, size) where the slack, or the rest's, does not afford all that wait."""
    places = len(form.full_s)
    ceiling_s = min(pace_s, reserved_s)
    best = min(wanted, bisect_right(form.latency_s[size], slack_s, 0, places) - 1)
    best = max(_waited_for(form, state, now_s, size, best, -1), min(best, floor))
    best_size = size
    for smaller in range(size - 1, 0, -1):
        keeping = bisect_right(form.per_query_s[smaller], ceiling_s, 0, places) - 1
        if keeping <= best:
            break
        fitting = bisect_right(form.latency_s[smaller], slack_s, 0, places) - 1
        place = min(wanted, min(keeping, fitting))
        place = _waited_for(form, state, now_s, smaller, place, best)
        if place > best:
            best, best_size = place, smaller
    if best >= floor:
        row_s = form.full_s if best_size == size else form.per_query_s[best_size]
        saved_s = (pace_s - row_s[best]) * best_size
        state.f[CREDIT] = _bounded(form, state.f[CREDIT] + saved_s, best)
        return best, best_size
    for smaller in range(size, 0, -1):
        if form.latency_s[smaller, floor] <= slack_s:
            return floor, smaller
    return floor, size


@compiled
def _choose(
    form: DrainForm,
    state: State,
    now_s: float,
    pace_s: float,
    reserved_s: float,
    slack_s: float,
    size: int,
    floor: int,
) -> tuple[int, int]:
    """Return (place, size) that serve the need."""
    places = len(form.full_s)
    credit_s = state.f[CREDIT]
    wanted = max(bisect_right(form.full_s, pace_s + credit_s / size, 0, places) - 1, 0)
    new_credit_s = _bounded(form, credit_s + (pace_s - form.full_s[wanted]) * size, wanted)
    if reserved_s < pace_s:
        wanted = max(min(wanted, bisect_right(form.full_s, reserved_s, 0, places) - 1), 0)
    wanted = max(wanted, floor)
    batch_s = form.latency_s[size, wanted]
    if batch_s > slack_s or not _can_wait(form, state, now_s, size, batch_s):
        return _cut_short(form, state, now_s, pace_s, reserved_s, slack_s, size, floor, wanted)
    state.f[CREDIT] = new_credit_s
    return wanted, size


@compiled
def decide_drain(
    setup: Setup, form: DrainForm, state: State, arrival_s: Floats, now_s: float
) -> tuple[int, int, int]:
    """Return (subnet, batch size, wish). The queue is not empty."""
    i, queue = state.i, state.queue
    remember(form, state, arrival_s, now_s)
    if setup.has_floors and i[NUM_GROUPS] > 0:
        return _decide_apart(form, state, now_s)
    first = i[FIRST]
    slack_s = queue.deadline_s[first] - now_s
    _lay_supply(form, state, now_s)
    num_demands = _lay_demands(form, state, now_s, slack_s)
    pace_s, reserved_s = _pace_alone(form, state, num_demands)
    size = min(i[LAST] - first, len(form.latency_s) - 1)
    floor = form.place[queue.floor[first] - 1] if queue.floor[first] > 0 else 0
    place, size = _choose(form, state, now_s, pace_s, reserved_s, slack_s, size, floor)
    return form.subnet[place], size, NO_WISH


@compiled
def _pace_apart(form: DrainForm, state: State, num_demands: int) -> tuple[float, float, int]:
    """Return pace and reserve of what is not served apart, and how many wait that are."""
    i, groups, largest = state.i, state.groups, len(form.latency_s) - 1
    apart = 0
    work_s = work = arriving_qps = 0.0
    for k in range(i[NUM_GROUPS]):
        group = groups.order[k]
        if groups.apart[group]:
            query_s = form.rows_s[form.subnet[form.place[group]], largest] / largest
            apart += groups.seen[group]
            work_s += groups.seen[group] * query_s
            arriving_qps += groups.rate_qps[group]
            work += groups.rate_qps[group] * query_s
    waiting = i[LAST] - i[FIRST]
    joint = waiting - apart
    share_joint = joint / waiting
    slo_s = state.f[MEMO_SLO]
    pace_s = reserved_s = np.inf
    for k in range(num_demands):
        horizon_s, count = state.demands[k, 0], state.demands[k, 1]
        beyond_s = max(horizon_s - slo_s, 0.0)
        coming = arriving_qps * beyond_s
        share_due = 1.0 if k < _NUM_BEYOND else count / waiting
        left_s = _supply_s(state, horizon_s) - (work_s * share_due + work * beyond_s)
        if k < _NUM_BEYOND:
            ours = joint + max(count - waiting - coming, 0.0)
        else:
            ours = count * share_joint
        if ours > 0 and left_s < pace_s * ours:
            pace_s = left_s / ours
        if k < _NUM_BEYOND:
            mean, sigma = state.memo_arrivals[k, 2], state.memo_arrivals[k, 3]
            left_s -= form.full_s[0] * (mean + form.reserve * sigma - coming)
            if left_s < reserved_s * joint:
                reserved_s = left_s / joint
    return pace_s, reserved_s, apart


@compiled
def _decide_apart(form: DrainForm, state: State, now_s: float) -> tuple[int, int, int]:
    """Decide where some queries are served apart, on a subnet that they insist on."""
    i, queue, groups = state.i, state.queue, state.groups
    largest = len(form.latency_s) - 1
    first = i[FIRST]
    _lay_supply(form, state, now_s)
    num_demands = _lay_demands(form, state, now_s, queue.deadline_s[first] - now_s)
    num_apart = 0
    for k in range(i[NUM_GROUPS]):
        groups.apart[groups.order[k]] = 0
    while True:  # floors that the pace does not keep are served apart, which lowers the pace
        pace_s, reserved_s, num_waiting = _pace_apart(form, state, num_demands)
        kept = 0
        for k in range(i[NUM_GROUPS]):
            group = groups.order[k]
            query_s = form.rows_s[form.subnet[form.place[group]], largest] / largest
            if groups.apart[group] or query_s > pace_s:
                groups.apart[group] = 1
                kept += 1
        if kept == num_apart:
            break
        num_apart = kept
    # The group that must start soonest.
    urgent, urgent_size, urgent_s = -1, 0, 0.0
    for k in range(i[NUM_GROUPS]):
        group = groups.order[k]
        if not groups.apart[group] or groups.seen[group] == 0:
            continue
        row_s = form.rows_s[form.subnet[form.place[group]]]
        slack_s = groups.head_s[group] - now_s
        size = min(groups.seen[group], largest)
        laxity_s = slack_s - row_s[size]
        if urgent < 0 or laxity_s < urgent_s:
            while size > 0 and not row_s[size] <= slack_s:
                size -= 1
            urgent, urgent_size, urgent_s = group, max(size, 1), laxity_s
    # The most urgent query that is not served apart.
    joint = -1
    for place in range(first, min(i[LAST], first + LOOK_AT)):
        if queue.floor[place] == 0 or not groups.apart[queue.floor[place] - 1]:
            joint = place
            break
    if joint >= 0:
        slack_s = queue.deadline_s[joint] - now_s
        size = min(max(i[LAST] - first - num_waiting, 1), largest)
        floor = form.place[queue.floor[joint] - 1] if queue.floor[joint] > 0 else 0
        credit_s = state.f[CREDIT]
        place, size = _choose(form, state, now_s, pace_s, reserved_s, slack_s, size, floor)
        subnet = form.subnet[place]
        if urgent < 0 or not urgent_s < slack_s - form.rows_s[subnet, size]:
            return subnet, size, PLAIN_WISH
        state.f[CREDIT] = credit_s
    return form.subnet[form.place[urgent]], urgent_size, urgent
