"""`SimulateRequest`: what the options of `supernet simulate` ask for of batches, checked."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from slackfit.derive import densified, with_overhead
from slackfit.profile import LatencyProfile
from slackfit.simulation.device_residency import SimulatedResidency
from slackfit.simulation.devices import DeviceModel, Failure, Slowdown
from slackfit.simulation.routing import ONE_QUEUE, Routing, parse_routing
from traces.simulation.capacity import Goal, parse_goal
from traces.simulation.simulation import (
    OnOutcomes,
    SimulationOptions,
    find_capacities,
    simulate_policies,
    stream_policies,
)
from traces.spec.spec import parse_spec
from traces.trace import TraceError

_NUMBER = r"\d+\.?\d*|\.\d+"
_EVENT = re.compile(rf"(?:(?P<factor>{_NUMBER})x)?(?P<worker>\d+)@(?P<at>{_NUMBER})")

OnEnd = Callable[[str, float, str], None]
"""Called with a policy, the seconds that it took, and why it ran in Python (empty: it did not)."""


@dataclass(frozen=True, kw_only=True)
class SimulateRequest:
    """A trace to serve by each of `policies`; with a `goal` at the highest rate that reaches it.

    `streamed`: the trace is drawn in pieces, and only counts are kept.
    """

    spec: str
    profile: LatencyProfile
    policies: list[str]
    options: SimulationOptions
    goal: Goal | None
    streamed: bool

    def run(self, on_end: OnEnd, on_outcomes: OnOutcomes | None = None) -> list[dict[str, Any]]:
        """Return a report per policy. Raises TraceError and ProfileError for what can't be."""
        names, options = self.policies, self.options
        if self.streamed:
            return stream_policies(self.spec, self.profile, names, options, on_end=on_end)
        trace = parse_spec(self.spec, seed=options.seed)
        if self.goal is None:
            return simulate_policies(
                trace, self.profile, names, options, on_end=on_end, on_outcomes=on_outcomes
            )
        return find_capacities(
            trace, self.profile, names, self.goal, options, on_end=on_end, on_outcomes=on_outcomes
        )


def read_request(profile: LatencyProfile, given: Mapping[str, Any]) -> SimulateRequest:
    """Return what the command's parameters, by name, ask for with this profile.

    Raises TraceError and ProfileError for what can't be, FileNotFoundError.
    """
    overhead_ms, subnets = given["overhead_ms"], given["subnets"]
    table = derived(profile, overhead_ms, subnets)
    workers, replicas = given["workers"], given["replicas"]
    files = _profile_files(given["devices"])
    devices = DeviceModel(
        noise=table if given["noise"] else None,
        profiles=[derived(LatencyProfile.load(f), overhead_ms, subnets) for f in files] or None,
        residency=_residency(table, given["residency"], given["cache_mib"], workers * replicas),
        events=_events(given["events"]),
    )
    return SimulateRequest(
        spec=given["trace"],
        profile=table,
        policies=[name.strip() for name in (given["policy"] or "slackfit").split(",")],
        options=SimulationOptions(
            slo_s=None if given["slo_ms"] is None else given["slo_ms"] / 1e3,
            num_workers=workers,
            num_replicas=replicas,
            routing=_routing(given["routing"], replicas),
            drop_hopeless=given["drop_hopeless"],
            seed=given["seed"],
            devices=devices,
            with_bound=given["bound"],
        ),
        goal=None if given["capacity"] is None else parse_goal(given["capacity"]),
        streamed=given["stream"],
    )


def _profile_files(text: str | None) -> list[str]:
    files = [name.strip() for name in text.split(",")] if text else []
    if not all(files):
        raise TraceError(f"--devices: expected a profile file per device, got {text!r}")
    return files


def derived(profile: LatencyProfile, overhead_ms: float, num_subnets: int) -> LatencyProfile:
    """Return the profile with interpolated subnets and overhead, as the options ask."""
    try:
        dense = densified(profile, num_subnets) if num_subnets else profile
        return with_overhead(dense, overhead_ms / 1e3)
    except ValueError as error:
        raise TraceError(str(error)) from None


def check_streamed(given: Mapping[str, Any]) -> None:
    """Raise TraceError for options that need what a streamed run does not keep."""
    named = {
        "--noise": "noise",
        "--devices": "devices",
        "--residency": "residency",
        "--bound": "bound",
        "--find-capacity": "capacity",
        "--html": "html_out",
        "--chrome": "chrome_out",
        "--routing": "routing",
    }
    refused = [option for option, key in named.items() if given[key]]
    refused += ["--replicas"] if given["replicas"] > 1 else []
    if given["stream"] and refused:
        raise TraceError(f"--stream goes without {', '.join(refused)}")


def _routing(text: str | None, num_replicas: int) -> Routing:
    """Return the routing that an option names. Raises TraceError for anything else."""
    if num_replicas == 1:
        if text is not None:
            raise TraceError("--routing goes with --replicas N, 2 or more")
        return ONE_QUEUE
    try:
        return parse_routing(text or "round-robin")
    except ValueError as error:
        raise TraceError(str(error)) from None


def _residency(
    profile: LatencyProfile, policy: str | None, cache_mib: float | None, workers: int
) -> SimulatedResidency | None:
    """Return the devices' residency. Raises TraceError, ProfileError: it can not be."""
    if policy is None:
        if cache_mib is not None:
            raise TraceError("--cache-mib goes with --residency")
        return None
    budget = None if cache_mib is None else int(cache_mib * 2**20)
    try:
        return SimulatedResidency(profile, policy, num_workers=workers, budget_bytes=budget)
    except ValueError as error:
        raise TraceError(str(error)) from None


def _events(text: str | None) -> tuple[Failure | Slowdown, ...]:
    """Return the events that `3@12,1.5x0@4` names. Raises TraceError for anything else."""
    events: list[Failure | Slowdown] = []
    for part in (text or "").split(",") if text else []:
        found = _EVENT.fullmatch(part.strip())
        if found is None:
            raise TraceError(
                f"event {part!r} is not understood; give WORKER@SECONDS for a failure, "
                "FACTORxWORKER@SECONDS for a slow-down, as in 3@12 or 1.5x0@4"
            )
        at_s, worker_id = float(found["at"]), int(found["worker"])
        if found["factor"]:
            events.append(Slowdown(at_s, worker_id, float(found["factor"])))
        else:
            events.append(Failure(at_s, worker_id))
    return tuple(events)
