"""`RunningBatches`: the batches under way; those of one worker run one behind the other.

A device that is handed its next batch while it computes the present one does not stand still
between the two. The next one begins when the one before ends: at a predicted moment first, then at
the real one, so that what it took is its own time and not the wait.
"""

from __future__ import annotations

from slackfit.query import Batch

_Running = tuple[Batch, float, int]
"""A batch, its subnet's accuracy, and the samples that went on waiting when it was decided."""


class RunningBatches:
    """The batches under way, by id; and each worker's in the order in which they run."""

    __slots__ = ("_by_id", "_lines")

    def __init__(self, num_workers: int) -> None:
        self._by_id: dict[int, _Running] = {}
        self._lines: list[list[int]] = [[] for _ in range(num_workers)]

    def __len__(self) -> int:
        return len(self._by_id)

    def add(self, batch: Batch, accuracy: float, num_left: int) -> None:
        """Put a batch behind those of its worker; `num_left` samples waited on when it left."""
        self._by_id[batch.batch_id] = (batch, accuracy, num_left)
        self._lines[batch.worker_id].append(batch.batch_id)

    def fills_another(self, worker_id: int, num_waiting: int, max_batch_size: int) -> bool:
        """Whether the worker's last batch was full, and `num_waiting` samples fill one like it."""
        line = self._lines[worker_id]
        if not line:
            return False
        last, _, num_left = self._by_id[line[-1]]
        size = last.num_samples
        return (size >= max_batch_size or num_left > 0) and num_waiting >= size

    def end(self, batch_id: int, now_s: float) -> tuple[Batch, float, float | None]:
        """Remove a batch; return it, its accuracy, and until when its worker is busy with others.

        None: it has no others. The one behind it begins now. Raises ValueError for a batch that
        does not run.
        """
        ended = self._by_id.pop(batch_id, None)
        if ended is None:
            running = ", ".join(map(str, self._by_id)) or "none"
            raise ValueError(f"batch {batch_id} does not run (running: {running})")
        batch, accuracy, _ = ended
        line = self._lines[batch.worker_id]
        was_first = line[0] == batch_id
        line.remove(batch_id)
        until_s = self._line_up(line, now_s if was_first else None) if line else None
        return batch, accuracy, until_s

    def _line_up(self, line: list[int], begins_s: float | None) -> float:
        """Predict when each of a line begins (None: the first has begun), and return its end."""
        until_s = self._by_id[line[0]][0].start_s if begins_s is None else begins_s
        for batch_id in line:
            batch, accuracy, num_left = self._by_id[batch_id]
            self._by_id[batch_id] = (batch._replace(start_s=until_s), accuracy, num_left)
            until_s += batch.expected_latency_s
        return until_s
