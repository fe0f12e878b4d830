"""The simulated devices: how long a batch really takes there, and their failures and slow-downs.

The scheduler predicts with its profile; `DeviceModel` is what it may not know: a dispatch overhead,
loading times of policies without a shared supernet, noise, devices that are slower than the
profile, that slow down or fail. `Devices` are those of one run. What is random is drawn per seed
and query: a batch has the luck of its most urgent query, whatever policy, device or order runs it,
so that runs of the same queries are paired.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from slackfit.policy import Policy
from slackfit.profile import LatencyProfile, ProfileError
from slackfit.query import Batch
from slackfit.scheduling.work_mix import WorkMix
from slackfit.simulation.device_residency import SimulatedResidency

_WORD = (1 << 64) - 1


class Failure(NamedTuple):
    """Worker `worker_id` fails at `at_s`, with what it runs, and is not used again."""

    at_s: float
    worker_id: int


class Slowdown(NamedTuple):
    """From `at_s` on, batches that start on `worker_id` take `factor` times as long."""

    at_s: float
    worker_id: int
    factor: float


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceModel:
    """What simulated devices add to the profile that the scheduler predicts with.

    `overhead_s` is added to every batch, `switch_cost_s` (one time, or one per subnet; None: the
    policy's own, 0 for most) when a worker gets another subnet than its last. `noise` is a profile,
    from whose quantiles of the batch's subnet and size a ratio to the median is drawn, or
    residuals: ratios of measured to predicted latency, of which one is drawn. `profiles` has one
    profile per worker whose medians replace the predicted latencies (heterogeneous devices, or
    work that the scheduler's profile does not know of).
    `residency` says what batches take beside what is resident, in place of both; it remembers what
    it served, so each run takes a `fresh` one. `events` are failures and slow-downs.
    """

    overhead_s: float = 0.0
    switch_cost_s: float | Mapping[str, float] | None = None
    noise: LatencyProfile | Sequence[float] | None = None
    profiles: Sequence[LatencyProfile] | None = None
    residency: SimulatedResidency | None = None
    events: Sequence[Failure | Slowdown] = ()

    def under(self, policy: Policy) -> DeviceModel:
        """Return these devices with what a switch costs the policy, unless it is given."""
        if self.switch_cost_s is not None:
            return self
        return replace(self, switch_cost_s=getattr(policy, "switch_cost_s", 0.0))


AS_PROFILED = DeviceModel()
"""Devices on which every batch takes its profiled median."""


class Devices:
    """Real latencies of batches on `num_workers` devices; `events` are still to happen to them."""

    def __init__(
        self, num_workers: int, model: DeviceModel = AS_PROFILED, *, seed: int = 0
    ) -> None:
        """Begin with nothing resident and every device whole.

        Raises ValueError for a negative time, a ratio that is not positive, too few profiles or an
        event that can't be; ProfileError for a noise profile that has only a median.
        """
        overhead_s, noise, profiles = model.overhead_s, model.noise, model.profiles
        switch_cost_s = 0.0 if model.switch_cost_s is None else model.switch_cost_s
        costs = switch_cost_s.values() if isinstance(switch_cost_s, Mapping) else [switch_cost_s]
        if not overhead_s >= 0:
            raise ValueError(f"overhead_s is {overhead_s}, allowed 0 or more")
        if not all(cost >= 0 for cost in costs):
            raise ValueError(f"switch_cost_s goes down to {min(costs)}, allowed 0 or more")
        if profiles is not None and len(profiles) != num_workers:
            raise ValueError(
                f"profiles has {len(profiles)} for {num_workers} workers, allowed one each"
            )
        _check_events(model.events, num_workers)
        self.events = tuple(model.events)
        self._overhead_s = overhead_s
        self._switch_cost_s = switch_cost_s
        self._switches = any(costs)
        self._tables = None if profiles is None else [p.table() for p in profiles]
        self._mixes = None if profiles is None else [WorkMix.of(p, "p50") for p in profiles]
        self._last: list[str | None] = [None] * num_workers
        self._factors = [1.0] * num_workers
        self._noise = None if noise is None else _noise(noise)
        self._seed = seed
        self._residency = model.residency

    def slow_down(self, worker_id: int, factor: float) -> None:
        """Multiply what batches take on a worker from now on."""
        self._factors[worker_id] = factor

    def latency_s(self, batch: Batch) -> float:
        """Return what a batch takes; call it once per batch, in order of dispatch."""
        _, worker_id, subnet_id, queries, _, seconds = batch
        if self._tables is not None and self._mixes is not None:
            mix = self._mixes[worker_id]
            if mix is not None:
                seconds = mix.latency_s(subnet_id, queries)
            else:
                seconds = self._tables[worker_id][subnet_id][batch.num_samples]
        if self._residency is not None:
            seconds = self._residency.latency_s(worker_id, subnet_id, batch.num_samples)
        if self._noise is not None:
            drawn = draw(self._seed, batch.queries[0].query_id)
            seconds *= self._noise.ratio(subnet_id, batch.num_samples, drawn)
        seconds = seconds * self._factors[worker_id] + self._overhead_s
        if self._switches:
            last, self._last[worker_id] = self._last[worker_id], subnet_id
            if last is not None and last != subnet_id:
                cost = self._switch_cost_s
                seconds += cost[subnet_id] if isinstance(cost, Mapping) else cost
        return seconds


def draw(seed: int, query_id: int) -> float:
    """Return the random number of a query, uniform in [0, 1).

    SplitMix64 (Steele, Lea, Flood, OOPSLA 2014) of seed and id: no state, so no order of calls.
    """
    word = (seed * 0x9E3779B97F4A7C15 + (query_id + 1) * 0xD1B54A32D192ED03) & _WORD
    word = ((word ^ (word >> 30)) * 0xBF58476D1CE4E5B9) & _WORD
    word = ((word ^ (word >> 27)) * 0x94D049BB133111EB) & _WORD
    return ((word ^ (word >> 31)) >> 11) * 2.0**-53


def _check_events(events: Sequence[Failure | Slowdown], num_workers: int) -> None:
    failed = [event.worker_id for event in events if isinstance(event, Failure)]
    if len(set(failed)) < len(failed):
        raise ValueError(f"failures of workers {failed}: each worker fails once at most")
    for event in events:
        if not 0 <= event.worker_id < num_workers:
            raise ValueError(f"{event} is of an unknown worker, allowed 0 to {num_workers - 1}")
        if isinstance(event, Slowdown) and not 0 < event.factor < float("inf"):
            raise ValueError(f"{event} has a bad factor, allowed a finite one above 0")


def _noise(noise: LatencyProfile | Sequence[float]) -> _Quantiles | _Residuals:
    return _Quantiles(noise) if isinstance(noise, LatencyProfile) else _Residuals(noise)


class _Residuals:
    """Ratios of measured to predicted latency, equally likely."""

    def __init__(self, ratios: Sequence[float]) -> None:
        if not len(ratios) or not all(0 < ratio < float("inf") for ratio in ratios):
            raise ValueError("noise needs at least one residual, each a finite ratio above 0")
        self._ratios = list(ratios)

    def ratio(self, subnet_id: str, size: int, drawn: float) -> float:
        return self._ratios[int(drawn * len(self._ratios))]


def noise_levels(profile: LatencyProfile) -> list[float]:
    """Return the quantiles from the median up that all subnets have, as fractions.

    Raises ProfileError where that is the median alone.
    """
    names = {
        name
        for name in profile.subnets[0].latency_s
        if all(name in subnet.latency_s for subnet in profile.subnets)
    }
    levels = sorted(float(n[1:]) / 100 for n in names if n[1:].replace(".", "").isdigit())
    levels = [level for level in levels if level >= 0.5]
    if len(levels) < 2:
        raise ProfileError(
            f"noise needs quantiles beyond p50, profile {profile.name!r} has "
            f"{', '.join(sorted(names))} for all subnets; measure them, or give residuals"
        )
    return levels


class _Quantiles:
    """Ratios to the median by linear interpolation between a profile's quantiles.

    Below the median nothing is profiled: the ratio is 1 there; above the last quantile it is that
    one's. So the noise only ever delays, and by no more than was measured.
    """

    def __init__(self, profile: LatencyProfile) -> None:
        self._levels = noise_levels(profile)
        self._tables = [profile.table(f"p{level * 100:g}") for level in self._levels]

    def ratio(self, subnet_id: str, size: int, drawn: float) -> float:
        at = bisect_right(self._levels, drawn)
        if at == 0:
            return 1.0
        median_s = self._tables[0][subnet_id][size]
        low_s = self._tables[at - 1][subnet_id][size]
        if at == len(self._levels):
            return low_s / median_s
        high_s = self._tables[at][subnet_id][size]
        share = (drawn - self._levels[at - 1]) / (self._levels[at] - self._levels[at - 1])
        return (low_s + (high_s - low_s) * share) / median_s
