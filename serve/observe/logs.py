"""Structured logs: a line per query or stream worth one, for people (text) or programs (JSON).

By default only what was not on time gets a line, and never more than some lines per second: under
overload the next line says how many were left out. So a query on time costs about a microsecond,
and a log can't become the load.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Literal, TextIO

from serve.observe.request_record import EndedRequest

LogFormat = Literal["text", "json"]
LoggedQueries = Literal["none", "misses", "all"]

query_logger = logging.getLogger("serve.queries")
_NOUNS = {"infer": "query"}


class QueryLog:
    """Writes entries to the log `serve.queries`, at most `lines_per_s` of them; one thread."""

    def __init__(self, what: LoggedQueries, lines_per_s: float, clock: Callable[[], float]) -> None:
        self._what = what
        self._lines_per_s = lines_per_s
        self._clock = clock
        self._allowed = self._burst = max(1.0, lines_per_s)
        self._filled_s = clock()
        self._left_out = 0

    def __call__(self, request: EndedRequest) -> None:
        """Write a line for a request, unless it is not wanted or there are too many."""
        if self._what == "none":
            return
        if self._what == "misses" and request.is_on_time:
            return
        if not self._take():
            self._left_out += 1
            return
        facts = request.facts()
        if self._left_out:
            facts["left_out"] = self._left_out
            self._left_out = 0
        noun = _NOUNS.get(request.verb, request.verb)
        query_logger.info("%s %s", noun, facts["status"], extra={"facts": facts})

    def _take(self) -> bool:
        now_s = self._clock()
        gained = (now_s - self._filled_s) * self._lines_per_s
        self._allowed = min(self._burst, self._allowed + gained)
        self._filled_s = now_s
        if self._allowed < 1.0:
            return False
        self._allowed -= 1.0
        return True


class TextFormatter(logging.Formatter):
    """One line for people: level, logger, message, then facts as key=value."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        facts: dict[str, Any] = getattr(record, "facts", {})
        text = f"{record.levelname} {record.name}: {record.getMessage()}"
        line = " ".join((text, *(f"{name}={_shown(value)}" for name, value in facts.items())))
        return line + (f"\n{self.formatException(record.exc_info)}" if record.exc_info else "")


class JsonFormatter(logging.Formatter):
    """One JSON object per line: `time` (UTC), `level`, `logger`, `message`, facts, `exception`."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        fields: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "facts", {}),
        }
        if record.exc_info:
            fields["exception"] = self.formatException(record.exc_info)
        return json.dumps(fields, default=str)


def configure_logs(log_format: LogFormat, stream: TextIO | None = None) -> None:
    """Send warnings of this process, and the lines of queries, to a stream (standard error)."""
    root = logging.getLogger()
    for handler in root.handlers[:]:
        if isinstance(handler.formatter, TextFormatter | JsonFormatter):
            root.removeHandler(handler)
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonFormatter() if log_format == "json" else TextFormatter())
    root.addHandler(handler)
    query_logger.setLevel(logging.INFO)


def _shown(value: object) -> str:
    """Return a value as it stands in a text line: what a client sent must not break the line."""
    text = str(value)
    return text if text.isprintable() and " " not in text else json.dumps(text)
