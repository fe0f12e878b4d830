"""What a replay found: outcomes judged by the client, measured accuracy, the generator's lag."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from slackfit.outcome_columns import OutcomeColumns
from slackfit.query import STATUSES, Status
from traces.open_loop.answers import Answer, AnswerColumns
from traces.open_loop.target import REPLY_STATUSES
from traces.texts import Texts
from traces.trace import Trace

INVALID_LAG_PER_SLO = 0.1
"""The 99th percentile of lag over SLO above which a run's figures are not to be believed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayResult:
    """How a replay ended.

    `outcomes` hold one entry per sent query after the warm-up, by query id; `arrival_s` is the
    intended send. `measured_accuracy` is the top-1 over all returned answers, on time or not (None
    without labels or answers). `lag_s` is the delay of each send behind its intended moment; with
    `invalid_reason` not empty the generator was too slow for its figures to be believed. `answers`
    are the sent queries behind the outcomes, without outputs, and `slo_s` is per query id.
    """

    outcomes: OutcomeColumns
    measured_accuracy: float | None
    num_judged: int
    duration_s: float
    lag_s: np.ndarray
    invalid_reason: str
    is_partial: bool
    num_warmup: int
    answers: AnswerColumns = field(repr=False)
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
        executed = self.outcomes.executed
        return not executed.any() or bool((self.outcomes.accuracy[executed] > 0).any())

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
            "num_retries": int((self.answers.attempts - 1).sum()),
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
    loop_lag_s: npt.ArrayLike = (),
) -> ReplayResult:
    """Judge the answers.

    `cpu_s` is the processor time of each sender; `ended_s` is when an interrupted run stopped, None
    for a whole one. `max_lag_s` bounds the 99th percentile of the lag; None judges each query by
    its own SLO instead, a tenth of which its lag may be.
    """
    whole = AnswerColumns.of(answers)
    kept = whole.take(slice(int(np.searchsorted(whole.intended_s, warmup_s)), None))
    is_judged = kept.is_right >= 0
    num_judged = int(is_judged.sum())
    lag_s = kept.sent_s - kept.intended_s
    end_s = trace.duration_s if ended_s is None else min(ended_s, trace.duration_s)
    return ReplayResult(
        outcomes=_outcomes(kept, slo_s[kept.query_id], warmup_s),
        measured_accuracy=int(kept.is_right[is_judged].sum()) / num_judged if num_judged else None,
        num_judged=num_judged,
        duration_s=max(end_s - warmup_s, 1e-9),
        lag_s=lag_s,
        invalid_reason=_invalid_reason(lag_s, slo_s[kept.query_id], max_lag_s),
        is_partial=ended_s is not None,
        num_warmup=len(whole) - len(kept),
        answers=kept,
        slo_s=slo_s,
        warmup_s=warmup_s,
        cpu_s=tuple(cpu_s),
        loop_lag_s=np.array(loop_lag_s, dtype=np.float64),
    )


def _outcomes(
    answers: AnswerColumns, slo_s: npt.NDArray[np.float64], warmup_s: float
) -> OutcomeColumns:
    """Judge each answer by its SLO; times count from the end of the warm-up."""
    due_s = answers.intended_s + slo_s
    executed = answers.is_ok
    kinds = [STATUSES.index(_kind(name)) for name in answers.status.names]
    status = np.array(kinds, dtype=np.int8)[answers.status.codes]
    status[executed & (answers.finish_s > due_s)] = STATUSES.index("late")
    reasons = _reasons(answers)
    worker, start_s = _batches(answers)
    subnet_ids = tuple(name for name in answers.subnet.names if name)
    places = np.array([subnet_ids.index(n) if n else -1 for n in answers.subnet.names], np.int32)
    return OutcomeColumns(
        query_id=answers.query_id,
        status=status,
        reason=reasons.codes.astype(np.int32),
        reasons=reasons.names,
        arrival_s=answers.intended_s - warmup_s,
        deadline_s=due_s - warmup_s,
        start_s=start_s - warmup_s,
        finish_s=answers.finish_s - warmup_s,
        subnet=np.where(executed, places[answers.subnet.codes], -1).astype(np.int32),
        subnet_ids=subnet_ids,
        accuracy=np.where(executed, answers.accuracy, 0.0),
        batch_size=np.where(executed, answers.batch_size, 0).astype(np.int32),
        worker=worker,
        samples=np.ones(len(answers), dtype=np.int32),
    )


