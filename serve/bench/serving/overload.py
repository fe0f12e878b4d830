"""Part `overload`: goodput at twice the load of its peak, forward time, memory, recovery.

Once on the real CPU, where client, door and device share the cores, and once with the labelled
timed executor, which occupies the device and no processor. Only the most accurate subnets are
offered, as many as the machine has cores for: at twice the load of all five, client and door alone
use up two cores, and what would be measured is how they starve the device.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from serve.bench.journal import Journal
from serve.bench.rows import Row, Tell, row
from serve.bench.serving.load import LoadScore
from serve.bench.serving.server_process import ServerProcess, server_process
from serve.bench.serving.setting import Setting
from slackfit.profile import LatencyProfile
from slackfit.query import Outcome
from traces.open_loop.answers import Answer

MODES = {
    f"{device}{suffix}": (device, policy)
    for device in ("cpu", "timed")
    for suffix, policy in (("", "slackfit"), ("_drainfit", "drainfit"))
}
_SHARES = (0.6, 0.75, 0.9, 1.05, 1.2)  # of what the fastest offered subnet does flat out
_SEED = 0
_MOST_QPS = 300  # per core, at twice the peak: a request costs client and door 1 ms of a core
_RECOVERY_LOAD = 0.5  # of the peak goodput, once the overload has ended
_RECOVERY_STEP_S = 0.05
_RECOVERED_S = 1.0  # without a miss
_MIB = 2**20


class OverloadScale(NamedTuple):
    """How long each run is."""

    search_s: float = 4.0
    overload_s: float = 15.0
    after_s: float = 6.0


QUICK = OverloadScale()
FULL = OverloadScale(search_s=10.0, overload_s=60.0, after_s=10.0)


class Overload(NamedTuple):
    """What one overload showed; `forward` is batch time over its profiled median."""

    goodput_qps: float
    recovery_s: float | None
    after: float
    forward: float
    forward_p90: float
    resident_bytes: tuple[int, int, int]  # before, highest, after
    score: LoadScore


class OverloadBench:
    """Both devices under the default policy and under DrainFit, one server process each."""

    def __init__(
        self, setting: Setting, journal: Journal, *, scale: OverloadScale, tell: Tell
    ) -> None:
        self._setting = setting
        self._journal = journal
        self._scale = scale
        self._tell = tell
        self._profile = offered(setting.profile, os.cpu_count() or 1)
        self._offered = self._profile.subnet_ids

    def run(self) -> None:
        """Measure what the journal lacks."""
        for mode in MODES:
            with server_process(self._config(mode)) as server:
                for share in _SHARES:
                    self._search(mode, server, share)
                self._journal.once(
                    f"{mode}/overload", lambda m=mode, s=server: self._overload(m, s)
                )

    def rows(self) -> list[Row]:
        """Return the rows of what is measured so far."""
        return [row for mode in MODES for row in self._mode_rows(mode)]

    def _config(self, mode: str) -> Any:
        device, policy = MODES[mode]
        make = self._setting.config if device == "cpu" else self._setting.timed_config
        return make(subnets=",".join(self._offered), policy=policy)

    def _search(self, mode: str, server: ServerProcess, share: float) -> LoadScore:
        rate_qps = share * _flat_out_qps(self._profile)
        spec = f"poisson:rate={rate_qps:.1f},duration={self._length_s(self._scale.search_s):g}"
        name = f"{mode}/rate/{share:g}"

        def measure() -> LoadScore:
            return self._setting.load.replay(server.url, spec, _SEED, num_processes=None)[0]

        score = LoadScore(*self._journal.once(name, measure))
        self._tell(f"{name}: {rate_qps:.0f} queries/s, {score.attainment:.4f} on time")
        return score

    def _length_s(self, measured_s: float) -> float:
        return self._setting.load.warmup_s + measured_s

    def _peak_qps(self, mode: str) -> float:
        """Return the highest goodput of the search."""
        runs = [LoadScore(*self._journal.get(f"{mode}/rate/{share:g}")) for share in _SHARES]
        return max(run.on_time for run in runs) / self._scale.search_s

    def _overload(self, mode: str, server: ServerProcess) -> Overload:
        scale = self._scale
        peak_qps = self._peak_qps(mode)
        spec = (
            f"step:before={2 * peak_qps:.1f},after={_RECOVERY_LOAD * peak_qps:.1f},"
            f"at={self._length_s(scale.overload_s):g},"
            f"duration={self._length_s(scale.overload_s + scale.after_s):g}"
        )
        self._tell(f"{mode}/overload: {spec}")
        with server.watched() as resident:
            load = self._setting.load
            score, result = load.replay(server.url, spec, _SEED, num_processes=None)
        over = [o for o in result.outcomes if o.arrival_s < scale.overload_s]
        after = [o for o in result.outcomes if o.arrival_s >= scale.overload_s + _RECOVERED_S]
        forward = forward_ratios(result.answers, self._profile)
        return Overload(
            goodput_qps=sum(o.status == "on_time" for o in over) / scale.overload_s,
            recovery_s=recovery_s(result.outcomes, scale.overload_s),
            after=sum(o.status == "on_time" for o in after) / max(len(after), 1),
            forward=float(np.median(forward)) if len(forward) else 0.0,
            forward_p90=float(np.quantile(forward, 0.9)) if len(forward) else 0.0,
            resident_bytes=(resident[0], max(resident), resident[-1]),
            score=score,
        )

    def _mode_rows(self, mode: str) -> list[Row]:
        if f"{mode}/overload" not in self._journal:
            return []
        cell = self._journal.get(f"{mode}/overload")
        found = Overload(*cell)._replace(score=LoadScore(*cell[-1]))
        peak_qps = self._peak_qps(mode)
        figure = f"serving/overload/{mode}"
        device, policy = MODES[mode]
        label = f"{policy}; " + (
            "real execution"
            if device == "cpu"
            else "TIMED executor: the device sleeps for the profiled latency, nothing is computed"
        )
        searched = ", ".join(
            f"{s * _flat_out_qps(self._profile):.0f}/s "
            f"{LoadScore(*self._journal.get(f'{mode}/rate/{s:g}')).attainment:.3f}"
            for s in _SHARES
        )
        score = found.score
        kept = f"{2 * peak_qps:.0f} queries/s for {self._scale.overload_s:g} s; {run_text(score)}"
        before, highest, last = (n / _MIB for n in found.resident_bytes)
        rows = [
            (
                "peak_goodput", peak_qps, "queries/s",
                f"{label}; Poisson, {self._scale.search_s:g} s each: {searched}; offered "
                f"{', '.join(self._offered)}",
            ),
            ("goodput_at_2x", found.goodput_qps, "queries/s", f"{label}; {kept}"),
            ("goodput_at_2x_over_peak", found.goodput_qps / peak_qps, "ratio", ">= 0.95 asked for"),
            (
                "forward_over_profiled", found.forward, "ratio",
                f"<= 1.2 asked for; median over batches of the overload, p90 "
                f"{found.forward_p90:.2f}; the profile is the idle device's",
            ),
            (
                "recovery", -1.0 if found.recovery_s is None else found.recovery_s, "s",
                f"<= 1 asked for (-1: never); until a second without a miss at "
                f"{_RECOVERY_LOAD * peak_qps:.0f} queries/s; from 1 s after the end on "
                f"{found.after:.4f} on time",
            ),
            (
                "memory_growth", highest - before, "MiB",
                f"resident {before:.0f} MiB before, at most {highest:.0f}, {last:.0f} at the end",
            ),
        ]  # fmt: skip
        return [row(f"{figure}/{n}", v, u, d, digits=4) for n, v, u, d in rows]


def run_text(score: LoadScore) -> str:
    """Return what a row says of a replay's circumstances."""
    busy = "unknown" if score.busy is None else f"{score.busy:.0%}"
    return (
        f"{score.outcomes}; client lag p99 {score.lag_p99_s * 1e3:.1f} ms, "
        f"{'valid' if score.is_valid else 'INVALID: the client was too slow'}; client "
        f"{score.client_cores:.2f} cores, machine {busy} busy"
    )


