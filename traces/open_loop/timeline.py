"""A replay's timeline: one row per query, in Parquet, for programs that ask more than the report.

Times are seconds from the start of the counted part (the warm-up is left out); deadline, sent and
received are absolute on that axis. Queue and execution time are the server's own, NaN where it
named none.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from slackfit.output_files import replacing
from slackfit.query import STATUSES
from traces.open_loop.result import ReplayResult
from traces.trace import Trace, TraceError
from traces.trace_columns import unknown_column

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
    ids = answers.query_id
    classes = np.zeros(len(trace), np.int64) if trace.query_class is None else trace.query_class
    tenants = unknown_column("tenant", len(ids)) if trace.tenant is None else trace.tenant[ids]
    is_named = np.array([bool(name) for name in answers.subnet.names], dtype=bool)
    is_known = answers.is_ok & is_named[answers.subnet.codes]

    def texts(codes: np.ndarray, names: Sequence[str]) -> Any:
        """A dictionary column; a code below 0 is no text."""
        indices = pa.array(codes.astype(np.int32), mask=codes < 0)
        return pa.DictionaryArray.from_arrays(indices, pa.array(names, pa.string()))

    has_id = answers.batch_id != b""
    columns = {
        "query_id": ids,
        "query_class": classes[ids],
        "tenant": texts(tenants.codes, tenants.names),
        "intended_s": answers.intended_s - result.warmup_s,
        "sent_s": answers.sent_s - result.warmup_s,
        "received_s": answers.finish_s - result.warmup_s,
        "deadline_s": answers.intended_s - result.warmup_s + result.slo_s[ids],
        "outcome": texts(outcomes.status, STATUSES),
        "reason": texts(outcomes.reason, outcomes.reasons),
        "subnet": texts(outcomes.subnet, outcomes.subnet_ids),
        "batch_id": pa.array(answers.batch_id, pa.binary(), mask=~has_id).cast(pa.string()),
        "batch_size": outcomes.batch_size,
        "queue_s": np.where(is_known, answers.queue_s, np.nan),
        "execution_s": np.where(is_known, answers.execution_s, np.nan),
        "accuracy": outcomes.accuracy,
        "is_right": pa.array(answers.is_right == 1, mask=answers.is_right < 0),
        "attempts": answers.attempts,
    }
    try:
        with replacing(Path(path)) as temporary:
            pq.write_table(pa.table(columns), temporary)
    except OSError as error:
        raise TraceError(f"{path}: cannot be written ({error})") from None
