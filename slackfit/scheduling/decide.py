"""Asking a policy: what it is shown, and what it may answer."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from math import inf

from slackfit.policy import ALONE, DeviceLoad, Policy, QueueView, WishView, WorkerView
from slackfit.profile import LatencyProfile
from slackfit.query import Decision

HISTORY = 65_536  # arrivals remembered for `arrivals_within`
REMEMBER_SLO_S = 0.5  # the tightest SLO is that of this part of a second and of the one before
SAME_SLO = 1 - 1e-9  # deadline less arrival is the SLO but for rounding
_RATE_OVER_S = 1.0
_LEAST_RATE_OVER_S = 0.05


class PolicyError(RuntimeError):
    """A policy raised, or decided something impossible. No query was lost: all still wait.

    `num_waiting`, `head` (the most urgent query), `now_s` and `worker_id` are the state it saw.
    """

    def __init__(self, policy: str, fault: str, view: SchedulerView) -> None:
        self.policy = policy
        self.num_waiting = len(view.queue)
        self.head = view.queue.head()
        self.now_s = view.now_s
        self.worker_id = view.worker.worker_id
        super().__init__(
            f"policy {policy!r} {fault}; {self.num_waiting} queries wait (all stay queued), the "
            f"head is query {self.head.query_id} with {self.head.deadline_s - view.now_s:.6f} s "
            f"of slack, worker {self.worker_id} is free at {view.now_s:.6f} s"
        )


class SchedulerView:
    """The scheduler as a policy sees it; one object, brought up to date before each decision."""

    __slots__ = (
        "_arrivals",
        "_slo_before_s",
        "_slo_now_s",
        "_slo_until_s",
        "memo",
        "now_s",
        "others",
        "profile",
        "queue",
        "tightest_slo_s",
        "wishes",
        "worker",
        "workers",
    )

    def __init__(
        self, queue: QueueView, workers: Sequence[WorkerView], profile: LatencyProfile
    ) -> None:
        self.queue = queue
        self.workers = workers
        self.worker = workers[0]
        self.profile = profile
        self.memo: object = None
        self.now_s = 0.0
        self.wishes: Sequence[WishView] = ()
        self.others: DeviceLoad = ALONE
        self.tightest_slo_s = inf
        self._slo_now_s = self._slo_before_s = inf
        self._slo_until_s = -inf
        self._arrivals: list[float] = []

    def arrivals_within(self, window_s: float) -> int:
        """How many queries arrived in the last `window_s` seconds (of the last 65,536)."""
        arrivals = self._arrivals
        since = bisect_right(arrivals, self.now_s - window_s)
        return min(len(arrivals) - since, HISTORY)

    def note_head(self) -> None:
        """Take the SLO of the head in: that of the moment, in a queue that is not empty."""
        head = self.queue.head()
        slo_s = head.deadline_s - head.arrival_s
        if self.now_s >= self._slo_until_s:
            is_recent = self.now_s < self._slo_until_s + REMEMBER_SLO_S
            self._slo_before_s = self._slo_now_s if is_recent else inf
            self._slo_now_s = slo_s
            self._slo_until_s = self.now_s + REMEMBER_SLO_S
        elif slo_s < self._slo_now_s * SAME_SLO:
            self._slo_now_s = slo_s
        else:
            return
        self.tightest_slo_s = min(self._slo_now_s, self._slo_before_s)

    def rate_qps(self, now_s: float) -> float:
        """Queries per second that arrived in the last second, or since the first one arrived."""
        over_s = max(min(now_s - self.first_arrival_s, _RATE_OVER_S), _LEAST_RATE_OVER_S)
        return (len(self._arrivals) - bisect_right(self._arrivals, now_s - over_s)) / over_s

    @property
    def first_arrival_s(self) -> float:
        """When the first of the remembered queries arrived; inf before any did."""
        return self._arrivals[0] if self._arrivals else inf

    def note_arrivals(self, arrivals_s: Sequence[float]) -> None:
        """Remember arrivals, in order."""
        self._arrivals += arrivals_s
        if len(self._arrivals) >= 2 * HISTORY:
            del self._arrivals[:-HISTORY]


def decide(policy: Policy, view: SchedulerView) -> Decision | None:
    """Return what the policy wants, checked. Raises PolicyError when it fails."""
    try:
        decision = policy.decide(view, view.now_s)
    except Exception as error:  # whatever a policy raises, no query may be lost
        raise PolicyError(policy.name, f"raised {error!r}", view) from error
    if decision is None:
        return None
    fault = _fault(decision, view.profile)
    if fault:
        raise PolicyError(policy.name, fault, view)
    view.memo = decision.memo
    return decision


def _fault(decision: object, profile: LatencyProfile) -> str:
    """Return what is wrong with a decision, empty when it can be carried out."""
    if not isinstance(decision, Decision):
        return f"returned {decision!r}, allowed a Decision or None"
    if decision.subnet_id not in profile.table():
        allowed = ", ".join(profile.subnet_ids)
        return f"decided on unknown subnet {decision.subnet_id!r}, allowed {allowed}"
    size = decision.batch_size
    if type(size) is not int or not 1 <= size <= profile.max_batch_size:
        return f"decided on batch size {size!r}, allowed 1 to {profile.max_batch_size}"
    return ""
