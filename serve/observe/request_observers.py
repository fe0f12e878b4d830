"""Builds the request observers that the settings enable: the log of queries, and spans."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable

from serve.config import ServeConfig
from serve.observe.logs import QueryLog
from serve.observe.request_record import RequestObserver
from serve.observe.spans import build_spans


def build_request_observers(
    config: ServeConfig, clock: Callable[[], float], resources: contextlib.ExitStack
) -> list[RequestObserver]:
    """Return the observers that `config` enables; `resources` closes what they hold."""
    observers: list[RequestObserver] = []
    if config.log_queries != "none":
        observers.append(QueryLog(config.log_queries, config.log_lines_per_s, clock))
    spans = build_spans(clock, time.time, resources) if config.spans else None
    if spans is not None:
        observers.append(spans)
    return observers
