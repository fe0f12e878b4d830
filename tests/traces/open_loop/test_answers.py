"""Answers as columns: the rows that went in, and outcomes equal to those judged one by one."""

from __future__ import annotations

import pickle
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from slackfit.query import Outcome
from traces.open_loop.answers import Answer, AnswerColumns, AnswerLog
from traces.open_loop.result import make_result
from traces.open_loop.target import REPLY_STATUSES, ReplayReply
from traces.trace import Trace

COUNT = 5000  # more than one chunk of rows
SLO_S = 0.05
WARMUP_S = 3.0


@pytest.fixture(scope="module", params=["named batches", "unnamed batches"])
def answers(request: pytest.FixtureRequest) -> list[Answer]:
    rng = np.random.default_rng(5)
    found: list[Answer] = []
    for i in range(COUNT):
        batch = i // 3 if i % 7 else 1_000_000 + i // 50  # some batches come in several pieces
        is_named = request.param == "named batches" and i % 11
        status = ("ok", "ok", "ok", "ok", "dropped", "rejected", "failed", "odd")[rng.integers(8)]
        reply = ReplayReply(
            status=status,
            reason="" if status == "ok" else f"why {rng.integers(3)}",
            subnet_id=f"s{batch % 3}" if status == "ok" and i % 13 else None,
            accuracy=0.7 + 0.1 * (batch % 3),
            batch_size=batch % 4,
            queue_s=float(rng.exponential(0.01)),
            execution_s=0.002 * (1 + batch % 5),
            batch_id=f"batch-{batch}" if is_named else None,
        )
        intended_s = i * 0.01
        sent_s = intended_s + float(rng.exponential(0.001))
        finish_s = sent_s + float(rng.exponential(0.03)).__round__(3)  # some end together
        is_right = (None, True, False)[rng.integers(3)]
        found.append(Answer(i, intended_s, sent_s, finish_s, reply, is_right, 1 + i % 2))
    rng.shuffle(found)  # pyright: ignore[reportArgumentType] # a list is shuffled in place
    return found


def judged_one_by_one(answers: Sequence[Answer]) -> list[Outcome]:
    """The plain version of `make_result`'s outcomes."""
    kept = sorted((a for a in answers if a.intended_s >= WARMUP_S), key=lambda a: a.query_id)
    groups: dict[object, list[Answer]] = defaultdict(list)
    for a in sorted((a for a in kept if a.reply.status == "ok"), key=lambda a: a.finish_s):
        reply = a.reply
        groups[reply.batch_id or (reply.subnet_id, reply.batch_size, reply.execution_s)].append(a)
    starts: dict[int, float] = {}
    for group in groups.values():
        size = max(group[0].reply.batch_size, 1)
        for first in range(0, len(group), size):
            members = group[first : first + size]
            start_s = members[0].finish_s - members[0].reply.execution_s
            starts.update({a.query_id: start_s for a in members})
    return [one_by_one(a, starts.get(a.query_id)) for a in kept]


def one_by_one(answer: Answer, start_s: float | None) -> Outcome:
    reply, due_s = answer.reply, answer.intended_s + SLO_S
    is_ok = reply.status == "ok"
    status, reason = "failed", reply.reason
    if is_ok:
        status, reason = ("on_time" if answer.finish_s <= due_s else "late"), ""
    elif reply.status in ("dropped", "rejected"):
        status = reply.status
    elif reply.status not in REPLY_STATUSES:
        reason = "reply with unknown status 'odd'; known: ok, dropped, rejected, failed"
    return Outcome(
        query_id=answer.query_id,
        status=status,  # pyright: ignore[reportArgumentType]
        reason=reason,
        arrival_s=answer.intended_s - WARMUP_S,
        deadline_s=due_s - WARMUP_S,
        start_s=None if start_s is None else start_s - WARMUP_S,
        finish_s=answer.finish_s - WARMUP_S,
        subnet_id=reply.subnet_id if is_ok else None,
        accuracy=reply.accuracy if is_ok else 0.0,
        batch_size=reply.batch_size if is_ok else 0,
        worker_id=0 if is_ok else None,
    )


def result_of(answers: Sequence[Answer]):
    trace = Trace(arrival_s=np.arange(COUNT) * 0.01, duration_s=COUNT * 0.01)
    return make_result(
        trace,
        answers,
        slo_s=np.full(COUNT, SLO_S),
        warmup_s=WARMUP_S,
        ended_s=None,
        max_lag_s=None,
    )


def test_outcomes_are_those_judged_one_by_one(answers: list[Answer]) -> None:
    result = result_of(answers)
    plain = judged_one_by_one(answers)
    assert len(result.outcomes) == len(plain)
    for ours, theirs in zip(result.outcomes, plain, strict=True):
        assert ours == theirs
    judged = [a.is_right for a in answers if a.intended_s >= WARMUP_S and a.is_right is not None]
    assert result.num_judged == len(judged)
    assert result.measured_accuracy == sum(judged) / len(judged)
    assert result.num_warmup == 300
    assert result.extra()["num_retries"] == sum(
        a.attempts - 1 for a in answers if a.intended_s >= WARMUP_S
    )


def test_rows_are_what_went_in(answers: list[Answer]) -> None:
    columns, rows = AnswerColumns.of(answers), sorted(answers)
    assert list(columns) == rows
    assert columns[-1] == rows[-1]
    assert list(columns[5:4200:9]) == rows[5:4200:9]
    assert list(pickle.loads(pickle.dumps(columns))) == rows


def test_the_answers_of_several_senders_are_joined(answers: list[Answer]) -> None:
    parts = [AnswerColumns.of(answers[i::3]) for i in range(3)]
    assert list(AnswerColumns.joined(parts)) == sorted(answers)
    assert list(result_of(AnswerColumns.joined(parts)).outcomes) == judged_one_by_one(answers)


def test_a_log_keeps_no_output_and_cuts_ids_that_are_very_long() -> None:
    log = AnswerLog()
    reply = ReplayReply(status="ok", output=np.ones(10), batch_id="a" * 1000)
    for batch_id in ("a" * 1000, "a" * 999 + "b", "\u00e9" * 40, "short"):
        log.append(Answer(0, 0.0, 0.0, 0.0, replace(reply, batch_id=batch_id), None))
    columns = log.hand_over()
    assert len(log) == 0
    ids = [answer.reply.batch_id for answer in columns]
    assert len(set(ids)) == 4
    assert ids[3] == "short"
    assert all(len((text or "").encode()) <= 64 for text in ids)
    assert columns[0].reply.output is None
    assert len(AnswerLog().hand_over()) == 0
