"""The outcomes of queries: executed, failed, or never run."""

from __future__ import annotations

from slackfit.query import Batch, Outcome, Query, Status


def executed(batch: Batch, accuracy: float, now_s: float) -> tuple[Outcome, ...]:
    """Return the outcomes of a batch that finished at `now_s`: on time or late."""
    _, worker_id, subnet_id, queries, start_s, _ = batch
    size = batch.num_samples
    on_time: Status = "on_time"
    late: Status = "late"
    rows = [
        (
            query_id,
            on_time if now_s <= (deadline_s if given_s is None else given_s) else late,
            "",
            arrival_s,
            deadline_s if given_s is None else given_s,
            start_s,
            now_s,
            subnet_id,
            accuracy,
            size,
            worker_id,
            samples,
        )
        for query_id, arrival_s, deadline_s, _, _, _, samples, _, _, given_s in queries
    ]
    return tuple(map(Outcome._make, rows))  # half the cost of Outcome(...), once per query


def failed(batch: Batch, reason: str, now_s: float) -> tuple[Outcome, ...]:
    """Return the outcomes of a batch that ended without results."""
    return tuple(
        unserved(query, "failed", reason, now_s)._replace(
            start_s=batch.start_s,
            subnet_id=batch.subnet_id,
            batch_size=batch.num_samples,
            worker_id=batch.worker_id,
        )
        for query in batch.queries
    )


def unserved(query: Query, status: Status, reason: str, now_s: float) -> Outcome:
    """Return the outcome of a query that never ran."""
    return Outcome(
        query_id=query.query_id,
        status=status,
        reason=reason,
        arrival_s=query.arrival_s,
        deadline_s=query.judged_by_s,
        start_s=None,
        finish_s=now_s,
        subnet_id=None,
        accuracy=0.0,
        batch_size=0,
        samples=query.samples,
    )
