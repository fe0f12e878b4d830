"""A replay's timeline: one row per query, in Parquet, for programs that ask more than the report.

Times are seconds from the start of the counted part (the warm-up is left out); deadline, sent and
received are absolute on that axis. Queue and execution time are the server's own, NaN where it
named none.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from slackfit.output_files import replacing
from traces.open_loop.result import ReplayResult
from traces.trace import Trace, TraceError

COLUMNS = (
    "query_id",
    "query_class",
    "tenant",
    "intended_s",
    "sent_s",
    "received_s",
    "deadline_s",
    "outcome",
    "reason",
    "subnet",
    "batch_id",
    "batch_size",
    "queue_s",
    "execution_s",
    "accuracy",
    "is_right",
    "attempts",
)


def write_timeline(path: Path | str, trace: Trace, result: ReplayResult) -> None:
    """Write one row per counted query; the file appears whole or not at all.

    Raises:
        TraceError: the file cannot be written.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    answers, outcomes = result.answers, result.outcomes
    replies = [a.reply for a in answers]
    ids = np.array([a.query_id for a in answers], dtype=np.int64)
    classes = np.zeros(len(trace), np.int64) if trace.query_class is None else trace.query_class
    tenants = [""] * len(ids) if trace.tenant is None else trace.tenant[ids].tolist()
    at_s = np.array([(a.intended_s, a.sent_s, a.finish_s) for a in answers]).reshape(-1, 3)
    at_s = at_s - result.warmup_s
    is_known = [r.status == "ok" and bool(r.subnet_id) for r in replies]
    columns = {
        "query_id": ids,
        "query_class": classes[ids],
        "tenant": pa.array(tenants, pa.string()).dictionary_encode(),
        "intended_s": at_s[:, 0],
        "sent_s": at_s[:, 1],
        "received_s": at_s[:, 2],
        "deadline_s": at_s[:, 0] + result.slo_s[ids],
        "outcome": pa.array([o.status for o in outcomes], pa.string()).dictionary_encode(),
        "reason": pa.array([o.reason for o in outcomes], pa.string()).dictionary_encode(),
        "subnet": pa.array([o.subnet_id for o in outcomes], pa.string()).dictionary_encode(),
        "batch_id": pa.array([r.batch_id for r in replies], pa.string()),
        "batch_size": np.array([o.batch_size for o in outcomes], dtype=np.int32),
        "queue_s": _where(is_known, [r.queue_s for r in replies]),
        "execution_s": _where(is_known, [r.execution_s for r in replies]),
        "accuracy": np.array([o.accuracy for o in outcomes], dtype=np.float64),
        "is_right": pa.array([a.is_right for a in answers], pa.bool_()),
        "attempts": np.array([a.attempts for a in answers], dtype=np.int32),
    }
    try:
        with replacing(Path(path)) as temporary:
            pq.write_table(pa.table(columns), temporary)
    except OSError as error:
        raise TraceError(f"{path}: cannot be written ({error})") from None


def _where(is_known: list[bool], values: list[float]) -> np.ndarray:
    return np.where(np.array(is_known, dtype=bool), np.array(values, dtype=np.float64), np.nan)