def recovery_s(outcomes: Sequence[Outcome], end_s: float) -> float | None:
    """Return how long after `end_s` a whole second without a miss begins; None: never."""
    missed = np.array([o.arrival_s for o in outcomes if o.status != "on_time"])
    last_s = max((o.arrival_s for o in outcomes), default=end_s)
    num_steps = int((last_s - _RECOVERED_S - end_s) / _RECOVERY_STEP_S)
    for step in range(num_steps + 1):
        start_s = end_s + step * _RECOVERY_STEP_S
        if not np.any((missed >= start_s) & (missed < start_s + _RECOVERED_S)):
            return start_s - end_s
    return None


def forward_ratios(answers: Sequence[Answer], profile: LatencyProfile) -> list[float]:
    """Return execution over profiled median for every batch that ran."""
    table: Mapping[str, Sequence[float]] = profile.table()
    batches = {
        a.reply.batch_id: a.reply
        for a in answers
        if a.reply.status == "ok" and a.reply.subnet_id in table
    }
    return [r.execution_s / table[str(r.subnet_id)][r.batch_size] for r in batches.values()]


def offered(profile: LatencyProfile, num_cores: int) -> LatencyProfile:
    """Return the most accurate subnets whose overload leaves a core to the device; one at least."""
    ids = profile.subnet_ids
    for first in range(len(ids)):
        chosen = profile.select(ids[first:])
        if 2 * _flat_out_qps(chosen) <= _MOST_QPS * num_cores:
            return chosen
    return profile.select(ids[-1:])


def _flat_out_qps(profile: LatencyProfile) -> float:
    """Return the most queries a second that any subnet does in any batch."""
    return max(
        size / profile.latency_s(subnet_id, size)
        for subnet_id in profile.subnet_ids
        for size in profile.batch_sizes
    )
