"""`BatchRunner`: runs a batch of staged samples; the model's faults do not escape.

A batch that fails is run again in halves, so that one poisonous input costs its own query only,
that is its request; so does an output that is not finite, without another run. The neighbours are
served by the same subnet, later than planned and perhaps late; a model that fails on everything is
given up after `_MAX_FAILURES` runs.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from serve.engine.job import Ticket
from slackfit.query import Batch

if TYPE_CHECKING:
    from subnetact.executor import Executor

logger = logging.getLogger(__name__)

NOT_FINITE = "the output holds NaN or infinity"
_MAX_FAILURES = 9  # two poisonous inputs in a batch of 16


class BatchResult(NamedTuple):
    """What came of a batch: the logits (samples, classes) of each query, None where it failed.

    `failure` says why for those; it is empty when there are none. `form` is in which form of its
    weights the subnet ran (of the last part of a batch that was run in parts).
    """

    rows: Sequence[np.ndarray | None]
    execution_s: float
    failure: str
    form: str = ""

    @property
    def is_failed(self) -> bool:
        """Whether no query has an output."""
        return all(row is None for row in self.rows)


class BatchRunner:
    """Runs batches on one executor; used by one thread only."""

    def __init__(self, executor: Executor, clock: Callable[[], float]) -> None:
        self.executor = executor
        self._clock = clock
        self._failures: list[str] = []  # of the batch that runs
        self._form = ""

    def run(self, batch: Batch, tickets: Sequence[Ticket]) -> BatchResult:
        """Execute a batch on its subnet; an exception of the executor ends as `failure`."""
        start_s = self._clock()
        self._failures = []
        rows = self._rows(batch, tickets)
        failure = f"execution failed: {self._failures[0]}" if self._failures else ""
        return BatchResult(rows, self._clock() - start_s, failure, self._form)

    def probe(self, subnet_id: str) -> None:
        """Run a sample of zeros that nobody asked about. Raises what the executor raises."""
        self.executor.run(subnet_id, self.executor.sample.zeros(1))

    def _rows(self, batch: Batch, tickets: Sequence[Ticket]) -> list[np.ndarray | None]:
        """Return the logits of each query, halving the batch where the model fails."""
        if len(self._failures) >= _MAX_FAILURES:
            return [None] * len(tickets)
        num_samples = sum(ticket.query.samples for ticket in tickets)
        try:
            launched = self.executor.launch(batch.subnet_id, [ticket.slot for ticket in tickets])
            outputs, self._form = self.executor.result(launched), launched.form
            if len(outputs) != num_samples:
                raise RuntimeError(f"{len(outputs)} outputs for {num_samples} inputs")
            return self._checked(batch, outputs, tickets)
        except Exception as error:  # the model's code: its errors end with their inputs
            if not self._failures:
                logger.exception("batch %d on %s failed", batch.batch_id, batch.subnet_id)
            self._failures.append(f"{type(error).__name__}: {error}")
        if len(tickets) == 1:
            return [None]
        half = len(tickets) // 2
        return self._rows(batch, tickets[:half]) + self._rows(batch, tickets[half:])

    def _checked(
        self, batch: Batch, outputs: np.ndarray, tickets: Sequence[Ticket]
    ) -> list[np.ndarray | None]:
        """Return each query's logits, none where one is not finite: nobody can use that."""
        ends = itertools.accumulate(ticket.query.samples for ticket in tickets)
        rows = [
            outputs[end - ticket.query.samples : end]
            for ticket, end in zip(tickets, ends, strict=True)
        ]
        if np.isfinite(outputs).all():
            return list[np.ndarray | None](rows)
        text = "batch %d on %s: the output holds NaN or infinity"
        logger.error(text, batch.batch_id, batch.subnet_id)
        self._failures.append(NOT_FINITE)
        return [row if np.isfinite(row).all() else None for row in rows]
