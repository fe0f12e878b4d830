"""`supernet bench serving`: this system against what a user would pick instead, and its own limits.

Parts: `peers` (against Ray Serve's batching), `overload` (goodput beyond capacity), `doors` (what
each way in costs, in time and in processor time); and when asked for `static` (against one exported
network), `mixed` (several models, SLOs, priorities, pins) and `soak` (memory and tail over a long
run). The profile is measured first, on this machine, and the SLO follows from it. What is measured
is kept at once: the same command goes on where it was stopped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from serve.bench.journal import Journal
from serve.bench.rows import Row, Tell
from serve.bench.serving.setting import Setting, find_checkpoint, find_data, measured, slo_row
from serve.config import ServeConfigError

PARTS = ("peers", "static", "overload", "doors", "routing", "mixed", "soak")
DEFAULT_PARTS = ("peers", "overload", "doors")
_WITHOUT_CHECKPOINT = {"routing"}
_OF_PUBLISHED = {"static"}  # without a checkpoint it has networks of its own
_THREADS = 1  # of the device: client, proxy and replica share the cores with it


class Part(Protocol):
    """One part: `run` measures what its journal lacks, `rows` says what is measured so far."""

    def run(self) -> None: ...

    def rows(self) -> list[Row]: ...


class _Parts:
    """Several parts as one."""

    def __init__(self, parts: Sequence[Part]) -> None:
        self._parts = parts

    def run(self) -> None:
        for part in self._parts:
            part.run()

    def rows(self) -> list[Row]:
        return [row for part in self._parts for row in part.rows()]


class ServingBench:
    """One run of the benchmark; `rows` are those so far, also after an interruption."""

    def __init__(
        self,
        out: Path,
        *,
        checkpoint: Path | None = None,
        data: Path | None = None,
        full: bool = False,
        duration_s: float | None = None,
        tell: Tell,
    ) -> None:
        """Keep cells in `out`; `duration_s` is the length of the soak.

        Without a `checkpoint` it is the demo's, and for `static` the published networks.
        """
        self.rows: list[Row] = []
        self.picture: dict[str, dict[str, Any]] = {}
        self._out = out
        self._full = full
        self._duration_s = duration_s
        self._tell = tell
        self._checkpoint = checkpoint
        self._data = data

    @cached_property
    def _setting(self) -> Setting:
        """What the parts share that serve a checkpoint; made for the first of them."""
        folder = find_checkpoint(self._checkpoint)
        data = find_data(self._data, folder)
        path = self._out / "profile.json"
        return measured(folder, data, path, threads=_THREADS, tell=self._tell)

    def run(self, parts: Sequence[str] | None = None) -> list[Row]:
        """Run the parts (None: the default ones).

        Raises ServeConfigError for an unknown one, or where there is no checkpoint to serve.
        """
        wanted = DEFAULT_PARTS if parts is None else tuple(parts)
        unknown = sorted(set(wanted) - set(PARTS))
        if unknown:
            raise ServeConfigError(f"part {unknown[0]!r} is unknown, allowed {', '.join(PARTS)}")
        without = _WITHOUT_CHECKPOINT | (_OF_PUBLISHED if self._checkpoint is None else set())
        if set(wanted) - without:
            slo = slo_row(self._setting)
            self._tell(f"SLO {slo['value'] * 1e3:g} ms: {slo['detail']}")
            self.rows.append(slo)
        for name in (p for p in PARTS if p in wanted):
            self._tell(f"part {name}")
            part: Part = getattr(self, f"_{name}")()
            try:
                part.run()
            finally:
                self.rows += part.rows()
                self.picture |= getattr(part, "panels", dict)()
        return self.rows

    def _peers(self) -> Part:
        from serve.bench.serving.peers import FULL, QUICK, PeersBench

        scale = FULL if self._full else QUICK
        return PeersBench(self._setting, self._journal("peers"), scale=scale, tell=self._tell)

    def _static(self) -> Part:
        from serve.bench.static.bench import of_checkpoint, of_published

        if self._checkpoint is not None:
            return of_checkpoint(self._setting, self._journal_of, full=self._full, tell=self._tell)
        return of_published(
            self._out,
            self._journal_of,
            data=self._data,
            threads=_THREADS,
            full=self._full,
            tell=self._tell,
        )

    def _overload(self) -> Part:
        from serve.bench.serving.overload import FULL, QUICK, OverloadBench

        scale = FULL if self._full else QUICK
        return OverloadBench(self._setting, self._journal("overload"), scale=scale, tell=self._tell)

    def _doors(self) -> Part:
        from serve.bench.serving.door_cost import FULL, QUICK, DoorCostBench
        from serve.bench.serving.door_processes import DoorProcessesBench
        from serve.bench.serving.doors import DoorsBench

        count, journal = 2000 if self._full else 400, self._journal("doors")
        scale = FULL if self._full else QUICK
        return _Parts(
            (
                DoorCostBench(self._setting, journal, scale=scale, tell=self._tell),
                DoorProcessesBench(
                    self._setting,
                    journal,
                    rounds=scale.rounds,
                    duration_s=2 * scale.loop_s,
                    tell=self._tell,
                ),
                DoorsBench(self._setting, journal, count=count, tell=self._tell),
            )
        )

    def _routing(self) -> Part:
        from serve.bench.serving.routing import FULL, QUICK, RoutingBench

        scale = FULL if self._full else QUICK
        journal = self._kept("routing", {"scale": list(scale)})
        return RoutingBench(journal, scale=scale, tell=self._tell)

    def _mixed(self) -> Part:
        from serve.bench.mixed.bench import MixedBench, mixed_cells

        cells = mixed_cells(self._out, self._tell)
        return MixedBench(cells, self._journal("mixed"), tell=self._tell)

    def _soak(self) -> Part:
        from serve.bench.serving.soak import SoakBench

        duration_s = self._duration_s or (3600.0 if self._full else 60.0)
        journal = self._journal("soak", duration_s=duration_s)
        return SoakBench(self._setting, journal, duration_s=duration_s, tell=self._tell)

    def _journal(self, part: str, **more: Any) -> Journal:
        return self._journal_of(part, self._setting, **more)

    def _journal_of(self, part: str, setting: Setting, **more: Any) -> Journal:
        settings = {
            "checkpoint": setting.profile.checkpoint,
            "profile": setting.profile.created,
            "slo_s": setting.load.slo_s,
            "data": str(setting.load.data),
            "full": self._full,
            **more,
        }
        return self._kept(part, settings)

    def _kept(self, part: str, settings: Mapping[str, Any]) -> Journal:
        path = self._out / f"{part}.jsonl"
        journal = Journal(path, settings)
        if len(journal):
            self._tell(f"going on with the {len(journal)} cells of {path}")
        return journal
