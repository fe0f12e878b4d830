"""The contract between the scheduler and a policy, and the registry of policies by name.

A policy is pure: everything it may know is in the view, everything it may remember goes through
`Decision.memo`. So the simulator and the server run the very same object, and a recorded run can
be decided again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from math import inf
from typing import NamedTuple, Protocol, runtime_checkable

from slackfit.profile import LatencyProfile
from slackfit.query import Decision, Query, Wish


class QueueView(Protocol):
    """The waiting queries in earliest-deadline-first order, read only; counts are of samples."""

    def __len__(self) -> int: ...

    def head(self) -> Query:
        """The most urgent query. Raises IndexError when the queue is empty."""
        ...

    def count_due(self, deadline_s: float) -> int:
        """How many waiting queries have a deadline <= `deadline_s`, in O(log n)."""
        ...

    def earliest(self, count: int) -> Iterator[Query]:
        """The `count` most urgent queries, most urgent first (fewer when fewer wait)."""
        ...


class WorkerView(NamedTuple):
    """One device as a policy sees it; `busy_until_s` is a prediction (now or earlier: free)."""

    worker_id: int
    busy_until_s: float
    last_subnet_id: str | None


class WishView(NamedTuple):
    """Queries that may not run on every subnet, as a policy sees those with one wish.

    `head` is the most urgent one (None: none waits), `num_samples` what waits, `arriving_qps` the
    samples per second of the last second.
    """

    wish: Wish
    head: Query | None
    num_samples: int
    arriving_qps: float


class DeviceLoad(NamedTuple):
    """What models ask of a device that they share with others, in device time at the least.

    `num_models` have asked lately; the queries that wait take `waiting_s` seconds in full batches
    on the fastest subnet, those that arrive `arriving` such seconds per second; `slo_s` is the
    tightest SLO among them.
    """

    num_models: int = 0
    waiting_s: float = 0.0
    arriving: float = 0.0
    slo_s: float = inf

    @property
    def left(self) -> float:
        """The share of the device's time that is left to one more: an equal one at the least."""
        return max(1.0 - self.arriving, 1.0 / (self.num_models + 1))


ALONE = DeviceLoad()


def combined(loads: Iterable[DeviceLoad]) -> DeviceLoad:
    """Return the load of several models together."""
    total = ALONE
    for load in loads:
        total = DeviceLoad(
            total.num_models + load.num_models,
            total.waiting_s + load.waiting_s,
            total.arriving + load.arriving,
            min(total.slo_s, load.slo_s),
        )
    return total


class View(Protocol):
    """All that a policy may look at when worker `worker` asks for work."""

    @property
    def queue(self) -> QueueView: ...

    @property
    def worker(self) -> WorkerView: ...

    @property
    def workers(self) -> Sequence[WorkerView]: ...

    @property
    def profile(self) -> LatencyProfile: ...

    @property
    def memo(self) -> object: ...

    @property
    def wishes(self) -> Sequence[WishView]:
        """What waits and arrives of the queries that may not run on every subnet."""
        ...

    @property
    def others(self) -> DeviceLoad:
        """What other models ask of the workers, whose queries are not in this queue."""
        ...

    @property
    def tightest_slo_s(self) -> float:
        """The shortest time that a head of the queue was given, of those of the last second."""
        ...

    def arrivals_within(self, window_s: float) -> int:
        """How many queries arrived in the last `window_s` seconds (bounded history)."""
        ...


class Policy(Protocol):
    """Chooses (subnet, batch size) for a free worker and a queue that is not empty.

    One that lays out tables for a profile may have `prepare(profile)`, for when there is time.
    """

    @property
    def name(self) -> str: ...

    @property
    def drop_hopeless(self) -> bool:
        """Whether the scheduler drops queries that no subnet can serve in time any more."""
        ...

    def decide(self, view: View, now_s: float) -> Decision | None:
        """Return what to run now, or None to wait for the next arrival or completion."""
        ...


class SlackSteps(NamedTuple):
    """Where the decisions of a policy without memory change: a step function of the head's slack.

    Between two `limits_s` (seconds, in any order) a decision is the same; with `closed` a slack of
    just the limit belongs to what is above it, else to what is below. Nothing else may count but
    how many queries wait, up to `most_waiting`, and where said so the head's floor on accuracy and
    the subnet that the worker had last. So `decide` can be laid out as a table by asking it.
    """

    limits_s: tuple[float, ...]
    closed: bool = False
    most_waiting: int = 1
    uses_floor: bool = False
    uses_loaded: bool = False


@runtime_checkable
class StepPolicy(Policy, Protocol):
    """A policy that says where its decisions change."""

    @property
    def steps(self) -> SlackSteps: ...


PolicyFactory = Callable[..., Policy]
