"""What a replay found: outcomes judged by the client, measured accuracy, the generator's lag."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from slackfit.query import Outcome, Status
from traces.open_loop.target import REPLY_STATUSES, ReplayReply
from traces.trace import Trace

INVALID_LAG_PER_SLO = 0.1
"""The 99th percentile of lag over SLO above which a run's figures are not to be believed."""


class Answer(NamedTuple):
    """One query's end as the replayer saw it; seconds from the run's start.

    `is_right` is None when there was no answer or no label to compare it with; `attempts` counts
    the sends, of which `sent_s` is the first and `finish_s` ends the last.
    """

    query_id: int
    intended_s: float
    sent_s: float
    finish_s: float
    reply: ReplayReply
    is_right: bool | None
    attempts: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayResult:
    """How a replay ended.

    `outcomes` hold one entry per sent query after the warm-up, by query id; `arrival_s` is the
    intended send. `measured_accuracy` is the top-1 over all returned answers, on time or not (None
    without labels or answers). `lag_s` is the delay of each send behind its intended moment; with
    `invalid_reason` not empty the generator was too slow for its figures to be believed. `answers`
    are the sent queries behind the outcomes, without outputs, and `slo_s` is per query id.
    """

    outcomes: list[Outcome]
    measured_accuracy: float | None
    num_judged: int
    duration_s: float
    lag_s: np.ndarray
    invalid_reason: str
    is_partial: bool
    num_warmup: int
    answers: list[Answer] = field(default_factory=list, repr=False)
    slo_s: np.ndarray = field(default_factory=lambda: np.empty(0), repr=False)
    warmup_s: float = 0.0
    cpu_s: tuple[float, ...] = ()
    loop_lag_s: np.ndarray = field(default_factory=lambda: np.empty(0), repr=False)

    @property
    def capacity_qps(self) -> float | None:
        """Queries/s at which the senders' processor time would be used up, at this run's cost.

        A lower bound: the end of every wait is spent awake, which a busier sender does less.
        """
        num_sent = len(self.answers) + self.num_warmup
        return num_sent / sum(self.cpu_s) * len(self.cpu_s) if any(self.cpu_s) else None

    @property
    def is_valid(self) -> bool:
        """Whether the generator kept its times."""
        return not self.invalid_reason

    @property
    def is_served_accuracy_known(self) -> bool:
        """Whether the server says how accurate its answers are; others than ours do not."""
        executed = [o for o in self.outcomes if o.status in ("on_time", "late")]
        return not executed or any(o.accuracy > 0 for o in executed)

    @property
    def lag_ms(self) -> dict[str, float | None]:
        """The generator's lag in milliseconds: p50, p99, max (None when nothing was sent)."""
        return _quantiles_ms(self.lag_s)

    @property
    def loop_lag_ms(self) -> dict[str, float | None]:
        """How late the senders' event loops came back from a sleep, in milliseconds.

        Sends are stamped before they are encoded and answers when the loop reads them: a client
        short of processor time shows here, and else would pass for a slow server.
        """
        return _quantiles_ms(self.loop_lag_s)

    def extra(self) -> dict[str, Any]:
        """Return the keys that a replay adds to a report of `slackfit.metrics.summarize`."""
        return {
            "measured_accuracy": self.measured_accuracy,
            "num_judged": self.num_judged,
            "is_served_accuracy_known": self.is_served_accuracy_known,
            "generator_lag_ms": self.lag_ms,
            "generator_loop_lag_ms": self.loop_lag_ms,
            "generator_capacity_qps": self.capacity_qps,
            "generator_processes": len(self.cpu_s),
            "num_retries": sum(a.attempts - 1 for a in self.answers),
            "is_valid": self.is_valid,
            "invalid_reason": self.invalid_reason,
            "is_partial": self.is_partial,
            "num_warmup": self.num_warmup,
        }


def _quantiles_ms(lag_s: np.ndarray) -> dict[str, float | None]:
    if lag_s.size == 0:
        return dict.fromkeys(("p50", "p99", "max"))
    p50, p99, most = np.quantile(lag_s, [0.5, 0.99, 1.0]) * 1e3
    return {"p50": float(p50), "p99": float(p99), "max": float(most)}


