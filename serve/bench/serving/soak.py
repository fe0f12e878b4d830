"""Part `soak`: hours at 80 % of what the server can do: does memory grow, does the tail drift.

The run is cut into stretches, each a replay of its own whose figures are kept at once, so that the
client's answers do not pile up and a stopped soak goes on.
"""

from __future__ import annotations

import numpy as np

from serve.bench.journal import Journal
from serve.bench.rows import Row, Tell, row
from serve.bench.serving.load import LoadScore
from serve.bench.serving.overload import run_text
from serve.bench.serving.server_process import ServerProcess, server_process
from serve.bench.serving.setting import Setting

LOAD = 0.8
_STRETCHES = 12
_SHORTEST_S, _LONGEST_S = 5.0, 60.0
_SEARCH_S = 4.0
_SEARCH_STEP = 1.2
_MET = 0.99
_MIB = 2**20


class SoakBench:
    """One server without Ray, one load."""

    def __init__(
        self, setting: Setting, journal: Journal, *, duration_s: float, tell: Tell
    ) -> None:
        self._setting = setting
        self._journal = journal
        self._tell = tell
        self._stretch_s = min(max(duration_s / _STRETCHES, _SHORTEST_S), _LONGEST_S)
        self._count = max(2, round(duration_s / self._stretch_s))

    def run(self) -> None:
        """Measure what the journal lacks. A soak that goes on does so with a fresh server."""
        with server_process(self._setting.config()) as server:
            capacity_qps = self._journal.once("capacity", lambda: self._capacity_qps(server))
            for number in range(self._count):
                self._journal.once(
                    f"stretch/{number}",
                    lambda n=number: self._stretch(server, n, LOAD * capacity_qps),
                )

    def rows(self) -> list[Row]:
        """Return growth and drift of what is measured so far."""
        names = [f"stretch/{n}" for n in range(self._count) if f"stretch/{n}" in self._journal]
        if len(names) < 2:
            return []
        cells = [self._journal.get(name) for name in names]
        resident = np.array([cell[0] for cell in cells], dtype=float)
        scores = [LoadScore(*cell[1]) for cell in cells]
        p99_ms = np.array([(s.p99_s or 0.0) * 1e3 for s in scores])
        part = max(1, len(cells) // 4)
        first, last = p99_ms[:part].mean(), p99_ms[-part:].mean()
        growth = resident[-1] / resident[0] - 1.0
        num_queries = sum(s.num_queries for s in scores)
        attainment = sum(s.on_time for s in scores) / max(num_queries, 1)
        length = f"{len(cells)} stretches of {self._stretch_s:g} s at {LOAD:.0%} of capacity"
        num_valid = sum(s.is_valid for s in scores)
        figures = [
            (
                "memory_growth", growth, "fraction",
                f"<= 0.05 asked for; resident after the first stretch {resident[0] / _MIB:.1f} "
                f"MiB, after the last {resident[-1] / _MIB:.1f}, highest "
                f"{resident.max() / _MIB:.1f}; {length}",
            ),
            (
                "p99_drift", last / first - 1.0 if first else 0.0, "fraction",
                f"p99 of the last {part} stretches {last:.1f} ms over the first {part}'s "
                f"{first:.1f} ms; all: {', '.join(f'{v:.1f}' for v in p99_ms)}",
            ),
            (
                "attainment", attainment, "fraction",
                f"{num_queries} queries; {num_valid} of {len(cells)} stretches valid; the last: "
                f"{run_text(scores[-1])}",
            ),
            (
                "rate", LOAD * self._journal.get("capacity"), "queries/s",
                f"{LOAD:.0%} of the highest Poisson rate with {_MET} on time, found in steps of "
                f"{_SEARCH_STEP:g}",
            ),
        ]  # fmt: skip
        return [row(f"serving/soak/{n}", v, u, d, digits=4) for n, v, u, d in figures]

    def _capacity_qps(self, server: ServerProcess) -> float:
        """Return the highest rate of a rising search that is met."""
        profile = self._setting.profile
        size = profile.max_batch_size
        rate_qps = 0.5 * size / profile.latency_s(self._setting.sized()["middle"], size)
        if not self._is_met(server, rate_qps):
            while not self._is_met(server, rate_qps := rate_qps / _SEARCH_STEP):
                if rate_qps < 1.0:
                    raise RuntimeError("the server meets its SLO at no rate: nothing to soak")
            return rate_qps
        while self._is_met(server, rate_qps * _SEARCH_STEP):
            rate_qps *= _SEARCH_STEP
        return rate_qps

    def _is_met(self, server: ServerProcess, rate_qps: float) -> bool:
        score = self._replay(server, rate_qps, _SEARCH_S, seed=0)
        self._tell(f"soak: {rate_qps:.0f} queries/s, {score.attainment:.4f} on time")
        return score.attainment >= _MET

    def _stretch(
        self, server: ServerProcess, number: int, rate_qps: float
    ) -> tuple[int, LoadScore]:
        score = self._replay(server, rate_qps, self._stretch_s, seed=number)
        resident = server.resident_bytes()
        self._tell(
            f"soak {number + 1}/{self._count}: {score.attainment:.4f} on time, p99 "
            f"{(score.p99_s or 0.0) * 1e3:.1f} ms, {resident / _MIB:.1f} MiB"
        )
        return resident, score

    def _replay(
        self, server: ServerProcess, rate_qps: float, duration_s: float, *, seed: int
    ) -> LoadScore:
        load = self._setting.load
        spec = f"poisson:rate={rate_qps:.1f},duration={load.warmup_s + duration_s:g}"
        return load.replay(server.url, spec, seed, num_processes=None)[0]
