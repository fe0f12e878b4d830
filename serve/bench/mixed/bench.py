"""Part `mixed`: does the promise hold where traffic is mixed: models, SLOs, priorities, pins.

A list of cells, each of which measures some figures by itself: `timed.py` against a live
server whose device is timed, `virtual.py` in virtual time with the server's scheduler, where
eight devices are asked for, `live.py` beside costly, hostile and sick neighbours.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from serve.bench.journal import Journal
from serve.bench.mixed.cell import Finding, MixedCell
from serve.bench.mixed.live import live_cells
from serve.bench.mixed.timed import timed_cells
from serve.bench.mixed.virtual import virtual_cells
from serve.bench.rows import Row, Tell, row
from slackfit.derive import densified
from slackfit.profile import LatencyProfile

PROFILE = Path(__file__).parents[3] / "profiles" / "superserve_resnet_2080ti.json"
_NUM_SUBNETS = 66


class MixedBench:
    """The cells in their order; what the journal has is not measured again."""

    def __init__(self, cells: Sequence[MixedCell], journal: Journal, *, tell: Tell) -> None:
        self._cells = cells
        self._journal = journal
        self._tell = tell

    def run(self) -> None:
        """Measure what the journal lacks."""
        for cell in self._cells:
            for finding in map(Finding._make, self._journal.once(cell.name, cell.measure)):
                self._tell(f"{finding.name}: {finding.value:.4f} {finding.asked}")

    def rows(self) -> list[Row]:
        """Return the rows of what is measured so far."""
        rows: list[Row] = []
        for cell in self._cells:
            found = self._journal.get(cell.name) if cell.name in self._journal else ()
            for finding in map(Finding._make, found):
                detail = f"{finding.asked} asked for; " if finding.asked else ""
                name = f"serving/mixed/{finding.name}"
                rows.append(row(name, finding.value, finding.unit, detail + finding.detail))
        return rows


def published() -> LatencyProfile:
    """Return the published table with the subnets in between, as the policies' figures use it."""
    return densified(LatencyProfile.load(PROFILE), _NUM_SUBNETS)


def mixed_cells(out: Path, tell: Tell) -> list[MixedCell]:
    """Return all cells; what they need to write goes to `out`."""
    profile = published()
    return [*timed_cells(profile, out), *virtual_cells(profile), *live_cells(tell)]
