"""Whether a profile still tells what this machine does: a few runs, at the start of a server.

The fastest of a few runs is compared with the profiled median. Whatever else a machine is busy with
only slows runs down, and hardly all of them, so noise alone does not make a profile look wrong; a
lower clock, another library or a slower neighbour for good does.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from statistics import median
from typing import NamedTuple

import numpy as np

from slackfit.profile import LatencyProfile, ProfileError
from subnetact.executor import Executor

logger = logging.getLogger(__name__)

_RUNS = 5
_AT_MOST_S = 3.0
_TOLERATED = (0.6, 1.3)  # fastest run over profiled median, without a word
_REFUSED = 10.0  # slower than this is no noise; faster may be, of the profile's own runs


class Check(NamedTuple):
    """One profiled entry, and the fastest of the runs made of it; seconds."""

    subnet_id: str
    batch_size: int
    profiled_s: float
    fastest_s: float

    @property
    def ratio(self) -> float:
        """Measured over profiled."""
        return self.fastest_s / self.profiled_s


def recheck(
    executor: Executor,
    profile: LatencyProfile,
    *,
    runs: int = _RUNS,
    at_most_s: float = _AT_MOST_S,
    clock: Callable[[], float] = time.perf_counter,
) -> list[Check]:
    """Run the fastest and the slowest subnet at the smallest and the middle batch size.

    Each entry is run once to warm up and up to `runs` times; after `at_most_s` no more runs start
    but those that give every entry one.
    """
    by_time = sorted(profile.subnet_ids, key=lambda i: profile.latency_s(i, 1))
    sizes = {profile.batch_sizes[0], profile.batch_sizes[len(profile.batch_sizes) // 2]}
    entries = [(i, b) for i in dict.fromkeys((by_time[0], by_time[-1])) for b in sorted(sizes)]
    known, inputs_of = _usual(executor, profile)
    start_s = clock()
    fastest_s: dict[tuple[str, int], float] = {}
    for round_number in range(-1, runs):
        for subnet_id, size in entries:
            if round_number > 0 and clock() - start_s > at_most_s:
                break
            inputs = inputs_of(size)
            before_s = clock()
            executor.run(subnet_id, inputs)
            taken_s = clock() - before_s
            if round_number >= 0:
                known_s = fastest_s.get((subnet_id, size), taken_s)
                fastest_s[subnet_id, size] = min(known_s, taken_s)
    return [Check(i, b, known.latency_s(i, b), fastest_s[i, b]) for i, b in entries]


def _usual(
    executor: Executor, profile: LatencyProfile
) -> tuple[LatencyProfile, Callable[[int], np.ndarray]]:
    """Return what to run, as a function of its size, and the profile that says what that takes.

    Where samples differ in work, those of the first bucket: the sample of zeros may be the heaviest
    of all. Where batches take another time before graphs are captured, that one.
    """
    background = getattr(executor, "background", None)
    if background is not None:
        return background.planned(profile), executor.sample.zeros
    of_work = getattr(executor, "of_work", None)
    if profile.work is None or of_work is None:
        return profile, executor.sample.zeros
    rng, bound = np.random.default_rng(0), profile.work.bounds[0]
    return profile.for_bucket(0), lambda size: of_work(-np.inf, bound, size, rng)


def revalidated(
    executor: Executor,
    profile: LatencyProfile,
    *,
    clock: Callable[[], float] = time.perf_counter,
) -> LatencyProfile:
    """Return `profile`, or, with a warning, the profile times the factor by which it is off.

    Raises ProfileError when runs take ten times what it says, or more.
    """
    checks = recheck(executor, profile, clock=clock)
    factor = median(check.ratio for check in checks)
    if _TOLERATED[0] <= factor <= _TOLERATED[1]:
        return profile
    brief = ", ".join(
        f"{c.subnet_id} at batch {c.batch_size}: {c.fastest_s * 1e3:.2f} ms, profiled "
        f"{c.profiled_s * 1e3:.2f}"
        for c in checks
    )
    if factor >= _REFUSED:
        raise ProfileError(
            f"profile {profile.name!r} is not of this machine: runs take {factor:.2g} times what "
            f"it says ({brief}); measure one here with `supernet profile`"
        )
    logger.warning(
        "profile %s is off by a factor of %.2f on this machine now (%s): corrected by it; measure "
        "again with `supernet profile`",
        profile.name,
        factor,
        brief,
    )
    return profile.scaled(factor)
