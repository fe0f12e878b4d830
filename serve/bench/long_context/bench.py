"""`LongContextBench`: two workers against one on this machine, a worker killed, larger grids.

Measured figures are ratios of calls in turn, the best of each, with the load before and after in
the detail: two workers need a core each. Weights are random: time does not depend on their values.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from serve.bench.long_context.failure import failure_rows
from serve.bench.long_context.simulated import simulated_rows
from serve.bench.long_context.two_workers import break_even_rows, kvp_rows, spp_rows
from serve.bench.rows import Row, Tell
from subnetact.threads import computing_with

PARTS = ("kvp", "spp", "break_even", "failure", "simulated")


class LongContextBench:
    """Runs the parts that are asked for."""

    def __init__(
        self,
        hardware: Path,
        *,
        context: int = 65_536,
        repeats: int = 5,
        tell: Tell = lambda text: None,
    ) -> None:
        """Measure attention at `context` tokens; simulate with the profiles of `hardware`."""
        self._hardware, self._context = hardware, context
        self._repeats, self._tell = repeats, tell

    def run(self, parts: Sequence[str] | None = None) -> list[Row]:
        """Return the rows of the parts (default: all). Raises ValueError for an unknown part."""
        known: dict[str, Callable[[], list[Row]]] = {
            "kvp": lambda: kvp_rows(self._context, self._repeats),
            "spp": lambda: spp_rows(self._repeats),
            "break_even": lambda: break_even_rows(self._repeats, self._tell),
            "failure": failure_rows,
            "simulated": lambda: simulated_rows(self._hardware, self._tell),
        }
        unknown = sorted(set(parts or ()) - set(known))
        if unknown:
            raise ValueError(f"part {unknown[0]!r} is unknown, allowed {', '.join(known)}")
        rows: list[Row] = []
        for part in parts or PARTS:
            before = os.getloadavg()[0]
            self._tell(f"long-context: {part} (load {before:.2f})")
            with computing_with(1):
                found = known[part]()
            if part != "simulated":
                found = [_with_load(each, before) for each in found]
            rows += found
        return rows


def _with_load(each: Row, before: float) -> Row:
    load = f"load {before:.2f} before, {os.getloadavg()[0]:.2f} after"
    return each | {"detail": f"{each['detail']}; {load}"}
