"""A simulated schedule as a Chrome trace: one row per worker, one block per batch.

Open the file in chrome://tracing or ui.perfetto.dev. Format: the Trace Event Format's complete
events (`ph` X), times in microseconds.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from slackfit.query import Outcome
from traces.files import replacing


def chrome_events(outcomes: Sequence[Outcome], process: str, pid: int = 0) -> list[dict[str, Any]]:
    """Return the events of one run; `process` names it, `pid` tells runs apart."""
    events: list[dict[str, Any]] = [
        {"ph": "M", "pid": pid, "name": "process_name", "args": {"name": process}}
    ]
    batches: dict[tuple[int, float], list[Outcome]] = {}
    for outcome in outcomes:
        if outcome.start_s is not None and outcome.worker_id is not None:
            batches.setdefault((outcome.worker_id, outcome.start_s), []).append(outcome)
    for (worker_id, start_s), members in sorted(batches.items()):
        first = members[0]
        on_time = sum(member.status == "on_time" for member in members)
        events.append(
            {
                "ph": "X",
                "pid": pid,
                "tid": worker_id,
                "name": str(first.subnet_id),
                "cat": first.status,
                "ts": round(start_s * 1e6, 3),
                "dur": round((first.finish_s - start_s) * 1e6, 3),
                "args": {
                    "queries": len(members),
                    "on_time": on_time,
                    "accuracy": first.accuracy,
                    "least_slack_ms": round(
                        (min(m.deadline_s for m in members) - first.finish_s) * 1e3, 3
                    ),
                },
            }
        )
    return events


def write_chrome_trace(path: Path, events: Sequence[dict[str, Any]]) -> None:
    """Write events of one or several runs; the file appears whole or not at all."""
    with replacing(path) as temporary:
        text = json.dumps({"traceEvents": list(events), "displayTimeUnit": "ms"})
        temporary.write_text(text, encoding="utf-8")
