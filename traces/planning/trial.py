"""One fleet on some traffic: attainment and accuracy, in blocks of time, so that both have error.

Outcomes are counted, never kept (but where a promise names groups), and a trial that can no longer
keep the promise ends early.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from slackfit.compiled.replicas import why_not_routed
from slackfit.compiled.setup import why_not
from slackfit.compiled.simulate import CompiledRun, simulate_columns
from slackfit.metrics import as_good
from slackfit.outcome_columns import OutcomeColumns
from slackfit.policies import create_policy
from slackfit.policy import Policy
from slackfit.simulation.devices import AS_PROFILED, DeviceModel
from slackfit.simulation.replicas import simulate_replicas
from slackfit.simulation.routing import ONE_QUEUE
from traces.planning.candidates import FleetCandidate
from traces.planning.promise import PartPromise, Promise
from traces.planning.redrawn import redrawn_sums
from traces.planning.traffic import Traffic

NUM_BLOCKS = 120
_PIECES = 8


class Interval(NamedTuple):
    """What 90 of 100 redrawn traces lie within."""

    low: float
    high: float


class Counts(NamedTuple):
    """Queries per block of arrivals: all, those on time, and the sums of accuracies of those."""

    arrived: np.ndarray
    on_time: np.ndarray
    accurate: np.ndarray

    @property
    def attainment(self) -> float:
        """On-time queries / all."""
        return float(self.on_time.sum() / max(self.arrived.sum(), 1))

    @property
    def accuracy(self) -> float:
        """Mean accuracy of those on time, 0 of none."""
        return float(self.accurate.sum() / max(self.on_time.sum(), 1))

    def keep(self, promise: PartPromise) -> bool:
        """Whether they keep what is promised to their group; to nobody anything is kept."""
        is_empty = not self.arrived.sum()
        return is_empty or promise.is_kept(self.attainment, self.accuracy)

    def redrawn(self) -> tuple[np.ndarray, np.ndarray]:
        """Attainment and accuracy of the redrawn traces, which are the same for all counts."""
        arrived, on_time, accurate = (redrawn_sums(values) for values in self)
        return on_time / np.maximum(arrived, 1), accurate / np.maximum(on_time, 1)


_NO_GROUPS: dict[str, Counts] = {}


@dataclass(frozen=True, slots=True)
class Trial:
    """What came of all queries and of groups; `ended_early` where the rest no longer mattered."""

    all: Counts
    ended_early: bool = False
    why_python: str = ""
    groups: Mapping[str, Counts] = field(default_factory=lambda: _NO_GROUPS)

    @property
    def attainment(self) -> float:
        """On-time queries / all."""
        return self.all.attainment

    @property
    def accuracy(self) -> float:
        """Mean accuracy of those on time, 0 of none."""
        return self.all.accuracy

    def keeps(self, promise: Promise) -> bool:
        """Whether it kept the promise, to everybody."""
        return (
            not self.ended_early
            and promise.is_kept(self.attainment, self.accuracy)
            and all(self.groups[part.group].keep(part) for part in promise.parts)
        )

    def share_kept(self, promise: Promise) -> float:
        """Return how many of the redrawn traces kept the promise, a fraction."""
        if self.ended_early:
            return 0.0
        kept = np.True_
        for asked in (promise, *promise.parts):
            counts = self.all if isinstance(asked, Promise) else self.groups[asked.group]
            attainment, accuracy = counts.redrawn()
            is_kept = attainment >= as_good(asked.attainment)
            is_kept &= accuracy >= as_good(asked.accuracy)
            kept = kept & (is_kept | (redrawn_sums(counts.arrived) == 0))
        return float(np.mean(kept))

    def intervals(self) -> tuple[Interval, Interval]:
        """Return those of attainment and accuracy."""
        attainment, accuracy = self.all.redrawn()
        return _interval(attainment), _interval(accuracy)

    def less(self, other: Trial) -> tuple[Interval, Interval]:
        """Return the intervals of this one's attainment and accuracy less another's, paired."""
        pairs = zip(self.all.redrawn(), other.all.redrawn(), strict=True)
        attainment, accuracy = (_interval(mine - theirs) for mine, theirs in pairs)
        return attainment, accuracy


class _FleetQueue(NamedTuple):
    """Who serves one queue, and which of the traffic's queries come to it."""

    candidate: FleetCandidate
    workers: int
    rows: slice | np.ndarray


def run_trial(
    candidate: FleetCandidate,
    count: int,
    traffic: Traffic,
    *,
    promise: Promise | None = None,
    devices: DeviceModel = AS_PROFILED,
    seed: int = 0,
) -> Trial:
    """Serve the traffic on `count` devices and those beside them, routed as the candidate says.

    With a `promise` the trial ends as soon as too many have missed it.
    """
    policies = {part: create_policy(part.policy, part.profile) for part in candidate.parts}
    whys = [_why_python(part, policy, devices) for part, policy in policies.items()]
    why = next(filter(None, whys), "")
    if why or traffic.groups:
        return _labelled(candidate, count, traffic, policies, devices, seed, why)
    block_s = traffic.duration_s / NUM_BLOCKS
    allowed = np.inf if promise is None else promise.spared(len(traffic.arrival_s))
    on_time, accurate = np.zeros(NUM_BLOCKS, np.int64), np.zeros(NUM_BLOCKS)
    missed = 0
    ended_early = False
    for queue in _queues(candidate, count, len(traffic.arrival_s)):
        part = traffic.picked(queue.rows)
        run = CompiledRun(
            queue.candidate.profile, policies[queue.candidate], num_workers=queue.workers,
            seed=seed, devices=devices,
            has_floors=bool(np.any(np.asarray(part.min_accuracy) > 0.0)),
            has_classes=part.query_class is not None and bool(np.any(part.query_class)),
            block_s=block_s, num_blocks=NUM_BLOCKS,
        )  # fmt: skip
        missed += _served(run, part, allowed - missed)
        on_time += run.on_time.sum(axis=1)
        accurate += run.on_time @ run.accuracies
        if missed > allowed:
            ended_early = True
            break
    return Trial(Counts(_blocked(_places(traffic)), on_time, accurate), ended_early)


