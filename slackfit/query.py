"""The words that the scheduler speaks: query, decision, batch, outcome.

A query is a token: it carries times and constraints, never the payload. All records are immutable
`NamedTuple`s, because several are created per query on the hot path. Times are SI seconds on
one clock that the driver owns (virtual in the simulator, monotonic in the server).
"""

from __future__ import annotations

from math import inf
from typing import Literal, NamedTuple, get_args

Status = Literal["on_time", "late", "dropped", "rejected", "failed"]
"""How a query ended. `rejected`: refused at admission; `dropped`: refused later, never run."""

STATUSES: tuple[Status, ...] = get_args(Status)


class Query(NamedTuple):
    """One arrived query.

    `min_accuracy` is a floor (a fraction) on the profiled accuracy of the subnet that serves it;
    `query_class` is a priority class (0 = default); `subnet_id` pins one subnet (None: the
    policy chooses). `samples` is how many of a batch's samples it is: a request of 16 images is
    one query, which is served whole. `work` is how much work one of them is predicted to be, beside
    the usual (a profile with a `WorkTable` says what that takes; without one it is not read),
    `tenant` who sent it.
    `deadline_s` is what it is scheduled for, `given_deadline_s` what its end is judged by, where
    that is another: the deadline given less what the way back takes.
    """

    query_id: int
    arrival_s: float
    deadline_s: float
    min_accuracy: float = 0.0
    query_class: int = 0
    subnet_id: str | None = None
    samples: int = 1
    work: float = 1.0
    tenant: str = ""
    given_deadline_s: float | None = None

    @property
    def judged_by_s(self) -> float:
        """The deadline that its end is judged by."""
        return self.deadline_s if self.given_deadline_s is None else self.given_deadline_s


class Wish(NamedTuple):
    """What a query asks of its subnet: to be `subnet_id`, or as accurate as `min_accuracy`."""

    subnet_id: str | None = None
    min_accuracy: float = 0.0


PLAIN = Wish()
"""The wish of a query that may run on every subnet."""


class Decision(NamedTuple):
    """What a policy wants done now: the most urgent queries on `subnet_id`.

    `batch_size` is in samples; fewer are taken when fewer wait. With a `wish` only queries that
    have it are taken (`PLAIN`: all that may run there), though others be more urgent; None leaves
    that to the head of the queue. `memo` is handed back unread in the next view, so
    that a pure policy can remember. Where the scheduler drops the hopeless, waiting queries that
    are due before `drop_before_s` leave first, as `infeasible`: a policy that keeps to large
    batches gives up those that only a smaller one could serve in time.
    """

    subnet_id: str
    batch_size: int
    memo: object = None
    drop_before_s: float = -inf
    wish: Wish | None = None


class Batch(NamedTuple):
    """A dispatched batch: it runs on `worker_id` from `start_s` until the driver completes it."""

    batch_id: int
    worker_id: int
    subnet_id: str
    queries: tuple[Query, ...]
    start_s: float
    expected_latency_s: float

    @property
    def num_samples(self) -> int:
        """How many samples the batch holds."""
        return sum(query.samples for query in self.queries)


class Outcome(NamedTuple):
    """How one query ended; every query has exactly one.

    `reason` is empty for executed queries, else one of `expired, infeasible, cancelled,
    queue_full, draining` or the text of a failure. `start_s` is None for a query that never ran;
    `accuracy` is the profiled accuracy (a fraction) of the subnet that served it, else 0.
    `deadline_s` is the one that it is judged by; a query of several `samples` counts as so many.
    `batch_size` is in samples.
    """

    query_id: int
    status: Status
    reason: str
    arrival_s: float
    deadline_s: float
    start_s: float | None
    finish_s: float
    subnet_id: str | None
    accuracy: float
    batch_size: int
    worker_id: int | None = None
    samples: int = 1

    @property
    def latency_s(self) -> float:
        """Seconds from arrival to the end, however it ended."""
        return self.finish_s - self.arrival_s
