"""`verify_plan`: a plan's forecast of live servers, written down, then held against replays."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, NamedTuple

from serve.client.dial import dial
from serve.client.replicas import split_urls
from serve.commands.live_replay import LiveReplay, check_profile, simulated_server
from slackfit.profile import LatencyProfile
from traces.open_loop.door import DoorCost, bursts, door_cost, single_queries
from traces.open_loop.live_twin import LiveServer
from traces.open_loop.payloads import Payloads, noise_payloads
from traces.open_loop.replay import replay
from traces.open_loop.replay_options import ReplayOptions
from traces.open_loop.result import ReplayResult
from traces.open_loop.target import Target
from traces.planning.promise import Promise
from traces.planning.verification import WARMUP_S, capacity_qps, forecasts, judged
from traces.trace import Trace, TraceError

_PROBE_SLO_S = 1.0
_DEADLINES_TO_WAIT = 10

Tell = Callable[[str], None]
OnProgress = Callable[[dict[str, Any]], None]
"""Called with a verification so far: foretold and nothing replayed, then after each load."""


@dataclass(frozen=True, kw_only=True)
class PlanCheck:
    """What to verify: a promise on a trace's traffic, with `profile`, on the servers at `url`.

    Addresses have commas between; each server has one device, and queries are spread over them.
    `slo_s` None are the trace's own deadlines; each load is replayed for `duration_s`.
    """

    url: str
    trace: Trace
    profile: LatencyProfile
    promise: Promise
    slo_s: float | None
    duration_s: float
    seed: int = 0


def check_servers(url: str, profiles: Sequence[LatencyProfile]) -> None:
    """Refuse servers that serve with none of these profiles; see `PlanCheck` for `url`.

    Raises ClientError where one can't be reached, TraceError where it serves with another profile.
    """
    asyncio.run(_check_servers(url, profiles))


async def _check_servers(url: str, profiles: Sequence[LatencyProfile]) -> None:
    for one in split_urls(url):
        client, model = await dial(one, spread=False)
        await client.close()
        served = model.parameters.get("profile")
        check_profile(model, next((p for p in profiles if p.name == served), profiles[0]))


def verify_plan(check: PlanCheck, on_progress: OnProgress, tell: Tell) -> dict[str, Any]:
    """Return the verification: servers, doors, capacity, and a level for each load.

    Raises ClientError where a server can't be reached, TraceError where one serves another profile
    or they keep the promise at no rate, KeyboardInterrupt where a replay was interrupted.
    """
    return asyncio.run(_verified(check, on_progress, tell))


class _ProfiledServer(NamedTuple):
    """A live server as its twin must know it, and what was measured of it."""

    server: LiveServer
    url: str
    device: str
    door: DoorCost
    num_queries: int

    def to_json(self) -> dict[str, Any]:
        """Return it as plain data."""
        return {
            "url": self.url,
            "policy": self.server.policy,
            "device": self.device,
            "num_queries": self.num_queries,
            **self.door.to_json(),
        }


async def _verified(check: PlanCheck, on_progress: OnProgress, tell: Tell) -> dict[str, Any]:
    profiled: list[_ProfiledServer] = []
    for url in split_urls(check.url):
        tell(f"measuring the door of {url}")
        profiled.append(await _profiled(check, url))
    servers = [one.server for one in profiled]
    options = ReplayOptions(
        slo_s=check.slo_s, seed=check.seed, warmup_s=WARMUP_S,
        timeout_s=_DEADLINES_TO_WAIT * _longest_slo_s(check),
    )  # fmt: skip
    capacity = capacity_qps(check.trace, servers, check.promise, options, check.duration_s)
    found = forecasts(check.trace, servers, capacity, options, check.duration_s)
    about: dict[str, Any] = {
        "url": check.url,
        "profile": servers[0].profile.name,
        "cpu": _cpu(),
        "load_average": os.getloadavg()[0],
        "servers": [one.to_json() for one in profiled],
        "capacity_qps": capacity,
        "predicted_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "levels": [forecast.to_json() for forecast in found],
    }
    on_progress(about)
    levels: list[dict[str, Any]] = []
    for number, forecast in enumerate(found):
        tell(f"replaying at {forecast.load:.0%}: {forecast.trace.rate_qps:.1f} queries/s")
        live = LiveReplay(
            trace=forecast.trace, url=check.url, is_alone=True,
            options=replace(options, seed=check.seed + number),
        )  # fmt: skip
        _, result = await live.run()
        if result.is_partial:  # Ctrl-C: a cut run verifies nothing
            raise KeyboardInterrupt
        levels.append(judged(forecast, result.outcomes, result.invalid_reason))
        on_progress({**about, "levels": [*levels, *about["levels"][len(levels) :]]})
    return {**about, "load_average_after": os.getloadavg()[0], "levels": levels}


async def _profiled(check: PlanCheck, url: str) -> _ProfiledServer:
    """Measure the door of one server, which must serve with the planned profile."""
    client, model = await dial(url, spread=False)
    try:
        check_profile(model, check.profile)
        payloads = noise_payloads(model, check.seed)
        known = simulated_server(model, check.profile, 0.0)
        slowest = [known.profile.table()[i] for i in known.profile.subnet_ids]
        single = await _sent(client, payloads, single_queries(max(row[1] for row in slowest)))
        burst = await _sent(client, payloads, bursts(max(row[-1] for row in slowest)))
    finally:
        await client.close()
    door = door_cost(single.answers, burst.answers)
    server = replace(known, wire_s=door.answer_s, door_s=door.request_s)
    device = str(model.parameters.get("device", "unknown"))
    num_queries = len(single.answers) + len(burst.answers)
    return _ProfiledServer(server, url, device, door, num_queries)


async def _sent(client: Target, payloads: Payloads, trace: Trace) -> ReplayResult:
    result = await replay(trace, client, payloads, ReplayOptions(slo_s=_PROBE_SLO_S))
    if result.is_partial:
        raise KeyboardInterrupt
    return result


def _longest_slo_s(check: PlanCheck) -> float:
    if check.slo_s is not None:
        return check.slo_s
    if check.trace.slo_s is None:
        raise TraceError("the trace carries no deadlines; give an SLO (--slo-ms)")
    return float(check.trace.slo_s.max())


def _cpu() -> str:
    # Here, since it imports torch, which planning alone does not need.
    from subnetact.device import device_name

    return device_name("cpu")
