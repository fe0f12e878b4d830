"""`LeanBench`: our front against one static network behind a lean server.

What a user would deploy instead of a supernet is one well-exported network. Each size in its
fastest precision is served behind our own door (`fixed:`), and the largest behind some lines of
uvicorn (`lean_server.py`), plain and with a drop of what waited too long. All meet the same traces,
one after the other in an order that rotates; loads are shares of what the lean server does in a
closed loop.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from serve.bench.journal import Journal
from serve.bench.rows import Row, Tell, row
from serve.bench.serving.load import LoadScore, pooled
from serve.bench.serving.server_process import server_process
from serve.bench.serving.setting import Setting
from serve.bench.static.networks import fastest_forms

OURS = ("slackfit", "drainfit")
BEHIND_DOORS = {"drainfit_two_doors": "drainfit"}  # the policy, with `doors: 2`
FIXED = ("fixed_smallest", "fixed_middle", "fixed_largest")
LEAN = ("lean", "lean_with_drop")
_DROP_SHARE = 0.7  # of the SLO that a query may wait for before the lean server drops it
_CV2 = 8.0
_IN_FLIGHT = 64
_STOP_S = 10.0


class LeanScale(NamedTuple):
    """How much is run."""

    slos_s: tuple[float, ...] = (0.02, 0.05)
    loads: tuple[float, ...] = (0.25, 0.5, 0.75, 1.0, 1.25)
    systems: tuple[str, ...] = (*OURS, *BEHIND_DOORS, *LEAN)
    num_rounds: int = 1
    duration_s: float = 6.0
    capacity_s: float = 4.0


QUICK = LeanScale()
FULL = LeanScale(systems=(*OURS, *BEHIND_DOORS, *FIXED, *LEAN), num_rounds=3, duration_s=15.0)


class LeanBench:
    """One comparison; what is measured goes to the journal at once."""

    def __init__(self, setting: Setting, journal: Journal, *, scale: LeanScale, tell: Tell) -> None:
        self._setting = setting
        self._journal = journal
        self._scale = scale
        self._tell = tell
        self._static = fastest_forms(setting)

    def run(self) -> None:
        """Measure what the journal lacks, a server at a time."""
        capacity_qps = self._journal.once("static/capacity_qps", self._capacity_qps)
        self._tell(f"the lean server does {capacity_qps:.0f} queries/s in a closed loop")
        systems = self._scale.systems
        if len(os.sched_getaffinity(0)) < 2:
            systems = tuple(name for name in systems if name not in BEHIND_DOORS)
        for number in range(self._scale.num_rounds):
            for slo_s in self._scale.slos_s:
                first = number % len(systems)
                for system in systems[first:] + systems[:first]:
                    self._measure_all(system, slo_s, number, capacity_qps)

    def rows(self) -> list[Row]:
        """Return the rows of what is measured so far."""
        if "static/capacity_qps" not in self._journal:
            return []
        capacity = self._journal.get("static/capacity_qps")
        detail = f"{self._static['largest']} behind the lean server, a closed loop"
        rows = [row(f"{self._prefix}/capacity", capacity, "queries/s", detail)]
        for slo_s in self._scale.slos_s:
            for share in self._scale.loads:
                rows += self._cell_rows(slo_s, share)
        return rows

    @property
    def _prefix(self) -> str:
        return f"static/{self._setting.load.model}"

    def _cell_rows(self, slo_s: float, share: float) -> list[Row]:
        rows: list[Row] = []
        scores: dict[str, LoadScore] = {}
        cell = f"{self._prefix}/slo{slo_s * 1e3:g}/load{share * 100:g}"
        for system in self._scale.systems:
            names = [_name(system, slo_s, share, n) for n in range(self._scale.num_rounds)]
            runs = [LoadScore(*self._journal.get(n)) for n in names if n in self._journal]
            if not runs:
                continue
            whole = scores[system] = pooled(runs)
            figure = f"{cell}/{system}"
            low, high = whole.interval
            detail = (
                f"{whole.num_queries} queries in {len(runs)} runs, attainment {low:.4f} to "
                f"{high:.4f}; client lag p99 {whole.lag_p99_s * 1e3:.1f} ms, machine busy "
                f"{whole.busy or 0:.2f}; {whole.outcomes}"
            )
            rows += [
                row(f"{figure}/attainment", whole.attainment, "fraction", detail),
                row(f"{figure}/accuracy", whole.accuracy, "fraction", "of answers on time"),
            ]
        lean = {name: score for name, score in scores.items() if name in LEAN}
        for policy in (*OURS, *BEHIND_DOORS) if lean else ():
            if policy in scores:
                rows += against_lean(f"{cell}/{policy}", scores[policy], lean)
        return rows

    def _measure_all(self, system: str, slo_s: float, number: int, capacity_qps: float) -> None:
        shares = [
            share
            for share in self._scale.loads
            if _name(system, slo_s, share, number) not in self._journal
        ]
        if not shares:
            return
        load = self._setting.load
        load = type(load)(model=load.model, slo_s=slo_s, data=load.data, warmup_s=load.warmup_s)
        with self._serving(system, slo_s) as url:
            for share in shares:
                length_s = load.warmup_s + self._scale.duration_s
                spec = f"gamma:rate={share * capacity_qps:.1f},cv2={_CV2:g},duration={length_s:g}"
                name = _name(system, slo_s, share, number)
                score = self._journal.once(name, lambda s=spec: load.replay(url, s, number)[0])
                told = LoadScore(*score)
                self._tell(f"{name}: {told.attainment:.4f} at {told.accuracy:.4f}")

    @contextlib.contextmanager
    def _serving(self, system: str, slo_s: float) -> Iterator[str]:
        if system in LEAN:
            drop_s = _DROP_SHARE * slo_s if system == "lean_with_drop" else None
            with lean_server(self._setting, self._static["largest"], drop_s) as url:
                yield url
            return
        policy, doors = BEHIND_DOORS.get(system, system), 1 + (system in BEHIND_DOORS)
        if system in FIXED:
            policy = f"fixed:{self._static[system.removeprefix('fixed_')]}"
        config = self._setting.config(policy=policy, slo_ms=slo_s * 1e3, doors=doors)
        with server_process(config) as server:
            yield server.url

    def _capacity_qps(self) -> float:
        with lean_server(self._setting, self._static["largest"], None) as url:
            load, scale = self._setting.load, self._scale
            return load.closed_loop_qps(url, scale.capacity_s, in_flight=_IN_FLIGHT)


def against_lean(figure: str, ours: LoadScore, lean: Mapping[str, LoadScore]) -> list[Row]:
    """Return ours less the better lean server by attainment, and utility over the best one's."""
    best = max(lean, key=lambda name: lean[name].attainment)
    useful = max(lean, key=lambda name: lean[name].utility)
    rows = [
        row(f"{figure}/attainment_less_lean", ours.attainment - lean[best].attainment, "fraction",
            f"the better one is {best}; at least -0.005 asked for up to half of its capacity"),
        row(f"{figure}/accuracy_less_lean", ours.accuracy - lean[best].accuracy, "fraction",
            "within 0.002 asked for there"),
    ]  # fmt: skip
    if lean[useful].utility > 0:
        ratio = ours.utility / lean[useful].utility
        detail = f"the better one is {useful}; at least 0.97 asked for at 75 %"
        rows.append(row(f"{figure}/utility_over_lean", ratio, "ratio", detail))
    return rows


@contextlib.contextmanager
def lean_server(setting: Setting, subnet_id: str, drop_s: float | None) -> Iterator[str]:
    """Run the lean server for the length of a `with` block and yield its URL."""
    command = [
        sys.executable, "-m", "serve.bench.static.lean_server", str(setting.checkpoint),
        subnet_id, *([] if drop_s is None else [f"{drop_s * 1e3:g}"]),
    ]  # fmt: skip
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None, "asked for"
            line = process.stdout.readline()
            if not line.startswith("ready: "):
                raise RuntimeError("the lean server did not come up; its own words are above")
            yield line.removeprefix("ready: ").strip()
        finally:
            process.terminate()
            try:
                process.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()


def _name(system: str, slo_s: float, share: float, number: int) -> str:
    return f"static/run/{slo_s * 1e3:g}/{share:g}/{number}/{system}"