def _kind(reply_status: str) -> Status:
    """Return how a query with such a reply ended, before its deadline is looked at."""
    match reply_status:
        case "ok":
            return "on_time"
        case "dropped" | "rejected":
            return reply_status
        case _:
            return "failed"


def _reasons(answers: AnswerColumns) -> Texts:
    """Return why each query was not answered: as the server says, or as its status alone does."""
    said = Texts.of(map(_said, answers.status.names))[answers.status.codes]
    both = Texts.joined([answers.reason, said])
    is_servers = [name in REPLY_STATUSES and name != "ok" for name in answers.status.names]
    chosen = np.array(is_servers, dtype=np.bool_)[answers.status.codes]
    count = len(answers)
    return Texts(np.where(chosen, both.codes[:count], both.codes[count:]), both.names)


def _said(reply_status: str) -> str:
    """Return the reason that a status gives by itself: none, or that nobody knows it."""
    if reply_status in REPLY_STATUSES:
        return ""
    return f"reply with unknown status {reply_status!r}; known: {', '.join(REPLY_STATUSES)}"


def _batches(answers: AnswerColumns) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float64]]:
    """Return worker (0; -1 unanswered) and start_s (NaN unanswered), one start per batch.

    The client sees a batch only through its members' replies: by `batch_id`, else members agree in
    subnet, batch size and execution time. Each group is cut, in order of completion, into runs of
    `batch_size`. The start is the first member's finish less its execution time, an estimate.
    """
    worker = np.where(answers.is_ok, 0, -1).astype(np.int32)
    start_s = np.full(len(answers), np.nan)
    rows = np.flatnonzero(answers.is_ok).astype(np.int32)
    rows = rows[np.argsort(answers.finish_s[rows], kind="stable")]  # in order of completion
    if not rows.size:
        return worker, start_s
    group = _groups(answers, rows)
    order = np.argsort(group, kind="stable")
    rows, group = rows[order], group[order]
    begins = np.flatnonzero(np.append(True, group[1:] != group[:-1])).astype(np.int32)
    lengths = np.diff(begins, append=np.int32(len(rows)))
    first = np.repeat(begins, lengths)  # of each row its group's first
    size = np.maximum(answers.batch_size[rows[first]], 1)
    place = np.arange(len(rows), dtype=np.int32) - first
    leader = rows[first + place // size * size]  # the first member of each row's batch
    start_s[rows] = answers.finish_s[leader] - answers.execution_s[leader]
    return worker, start_s


def _groups(answers: AnswerColumns, rows: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
    """Return a number per row: that of its batch id, or of its subnet, size and execution time."""
    ids = answers.batch_id[rows]
    group = np.unique(ids, return_inverse=True)[1].astype(np.int32)
    unnamed = np.flatnonzero(ids == b"")
    if unnamed.size:
        keys = (
            answers.execution_s[rows[unnamed]],
            answers.batch_size[rows[unnamed]],
            answers.subnet.codes[rows[unnamed]],
        )
        order = np.lexsort(keys)
        differs = np.any([np.diff(key[order]) != 0 for key in keys], axis=0)
        numbers = np.empty(unnamed.size, dtype=np.int32)
        numbers[order] = np.append(0, np.cumsum(differs))
        group[unnamed] = int(group.max()) + 1 + numbers
    return group


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
