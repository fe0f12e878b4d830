"""Outcomes as columns hold what the records held, to whoever wants rows and to the report."""

from __future__ import annotations

import numpy as np
import pytest

from slackfit.metrics import summarize
from slackfit.outcome_columns import OutcomeColumns
from slackfit.query import STATUSES, Outcome

COUNT = 5000  # more than one chunk of rows


@pytest.fixture(scope="module")
def outcomes() -> list[Outcome]:
    rng = np.random.default_rng(3)
    found: list[Outcome] = []
    for i in range(COUNT):
        status = STATUSES[int(rng.integers(len(STATUSES)))]
        is_executed = status in ("on_time", "late")
        arrival_s = float(i) * 0.01
        k = int(rng.integers(3))
        found.append(
            Outcome(
                query_id=i,
                status=status,
                reason="" if is_executed else ("expired", "queue_full", "broken")[k],
                arrival_s=arrival_s,
                deadline_s=arrival_s + 0.1,
                start_s=arrival_s + 0.02 if is_executed else None,
                finish_s=arrival_s + float(rng.exponential(0.05)),
                subnet_id=f"s{k}" if is_executed else None,
                accuracy=0.7 + 0.1 * k if is_executed else 0.0,
                batch_size=int(rng.integers(1, 9)) if is_executed else 0,
                worker_id=k if is_executed else None,
                samples=int(rng.integers(1, 4)),
            )
        )
    return found


def test_rows_are_what_went_in(outcomes: list[Outcome]) -> None:
    columns = OutcomeColumns.of(outcomes)
    assert list(columns) == outcomes
    assert (columns[0], columns[-1], columns[4097]) == (outcomes[0], outcomes[-1], outcomes[4097])
    assert list(columns[10:4200:7]) == outcomes[10:4200:7]
    assert OutcomeColumns.of(columns) is columns
    with pytest.raises(IndexError):
        columns[COUNT]
    assert len(OutcomeColumns.of([])) == 0
    assert not OutcomeColumns.of([])


def test_the_report_of_columns_is_that_of_records(outcomes: list[Outcome]) -> None:
    about = {"policy": "p", "slo_s": 0.1, "duration_s": 50.0, "seed": 0, "profile": "t"}
    assert summarize(OutcomeColumns.of(outcomes), **about) == summarize(outcomes, **about)


def test_a_query_of_three_counts_three_times(outcomes: list[Outcome]) -> None:
    columns = OutcomeColumns.of(outcomes).per_sample()
    plain = [outcome for outcome in outcomes for _ in range(outcome.samples)]
    assert list(columns) == plain
    alone = OutcomeColumns.of([o._replace(samples=1) for o in outcomes])
    assert alone.per_sample() is alone


def test_what_is_counted_over_all_is_what_each_row_says(outcomes: list[Outcome]) -> None:
    columns = OutcomeColumns.of(outcomes)
    assert columns.on_time.tolist() == [o.status == "on_time" for o in outcomes]
    assert columns.executed.tolist() == [o.status in ("on_time", "late") for o in outcomes]
    assert columns.admitted.tolist() == [o.status != "rejected" for o in outcomes]
    assert columns.latency_s.tolist() == [o.latency_s for o in outcomes]
    left = [o.finish_s if o.start_s is None else o.start_s for o in outcomes]
    assert columns.left_s.tolist() == left
    moved = columns.moved(-2.0)[7]
    assert moved.arrival_s == outcomes[7].arrival_s - 2.0
    assert moved.finish_s == outcomes[7].finish_s - 2.0
