"""A simulated schedule as a Chrome trace: one row per worker, one block per batch.

Open the file in chrome://tracing or ui.perfetto.dev. Format: the Trace Event Format's complete
events (`ph` X), times in microseconds.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from slackfit.output_files import replacing
from slackfit.query import Outcome


class ChromeTrace:
    """The schedules of several policies, each a process of its own; the last run of each counts."""

    def __init__(self) -> None:
        self._batches: dict[str, list[dict[str, Any]]] = {}

    def record(self, policy: str, outcomes: Sequence[Outcome]) -> None:
        """Keep one run, in place of the policy's earlier one (a capacity search tries many)."""
        self._batches[policy] = _batch_events(outcomes)

    def write(self, path: Path) -> None:
        """Write all runs; the file appears whole or not at all."""
        events: list[dict[str, Any]] = []
        for pid, (policy, batches) in enumerate(self._batches.items()):
            name = {"ph": "M", "pid": pid, "name": "process_name", "args": {"name": policy}}
            events += [name, *(batch | {"pid": pid} for batch in batches)]
        with replacing(path) as temporary:
            text = json.dumps({"traceEvents": events, "displayTimeUnit": "ms"})
            temporary.write_text(text, encoding="utf-8")


def _batch_events(outcomes: Sequence[Outcome]) -> list[dict[str, Any]]:
    batches: dict[tuple[int, float], list[Outcome]] = {}
    for outcome in outcomes:
        if outcome.start_s is not None and outcome.worker_id is not None:
            batches.setdefault((outcome.worker_id, outcome.start_s), []).append(outcome)
    return [
        _batch_event(worker_id, start_s, members)
        for (worker_id, start_s), members in sorted(batches.items())
    ]


def _batch_event(worker_id: int, start_s: float, members: Sequence[Outcome]) -> dict[str, Any]:
    first = members[0]
    slack_s = min(member.deadline_s for member in members) - first.finish_s
    return {
        "ph": "X",
        "tid": worker_id,
        "name": str(first.subnet_id),
        "cat": first.status,
        "ts": round(start_s * 1e6, 3),
        "dur": round((first.finish_s - start_s) * 1e6, 3),
        "args": {
            "queries": len(members),
            "on_time": sum(member.status == "on_time" for member in members),
            "accuracy": first.accuracy,
            "least_slack_ms": round(slack_s * 1e3, 3),
        },
    }
