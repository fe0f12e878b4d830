"""`BatchRunner`: gathers a batch's payloads and runs it; the model's faults do not escape."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from serve.job import Ticket
from slackfit.query import Batch

if TYPE_CHECKING:
    from subnetact.executor import Executor

logger = logging.getLogger(__name__)


class Run(NamedTuple):
    """What came of a batch: outputs (B, num_classes) and seconds, or why there are none."""

    outputs: np.ndarray | None
    execution_s: float
    failure: str


class BatchRunner:
    """Runs batches on one executor; used by one thread only."""

    def __init__(self, executor: Executor, clock: Callable[[], float]) -> None:
        self.executor = executor
        self._clock = clock
        shape = (executor.max_batch_size, *executor.input_shape)
        self._staging = np.empty(shape, dtype=np.uint8)  # (B, C, H, W), reused by every batch

    def run(self, batch: Batch, tickets: Sequence[Ticket]) -> Run:
        """Execute a batch on its subnet; an exception of the executor ends as `failure`."""
        inputs = self._staging[: len(tickets)]  # (B, C, H, W), a view
        start_s = self._clock()
        try:
            for row, ticket in enumerate(tickets):
                inputs[row] = ticket.job.payloads[ticket.row]
            outputs = self.executor.run(batch.subnet_id, inputs)
            if len(outputs) != len(tickets):
                raise RuntimeError(f"{len(outputs)} outputs for {len(tickets)} inputs")
        except Exception as error:  # the model's code: its errors end with its batch
            logger.exception("batch %d on %s failed", batch.batch_id, batch.subnet_id)
            return Run(None, 0.0, f"execution failed: {type(error).__name__}: {error}")
        return Run(outputs, self._clock() - start_s, "")
