"""Who is told of every request, as the settings have it: the log of queries, and spans."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable

from serve.config import ServeConfig
from serve.observe.logs import QueryLog
from serve.observe.request_record import Watcher
from serve.observe.spans import build_spans


def build_watchers(
    config: ServeConfig, clock: Callable[[], float], resources: contextlib.ExitStack
) -> list[Watcher]:
    """Return the watchers that `config` asks for; `resources` closes what they hold."""
    watchers: list[Watcher] = []
    if config.log_queries != "none":
        watchers.append(QueryLog(config.log_queries, config.log_lines_per_s, clock))
    spans = build_spans(clock, time.time, resources) if config.spans else None
    if spans is not None:
        watchers.append(spans)
    return watchers
