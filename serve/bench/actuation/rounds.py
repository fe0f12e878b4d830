"""Interleaved rounds: several calls timed in turn, so that what disturbs one disturbs all."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from statistics import median

Samples = dict[str, list[float]]
"""Seconds of each call in each round."""


def rotated(
    calls: Mapping[str, Callable[[], object]],
    at_least_s: float = 3.0,
    rounds: tuple[int, int] = (9, 600),
    prepare: Callable[[str], object] = lambda name: None,
) -> Samples:
    """Return the seconds of each call in each round, after two rounds that do not count.

    There are `rounds[0]` at least and `rounds[1]` at most, and as many as fit `at_least_s`. The
    order within a round rotates, and every other turn of it runs backwards. `prepare` is called
    with a call's name before it, outside the clock.
    """
    samples_s: Samples = {name: [] for name in calls}
    names = list(calls)
    start_s = time.perf_counter()
    for number in range(-2, rounds[1]):
        first = number % len(names)
        order = names[first:] + names[:first]
        for name in order if number // len(names) % 2 == 0 else reversed(order):
            prepare(name)
            before_s = time.perf_counter()
            calls[name]()
            if number >= 0:
                samples_s[name].append(time.perf_counter() - before_s)
        if number + 1 >= rounds[0] and time.perf_counter() - start_s >= at_least_s:
            break
    return samples_s


def paired_ratio(samples_s: Mapping[str, list[float]], name: str, over: str) -> float:
    """Return the median over rounds of one call's time over another's in the same round.

    A machine that slows down for a while slows both, so this stands when medians do not.
    """
    pairs = zip(samples_s[name], samples_s[over], strict=True)
    return median(a / b for a, b in pairs)


def medians_text(samples_s: Mapping[str, list[float]]) -> str:
    """Return the medians in milliseconds, and how many rounds there were, for a row's detail."""
    times = ", ".join(f"{name} {median(taken) * 1e3:.3f} ms" for name, taken in samples_s.items())
    return f"medians {times}; {len(next(iter(samples_s.values())))} rounds"
