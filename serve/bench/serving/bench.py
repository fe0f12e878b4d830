"""`supernet bench serving`: this system against what a user would pick instead, and its own limits.

Parts: `peers` (against Ray Serve's batching), `overload` (goodput beyond capacity), `doors` (what
each way in costs, in time and in processor time); and when asked for `static` (against one exported
network), `mixed` (several models, SLOs, priorities, pins) and `soak` (memory and tail over a long
run). The profile is measured first, on this machine, and the SLO follows from it. What is measured
is kept at once: the same command goes on where it was stopped.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from serve.bench.rows import Row, Tell
from serve.bench.serving.journal import Journal
from serve.bench.serving.setting import Setting, find_checkpoint, find_data, measured, slo_row
from serve.config import ServeConfigError

PARTS = ("peers", "static", "overload", "doors", "mixed", "soak")
DEFAULT_PARTS = ("peers", "overload", "doors")
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
        """Keep cells in `out`; `duration_s` is the length of the soak. Raises ServeConfigError."""
        self.rows: list[Row] = []
        self.picture: dict[str, dict[str, Any]] = {}
        self._out = out
        self._full = full
        self._duration_s = duration_s
        self._tell = tell
        folder = find_checkpoint(checkpoint)
        self._setting = measured(
            folder,
            find_data(data, folder),
            out / "profile.json",
            threads=_THREADS,
            tell=tell,
        )

    def run(self, parts: Sequence[str] | None = None) -> list[Row]:
        """Run the parts (None: the default ones). Raises ServeConfigError for an unknown one."""
        wanted = DEFAULT_PARTS if parts is None else tuple(parts)
        unknown = sorted(set(wanted) - set(PARTS))
        if unknown:
            raise ServeConfigError(f"part {unknown[0]!r} is unknown, allowed {', '.join(PARTS)}")
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
        from serve.bench.serving.static_front import FULL, QUICK, StaticBench

        scale = FULL if self._full else QUICK
        return StaticBench(self._setting, self._journal("static"), scale=scale, tell=self._tell)

    def _overload(self) -> Part:
        from serve.bench.serving.overload import FULL, QUICK, OverloadBench

        scale = FULL if self._full else QUICK
        return OverloadBench(self._setting, self._journal("overload"), scale=scale, tell=self._tell)

    def _doors(self) -> Part:
        from serve.bench.serving.door_cost import FULL, QUICK, DoorCostBench
        from serve.bench.serving.doors import DoorsBench

        count, journal = 2000 if self._full else 400, self._journal("doors")
        scale = FULL if self._full else QUICK
        return _Parts(
            (
                DoorCostBench(self._setting, journal, scale=scale, tell=self._tell),
                DoorsBench(self._setting, journal, count=count, tell=self._tell),
            )
        )

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
        setting: Setting = self._setting
        settings = {
            "checkpoint": setting.profile.checkpoint,
            "profile": setting.profile.created,
            "slo_s": setting.load.slo_s,
            "data": str(setting.load.data),
            "full": self._full,
            **more,
        }
        path = self._out / f"{part}.jsonl"
        journal = Journal(path, settings)
        if len(journal):
            self._tell(f"going on with the {len(journal)} cells of {path}")
        return journal
