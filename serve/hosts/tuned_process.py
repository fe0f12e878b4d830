"""What a serving process sets for itself while it serves, and puts back afterwards.

Switch interval: the door parses requests in the process whose device thread launches kernels. Each
launch needs the interpreter lock back, and by default a thread that holds it gives it up only after
5 ms: a 10 ms forward beside a busy parser takes several times as long. With a short interval the
device thread waits tenths of a millisecond instead; the price, more switches, is paid by the door.

Garbage: what exists once warm-up is over lives as long as the process. Freezing it keeps full
collections, pauses of tens of milliseconds with a framework loaded, off the hot path. What is made
afterwards is freed by counting; looking for cycles after every 700 objects, as by default, takes a
twelfth of a busy door's time, and finds next to none.

Freed memory: the C library gives it back to the system as soon as a few megabytes lie free at the
end of a heap, and the next tensor gets new pages, each of which costs a fault when it is first
written: more than reading the tensor. Up to 64 MiB a heap are kept instead; glibc only, other C
libraries have their own ways.

Open files: as many as the system allows, since every connection is one. The last two are left so.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import sys
from collections.abc import Iterator

from serve.hosts.connections.connection_limits import raise_file_limit

SWITCH_INTERVAL_S = 2e-4
_KEPT_BYTES = 64 * 2**20
_MAPPED_FROM_BYTES = 32 * 2**20  # the most that glibc allows
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of its malloc.h
_OBJECTS = 50_000  # more than were freed, until young ones are looked through for cycles


@contextlib.contextmanager
def tuned_process(switch_interval_s: float = SWITCH_INTERVAL_S) -> Iterator[None]:
    """Tune this process for serving; enter it after warm-up."""
    previous_s, thresholds = sys.getswitchinterval(), gc.get_threshold()
    gc.collect()
    gc.freeze()
    gc.set_threshold(_OBJECTS, *thresholds[1:])
    sys.setswitchinterval(switch_interval_s)
    raise_file_limit()
    _keep_freed_memory()
    try:
        yield
    finally:
        sys.setswitchinterval(previous_s)
        gc.set_threshold(*thresholds)
        gc.unfreeze()


def _keep_freed_memory() -> None:
    """Have glibc keep what is freed; for good, since it can't be asked what was set before."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _MAPPED_FROM_BYTES)
        mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)
