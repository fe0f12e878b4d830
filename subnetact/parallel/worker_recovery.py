"""`WorkerRecovery`: who is lost with a worker that ends, and how all are there again.

Streams that a worker held anything of are lost with it: whoever looks after the workers is told so
once, and nothing more is run of them. The worker is replaced meanwhile; the others go on alone, and
when it has its weights all meet in a new group. For what needs all of them is waited, in a bound.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from subnetact.decoding.extents import SequenceId
from subnetact.decoding.ragged_batch import Chunk
from subnetact.parallel.shard_table import ShardTable
from subnetact.parallel.wait_bound import WaitBound
from subnetact.parallel.worker_failure import WorkerFailedError, WorkersLostError
from subnetact.parallel.worker_grid import WorkerGrid
from subnetact.parallel.worker_pool import START_WITHIN_S, WorkerPool

logger = logging.getLogger(__name__)


class WorkerRecovery:
    """Of one executor's workers; used by one thread.

    All waits between two calls of `look_after` together last no longer than `waits` says.
    """

    def __init__(
        self, pool: WorkerPool, table: ShardTable, grid: WorkerGrid, hung_after_s: float
    ) -> None:
        """Lose nothing yet; a group that does not meet within `hung_after_s` is tried later."""
        self._pool = pool
        self._table = table
        self._grid = grid
        self._hung_after_s = hung_after_s
        self.waits = WaitBound(hung_after_s)
        self._lost: set[SequenceId] = set()
        self._to_tell: list[SequenceId] = []  # of those lost, who was not told by `look_after`

    def is_lost(self, sequence: SequenceId) -> bool:
        """Whether a stream was with a worker that is gone, and was not released yet."""
        return sequence in self._lost

    def lose(self, sequence: SequenceId) -> None:
        """Take a stream for lost that begins with one that is."""
        self._lost.add(sequence)

    def forget(self, sequence: SequenceId) -> None:
        """Let go of a stream that is released; it may begin again."""
        self._lost.discard(sequence)

    def refuse_lost(self, chunks: Sequence[Chunk]) -> None:
        """Raise WorkerFailedError for chunks of a stream that is lost."""
        lost = [chunk.sequence for chunk in chunks if chunk.sequence in self._lost]
        if lost:
            raise WorkerFailedError(
                f"sequence {lost[0]!r} was with a worker that is gone; release it, and begin again"
            )

    def look_after(self) -> tuple[SequenceId, ...]:
        """See `ParallelExecutor.look_after`."""
        self.waits.end()
        self.notice()
        if not self._to_tell and not self._table.capacity_tokens:
            try:
                self.join(START_WITHIN_S)
            except WorkersLostError:
                raise
            except RuntimeError:  # one more has gone: it is replaced, and waited for the next time
                logger.exception("workers have not come back yet")
        lost, self._to_tell = tuple(self._to_tell), []
        self.waits.begin()
        return lost

    def notice(self) -> None:
        """Give up what workers held that have ended, and use those again that were replaced."""
        self.give_up_lost()
        if self._pool.is_joined or len(self._pool.ready) < len(self._pool):
            return
        if not self.waits.left_s:  # an iteration may not have them meet once more
            return
        try:
            self.join(self._hung_after_s)
        except WorkersLostError:
            raise
        except RuntimeError:  # the others go on as they are
            logger.exception("workers did not meet, which is tried again")
            self.give_up_lost()

    def give_up_lost(self) -> None:
        """Give up what workers held that have ended; they are replaced."""
        for rank in self._pool.notice():
            lost = self._table.lose(self._grid.shard_of(rank))
            self._lost.update(lost)
            self._to_tell += lost
            logger.error("%d streams are lost with worker %d", len(lost), rank)

    def meet_first(self) -> None:
        """Have workers meet that were just started, or raise WorkerFailedError."""
        while not self._pool.is_joined:
            try:
                self.join(START_WITHIN_S)
            except WorkerFailedError:
                raise
            except RuntimeError:  # the pool says when that is enough
                logger.exception("workers did not meet, which is tried again")

    def join_in_time(self) -> None:
        """As `join`, in what is left of the time that an iteration may wait."""
        left_s = self.waits.left_s
        if not left_s and not self._pool.is_joined:
            raise WorkerFailedError(
                "workers are being replaced, and were awaited for as long as an iteration may take"
            )
        self.join(left_s)

    def join(self, within_s: float) -> None:
        """Wait until all workers are there again, if they are not, for what one of them can't do.

        What those held that went meanwhile is given up before their shards are used again. Raises
        as `WorkerPool.join`.
        """
        if self._pool.is_joined:
            return
        self._pool.join(within_s)
        self.give_up_lost()
        if not self._pool.is_joined:
            raise WorkerFailedError("a worker ended as soon as all had met")
        for shard in range(self._grid.shards):
            self._table.regain(shard)
