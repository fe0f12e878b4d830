"""`RequestOptions`, what a client gives besides its payload; `Reply`, how a query ended."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, cast

import numpy as np

from slackfit.query import Outcome
from slackfit.spreading import Outlook


class RequestOptions(NamedTuple):
    """Deadlines and preferences of one request, on the engine's clock.

    `deadline_s` is what the scheduler works for: the earliest one given, less what the way back
    takes; `given_deadline_s` is without that, and what the end is judged by (None: the same). When
    `hard_deadline_s` passes, the client no longer wants the answer: the query ends as `expired`
    then, also while it runs.
    """

    deadline_s: float
    hard_deadline_s: float | None = None
    min_accuracy: float = 0.0
    query_class: int = 0
    subnet_id: str | None = None
    given_deadline_s: float | None = None
    tenant: str = ""


class Reply(NamedTuple):
    """The end of one query: its outcome, and the logits (samples, classes) if it was executed.

    `form` says in which form of its weights the subnet ran: a graph and its precision, or views;
    `outlook` what one more query would have got when it ended.
    """

    outcome: Outcome
    output: np.ndarray | None = None
    execution_s: float = 0.0
    batch_id: int | None = None
    form: str = ""
    tenant: str = ""
    outlook: Outlook | None = None

    @property
    def is_executed(self) -> bool:
        """Whether there is an output (on time or late)."""
        return self.output is not None

    @property
    def queue_s(self) -> float:
        """Seconds from arrival to launch, or to the end of a query that never ran."""
        outcome = self.outcome
        end_s = outcome.finish_s if outcome.start_s is None else outcome.start_s
        return end_s - outcome.arrival_s

    @property
    def slack_s(self) -> float:
        """Seconds left until the deadline at the end; negative when late."""
        return self.outcome.deadline_s - self.outcome.finish_s


def cause_of(outcomes: Sequence[Outcome]) -> Outcome:
    """Return which of a request's missed ends is its cause.

    When one sample is refused the others are withdrawn: those are the effect.
    """
    return next((o for o in outcomes if o.reason != "cancelled"), outcomes[0])


def logits_of(replies: Sequence[Reply]) -> np.ndarray:
    """Return the outputs of executed queries, little-endian float32 (B, num_classes)."""
    rows = [cast("np.ndarray", reply.output) for reply in replies]
    whole = rows[0] if len(rows) == 1 else np.concatenate(rows)
    return np.ascontiguousarray(whole, dtype="<f4")


def version_of(replies: Sequence[Reply]) -> str:
    """Return the subnet that served the samples; several are joined by commas."""
    return ",".join(dict.fromkeys(str(reply.outcome.subnet_id) for reply in replies))


def describe(
    replies: Sequence[Reply], policy: str, replica_tag: str = ""
) -> dict[str, str | int | float]:
    """Return the parameters of an answer: the slowest of each time, the mean of the accuracy.

    Outlook and tag are for clients that choose among replicas (`slackfit.spreading`).
    """
    if len(replies) == 1:
        return _describe_one(replies[0], policy) | dict(outlook_of(replies[0], replica_tag))
    outcomes = [reply.outcome for reply in replies]
    is_late = any(outcome.status == "late" for outcome in outcomes)
    parameters: dict[str, str | int | float] = {
        "policy": policy,
        "status": "late" if is_late else "on_time",
        "subnet": version_of(replies),
        "accuracy": _mean_accuracy(outcomes),
        "batch_id": str(replies[0].batch_id),
        "form": ",".join(dict.fromkeys(reply.form for reply in replies)),
        "batch_size": max(outcome.batch_size for outcome in outcomes),
        "queue_s": max(reply.queue_s for reply in replies),
        "execution_s": max(reply.execution_s for reply in replies),
        "slack_s": min(reply.slack_s for reply in replies),
    }
    return parameters | dict(outlook_of(replies[-1], replica_tag))


def outlook_of(reply: Reply, replica_tag: str) -> list[tuple[str, str | float]]:
    """Return what tells clients where to go next, as parameters of an answer."""
    told: list[tuple[str, str | float]] = []
    if reply.outlook is not None:
        told.append(("earliest_finish_s", round(reply.outlook.finish_s, 5)))
        told.append(("capacity_qps", round(reply.outlook.capacity_qps, 2)))
    if replica_tag:
        told.append(("replicas", replica_tag))
    return told


def _describe_one(reply: Reply, policy: str) -> dict[str, str | int | float]:
    """Return the same of one query, which nearly every request is, for a third of the cost."""
    outcome = reply.outcome
    return {
        "policy": policy,
        "status": "late" if outcome.status == "late" else "on_time",
        "subnet": str(outcome.subnet_id),
        "accuracy": outcome.accuracy,
        "batch_id": str(reply.batch_id),
        "form": reply.form,
        "batch_size": outcome.batch_size,
        "queue_s": reply.queue_s,
        "execution_s": reply.execution_s,
        "slack_s": reply.slack_s,
    }


def _mean_accuracy(outcomes: Sequence[Outcome]) -> float:
    """Return the mean over samples."""
    num_samples = sum(outcome.samples for outcome in outcomes)
    return sum(outcome.accuracy * outcome.samples for outcome in outcomes) / num_samples
