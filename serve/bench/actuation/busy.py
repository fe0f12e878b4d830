"""The busy part of `supernet bench actuation`: a forward beside a thread that parses JSON.

A server's door shares the interpreter with the device's thread. Here a second thread of the process
reads request bodies for a share of its time, none, 30 % or all of it, and the largest subnet runs
beside it, in every form; the levels take turns within every round. The process is tuned as one that
serves is.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from serve.bench.actuation.rounds import medians_text, paired_ratio, rotated
from serve.bench.rows import Row, Tell, row
from serve.hosts.tuned_process import tuned_process

_LEVELS = {"alone": 0, "beside_30_percent": 30, "beside_100_percent": 100}
_VALUES = 3072  # of a CIFAR image as numbers of JSON, a tenth of a millisecond to parse
_BURST = 4  # bodies in a row
_IDLE_S = 0.005
_SETTLE_S = 0.02


class BusyThread:
    """A thread that parses JSON for `percent` of its time, in short bursts; set it at any time."""

    def __init__(self) -> None:
        self.percent = 0
        self.parsed = 0
        self._body = json.dumps([value % 256 for value in range(_VALUES)])
        self._is_closed = False
        self._thread = threading.Thread(target=self._main, name="busy", daemon=True)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Run it beside what is done within."""
        self._thread.start()
        try:
            yield
        finally:
            self._is_closed = True
            self._thread.join()

    def _main(self) -> None:
        while not self._is_closed:
            percent = self.percent
            if percent == 0:
                time.sleep(_IDLE_S)
                continue
            start_s = time.perf_counter()
            for _ in range(_BURST):
                json.loads(self._body)
            self.parsed += _BURST
            if percent < 100:
                time.sleep((time.perf_counter() - start_s) * (100 / percent - 1))


def busy_rows(
    net: str,
    calls: Mapping[str, Callable[[], object]],
    *,
    at_least_s: float = 15.0,
    tell: Tell = print,
) -> list[Row]:
    """Measure every call ({form: one forward}) beside each level over alone, paired by rounds."""
    rows: list[Row] = []
    for form, call in calls.items():
        thread = BusyThread()

        def set_level(
            name: str, thread: BusyThread = thread, call: Callable[[], object] = call
        ) -> None:
            thread.percent = _LEVELS[name]
            time.sleep(_SETTLE_S)
            call()  # what sleeping made slow is over

        with tuned_process(), thread.running():
            samples_s = rotated(dict.fromkeys(_LEVELS, call), at_least_s, prepare=set_level)
        detail = f"a thread of the same process parses JSON; {medians_text(samples_s)}"
        for name in list(_LEVELS)[1:]:
            ratio = paired_ratio(samples_s, name, "alone")
            rows.append(
                row(f"actuation/{net}/busy/{form}_{name}_over_alone", ratio, "ratio", detail)
            )
            tell(f"  {form} {name} over alone: {ratio:.3f}")
    return rows
