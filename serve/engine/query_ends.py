"""How queries of an engine end: a batch that ran, those that a drain sends away, those left over.

Each closes queries in the scheduler and in the ledger, under the engine's lock, and returns them;
their replies are delivered without it.
"""

from __future__ import annotations

from collections.abc import Iterable

from serve.engine.job import EndedQuery, Ledger
from serve.engine.runner import BatchResult
from slackfit.query import Batch
from slackfit.scheduling.backlog import hopeless
from slackfit.scheduling.scheduler import Scheduler


def end_batch(
    scheduler: Scheduler, ledger: Ledger, batch: Batch, run: BatchResult, now_s: float
) -> list[EndedQuery]:
    """Complete or fail a batch; a query that expired while it ran has ended already."""
    if run.is_failed:
        outcomes = scheduler.fail(batch.batch_id, now_s, run.failure)
        return [ledger.end(outcome) for outcome in outcomes if outcome.query_id in ledger.open]
    ended: list[EndedQuery] = []
    outcomes = scheduler.complete(batch.batch_id, now_s)
    outlook = scheduler.outlook(now_s)  # once for all answers of the batch
    for outcome, logits in zip(outcomes, run.rows, strict=True):
        if outcome.query_id not in ledger.open:
            continue  # nobody waits for it any more
        if logits is None:  # poisonous: its neighbours were served without it
            ended.append(ledger.end(outcome._replace(status="failed", reason=run.failure)))
        else:
            about = (run.execution_s, batch.batch_id, run.form, outlook)
            ended.append(ledger.end(outcome, logits, *about))
    return ended


def end_hopeless(
    scheduler: Scheduler, ledger: Ledger, now_s: float, *, free_at_s: float, until_s: float
) -> list[EndedQuery]:
    """End, as `draining`, what should go to another server at once."""
    lost = hopeless(
        scheduler.profile.fastest(),
        scheduler.waiting(),
        free_at_s,
        until_s=until_s,
        is_late_hopeless=scheduler.drop_hopeless,
    )
    return _cancelled(scheduler, ledger, (query.query_id for query in lost), now_s)


def end_waiting(scheduler: Scheduler, ledger: Ledger, now_s: float) -> list[EndedQuery]:
    """End, as `draining`, all that waits."""
    return _cancelled(scheduler, ledger, tuple(ledger.open), now_s)


def _cancelled(
    scheduler: Scheduler, ledger: Ledger, query_ids: Iterable[int], now_s: float
) -> list[EndedQuery]:
    outcomes = [scheduler.cancel(query_id, now_s, "draining") for query_id in query_ids]
    return [ledger.end(outcome) for outcome in outcomes if outcome is not None]
