"""Whom to give up; the machine code of `slackfit.scheduling.triage`."""

from __future__ import annotations

import numpy as np

from slackfit.compiled.forms import Floats
from slackfit.compiled.jit import compiled, inlined
from slackfit.compiled.queue_kernel import bisect_left, bisect_right
from slackfit.compiled.state import FIRST, HISTORY_FIRST, HISTORY_LAST, LAST, Setup, State
from slackfit.scheduling.decide import HISTORY
from slackfit.scheduling.triage import LOOK_AT, WINDOW_SLOS


@inlined
def arrivals_within(state: State, arrival_s: Floats, now_s: float, window_s: float) -> int:
    """Return how many arrived lately, as `SchedulerView.arrivals_within`."""
    last = state.i[HISTORY_LAST]
    since = bisect_right(arrival_s, now_s - window_s, state.i[HISTORY_FIRST], last)
    return min(last - since, HISTORY)


@compiled
def _first_saved(setup: Setup, slacks_s: Floats, count: int, at: int, elapsed_s: float) -> int:
    full = setup.full
    first = bisect_left(slacks_s, elapsed_s + setup.fastest_s[full], at, count)
    if count - first >= full:
        return first
    for late in range(max(at, count - full), count):
        if slacks_s[late] >= elapsed_s + setup.fastest_s[count - late]:
            return late
    return count


@compiled
def _num_saved(setup: Setup, slacks_s: Floats, count: int, at: int, elapsed_s: float) -> int:
    num_workers = setup.num_workers * 1.0
    saved = 0
    while True:
        at = _first_saved(setup, slacks_s, count, at, elapsed_s)
        if at >= count:
            return saved
        size = min(count - at, setup.full)
        saved += size
        at += size
        elapsed_s += setup.fastest_s[size] / num_workers


@compiled
def _is_overloaded(setup: Setup, state: State, arrival_s: Floats, now_s: float) -> bool:
    head = state.i[FIRST]
    slo_s = state.queue.deadline_s[head] - state.queue.arrival_s[head]
    since_first_s = now_s - arrival_s[state.i[HISTORY_FIRST]]
    window_s = max(slo_s, min(WINDOW_SLOS * slo_s, since_first_s))
    capacity = setup.capacity_qps * setup.num_workers * 1.0 * window_s
    return arrivals_within(state, arrival_s, now_s, window_s) > capacity


@compiled
def _due_before_s(
    setup: Setup, state: State, arrival_s: Floats, count: int, now_s: float, counts_only: bool
) -> float:
    """Return before which deadline those in `places` are lost; -inf for none."""
    slacks_s = state.slacks_s
    for k in range(count):
        slacks_s[k] = state.queue.deadline_s[state.places[k]] - now_s
    first = _first_saved(setup, slacks_s, count, 0, 0.0)
    if first == count:
        return -np.inf
    if counts_only or not _is_overloaded(setup, state, arrival_s, now_s):
        sizes = len(setup.fastest_s)
        small = max(bisect_right(setup.fastest_s, slacks_s[0], 0, sizes) - 1, 0)
        busy_s = setup.fastest_s[small] / (setup.num_workers * 1.0)
        keeping = small + _num_saved(setup, slacks_s, count, small, busy_s)
        if keeping >= _num_saved(setup, slacks_s, count, first, 0.0):
            return -np.inf
    return state.queue.deadline_s[state.places[first]]


@compiled
def find_lost(setup: Setup, state: State, arrival_s: Floats, now_s: float) -> bool:
    """Set `State.lost` to 1 where one of the first of the queue is to be given up; whether any is.

    The queue is not empty.
    """
    queue, lost, first = state.queue, state.lost, state.i[FIRST]
    waiting = state.i[LAST] - first
    slack_s = queue.deadline_s[first] - now_s
    if setup.fastest_s[min(waiting, setup.full)] <= slack_s:
        return False
    looked_at = min(waiting, LOOK_AT)
    for k in range(looked_at):
        lost[k] = 0
    least = 0  # the default class, or a lower one that is present
    if setup.has_classes:
        for k in range(looked_at):
            least = min(least, queue.query_class[first + k])
    rank = least
    found = False
    while True:
        count = 0
        for k in range(looked_at):
            if queue.query_class[first + k] >= rank:
                state.places[count] = first + k
                count += 1
        if count > 0:
            before_s = _due_before_s(setup, state, arrival_s, count, now_s, rank > least)
            for k in range(count):
                place = state.places[k]
                if not queue.deadline_s[place] < before_s:
                    break
                if queue.query_class[place] == rank:
                    lost[place - first] = 1
                    found = True
        # The next higher class that is present.
        following = rank
        if setup.has_classes:
            for k in range(looked_at):
                other = queue.query_class[first + k]
                if other > rank and (following == rank or other < following):
                    following = other
        if following == rank:
            return found
        rank = following
