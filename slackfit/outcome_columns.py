"""`OutcomeColumns`: many outcomes as arrays, one per field, for reports over long runs.

A million `Outcome` records take 400 MB, a million rows here 70. To whoever wants rows it is a
sequence of them; what counts over all of them works on the arrays.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, overload

import numpy as np
import numpy.typing as npt

from slackfit.query import STATUSES, Outcome

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.integer[Any]]
Flags = npt.NDArray[np.bool_]

_ON_TIME, _LATE, _, _REJECTED, _ = range(len(STATUSES))
_NUMBER_OF_STATUS = {name: i for i, name in enumerate(STATUSES)}
_CHUNK = 4096


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class OutcomeColumns(Sequence[Outcome]):
    """Outcomes (N), each field an array of N.

    `status` is a place in `STATUSES`, `reason` one in `reasons`, `subnet` one in `subnet_ids` (-1:
    none); `start_s` is NaN for a query that never ran, `worker` -1 where it is unknown.
    """

    query_id: npt.NDArray[np.int64]
    status: npt.NDArray[np.int8]
    reason: npt.NDArray[np.int32]
    reasons: tuple[str, ...]
    arrival_s: Floats
    deadline_s: Floats
    start_s: Floats
    finish_s: Floats
    subnet: npt.NDArray[np.int32]
    subnet_ids: tuple[str, ...]
    accuracy: Floats
    batch_size: npt.NDArray[np.int32]
    worker: npt.NDArray[np.int32]
    samples: npt.NDArray[np.int32]

    @staticmethod
    def of(outcomes: Sequence[Outcome]) -> OutcomeColumns:
        """Return the columns that hold `outcomes`; columns are returned as they are."""
        if isinstance(outcomes, OutcomeColumns):
            return outcomes
        fields = list(zip(*outcomes, strict=True)) or [()] * len(Outcome._fields)
        ids, status, reason, arrival_s, deadline_s, start_s, finish_s = fields[:7]
        subnet, accuracy, size, worker, samples = fields[7:]
        reasons, subnets = _numbered(reason), _numbered(s for s in subnet if s is not None)
        number_of_subnet: dict[str | None, int] = {**subnets, None: -1}
        return OutcomeColumns(
            query_id=np.array(ids, dtype=np.int64),
            status=np.array([_NUMBER_OF_STATUS[s] for s in status], dtype=np.int8),
            reason=np.array([reasons[r] for r in reason], dtype=np.int32),
            reasons=tuple(reasons),
            arrival_s=np.array(arrival_s, dtype=np.float64),
            deadline_s=np.array(deadline_s, dtype=np.float64),
            start_s=np.array(start_s, dtype=np.float64),  # None becomes NaN
            finish_s=np.array(finish_s, dtype=np.float64),
            subnet=np.array([number_of_subnet[s] for s in subnet], dtype=np.int32),
            subnet_ids=tuple(subnets),
            accuracy=np.array(accuracy, dtype=np.float64),
            batch_size=np.array(size, dtype=np.int32),
            worker=np.array([-1 if w is None else w for w in worker], dtype=np.int32),
            samples=np.array(samples, dtype=np.int32),
        )

    @property
    def on_time(self) -> Flags:
        """(N,) which were answered on time."""
        return self.status == _ON_TIME

    @property
    def attainment(self) -> float:
        """On-time rows / all rows, 0 of none."""
        return int(np.count_nonzero(self.on_time)) / max(len(self), 1)

    @property
    def mean_accuracy(self) -> float:
        """Mean accuracy over on-time rows, 0 of none."""
        served = self.accuracy[self.on_time]
        return float(served.mean()) if len(served) else 0.0

    @property
    def executed(self) -> Flags:
        """(N,) which were answered, on time or late."""
        return (self.status == _ON_TIME) | (self.status == _LATE)

    @property
    def admitted(self) -> Flags:
        """(N,) which were not refused at admission."""
        return self.status != _REJECTED

    @property
    def latency_s(self) -> Floats:
        """(N,) seconds from arrival to the end, however it ended."""
        return self.finish_s - self.arrival_s

    @property
    def left_s(self) -> Floats:
        """(N,) when each left the queue: it started, or ended unserved."""
        return np.where(np.isnan(self.start_s), self.finish_s, self.start_s)

    def take(self, rows: Ints | Flags | slice) -> OutcomeColumns:
        """Return the rows that an array of indices, a mask or a slice picks."""
        picked = {name: getattr(self, name)[rows] for name in _ARRAYS}
        return replace(self, **picked)

    def per_sample(self) -> OutcomeColumns:
        """Return a row per sample: a query of sixteen counts sixteen times."""
        if (self.samples == 1).all():
            return self
        return self.take(np.repeat(np.arange(len(self)), self.samples))

    def moved(self, by_s: float) -> OutcomeColumns:
        """Return the same with all times later by `by_s`."""
        names = ("arrival_s", "deadline_s", "start_s", "finish_s")
        return replace(self, **{name: getattr(self, name) + by_s for name in names})

    def __len__(self) -> int:
        return len(self.query_id)

    @overload
    def __getitem__(self, index: int) -> Outcome: ...

    @overload
    def __getitem__(self, index: slice) -> OutcomeColumns: ...

    def __getitem__(self, index: int | slice) -> Outcome | OutcomeColumns:
        if isinstance(index, slice):
            return self.take(index)
        place = range(len(self))[index]  # an index below 0 counts from the end
        return next(iter(self.take(slice(place, place + 1))))

    def __iter__(self) -> Iterator[Outcome]:
        for start in range(0, len(self), _CHUNK):
            yield from self.take(slice(start, start + _CHUNK))._rows()

    def _rows(self) -> list[Outcome]:
        columns = zip(*(getattr(self, name).tolist() for name in _ARRAYS), strict=True)
        return [
            Outcome(
                query_id=query_id,
                status=STATUSES[status],
                reason=self.reasons[reason],
                arrival_s=arrival_s,
                deadline_s=deadline_s,
                start_s=None if start_s != start_s else start_s,
                finish_s=finish_s,
                subnet_id=None if subnet < 0 else self.subnet_ids[subnet],
                accuracy=accuracy,
                batch_size=size,
                worker_id=None if worker < 0 else worker,
                samples=samples,
            )
            for (
                query_id,
                status,
                reason,
                arrival_s,
                deadline_s,
                start_s,
                finish_s,
                subnet,
                accuracy,
                size,
                worker,
                samples,
            ) in columns
        ]


_ARRAYS = (
    "query_id",
    "status",
    "reason",
    "arrival_s",
    "deadline_s",
    "start_s",
    "finish_s",
    "subnet",
    "accuracy",
    "batch_size",
    "worker",
    "samples",
)


def _numbered(values: Any) -> dict[str, int]:
    """Return a number for each text, in order of appearance."""
    return {value: i for i, value in enumerate(dict.fromkeys(values))}