def make_result(
    trace: Trace,
    answers: Sequence[Answer],
    *,
    slo_s: np.ndarray,
    warmup_s: float,
    ended_s: float | None,
    max_lag_s: float | None,
    cpu_s: Sequence[float] = (),
    loop_lag_s: Sequence[float] = (),
) -> ReplayResult:
    """Judge the answers.

    `cpu_s` is the processor time of each sender; `ended_s` is when an interrupted run stopped, None
    for a whole one. `max_lag_s` bounds the 99th percentile of the lag; None judges each query by
    its own SLO instead, a tenth of which its lag may be.
    """
    kept = sorted((a for a in answers if a.intended_s >= warmup_s), key=lambda a: a.query_id)
    batch_of = _batches(kept)
    outcomes = [_outcome(a, float(slo_s[a.query_id]), warmup_s, batch_of) for a in kept]
    judged = [a.is_right for a in kept if a.is_right is not None]
    lag_s = np.array([a.sent_s - a.intended_s for a in kept], dtype=np.float64)
    end_s = trace.duration_s if ended_s is None else min(ended_s, trace.duration_s)
    return ReplayResult(
        outcomes=outcomes,
        measured_accuracy=sum(judged) / len(judged) if judged else None,
        num_judged=len(judged),
        duration_s=max(end_s - warmup_s, 1e-9),
        lag_s=lag_s,
        invalid_reason=_invalid_reason(
            lag_s, slo_s[np.array([a.query_id for a in kept], dtype=np.int64)], max_lag_s
        ),
        is_partial=ended_s is not None,
        num_warmup=len(answers) - len(kept),
        answers=kept,
        slo_s=slo_s,
        warmup_s=warmup_s,
        cpu_s=tuple(cpu_s),
        loop_lag_s=np.array(loop_lag_s, dtype=np.float64),
    )


def _outcome(
    answer: Answer, slo_s: float, warmup_s: float, batch_of: Mapping[int, tuple[int, float]]
) -> Outcome:
    reply = answer.reply
    status, reason = _status(answer, slo_s)
    is_executed = status in ("on_time", "late")
    worker_id, start_s = batch_of.get(answer.query_id, (None, None))
    return Outcome(
        query_id=answer.query_id,
        status=status,
        reason=reason,
        arrival_s=answer.intended_s - warmup_s,
        deadline_s=answer.intended_s + slo_s - warmup_s,
        start_s=None if start_s is None else start_s - warmup_s,
        finish_s=answer.finish_s - warmup_s,
        subnet_id=reply.subnet_id if is_executed else None,
        accuracy=reply.accuracy if is_executed else 0.0,
        batch_size=reply.batch_size if is_executed else 0,
        worker_id=worker_id,
    )


def _status(answer: Answer, slo_s: float) -> tuple[Status, str]:
    status, reason = answer.reply.status, answer.reply.reason
    if status == "ok":
        return ("on_time" if answer.finish_s <= answer.intended_s + slo_s else "late"), ""
    if status == "dropped":
        return "dropped", reason
    if status == "rejected":
        return "rejected", reason
    if status in REPLY_STATUSES:
        return "failed", reason
    return "failed", f"reply with unknown status {status!r}; known: {', '.join(REPLY_STATUSES)}"


def _batches(answers: Sequence[Answer]) -> dict[int, tuple[int, float]]:
    """Return {query_id: (worker 0, start_s)} with one common start per batch.

    The client sees a batch only through its members' replies: by `batch_id`, else members agree in
    subnet, batch size and execution time. Each group is cut, in order of completion, into runs of
    `batch_size`. The start is the first member's finish less its execution time, an estimate.
    """
    groups: dict[object, list[Answer]] = defaultdict(list)
    for a in sorted((a for a in answers if a.reply.status == "ok"), key=lambda a: a.finish_s):
        reply = a.reply
        groups[reply.batch_id or (reply.subnet_id, reply.batch_size, reply.execution_s)].append(a)
    starts: dict[int, tuple[int, float]] = {}
    for group in groups.values():
        size = max(group[0].reply.batch_size, 1)
        for first in range(0, len(group), size):
            members = group[first : first + size]
            start_s = members[0].finish_s - members[0].reply.execution_s
            starts.update({a.query_id: (0, start_s) for a in members})
    return starts


def _invalid_reason(lag_s: np.ndarray, slo_s: np.ndarray, max_lag_s: float | None) -> str:
    if lag_s.size == 0:
        return "nothing was sent"
    way_out = "lower the rate, give the generator a core of its own, or send from more processes"
    if max_lag_s is None:
        # By each query's own SLO: one query of 1 ms says nothing about those of a second.
        share = float(np.quantile(lag_s / slo_s, 0.99))
        if share <= INVALID_LAG_PER_SLO:
            return ""
        return (
            f"the generator sent late: lag p99 is {share:.0%} of the query's own SLO, above "
            f"{INVALID_LAG_PER_SLO:.0%}; {way_out}"
        )
    p99_s = float(np.quantile(lag_s, 0.99))
    if p99_s <= max_lag_s:
        return ""
    return (
        f"the generator sent late: lag p99 {p99_s * 1e3:.1f} ms is above {max_lag_s * 1e3:.1f} ms; "
        f"{way_out}"
    )
