"""The simulated twin of live servers: their schedulers with their settings, under virtual time.

What a query takes besides waiting and execution (the wire, parsing, the client) is a constant that
the caller measures on the idle server; what the door takes of each request comes before the
scheduler, one request after the other. Execution takes its profiled median, drawn longer by the
profile's upper quantiles. Over several servers queries are spread as our clients spread them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from slackfit.policies import create_policy
from slackfit.policy import Policy
from slackfit.profile import LatencyProfile
from slackfit.query import Outcome, Query
from slackfit.scheduling.scheduler import Scheduler
from slackfit.simulation.devices import DeviceModel, Devices, Slowdown
from slackfit.simulation.replicas import SimulatedReplica
from slackfit.simulation.routing import Router, Routing, create_router
from slackfit.simulation.simulate import collector_paused, simulate
from slackfit.spreading import Outlook
from traces.open_loop.door import through_the_door
from traces.open_loop.replay_options import ReplayOptions
from traces.trace import FloatArray, Trace, TraceError

_LEAST_SLO_S = 1e-9  # of a query that the door keeps beyond its deadline
_ROUTER_SEED = 1  # beside the seed of the devices


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveServer:
    """What the simulator must know of the server: its policy and settings, and the wire.

    An answer should leave the device `reply_allowance_s` before its deadline, but never earlier
    than `max_allowance`, a share of the SLO, asks for. `door_s` is what the door takes of one
    request before the scheduler sees it, one after the other; `wire_s` all that is beside that.
    """

    policy: str
    profile: LatencyProfile
    wire_s: float
    reply_allowance_s: float
    max_allowance: float
    max_queue: int | None
    drop_hopeless: bool | None
    triage: bool | None
    correct_latency: bool
    door_s: float = 0.0

    def leave_s(self, deadlines_s: FloatArray) -> FloatArray:
        """Return how long after arrival answers should leave the device."""
        return deadlines_s - np.minimum(self.reply_allowance_s, self.max_allowance * deadlines_s)


def simulate_live(
    trace: Trace,
    server: LiveServer,
    options: ReplayOptions,
    *,
    slowdowns: Sequence[Slowdown] = (),
) -> list[Outcome]:
    """Return the outcomes of `trace` on a simulated `server`, as its client would judge them.

    `options` are those of the replay; its warm-up is served and left out. With `slowdowns` the
    device is as slow as they say; without, batch times are drawn from the profile's quantiles,
    where it has any beyond the median.

    Raises:
        TraceError: no deadlines, or a policy that the profile does not know.
    """
    deadlines_s = _deadlines_s(trace, options)
    policy = _policy(server)
    arrival_s = trace.arrival_s
    seen_s = through_the_door(arrival_s, server.door_s) if server.door_s else arrival_s
    ended = simulate(
        seen_s,
        server.profile,
        policy,
        slo_s=np.maximum(server.leave_s(deadlines_s) - (seen_s - arrival_s), _LEAST_SLO_S),
        seed=options.seed,
        devices=_devices(server, slowdowns),
        query_class=trace.query_class,
        scheduler=_scheduler(server, policy),
    )
    sent = (o._replace(arrival_s=float(arrival_s[o.query_id])) for o in ended)
    return [
        _as_the_client_sees(o, float(deadlines_s[o.query_id]), server.wire_s, options.warmup_s)
        for o in sent
        if o.arrival_s >= options.warmup_s
    ]


def simulate_live_fleet(
    trace: Trace, servers: Sequence[LiveServer], options: ReplayOptions, *, num_senders: int
) -> list[Outcome]:
    """Return what `simulate_live` does, of servers over which so many client processes spread.

    Each process knows what its own answers told it (`slackfit.spreading`). Outcomes are in order of
    arrival; a worker is the place of its server. Raises what `simulate_live` raises.
    """
    if len(servers) == 1:
        return simulate_live(trace, servers[0], options)
    deadlines_s = _deadlines_s(trace, options)
    with collector_paused():
        ended = _SpreadServers(servers, options.seed, num_senders).served(trace, deadlines_s)
    return [
        _as_the_client_sees(
            outcome._replace(arrival_s=arrival_s), slo_s, servers[at].wire_s, options.warmup_s
        )
        for (at, outcome), arrival_s, slo_s in zip(
            ended, trace.arrival_s.tolist(), deadlines_s.tolist(), strict=True
        )
        if arrival_s >= options.warmup_s
    ]


class _SpreadServers:
    """Simulated servers, each behind a door of its own, and the clients before them."""

    def __init__(self, servers: Sequence[LiveServer], seed: int, num_senders: int) -> None:
        self._servers = servers
        self._ended: dict[int, tuple[int, Outcome]] = {}
        self._door_free_s = [0.0] * len(servers)
        self._replicas: list[SimulatedReplica] = []
        for at, server in enumerate(servers):
            policy = _policy(server)
            devices = Devices(1, _devices(server, ()).under(policy), seed=seed + at)
            self._replicas.append(
                SimulatedReplica(_scheduler(server, policy), devices, self._sink_of(at))
            )
        self._router: Router = create_router(
            Routing("client", num_senders),
            self._replicas,
            np.random.default_rng((seed, _ROUTER_SEED)),
        )

    def served(self, trace: Trace, deadlines_s: FloatArray) -> list[tuple[int, Outcome]]:
        """Serve the trace; return for each query the place of its server, and how it ended."""
        leave_s = [server.leave_s(deadlines_s).tolist() for server in self._servers]
        classes = [0] * len(trace) if trace.query_class is None else trace.query_class.tolist()
        for number, arrival_s in enumerate(trace.arrival_s.tolist()):
            at = self._router.choose(Query(number, arrival_s, arrival_s))
            free_s = max(arrival_s, self._door_free_s[at]) + self._servers[at].door_s
            self._door_free_s[at] = free_s
            due_s = max(arrival_s + leave_s[at][number], free_s + _LEAST_SLO_S)
            self._replicas[at].feed(Query(number, free_s, due_s, 0.0, classes[number]))
        for replica in self._replicas:
            replica.end()
        return [self._ended[number] for number in range(len(trace))]

    def _sink_of(self, at: int) -> Callable[[Sequence[Outcome], Outlook], None]:
        def sink(outcomes: Sequence[Outcome], told: Outlook) -> None:
            for outcome in outcomes:
                ran = outcome.worker_id is not None
                self._ended[outcome.query_id] = (
                    at, outcome._replace(worker_id=at) if ran else outcome,
                )  # fmt: skip
            self._router.answered(at, outcomes, told)

        return sink


def _deadlines_s(trace: Trace, options: ReplayOptions) -> FloatArray:
    if options.slo_s is not None:
        return np.full(len(trace), options.slo_s)
    if trace.slo_s is None:
        raise TraceError("the trace carries no deadlines; give an SLO (--slo-ms)")
    return trace.slo_s


def _policy(server: LiveServer) -> Policy:
    try:
        return create_policy(server.policy, server.profile)
    except ValueError as error:
        raise TraceError(f"the server's policy can't be simulated: {error}") from None


def _scheduler(server: LiveServer, policy: Policy) -> Scheduler:
    return Scheduler(
        server.profile,
        policy,
        max_queue=server.max_queue,
        drop_hopeless=server.drop_hopeless,
        correct_latency=server.correct_latency,
        triage=server.triage,
    )


def _devices(server: LiveServer, slowdowns: Sequence[Slowdown]) -> DeviceModel:
    return DeviceModel(
        profiles=[server.profile],  # the scheduler's own is corrected as it goes
        noise=None if slowdowns else _noise(server.profile),
        events=slowdowns,
    )


def _noise(profile: LatencyProfile) -> LatencyProfile | None:
    has_tail = all(len(subnet.latency_s) > 1 for subnet in profile.subnets)
    return profile if has_tail else None


def _as_the_client_sees(outcome: Outcome, slo_s: float, wire_s: float, warmup_s: float) -> Outcome:
    finish_s = outcome.finish_s + wire_s
    deadline_s = outcome.arrival_s + slo_s
    status = outcome.status
    if status in ("on_time", "late"):
        status = "on_time" if finish_s <= deadline_s else "late"
    return outcome._replace(
        status=status,
        arrival_s=outcome.arrival_s - warmup_s,
        deadline_s=deadline_s - warmup_s,
        start_s=None if outcome.start_s is None else outcome.start_s - warmup_s,
        finish_s=finish_s - warmup_s,
    )
