"""`supernet bench policies`: the paper's tables, ours against every rival, bounds, optimum, speed.

Every row is `figure, value, unit, detail`, measured in this run with seeds 0 to 4. The published
numbers stand in the detail beside ours. By default traces are short and the exact optimum is found
for some of the tiny instances, so that it fits in 20 minutes on two cores; `full` takes longer
traces and all instances.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from serve.bench.journal import Journal
from serve.bench.policies import (
    day,
    planning,
    small_catalogs,
    speed,
    tiny,
    twin,
    twin_cases,
    verified,
)
from serve.bench.policies import superserve_paper as paper
from serve.bench.policies.bars import RIVALS, bar_rows, bound_rows
from serve.bench.rows import Row, Tell, row
from slackfit.profile import LatencyProfile
from traces.generators.arrivals import GENERATOR_VERSION
from traces.simulation.cells import Cell, CellScore, Estimate, estimate, run_cells
from traces.trace import TraceError


class PoliciesScale(NamedTuple):
    """How much is run."""

    seeds: tuple[int, ...]
    duration_s: float
    rates_qps: tuple[float, ...]
    cv2s: tuple[float, ...]
    maf_s: float
    num_tiny: int
    day_s: float = 7200.0


QUICK = PoliciesScale(
    (0, 1, 2, 3, 4),
    5.0,
    (*(1000.0 * k for k in range(1, 8)), 7050.0, *(1000.0 * k for k in range(8, 15))),
    (1.0, 2.0, 4.0, 8.0),
    30.0,
    30,
)
FULL = QUICK._replace(duration_s=10.0, maf_s=paper.MAF_S, num_tiny=200, day_s=86_400.0)
OVERHEADS_S = (0.0, 0.006)
NUM_SUBNETS = 66
_PAPER_POLICIES = ("slackfit", "slackfit@num_buckets=40", "drainfit", "maxbatch", "maxacc")


class PoliciesBench:
    """One run of the benchmark: keeps the rows and shares out the cells."""

    def __init__(
        self,
        profiles: Path,
        scale: PoliciesScale,
        *,
        processes: int | None,
        tell: Tell,
        out: Path | None = None,
    ) -> None:
        """Finished cells are kept in `out`, where it is given, and not run again."""
        self._resnet = str(profiles / "superserve_resnet_2080ti.json")
        self._dynabert = str(profiles / "superserve_dynabert_2080ti.json")
        self._scale = scale
        self._processes = processes
        self._tell = tell
        about = {"generator_version": GENERATOR_VERSION}
        self._kept = None if out is None else Journal(out / "cells.jsonl", about)
        self.rows: list[Row] = []

    def run(self, parts: Sequence[str] | None = None) -> list[Row]:
        """Run the named parts (None: all) and return the rows."""
        known: dict[str, Callable[[], None]] = {
            "bars": self.bars,
            "bursty": self.bursty,
            "ramp": self.ramp,
            "faults": self.faults,
            "maf": self.maf,
            "tiny": self.tiny,
            "speed": self.speed,
            "twin": self.twin,
            "plan": self.plan,
            "day": self.day,
            "verify": self.verify,
        }
        unknown = sorted(set(parts or ()) - set(known))
        if unknown:
            raise TraceError(f"part {unknown[0]!r} is unknown, allowed {', '.join(known)}")
        for part in parts or known:
            self._tell(f"part {part}")
            known[part]()
        return self.rows

    def bars(self) -> None:
        """Ours against every rival over load, burstiness and overhead; utility of the bound."""
        scale = self._scale
        names = ("drainfit", *RIVALS)
        grid = [
            (ov, cv2, qps) for ov in OVERHEADS_S for cv2 in scale.cv2s for qps in scale.rates_qps
        ]
        cells = {
            (ov, cv2, qps): [
                [
                    self._cell(n, paper.load_spec(qps, cv2, scale.duration_s), s, ov)
                    for s in scale.seeds
                ]
                for n in names
            ]
            for ov, cv2, qps in grid
        }
        scores = self._scores(cells)
        by_name = {key: dict(zip(names, rows, strict=True)) for key, rows in scores.items()}
        self.rows += bar_rows(by_name)
        self.rows += bound_rows({key: rows[0] for key, rows in cells.items()}, by_name)

    def bursty(self) -> None:
        """Figure 9 and the policies of section A.5."""
        cells = {
            (ov, qps, cv2, name): [
                [
                    self._cell(
                        name, paper.bursty_spec(qps, cv2, self._scale.duration_s), seed, ov, n
                    )
                    for seed in self._scale.seeds
                ]
                for n in (0, NUM_SUBNETS)
            ]
            for ov in OVERHEADS_S
            for qps, cv2 in paper.BURSTY
            for name in _PAPER_POLICIES
        }
        for (ov, qps, cv2, name), (six, dense) in self._scores(cells).items():
            printed = paper.BURSTY[qps, cv2]
            for label, seeds in (("six", six), ("dense", dense)):
                figure = f"policies/bursty/{qps:g}/cv{cv2:g}/ov{ov * 1e3:g}/{label}/{name}"
                self._attainment_and_accuracy(figure, seeds, printed)

    def ramp(self) -> None:
        """Figure 10."""
        cells = {
            (ov, qps, accel, name): [
                [
                    self._cell(name, paper.ramp_spec(qps, accel, 2.0), seed, ov)
                    for seed in self._scale.seeds
                ]
            ]
            for ov in OVERHEADS_S
            for qps, accel in paper.RAMP
            for name in ("slackfit", "drainfit")
        }
        for (ov, qps, accel, name), (seeds,) in self._scores(cells).items():
            figure = f"policies/ramp/{qps:g}/accel{accel:g}/ov{ov * 1e3:g}/{name}"
            self._attainment_and_accuracy(figure, seeds, paper.RAMP[qps, accel])

    def faults(self) -> None:
        """Figure 11a: half of the workers die, one after the other."""
        from slackfit.simulation.devices import Failure

        left = paper.NUM_WORKERS - paper.FAULTS_LEFT
        events = tuple(Failure(paper.FAULTS_EVERY_S * (i + 1), i) for i in range(left))
        spec = (
            f"gamma:rate={paper.FAULTS_QPS:g},cv2={paper.FAULTS_CV2:g},duration={paper.FAULTS_S:g}"
        )
        cells = {
            (ov, name): [
                [
                    self._cell(name, spec, seed, ov)._replace(events=events)
                    for seed in self._scale.seeds
                ]
            ]
            for ov in OVERHEADS_S
            for name in ("slackfit", "drainfit")
        }
        printed = paper.Published(paper.FAULTS_ATTAINMENT, 0.0, 0.0)
        for (ov, name), (seeds,) in self._scores(cells).items():
            self._attainment_and_accuracy(f"policies/faults/ov{ov * 1e3:g}/{name}", seeds, printed)

    def maf(self) -> None:
        """Figure 8: the squeezed day, for both profiles."""
        kinds = (
            ("resnet", self._resnet, paper.MAF_RESNET_QPS, paper.RESNET_SLO_S, paper.MAF_RESNET),
            (
                "dynabert",
                self._dynabert,
                paper.MAF_DYNABERT_QPS,
                paper.DYNABERT_SLO_S,
                paper.MAF_DYNABERT,
            ),
        )
        for kind, profile, qps, slo_s, printed in kinds:
            spec = f"azure2019-shape:qps={qps:g},duration={self._scale.maf_s:g}"
            cells = {
                (ov, name): [
                    [
                        self._cell(name, spec, seed, ov)._replace(profile=profile, slo_s=slo_s)
                        for seed in self._scale.seeds
                    ]
                ]
                for ov in OVERHEADS_S
                for name in ("slackfit", "drainfit", "fixed:smallest")
            }
            for (ov, name), (seeds,) in self._scores(cells).items():
                figure = f"policies/maf/{kind}/ov{ov * 1e3:g}/{name}"
                self._attainment_and_accuracy(figure, seeds, printed)

    def tiny(self) -> None:
        """The gap to the exact optimum."""
        self.rows += tiny.rows(Path(self._resnet), self._scale.num_tiny)

    def speed(self) -> None:
        """Queries simulated and decisions taken per second of processor time; M/D/1."""
        self.rows += speed.rows(Path(self._resnet))

    def twin(self) -> None:
        """The compiled scheduler: drawn cases, the cells of `bars` again, how much sooner it is."""
        self.rows += twin.speed_rows(Path(self._resnet))
        resnet = LatencyProfile.load(Path(self._resnet))
        self.rows += twin_cases.rows(resnet, range(twin_cases.NUM_CASES), self._tell)
        cells = [
            self._cell(name, paper.load_spec(qps, cv2, self._scale.duration_s), 0, ov)
            for name in ("drainfit", "slackfit")
            for ov in OVERHEADS_S
            for cv2 in self._scale.cv2s
            for qps in self._scale.rates_qps
        ]
        self.rows += twin.same_rows(cells, self._tell)

    def plan(self) -> None:
        """Plans on odd hours, judged on even ones; small catalogues against all their fleets."""
        self.rows += small_catalogs.rows(range(small_catalogs.NUM_CATALOGS), self._tell)
        self.rows += planning.rows(Path(self._resnet), 4 * self._scale.maf_s, self._tell)

    def day(self) -> None:
        """A day planned as a user plans it, by the hour; two hours of it but for `full`."""
        self.rows += day.rows(Path(self._resnet), self._scale.day_s, self._processes, self._tell)

    def verify(self) -> None:
        """Live servers foretold at four loads, on loopback with timed devices."""
        self.rows += verified.rows(Path(self._resnet), self._scale.maf_s, self._tell)

    def _cell(
        self, policy: str, spec: str, seed: int, overhead_s: float, num_subnets: int = NUM_SUBNETS
    ) -> Cell:
        return Cell(
            policy,
            spec,
            seed,
            self._resnet,
            paper.RESNET_SLO_S,
            paper.NUM_WORKERS,
            overhead_s,
            num_subnets,
        )

    def _scores(
        self, cells: Mapping[Any, Sequence[Sequence[Cell]]]
    ) -> dict[Any, list[list[CellScore]]]:
        """Return the scores in the shape of the cells."""
        # In order of trace, so that a process finds the one it has.
        flat = sorted(
            {cell for rows in cells.values() for row in rows for cell in row},
            key=lambda cell: (cell.spec, cell.seed, cell.overhead_s, cell.policy),
        )
        found = {cell: score for cell in flat if (score := self._known(cell)) is not None}
        missing = [cell for cell in flat if cell not in found]
        if found:
            self._tell(f"{len(found)} of {len(flat)} cells are there")
        done = run_cells(
            missing,
            processes=self._processes,
            progress=lambda at, count: self._tell(f"{at}/{count}") if at % 500 == 0 else None,
            on_score=self._keep,
        )
        found |= zip(missing, done, strict=True)
        return {k: [[found[c] for c in row] for row in rows] for k, rows in cells.items()}

    def _known(self, cell: Cell) -> CellScore | None:
        if self._kept is None or json.dumps(cell) not in self._kept:
            return None
        return CellScore(*self._kept.get(json.dumps(cell)))

    def _keep(self, cell: Cell, score: CellScore) -> None:
        if self._kept is not None:
            self._kept.once(json.dumps(cell), lambda: score)

    def _attainment_and_accuracy(
        self, figure: str, seeds: Sequence[CellScore], printed: paper.Published
    ) -> None:
        accuracy = f"{printed.accuracy:.4f}" if printed.accuracy else "not printed"
        self.rows.append(
            mean_row(
                f"{figure}/attainment",
                estimate(s.attainment for s in seeds),
                f"paper {printed.attainment:g}",
            )
        )
        self.rows.append(
            mean_row(f"{figure}/accuracy", estimate(s.accuracy for s in seeds), f"paper {accuracy}")
        )


def mean_row(figure: str, value: Estimate, detail: str) -> Row:
    """Return a row for a mean over seeds."""
    interval = f"95 % +-{value.half_width:.5f}"
    return row(figure, value.mean, "fraction", f"{interval}; {detail}")


def summary(rows: Iterable[Row]) -> str:
    """Return the rows as text, one per line."""
    return "\n".join(
        f"{r['figure']:64} {r['value']!s:>12} {r['unit']:10} {r['detail']}" for r in rows
    )
