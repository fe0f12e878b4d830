"""From a scheduler's and devices' objects to arrays, and what has none and so runs in Python."""

from __future__ import annotations

from collections.abc import Mapping
from math import inf

import numpy as np

from slackfit.compiled.code_cache import missing
from slackfit.compiled.forms import lacking
from slackfit.compiled.state import Hardware, Setup
from slackfit.eligibility import Eligibility
from slackfit.policy import Policy
from slackfit.profile import LatencyProfile
from slackfit.query import Query
from slackfit.simulation.devices import DeviceModel, Devices, Failure, noise_levels

_QUANTILE = "p50"  # that a simulated scheduler predicts with


def why_not(policy: Policy, profile: LatencyProfile, devices: DeviceModel) -> str:
    """Return why such a run can't be compiled, as a sentence; empty where it can."""
    fault = lacking(policy) or missing()
    if fault:
        return fault
    if devices.residency is not None:
        return "residency of simulated devices has no compiled form"
    if profile.work is not None:
        return "queries that differ in work have no compiled form"
    others = [*(devices.profiles or ())]
    if isinstance(devices.noise, LatencyProfile):
        others.append(devices.noise)
    for other in others:
        if {*profile.subnet_ids} - {*other.subnet_ids}:
            return f"profile {other.name!r} lacks subnets of {profile.name!r}"
        if other.max_batch_size < profile.max_batch_size:
            return f"profile {other.name!r} has smaller batches than {profile.name!r}"
    return ""


def make_setup(
    profile: LatencyProfile,
    policy: Policy,
    *,
    num_workers: int,
    drop_hopeless: bool | None,
    has_floors: bool,
    has_classes: bool,
    keeps_columns: bool,
    block_s: float,
) -> Setup:
    """Return what a new scheduler knows. Raises ValueError for a count below 1."""
    if num_workers < 1:
        raise ValueError(f"num_workers is {num_workers}, allowed 1 or more")
    drops = policy.drop_hopeless if drop_hopeless is None else drop_hopeless
    table, fastest = profile.table(_QUANTILE), profile.fastest(_QUANTILE)
    return Setup(
        latency_s=np.array([table[i] for i in profile.subnet_ids]),
        fastest_of=_fastest_of(profile) if has_floors else np.zeros((1, 1), np.int64),
        fastest_s=np.array(fastest.latency_s),
        full=fastest.best_size,
        capacity_qps=fastest.capacity_qps,
        num_workers=num_workers,
        max_batch=profile.max_batch_size,
        drops=bool(drops),
        triages=bool(drops and getattr(policy, "triage", False)),
        has_floors=has_floors,
        has_classes=has_classes,
        keeps_columns=keeps_columns,
        block_s=block_s,
    )


def _fastest_of(profile: LatencyProfile) -> np.ndarray:
    """Return the fastest subnet by (floor, batch size)."""
    eligible = Eligibility(profile, _QUANTILE)
    number = {subnet_id: i for i, subnet_id in enumerate(profile.subnet_ids)}
    found = np.zeros((len(number), profile.max_batch_size + 1), np.int64)
    for floor, subnet in enumerate(profile.subnets):
        query = Query(0, 0.0, inf, subnet.accuracy)
        for size in range(1, profile.max_batch_size + 1):
            subnet_id = eligible.fastest(query, size)
            assert subnet_id is not None, "the subnet itself is as accurate as that"
            found[floor, size] = number[subnet_id]
    return found


def make_hardware(
    profile: LatencyProfile, devices: DeviceModel, *, num_workers: int, seed: int
) -> Hardware:
    """Return what devices add. Raises what `Devices` raises for those that can't be."""
    Devices(num_workers, devices, seed=seed)
    ids = profile.subnet_ids
    largest = profile.max_batch_size

    def rows(other: LatencyProfile, quantile: str = "p50") -> list[list[float]]:
        return [other.table(quantile)[i][: largest + 1] for i in ids]

    noise = devices.noise
    levels: list[float] = []
    noise_s = np.zeros((0, 1, 1))
    if isinstance(noise, LatencyProfile):
        levels = noise_levels(noise)
        noise_s = np.array([rows(noise, f"p{level * 100:g}") for level in levels])
        residuals: list[float] = []
    else:
        residuals = [] if noise is None else list(noise)
    tables = [rows(other) for other in devices.profiles or ()]
    # Of several events at one moment the last one given happens first, as in Python.
    events = sorted(devices.events, key=lambda event: event.at_s, reverse=True)[::-1]
    return Hardware(
        overhead_s=devices.overhead_s,
        tables_s=np.array(tables) if tables else np.zeros((0, 1, 1)),
        residuals=np.array(residuals, dtype=np.float64),
        levels=np.array(levels, dtype=np.float64),
        noise_s=noise_s,
        switch_s=_switch_s(devices, ids),
        seed=int(np.uint64(seed % 2**64).astype(np.int64)),
        event_s=np.array([event.at_s for event in events], dtype=np.float64),
        event_worker=np.array([event.worker_id for event in events], dtype=np.int64),
        event_factor=np.array(
            [0.0 if isinstance(event, Failure) else event.factor for event in events],
            dtype=np.float64,
        ),
    )


def _switch_s(devices: DeviceModel, subnet_ids: tuple[str, ...]) -> np.ndarray:
    """Return what switching to each subnet costs; nothing where it costs nothing."""
    cost = devices.switch_cost_s or 0.0
    costs = [cost[i] if isinstance(cost, Mapping) else cost for i in subnet_ids]
    return np.array(costs if any(costs) else [], dtype=np.float64)
