"""Queries with a floor on accuracy; the machine code of `slackfit.scheduling.wishes`."""

from __future__ import annotations

from slackfit.compiled.jit import compiled
from slackfit.compiled.state import FIRST, LAST, NUM_FLOORED, NUM_GROUPS, State
from slackfit.scheduling.wishes import MAX_TIMES, RATE_OVER_S


@compiled
def note_floored(state: State, floor: int, arrival_s: float) -> None:
    """Count a query with a floor that waits from now on."""
    groups, i = state.groups, state.i
    group = floor - 1
    if groups.known[group] == 0:
        groups.known[group] = 1
        groups.order[i[NUM_GROUPS]] = group
        i[NUM_GROUPS] += 1
        groups.remembered[group] = 0
    room = groups.times_s.shape[1]
    groups.times_s[group, (groups.begin[group] + groups.remembered[group]) % room] = arrival_s
    groups.remembered[group] += 1
    if groups.remembered[group] > MAX_TIMES:
        groups.begin[group] = (groups.begin[group] + MAX_TIMES // 2) % room
        groups.remembered[group] -= MAX_TIMES // 2
    groups.waiting[group] += 1
    i[NUM_FLOORED] += 1


@compiled
def show_groups(state: State, now_s: float) -> None:
    """Bring what policies see of the groups up to date; those that are over are forgotten."""
    groups, i, queue = state.groups, state.i, state.queue
    room = groups.times_s.shape[1]
    kept = 0
    for k in range(i[NUM_GROUPS]):
        group = groups.order[k]
        while groups.remembered[group] > 0:
            if not groups.times_s[group, groups.begin[group]] < now_s - RATE_OVER_S:
                break
            groups.begin[group] = (groups.begin[group] + 1) % room
            groups.remembered[group] -= 1
        if groups.waiting[group] == 0 and groups.remembered[group] == 0:
            groups.known[group] = 0
            continue
        groups.rate_qps[group] = groups.remembered[group] / RATE_OVER_S
        groups.seen[group] = groups.waiting[group]
        groups.order[kept] = group
        kept += 1
    i[NUM_GROUPS] = kept
    unseen = 0
    for k in range(kept):
        group = groups.order[k]
        groups.head_s[group] = -1.0
        unseen += groups.waiting[group] > 0
    place = i[FIRST]
    found = 0
    while found < unseen and place < i[LAST]:
        floor = queue.floor[place]
        if floor > 0 and groups.head_s[floor - 1] == -1.0:
            groups.head_s[floor - 1] = queue.deadline_s[place]
            found += 1
        place += 1
