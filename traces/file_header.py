"""What a trace file says about the whole trace: duration_s, source, licence, metadata."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NoReturn

from traces.trace import Trace
from traces.trace_columns import OPTIONAL_COLUMNS
from traces.trace_error import TraceError

HEADER_KEYS = ("duration_s", "source", "licence", "metadata")
COLUMNS = ("arrival_s", *OPTIONAL_COLUMNS)
WHAT_A_LINE_IS = f"arrival_s in seconds (ascending), then optionally {', '.join(OPTIONAL_COLUMNS)}"


def header_of(trace: Trace) -> dict[str, str]:
    """Return the header's values as JSON texts, by key."""
    values = (trace.duration_s, trace.source, trace.licence, dict(trace.metadata))
    return {key: json.dumps(v) for key, v in zip(HEADER_KEYS, values, strict=True)}


def decoded(text: str, where: str) -> object:
    """Return a header's value. Raises TraceError, naming `where`, for what is not JSON."""
    try:
        return json.loads(text, parse_constant=_refused)
    except (ValueError, RecursionError) as error:
        raise TraceError(f"{where}: expected JSON after the colon ({error})") from None


def _refused(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")


def checked_names(names: tuple[str, ...], where: str) -> tuple[str, ...]:
    """Return a trace file's column names. Raises TraceError for other than `COLUMNS`, once each."""
    unknown = [name for name in names if name not in COLUMNS]
    if unknown or "arrival_s" not in names or len(set(names)) != len(names):
        raise TraceError(
            f"{where}: header {','.join(names)[:80]!r} must name arrival_s, and may name "
            f"{', '.join(OPTIONAL_COLUMNS)}, each once"
        )
    return names


def duration_s_of(header: Mapping[str, Any], last_s: float) -> float:
    """Return the trace's length: the header's, or up to the last arrival."""
    given = header.get("duration_s")
    if given is None:
        if last_s == 0:
            raise TraceError("all arrivals are at 0 s; add a line '# duration_s: SECONDS'")
        return last_s
    if isinstance(given, bool) or not isinstance(given, int | float):
        raise TraceError(f"duration_s must be a number of seconds, got {str(given)[:40]!r}")
    return float(max(min(given, 1e300), -1e300))  # a whole number may be more than a float holds


def metadata_of(header: Mapping[str, Any]) -> dict[str, Any]:
    """Return the metadata; a file that says none is taken for a recorded trace."""
    value = header.get("metadata", {"synthetic": False})
    if not isinstance(value, dict):
        raise TraceError(f"metadata must be a JSON object, got {type(value).__name__}")
    return value
