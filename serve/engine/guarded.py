"""`Guarded`: calls an observer; what the observer raises is logged and costs nobody anything else.

Metrics, statistics, logs and exporters watch what the engine does. None of them may end a batch, a
thread or an answer. One that fails for good fails for every query, so its first failure
is logged with its traceback and then every tenfold, with the count.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Generic, ParamSpec

logger = logging.getLogger(__name__)

_P = ParamSpec("_P")


class Guarded(Generic[_P]):
    """`observer`, without its exceptions; `num_failures` counts them."""

    def __init__(self, observer: Callable[_P, object]) -> None:
        self._observer = observer
        self._next_logged = 1
        self.num_failures = 0

    def __call__(self, *args: _P.args, **options: _P.kwargs) -> None:
        """Call the observer."""
        try:
            self._observer(*args, **options)
        except Exception:  # somebody else's code, or a bug of ours: never the query's fault
            self.num_failures += 1
            if self.num_failures >= self._next_logged:
                self._next_logged *= 10
                name = getattr(self._observer, "__qualname__", type(self._observer).__qualname__)
                logger.exception("observer %s failed (%d times so far)", name, self.num_failures)
