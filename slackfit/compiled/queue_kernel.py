"""The queue in arrays, earliest deadline first; the machine code of `slackfit.scheduling.edf`.

Entries lie between `FIRST` and `LAST`; whoever leaves from the middle is closed up from the side of
the head, where those that leave are.
"""

from __future__ import annotations

import numpy as np

from slackfit.compiled.forms import Floats, Ints
from slackfit.compiled.jit import inlined
from slackfit.compiled.state import FIRST, LAST, NUM_FLOORED, Arriving, Groups, Queue
from slackfit.scheduling.edf import COMPACT_FROM


@inlined
def bisect_left(values: Floats, x: float, low: int, high: int) -> int:
    """Return what `bisect.bisect_left` does, for values out of order too."""
    while low < high:
        middle = (low + high) // 2
        if values[middle] < x:
            low = middle + 1
        else:
            high = middle
    return low


@inlined
def bisect_right(values: Floats, x: float, low: int, high: int) -> int:
    """Return what `bisect.bisect_right` does, for values out of order too."""
    while low < high:
        middle = (low + high) // 2
        if x < values[middle]:
            high = middle
        else:
            low = middle + 1
    return low


@inlined
def push(
    queue: Queue,
    i: Ints,
    deadline_s: float,
    arrival_s: float,
    number: int,
    floor: int,
    query_class: int,
) -> None:
    """Add a query behind those with the same or an earlier deadline."""
    first, last = i[FIRST], i[LAST]
    at = last
    if first < last and queue.deadline_s[last - 1] > deadline_s:
        at = bisect_right(queue.deadline_s, deadline_s, first, last)
        for place in range(last, at, -1):
            queue.deadline_s[place] = queue.deadline_s[place - 1]
            queue.arrival_s[place] = queue.arrival_s[place - 1]
            queue.number[place] = queue.number[place - 1]
            queue.floor[place] = queue.floor[place - 1]
            queue.query_class[place] = queue.query_class[place - 1]
    queue.deadline_s[at] = deadline_s
    queue.arrival_s[at] = arrival_s
    queue.number[at] = number
    queue.floor[at] = floor
    queue.query_class[at] = query_class
    i[LAST] = last + 1


@inlined
def push_plain(
    queue: Queue,
    i: Ints,
    arriving: Arriving,
    begin: int,
    end: int,
    first_number: int,
) -> None:
    """Add the plain queries from `begin` to `end` of a piece, as `push` would one by one.

    Plain: without a floor, and of the default class.
    """
    last = i[LAST]
    latest_s = queue.deadline_s[last - 1] if i[FIRST] < last else -np.inf
    for at in range(begin, end):
        number, deadline_s = first_number + at - begin, arriving.deadline_s[at]
        if latest_s > deadline_s:
            i[LAST] = last
            push(queue, i, deadline_s, arriving.arrival_s[at], number, 0, 0)
            last += 1
            continue
        latest_s = deadline_s
        queue.deadline_s[last] = deadline_s
        queue.arrival_s[last] = arriving.arrival_s[at]
        queue.number[last] = number
        queue.floor[last] = 0
        queue.query_class[last] = 0
        last += 1
    i[LAST] = last


@inlined
def compact(queue: Queue, i: Ints) -> None:
    """Move the queue to the front of its arrays, now and then: what is used stays in the caches."""
    first, last = i[FIRST], i[LAST]
    if first < COMPACT_FROM or 2 * first < last:
        return
    for place in range(first, last):
        queue.deadline_s[place - first] = queue.deadline_s[place]
        queue.arrival_s[place - first] = queue.arrival_s[place]
        queue.number[place - first] = queue.number[place]
        queue.floor[place - first] = queue.floor[place]
        queue.query_class[place - first] = queue.query_class[place]
    i[FIRST] = 0
    i[LAST] = last - first


@inlined
def remove(queue: Queue, i: Ints, groups: Groups, at: int) -> None:
    """Remove the query at a place."""
    floor = queue.floor[at]
    if floor > 0:
        i[NUM_FLOORED] -= 1
        groups.waiting[floor - 1] -= 1
    for place in range(at, i[FIRST], -1):
        queue.deadline_s[place] = queue.deadline_s[place - 1]
        queue.arrival_s[place] = queue.arrival_s[place - 1]
        queue.number[place] = queue.number[place - 1]
        queue.floor[place] = queue.floor[place - 1]
        queue.query_class[place] = queue.query_class[place - 1]
    i[FIRST] += 1
