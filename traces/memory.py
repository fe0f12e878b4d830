"""Memory that work would take, compared with what is free, before it begins."""

from __future__ import annotations

import os
from pathlib import Path

from traces.trace_error import TraceError

BYTES_PER_ARRIVAL = 48
"""Making, sorting and keeping an arrival: three arrays of eight bytes, and their copies."""
_SHARE = 0.5  # of what is free: the machine has other things to do
_CGROUPS = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    (
        "/sys/fs/cgroup/memory/memory.limit_in_bytes",
        "/sys/fs/cgroup/memory/memory.usage_in_bytes",
    ),
)


def free_bytes() -> float:
    """Return the memory that this process may still take: the machine's, or its container's."""
    free = [_machine_bytes()]
    for limit, used in _CGROUPS:
        try:
            free.append(float(Path(limit).read_text()) - float(Path(used).read_text()))
        except (OSError, ValueError):  # no such container, or one without a limit ("max")
            continue
    return max(min(free), 0.0)


def check_arrivals(expected: float, way_out: str, bytes_each: float = BYTES_PER_ARRIVAL) -> None:
    """Refuse to make so many arrivals that they would take more than half of the free memory.

    Raises:
        TraceError: says how many, the memory that they would take, what is free, and `way_out`.
    """
    check_memory(expected * bytes_each, f"{expected:,.0f} arrivals", way_out)


def check_memory(num_bytes: float, what: str, way_out: str) -> None:
    """Refuse work that would take more than half of the free memory.

    Raises:
        TraceError: says what it is, the memory that it would take, what is free, and `way_out`.
    """
    free = free_bytes()
    if not num_bytes <= _SHARE * free:
        raise TraceError(
            f"{what} would take about {num_bytes / 2**30:,.1f} GiB of memory, and "
            f"{free / 2**30:,.1f} GiB are free (half of which may be taken); {way_out}"
        )


def _machine_bytes() -> float:
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return float(line.split()[1]) * 1024
    except OSError:
        pass
    return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
