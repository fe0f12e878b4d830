"""`BatchRunner`: runs batches of staged samples; the model's faults do not escape.

A batch is launched, and its result is taken; where the executor computes by itself, others may be
launched in between, up to `num_under_way`. Results are taken in the order of the launches.

A batch that fails is run again in halves, so that one poisonous input costs its own query only,
that is its request; so does an output that is not finite, without another run. The neighbours are
served by the same subnet, later than planned and perhaps late; a model that fails on everything is
given up after `_MAX_FAILURES` runs.
"""

from __future__ import annotations

import itertools
import logging
from collections import deque
from collections.abc import Callable, Sequence
from math import inf
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from serve.engine.idle_probe import had_memory
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


class _OnDevice:
    """A batch that was launched, or whose launch failed (`error`); its failures so far."""

    __slots__ = ("batch", "error", "failures", "form", "launched", "start_s", "tickets")

    def __init__(self, batch: Batch, tickets: Sequence[Ticket], start_s: float) -> None:
        self.batch = batch
        self.tickets = tickets
        self.start_s = start_s
        self.launched: Any = None
        self.error: Exception | None = None
        self.failures: list[str] = []
        self.form = ""


class BatchRunner:
    """Runs batches on one executor; used by one thread only."""

    def __init__(self, executor: Executor, clock: Callable[[], float]) -> None:
        self.executor = executor
        self._clock = clock
        self._launched: deque[_OnDevice] = deque()
        self._ended_s = -inf  # the batch before

    @property
    def num_under_way(self) -> int:
        """How many batches may have been launched whose results were not taken."""
        return self.executor.num_under_way

    def launch(self, batch: Batch, tickets: Sequence[Ticket]) -> None:
        """Start a batch on its subnet; what the executor raises is `result`'s to tell."""
        run = _OnDevice(batch, tickets, self._clock())
        self._launched.append(run)
        run.launched, run.error = self._try_launch(run, tickets)

    def result(self) -> BatchResult:
        """Wait for the batch that was launched first; an exception ends as its `failure`.

        Its time counts from its launch, or from the end of the batch before it if that is later.
        """
        run = self._launched.popleft()
        rows = self._outputs(run, run.tickets, run.launched, run.error)
        now_s = self._clock()
        execution_s = now_s - max(run.start_s, self._ended_s)
        self._ended_s = now_s
        failure = f"execution failed: {run.failures[0]}" if run.failures else ""
        return BatchResult(rows, execution_s, failure, run.form)

    def probe(self, subnet_id: str) -> bool:
        """Run a sample of zeros that nobody asked about; return whether there was memory for it.

        Raises what else the executor raises.
        """
        zeros = self.executor.sample.zeros(1)
        return had_memory(lambda: self.executor.run(subnet_id, zeros), f"a sample on {subnet_id}")

    def _outputs(
        self, run: _OnDevice, tickets: Sequence[Ticket], launched: Any, error: Exception | None
    ) -> list[np.ndarray | None]:
        """Return the logits of each query of a launched (part of a) batch; by halves if it fails.

        `error` is what its launch raised.
        """
        batch, failures = run.batch, run.failures
        try:
            if error is not None:
                raise error
            outputs, run.form = self.executor.result(launched), launched.form
            num_samples = sum(ticket.query.samples for ticket in tickets)
            if len(outputs) != num_samples:
                raise RuntimeError(f"{len(outputs)} outputs for {num_samples} inputs")
            return self._checked(run, outputs, tickets)
        except Exception as fault:  # the model's code: its errors end with their inputs
            if not failures:
                logger.exception("batch %d on %s failed", batch.batch_id, batch.subnet_id)
            failures.append(f"{type(fault).__name__}: {fault}")
        if len(tickets) == 1:
            return [None]
        half = len(tickets) // 2
        return self._again(run, tickets[:half]) + self._again(run, tickets[half:])

    def _again(self, run: _OnDevice, tickets: Sequence[Ticket]) -> list[np.ndarray | None]:
        """Run a part of a batch that failed, launch and result in one."""
        if len(run.failures) >= _MAX_FAILURES:
            return [None] * len(tickets)
        return self._outputs(run, tickets, *self._try_launch(run, tickets))

    def _try_launch(
        self, run: _OnDevice, tickets: Sequence[Ticket]
    ) -> tuple[Any, Exception | None]:
        """Launch some of a batch; return what was launched, or what the executor raised."""
        try:
            slots = [ticket.slot for ticket in tickets]
            return self.executor.launch(run.batch.subnet_id, slots), None
        except Exception as error:  # the model's code: its errors end with their inputs
            return None, error

    def _checked(
        self, run: _OnDevice, outputs: np.ndarray, tickets: Sequence[Ticket]
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
        logger.error(text, run.batch.batch_id, run.batch.subnet_id)
        run.failures.append(NOT_FINITE)
        return [row if np.isfinite(row).all() else None for row in rows]
