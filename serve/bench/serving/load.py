"""The load of the serving benchmark: one replay and what is kept of it, and a closed loop.

Every system gets the same trace, samples and client (`serve.client` through `traces.replay`), and
the client judges each query from its intended send.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from serve.client.dial import dial
from serve.commands.live_replay import LiveReplay
from traces.open_loop.payloads import load_payloads, noise_payloads
from traces.open_loop.replay_options import ReplayOptions
from traces.open_loop.result import ReplayResult
from traces.open_loop.sender import Progress
from traces.open_loop.target import Model, ReplayRequest, Target
from traces.spec.spec import parse_spec

_IN_FLIGHT = 64
_PATIENCE_SLOS = 10.0  # the client gives up then: late long before, and no pile outlives a run


class LoadScore(NamedTuple):
    """One replay. Times in seconds; `busy` is the machine's share of busy processor time.

    `client_cores` is the senders' processor time over the length of the run; NaN figures are None.
    """

    on_time: int
    num_queries: int
    accuracy: float
    measured_accuracy: float | None
    p50_s: float | None
    p99_s: float | None
    lag_p99_s: float
    is_valid: bool
    client_cores: float
    busy: float | None
    interval: tuple[float, float]
    outcomes: dict[str, int]

    @property
    def attainment(self) -> float:
        """On-time over all arrived."""
        return self.on_time / self.num_queries if self.num_queries else 0.0

    @property
    def utility(self) -> float:
        """Attainment x mean accuracy of the on-time answers."""
        return self.attainment * self.accuracy


@dataclass(frozen=True, kw_only=True)
class Load:
    """What does not change from run to run: the model's name, the SLO, the samples."""

    model: str
    slo_s: float
    data: Path | None
    warmup_s: float = 1.0

    def replay(
        self,
        url: str,
        spec: str,
        seed: int,
        *,
        num_processes: int | None = 1,
        progress: Callable[[Progress], None] | None = None,
    ) -> tuple[LoadScore, ReplayResult]:
        """Send the trace `spec` to `url` and return the score and what it is made of."""
        run = LiveReplay(
            trace=parse_spec(spec, seed=seed),
            url=url,
            options=ReplayOptions(
                slo_s=self.slo_s,
                seed=seed,
                timeout_s=max(_PATIENCE_SLOS * self.slo_s, 0.5),
                warmup_s=self.warmup_s,
            ),
            model=self.model,
            data=self.data,
            num_processes=num_processes,
        )
        before = busy_s()
        (report, *_), result = asyncio.run(run.run(progress))
        if result.is_partial:  # Ctrl-C: a cut run is no cell
            raise KeyboardInterrupt
        return score_of(report, result, _busy_share(before, busy_s())), result

    def closed_loop_qps(self, url: str, duration_s: float, *, in_flight: int = _IN_FLIGHT) -> float:
        """Return the answers per second while `in_flight` requests are open all the time."""
        return asyncio.run(self._closed_loop(url, duration_s, in_flight))

    async def _closed_loop(self, url: str, duration_s: float, in_flight: int) -> float:
        target, model = await dial(url, self.model)
        try:
            payloads = samples(self.data, model)
            start_s = time.monotonic() + duration_s / 4  # the first quarter warms up
            loops = [
                _send_until(target, payloads[i % len(payloads)], start_s, start_s + duration_s)
                for i in range(in_flight)
            ]
            return sum(await asyncio.gather(*loops)) / duration_s
        finally:
            await target.close()


def samples(data: Path | None, model: Model) -> np.ndarray:
    """Return the samples of a payload folder, or noise, as the model takes them."""
    if data is None:
        return noise_payloads(model, 0).images
    return load_payloads(data).fitted(model.tensor).images


async def _send_until(target: Target, sample: np.ndarray, start_s: float, end_s: float) -> int:
    count = 0
    while time.monotonic() < end_s:
        reply = await target.infer(ReplayRequest(query_id=0, payload=sample, slo_s=60.0))
        if reply.status != "ok":
            raise RuntimeError(f"an idle server refused: {reply.status} {reply.reason}")
        count += start_s <= time.monotonic() <= end_s
    return count


def score_of(report: dict[str, Any], result: ReplayResult, busy: float | None) -> LoadScore:
    """Keep of a report what the benchmark's rows say."""
    latency_ms, interval = report["latency_ms"], report["slo_attainment_95"]
    return LoadScore(
        on_time=report["outcomes"]["on_time"],
        num_queries=report["num_queries"],
        accuracy=report["mean_serving_accuracy"],
        measured_accuracy=report["measured_accuracy"],
        p50_s=_seconds(latency_ms["p50"]),
        p99_s=_seconds(latency_ms["p99"]),
        lag_p99_s=_seconds(result.lag_ms["p99"]) or 0.0,
        is_valid=result.is_valid,
        client_cores=sum(result.cpu_s) / (result.duration_s + result.warmup_s),
        busy=busy,
        interval=(
            min(low for low, _ in interval.values()),
            max(high for _, high in interval.values()),
        ),
        outcomes=report["outcomes"],
    )


def pooled(scores: list[LoadScore]) -> LoadScore:
    """Return several replays of one system as one: counts are summed, accuracy is per answer."""
    on_time = sum(s.on_time for s in scores)
    weights = [s.on_time for s in scores]
    measured = [s.measured_accuracy for s in scores if s.measured_accuracy is not None]
    busy = [s.busy for s in scores if s.busy is not None]
    return LoadScore(
        on_time=on_time,
        num_queries=sum(s.num_queries for s in scores),
        accuracy=float(np.average([s.accuracy for s in scores], weights=weights))
        if on_time
        else 0.0,
        measured_accuracy=float(np.mean(measured)) if measured else None,
        p50_s=_mean([s.p50_s for s in scores]),
        p99_s=_mean([s.p99_s for s in scores]),
        lag_p99_s=max(s.lag_p99_s for s in scores),
        is_valid=all(s.is_valid for s in scores),
        client_cores=float(np.mean([s.client_cores for s in scores])),
        busy=float(np.mean(busy)) if busy else None,
        interval=(min(s.interval[0] for s in scores), max(s.interval[1] for s in scores)),
        outcomes={k: sum(s.outcomes[k] for s in scores) for k in scores[0].outcomes},
    )


def busy_s() -> tuple[float, float] | None:
    """Return the machine's (busy, total) processor seconds so far; None where it does not say."""
    try:
        text = Path("/proc/stat").read_text(encoding="ascii")
    except OSError:
        return None
    user, nice, system, idle, iowait, irq, softirq, steal = map(
        int, text.split("\n", 1)[0].split()[1:9]
    )
    tick_s = 1.0 / os.sysconf("SC_CLK_TCK")
    busy = user + nice + system + irq + softirq + steal
    return busy * tick_s, (busy + idle + iowait) * tick_s


def _busy_share(
    before: tuple[float, float] | None, after: tuple[float, float] | None
) -> float | None:
    if before is None or after is None or after[1] <= before[1]:
        return None
    return (after[0] - before[0]) / (after[1] - before[1])


def _seconds(value_ms: float | None) -> float | None:
    return None if value_ms is None else value_ms * 1e-3


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None
