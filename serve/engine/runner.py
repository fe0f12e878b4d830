"""`BatchRunner`: gathers a batch's payloads and runs it; the model's faults do not escape.

A batch that fails is run again in halves, so that one poisonous input costs its own query only.
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
    from subnetact.executor import Executor

logger = logging.getLogger(__name__)

_MAX_FAILURES = 9  # two poisonous inputs in a batch of 16


class BatchResult(NamedTuple):
    """What came of a batch: a row of logits for each sample, None where the model failed.

    `failure` says why for those; it is empty when there are none.
    """

    rows: Sequence[np.ndarray | None]
    execution_s: float
    failure: str

    @property
    def is_failed(self) -> bool:
        """Whether no sample has an output."""
        return all(row is None for row in self.rows)


class BatchRunner:
    """Runs batches on one executor; used by one thread only."""

    def __init__(self, executor: Executor, clock: Callable[[], float]) -> None:
        self.executor = executor
        self._clock = clock
        shape = (executor.max_batch_size, *executor.input_shape)
        self._staging = np.empty(shape, dtype=np.uint8)  # (B, C, H, W), reused by every batch
        self.zeros = np.zeros((1, *executor.input_shape), dtype=np.uint8)  # (1, C, H, W)
        self._failures: list[str] = []  # of the batch that runs

    def run(self, batch: Batch, tickets: Sequence[Ticket]) -> BatchResult:
        """Execute a batch on its subnet; an exception of the executor ends as `failure`."""
        inputs = self._staging[: len(tickets)]  # (B, C, H, W), a view
        start_s = self._clock()
        for row, ticket in enumerate(tickets):
            inputs[row] = ticket.job.payloads[ticket.row]
        self._failures = []
        rows = self._rows(batch, inputs)
        failure = f"execution failed: {self._failures[0]}" if self._failures else ""
        return BatchResult(rows, self._clock() - start_s, failure)

    def _rows(self, batch: Batch, inputs: np.ndarray) -> list[np.ndarray | None]:
        """Return a row for each of `inputs` (B, C, H, W), halving them where the model fails."""
        if len(self._failures) >= _MAX_FAILURES:
            return [None] * len(inputs)
        try:
            outputs = self.executor.run(batch.subnet_id, inputs)
            if len(outputs) != len(inputs):
                raise RuntimeError(f"{len(outputs)} outputs for {len(inputs)} inputs")
            return list(outputs)
        except Exception as error:  # the model's code: its errors end with their inputs
            if not self._failures:
                logger.exception("batch %d on %s failed", batch.batch_id, batch.subnet_id)
            self._failures.append(f"{type(error).__name__}: {error}")
        if len(inputs) == 1:
            return [None]
        half = len(inputs) // 2
        return self._rows(batch, inputs[:half]) + self._rows(batch, inputs[half:])
