"""`FrontBench`: our front against static networks behind three servers, on the same traces.

Ours is all subnets in fp32 and int8, chosen by SlackFit or DrainFit. A static choice is one subnet
in its fastest precision: behind our own door (`fixed:`), under Ray's `@serve.batch` and under
LitServe. The batchers are tuned first, for every load and subnet, over a printed grid. Loads are
shares of what the middle one does in a closed loop at our own door.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby, product
from typing import NamedTuple

from serve.bench.journal import Journal
from serve.bench.rows import Row, Tell, row
from serve.bench.serving.load import LoadScore, pooled
from serve.bench.serving.peers import SIZES, LoadPoint, grid, is_disturbed
from serve.bench.serving.setting import Setting
from serve.bench.static.networks import fastest_forms
from serve.bench.static.servers import (
    Batcher,
    MissingPeerError,
    Use,
    litserve_batching,
    own_door,
    ray_batching,
)

OURS = ("slackfit", "drainfit")
BATCHERS: Mapping[str, Batcher] = {"ray": ray_batching, "litserve": litserve_batching}
_OWN = "own"
_CV2 = 8.0
_TUNING_SEED = 100  # never one of the measured traces'
_EQUAL_ACCURACY = 0.0005


class FrontScale(NamedTuple):
    """How much is run."""

    loads: tuple[float, ...] = (0.6, 0.9, 1.2, 1.5)
    num_rounds: int = 1
    duration_s: float = 12.0
    tuning_s: float = 2.0
    capacity_s: float = 4.0


QUICK = FrontScale()
FULL = FrontScale(num_rounds=2, duration_s=40.0, tuning_s=4.0, capacity_s=10.0)


class FrontBench:
    """One comparison; what is measured goes to the journal at once."""

    def __init__(
        self,
        setting: Setting,
        journal: Journal,
        *,
        scale: FrontScale,
        tell: Tell,
        batchers: Mapping[str, Batcher] = BATCHERS,
    ) -> None:
        self._setting = setting
        self._journal = journal
        self._scale = scale
        self._tell = tell
        self._batchers = batchers
        self._static = fastest_forms(setting)
        self._grid = grid(setting.load.slo_s, setting.profile.max_batch_size)
        self._missing: dict[str, str] = {}

    def run(self) -> None:
        """Measure what the journal lacks, a kind of server at a time; what is absent is left out.

        Runs whose client was too slow, or that found the machine full, are measured again.
        """
        wrong = self._journal.forget(
            lambda name, cell: name.startswith("front/run/") and is_disturbed(LoadScore(*cell))
        )
        if wrong:
            self._tell(f"measuring again, they were disturbed: {', '.join(wrong)}")
        self._tell("grid of the batchers: " + "; ".join(map(str, self._grid)))
        servers = [_OWN, *self._batchers]
        for number in range(self._scale.num_rounds):
            first = number % len(servers)
            # Ours first of all: the loads are shares of what it does.
            for server in servers[first:] + servers[:first] if number else servers:
                self._measure_server(server, number)

    def _measure_server(self, server: str, number: int) -> None:
        if server == _OWN:
            self._measure_own(number)
            return
        if not self._lacks(server, number):
            return
        try:
            with self._batchers[server](self._setting, list(self._static.values())) as use:
                self._tune(server, use)
                self._measure_batched(server, use, number)
        except MissingPeerError as error:
            self._missing[server] = str(error)
            self._tell(f"{server} is left out: {error}")

    def _lacks(self, server: str, number: int) -> bool:
        tuned = product(self._scale.loads, SIZES, self._grid)
        wanted = [self._tuning(server, *one) for one in tuned]
        wanted += [_run(load, number, f"{server}_{s}") for load in self._scale.loads for s in SIZES]
        return any(name not in self._journal for name in wanted)

    def _measure_own(self, number: int) -> None:
        policies = {name: name for name in OURS}
        policies |= {f"fixed_{size}": f"fixed:{self._static[size]}" for size in SIZES}
        names = list(policies)
        first = number % len(names)
        names = names[first:] + names[:first]
        cells = list(product(self._scale.loads, names))
        is_known = "front/capacity_qps" in self._journal
        if is_known and all(_run(load, number, name) in self._journal for load, name in cells):
            return
        with own_door(self._setting) as use:
            self._journal.once(
                "front/capacity_qps", lambda: self._closed_loop_qps(use(policies["fixed_middle"]))
            )
            self._tell(f"the middle subnet does {self._capacity_qps:.0f} queries/s")
            for load, name in cells:
                self._measure(use(policies[name]), load, number, name)

    def _closed_loop_qps(self, url: str) -> float:
        return self._setting.load.closed_loop_qps(url, self._scale.capacity_s)

    @property
    def _capacity_qps(self) -> float:
        return self._journal.get("front/capacity_qps")

    def _tune(self, server: str, use: Use) -> None:
        """Try the whole grid for every subnet and load, one start of a server for each point."""
        for size, point in product(SIZES, self._grid):
            names = {load: self._tuning(server, load, size, point) for load in self._scale.loads}
            lacking = {load: name for load, name in names.items() if name not in self._journal}
            if not lacking:
                continue
            with use(self._static[size], point) as url:
                for load, name in lacking.items():
                    spec = self._spec(load, self._scale.tuning_s)
                    score = self._setting.load.replay(url, spec, _TUNING_SEED)[0]
                    self._journal.once(name, lambda s=score: s.attainment)
                    self._tell(f"{name}: {score.attainment:.4f}")

    def _best(self, server: str, load: float, size: str) -> LoadPoint:
        """Return the point of the grid with the highest attainment; the first of equals."""
        return max(self._grid, key=lambda p: self._journal.get(self._tuning(server, load, size, p)))

    @staticmethod
    def _tuning(server: str, load: float, size: str, point: LoadPoint) -> str:
        return f"front/tuning/{server}/{load:g}/{size}/{point}"

    def _measure_batched(self, server: str, use: Use, number: int) -> None:
        for size in SIZES:
            best = {load: self._best(server, load, size) for load in self._scale.loads}
            for point, loads in groupby(sorted(best, key=lambda x: str(best[x])), best.__getitem__):
                lacking = [
                    load
                    for load in loads
                    if _run(load, number, f"{server}_{size}") not in self._journal
                ]
                if lacking:
                    with use(self._static[size], point) as url:
                        for load in lacking:
                            self._measure(url, load, number, f"{server}_{size}")

    def _measure(self, url: str, load: float, number: int, system: str) -> None:
        name = _run(load, number, system)
        spec = self._spec(load, self._scale.duration_s)
        replay = self._setting.load.replay
        score = LoadScore(*self._journal.once(name, lambda: replay(url, spec, number)[0]))
        self._tell(f"{name}: {score.attainment:.4f} at {score.accuracy:.4f}")

    def _spec(self, load: float, duration_s: float) -> str:
        length_s = self._setting.load.warmup_s + duration_s
        return f"gamma:rate={load * self._capacity_qps:.1f},cv2={_CV2:g},duration={length_s:g}"

    # --- rows ------------------------------------------------------------------------------------

    def rows(self) -> list[Row]:
        """Return the rows of what is measured so far."""
        if "front/capacity_qps" not in self._journal:
            return []
        sizes = ", ".join(f"{size} {i}" for size, i in self._static.items())
        slo_s = self._setting.load.slo_s
        detail = f"the middle one in a closed loop at our own door; {sizes}; CV^2 {_CV2:g}"
        rows = [
            row(f"{self._prefix}/capacity", self._capacity_qps, "queries/s", detail),
            row(f"{self._prefix}/slo", slo_s, "s", "ten times the largest static one's batch 1"),
        ]
        rows += [
            row(f"{self._prefix}/{server}", 0, "skipped", reason)
            for server, reason in self._missing.items()
        ]
        for load in self._scale.loads:
            rows += self._load_rows(load)
        return rows

    @property
    def _prefix(self) -> str:
        return f"static/{self._setting.load.model}"

    def _load_rows(self, load: float) -> Iterator[Row]:
        scores: dict[str, LoadScore] = {}
        cell = f"{self._prefix}/load{load * 100:g}"
        for system in self._systems():
            names = [_run(load, n, system) for n in range(self._scale.num_rounds)]
            runs = [LoadScore(*self._journal.get(n)) for n in names if n in self._journal]
            if runs:
                whole = scores[system] = pooled(runs)
                detail = self._detail(load, system, whole, runs)
                yield row(f"{cell}/{system}/attainment", whole.attainment, "fraction", detail)
                yield row(f"{cell}/{system}/accuracy", whole.accuracy, "fraction", "of those")
        for policy in OURS:
            if policy in scores:
                static = {name: s for name, s in scores.items() if name not in OURS}
                yield from verdict_rows(f"{cell}/{policy}", scores[policy], static)

    def _systems(self) -> list[str]:
        return [*OURS, *(f"{s}_{size}" for s in ("fixed", *self._batchers) for size in SIZES)]

    def _detail(self, load: float, system: str, whole: LoadScore, runs: Sequence[LoadScore]) -> str:
        server, _, size = system.partition("_")
        how = f"{self._best(server, load, size)}; " if server in self._batchers else ""
        low, high = whole.interval
        return (
            f"{how}{whole.num_queries} queries in {len(runs)} runs, attainment {low:.4f} to "
            f"{high:.4f}; p99 {(whole.p99_s or 0) * 1e3:.0f} ms; client lag p99 "
            f"{whole.lag_p99_s * 1e3:.1f} ms, valid {sum(r.is_valid for r in runs)} of "
            f"{len(runs)}, machine busy {whole.busy or 0:.2f}; {whole.outcomes}"
        )


def is_above(other: LoadScore, ours: LoadScore) -> bool:
    """Whether a choice is above ours in attainment and in accuracy, by more than the interval.

    Of the attainments' difference, as of two independent shares; accuracies within 0.0005 are
    equal.
    """
    half_widths = [(high - low) / 2 for low, high in (other.interval, ours.interval)]
    return (
        other.attainment - ours.attainment > math.hypot(*half_widths)
        and other.accuracy - ours.accuracy > _EQUAL_ACCURACY
    )


def verdict_rows(figure: str, ours: LoadScore, static: Mapping[str, LoadScore]) -> list[Row]:
    """Return how many static choices are above ours, and ours' utility less the best one's."""
    if not static:
        return []
    above = [name for name, score in static.items() if is_above(score, ours)]
    best = max(static, key=lambda name: static[name].utility)
    return [
        row(
            f"{figure}/static_choices_above", len(above), "count",
            f"0 asked for, of {len(static)}: {', '.join(above) or 'none'}",
        ),
        row(
            f"{figure}/utility_less_best_static", ours.utility - static[best].utility, "fraction",
            f"{ours.utility:.4f} against {static[best].utility:.4f} of {best}, which met "
            f"{static[best].attainment:.4f}; above 0 asked for where it misses",
        ),
    ]  # fmt: skip


def _run(load: float, number: int, system: str) -> str:
    return f"front/run/{load:g}/{number}/{system}"
