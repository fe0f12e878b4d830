"""`BatchRunner`: runs a batch of staged samples; the model's faults do not escape.

A batch that fails is run again in halves, so that one poisonous input costs its own query only,
that is its request.
The neighbours are served by the same subnet, later than planned and perhaps late; a model that
fails on everything is given up after `_MAX_FAILURES` runs.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from serve.engine.job import Ticket
from slackfit.query import Batch

if TYPE_CHECKING:
    from subnetact.executor import Executor, Slot

logger = logging.getLogger(__name__)

_MAX_FAILURES = 9  # two poisonous inputs in a batch of 16


class BatchResult(NamedTuple):
    """What came of a batch: a row of logits for each sample, None where the model failed.

    `failure` says why for those; it is empty when there are none. `form` is in which form of its
    weights the subnet ran (of the last part of a batch that was run in parts).
    """

    rows: Sequence[np.ndarray | None]
    execution_s: float
    failure: str
    form: str = ""

    @property
    def is_failed(self) -> bool:
        """Whether no sample has an output."""
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
        slots = [slot for ticket in tickets for slot in ticket.slots]
        start_s = self._clock()
        self._failures = []
        rows = self._rows(batch, slots)
        failure = f"execution failed: {self._failures[0]}" if self._failures else ""
        return BatchResult(rows, self._clock() - start_s, failure, self._form)

    def probe(self, subnet_id: str) -> None:
        """Run a sample of zeros that nobody asked about. Raises what the executor raises."""
        self.executor.run(subnet_id, self.executor.sample.zeros(1))

    def _rows(self, batch: Batch, slots: Sequence[Slot]) -> list[np.ndarray | None]:
        """Return a row for each of `slots`, halving them where the model fails."""
        if len(self._failures) >= _MAX_FAILURES:
            return [None] * len(slots)
        try:
            launched = self.executor.launch(batch.subnet_id, slots)
            outputs, self._form = self.executor.result(launched), launched.form
            if len(outputs) != len(slots):
                raise RuntimeError(f"{len(outputs)} outputs for {len(slots)} inputs")
            return list(outputs)
        except Exception as error:  # the model's code: its errors end with their inputs
            if not self._failures:
                logger.exception("batch %d on %s failed", batch.batch_id, batch.subnet_id)
            self._failures.append(f"{type(error).__name__}: {error}")
        if len(slots) == 1:
            return [None]
        half = len(slots) // 2
        return self._rows(batch, slots[:half]) + self._rows(batch, slots[half:])
