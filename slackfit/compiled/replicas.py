"""Several replicas by machine code, where a router deals queries out in turn.

Round robin looks at nothing: of N replicas each serves every N-th query, as if it were alone. So
`simulate_replicas` is N runs there, whose rows are put back in order.
"""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from slackfit.compiled.setup import why_not
from slackfit.compiled.simulate import simulate_columns
from slackfit.outcome_columns import OutcomeColumns
from slackfit.policy import Policy
from slackfit.profile import LatencyProfile
from slackfit.simulation.devices import AS_PROFILED, DeviceModel
from slackfit.simulation.routing import ROUND_ROBIN, Routing

Floats = npt.NDArray[np.float64]


def why_not_routed(
    routing: Routing, policy: Policy, profile: LatencyProfile, devices: DeviceModel
) -> str:
    """Return why replicas can't be compiled, as a sentence; empty where they can."""
    if routing != ROUND_ROBIN:
        return f"routing {routing} has no compiled form"
    if replace(devices, events=tuple(devices.events)) != AS_PROFILED:  # of a list or a tuple
        return "devices that are not as profiled have no compiled form behind a router"
    return why_not(policy, profile, devices)


def simulate_round_robin(
    arrival_s: Floats,
    profile: LatencyProfile,
    policy: Policy,
    *,
    slo_s: float | Floats,
    num_replicas: int,
    num_workers: int = 1,
    drop_hopeless: bool | None = None,
    query_class: npt.NDArray[np.int64] | None = None,
) -> OutcomeColumns:
    """Serve every arrival by replicas in turn; the outcomes of `simulate_replicas`, row by row.

    Workers are numbered through, replica by replica. Raises what `simulate_columns` raises.
    """
    parts: list[OutcomeColumns] = []
    for number in range(num_replicas):
        own = slice(number, None, num_replicas)
        columns = simulate_columns(
            arrival_s[own], profile, policy,
            slo_s=slo_s[own] if isinstance(slo_s, np.ndarray) else slo_s,
            num_workers=num_workers, drop_hopeless=drop_hopeless,
            query_class=None if query_class is None else query_class[own],
        ).columns  # fmt: skip
        worker = np.where(columns.worker < 0, -1, columns.worker + number * num_workers)
        parts.append(replace(columns, worker=worker.astype(np.int32)))
    whole = replace(parts[0], **_in_turn(parts, len(arrival_s)))
    return replace(whole, query_id=np.arange(len(arrival_s)))


def _in_turn(parts: list[OutcomeColumns], count: int) -> dict[str, Any]:
    """Return the arrays of all parts, of which each has every n-th row."""
    found: dict[str, Any] = {}
    for field in fields(OutcomeColumns):
        first = getattr(parts[0], field.name)
        if isinstance(first, tuple):
            continue  # names, which are alike
        rows = np.empty(count, first.dtype)
        for number, part in enumerate(parts):
            rows[number :: len(parts)] = getattr(part, field.name)
        found[field.name] = rows
    return found