def _served(run: CompiledRun, traffic: Traffic, allowed: float) -> int:
    """Feed all traffic, or until more than `allowed` have missed; return how many did."""
    arrival_s = traffic.arrival_s
    deadline_s = arrival_s + traffic.slo_s
    floors = np.broadcast_to(traffic.min_accuracy, arrival_s.shape)
    classes = traffic.query_class
    for place in range(_PIECES):
        inside = slice(*(len(arrival_s) * k // _PIECES for k in (place, place + 1)))
        if inside.start == inside.stop:
            continue
        run.feed(
            arrival_s[inside], deadline_s[inside], floors[inside],
            None if classes is None else classes[inside],
        )  # fmt: skip
        if _missed(run) > allowed:
            return _missed(run)
    run.finish()
    return _missed(run)


def _missed(run: CompiledRun) -> int:
    ended = run.statuses
    return sum(ended.values()) - ended["on_time"]


def _queues(candidate: FleetCandidate, count: int, num_queries: int) -> Iterator[_FleetQueue]:
    """Yield the queues of a fleet, as it is routed: one, or one for each device, of each type."""
    if candidate.beside is None:
        step = 1 if candidate.routing == ONE_QUEUE else count
        for number in range(step):  # in turn
            yield _FleetQueue(candidate, count // step, slice(number, None, step))
        return
    is_own = _own_turns(candidate.share(count), num_queries)
    beside = candidate.beside
    for part, workers, mask in (
        (candidate.alone, count, is_own), (beside.candidate, beside.workers, ~is_own),
    ):  # fmt: skip
        rows = np.flatnonzero(mask)
        for queue in _queues(part, workers, len(rows)):
            yield queue._replace(rows=rows[queue.rows])


def _own_turns(share: float, num_queries: int) -> np.ndarray:
    """Return a mask of that share of the queries, as even as can be (weighted round robin).

    >>> _own_turns(0.4, 5).tolist()
    [False, False, True, False, True]
    """
    turns = np.floor(np.arange(num_queries + 1) * share + 1e-9)
    return turns[1:] > turns[:-1]


def _labelled(
    candidate: FleetCandidate,
    count: int,
    traffic: Traffic,
    policies: Mapping[FleetCandidate, Policy],
    devices: DeviceModel,
    seed: int,
    why: str,
) -> Trial:
    """Run the trial with an outcome for each query, from which groups are counted."""
    is_on_time = np.zeros(len(traffic.arrival_s), np.bool_)
    accuracy = np.zeros(len(traffic.arrival_s))
    if why and candidate.routing != ONE_QUEUE and candidate.beside is None:
        columns = OutcomeColumns.of(
            simulate_replicas(
                traffic.arrival_s, candidate.profile, policies[candidate], candidate.routing,
                slo_s=traffic.slo_s, num_replicas=count, seed=seed, devices=devices,
                query_class=traffic.query_class, min_accuracy=traffic.min_accuracy,
            )
        )  # fmt: skip
        is_on_time, accuracy = columns.on_time, columns.accuracy
    else:
        for queue in _queues(candidate, count, len(traffic.arrival_s)):
            part, served = traffic.picked(queue.rows), queue.candidate
            columns = simulate_columns(
                part.arrival_s, served.profile, policies[served], slo_s=part.slo_s,
                num_workers=queue.workers, seed=seed, devices=devices,
                query_class=part.query_class, min_accuracy=part.min_accuracy,
            ).columns  # fmt: skip
            is_on_time[queue.rows], accuracy[queue.rows] = columns.on_time, columns.accuracy
    places = _places(traffic)

    def counted(mask: np.ndarray) -> Counts:
        served = mask & is_on_time
        return Counts(
            _blocked(places[mask]), _blocked(places[served]),
            np.bincount(places[served], weights=accuracy[served], minlength=NUM_BLOCKS),
        )  # fmt: skip

    groups = {name: counted(mask) for name, mask in traffic.groups.items()}
    return Trial(counted(np.ones(len(places), np.bool_)), False, why, groups)


def _why_python(candidate: FleetCandidate, policy: Policy, devices: DeviceModel) -> str:
    if candidate.routing == ONE_QUEUE:
        return why_not(policy, candidate.profile, devices)
    return why_not_routed(candidate.routing, policy, candidate.profile, devices)


def _places(traffic: Traffic) -> np.ndarray:
    block_s = traffic.duration_s / NUM_BLOCKS
    return np.minimum((traffic.arrival_s / block_s).astype(np.int64), NUM_BLOCKS - 1)


def _blocked(places: np.ndarray) -> np.ndarray:
    return np.bincount(places, minlength=NUM_BLOCKS)


def _interval(values: np.ndarray) -> Interval:
    return Interval(*np.quantile(values, (0.05, 0.95)).tolist())
