"""Several replicas in virtual time: a scheduler each, and one router in front of them.

Every replica is driven as `simulate` drives its one; they know nothing of each other. With
`one-queue` there is one scheduler over all devices, which is what the others are compared with.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import numpy.typing as npt

from slackfit.policy import Policy
from slackfit.profile import LatencyProfile
from slackfit.query import Outcome, Query
from slackfit.scheduling.scheduler import Scheduler
from slackfit.simulation.devices import AS_PROFILED, DeviceModel, Devices, Failure
from slackfit.simulation.driver import VirtualTimeDriver
from slackfit.simulation.routing import ONE_QUEUE, Routing, create_router
from slackfit.simulation.simulate import collector_paused, make_queries, simulate
from slackfit.spreading import Outlook

FloatArray = npt.NDArray[np.float64]
_PROGRESS_EVERY = 16_384  # arrivals
_ROUTER_SEED = 1  # beside the seed of the devices


class SimulatedReplica:
    """One scheduler and its devices; `sink` is handed outcomes with its outlook."""

    def __init__(
        self,
        scheduler: Scheduler,
        devices: Devices,
        sink: Callable[[Sequence[Outcome], Outlook], object],
    ) -> None:
        self.num_open = 0
        self._scheduler = scheduler
        self._driver = VirtualTimeDriver(scheduler, devices, self._ended)
        self._sink = sink

    def advance(self, now_s: float) -> None:
        """Let happen what does before an arrival at `now_s`."""
        self._driver.advance(now_s)

    def feed(self, query: Query) -> None:
        """Let a query arrive."""
        self.num_open += query.samples
        self._driver.feed((query,))

    def end(self) -> None:
        """Go on until every query has ended."""
        self._driver.end()

    def outlook(self, now_s: float) -> Outlook:
        """See `Scheduler.outlook`."""
        return self._scheduler.outlook(now_s)

    def _ended(self, outcomes: Sequence[Outcome]) -> None:
        if not outcomes:
            return
        self.num_open -= sum([outcome.samples for outcome in outcomes])
        self._sink(outcomes, self.outlook(outcomes[0].finish_s))


class ReplicaGroup:
    """Replicas with as many devices each, and the router in front of them."""

    def __init__(
        self,
        schedulers: Sequence[Scheduler],
        devices: Sequence[Devices],
        routing: Routing,
        rng: np.random.Generator,
    ) -> None:
        """Make a replica of each scheduler and its devices; `rng` is what the router draws from."""
        self._by_id: dict[int, Outcome] = {}
        self._replicas = [
            SimulatedReplica(scheduler, own, partial(self._ended, index))
            for index, (scheduler, own) in enumerate(zip(schedulers, devices, strict=True))
        ]
        self._num_workers = schedulers[0].num_workers
        self._router = create_router(routing, self._replicas, rng)

    def serve(
        self, queries: Sequence[Query], progress: Callable[[int, int], None] | None
    ) -> list[Outcome]:
        """Serve queries in order of arrival; return one outcome each, in order."""
        for number, query in enumerate(queries):
            self._replicas[self._router.choose(query)].feed(query)
            if progress and number % _PROGRESS_EVERY == 0:
                progress(number, len(queries))
        for replica in self._replicas:
            replica.end()
        return [self._by_id[query.query_id] for query in queries]

    def _ended(self, index: int, outcomes: Sequence[Outcome], told: Outlook) -> None:
        """Note outcomes of a replica, its workers numbered through, and tell the router."""
        first = index * self._num_workers
        for outcome in outcomes:
            worker_id = outcome.worker_id
            if worker_id is not None and first:
                outcome = outcome._replace(worker_id=worker_id + first)
            self._by_id[outcome.query_id] = outcome
        self._router.answered(index, outcomes, told)


def simulate_replicas(
    arrival_s: FloatArray,
    profile: LatencyProfile,
    policy: Policy,
    routing: Routing,
    *,
    slo_s: float | FloatArray,
    num_replicas: int,
    num_workers: int = 1,
    seed: int = 0,
    devices: DeviceModel = AS_PROFILED,
    drop_hopeless: bool | None = None,
    correct_latency: bool = False,
    query_class: npt.NDArray[np.int64] | None = None,
    min_accuracy: float | FloatArray = 0.0,
    progress: Callable[[int, int], None] | None = None,
) -> list[Outcome]:
    """Serve every arrival with `num_replicas` replicas of `num_workers` devices each.

    Outcome i is of arrival i, as in `simulate`; workers are numbered through, replica by replica,
    which is how `devices` names them. What the router draws comes from `seed`, too.
    `correct_latency` has every scheduler learn how slow its devices are, as a server does.

    Raises what `simulate` raises, and ValueError for devices that can't be shared out: those with
    a residency, or with failures, after which a replica would have to be left.
    """
    total = num_replicas * num_workers
    if correct_latency and devices.profiles is None:
        # What a scheduler predicts is corrected as it goes; what devices take is not.
        devices = replace(devices, profiles=[profile] * total)

    def scheduler_of(count: int) -> Scheduler:
        return Scheduler(
            profile,
            policy,
            num_workers=count,
            drop_hopeless=drop_hopeless,
            correct_latency=correct_latency,
        )

    if routing == ONE_QUEUE:
        return simulate(
            arrival_s,
            profile,
            policy,
            slo_s=slo_s,
            seed=seed,
            devices=devices,
            query_class=query_class,
            min_accuracy=min_accuracy,
            scheduler=scheduler_of(total),
            progress=progress,
        )
    models = shared_out(devices, num_replicas, num_workers)
    replicas = ReplicaGroup(
        [scheduler_of(num_workers) for _ in models],
        [Devices(num_workers, m.under(policy), seed=seed + i) for i, m in enumerate(models)],
        routing,
        np.random.default_rng((seed, _ROUTER_SEED)),
    )
    with collector_paused():
        queries = make_queries(arrival_s, slo_s, min_accuracy, query_class)
        return replicas.serve(queries, progress)


def shared_out(devices: DeviceModel, num_replicas: int, num_workers: int) -> list[DeviceModel]:
    """Return the devices of each replica, its workers numbered from 0.

    Raises ValueError for those that can't be shared out, see `simulate_replicas`.
    """
    if devices.residency is not None:
        raise ValueError("a residency goes with one queue only: replicas would share its devices")
    if any(isinstance(event, Failure) for event in devices.events):
        raise ValueError("failures go with one queue only: a router does not leave a replica here")
    total = num_replicas * num_workers
    Devices(total, devices)  # refuses events of unknown workers, and too few profiles
    models: list[DeviceModel] = []
    for first in range(0, total, num_workers):
        own = range(first, first + num_workers)
        models.append(
            replace(
                devices,
                events=tuple(
                    event._replace(worker_id=event.worker_id - first)
                    for event in devices.events
                    if event.worker_id in own
                ),
                profiles=None if devices.profiles is None else [devices.profiles[i] for i in own],
            )
        )
    return models
