"""`LongContextBench`: two workers against one on this machine, a worker killed, larger grids.

Measured figures are ratios of calls in turn, the best of each, with the load before and after in
the detail: two workers need a core each. Weights are random: time does not depend on their values.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from serve.bench.long_context.exact import exact_rows
from serve.bench.long_context.failure import failure_rows
from serve.bench.long_context.simulated import simulated_rows
from serve.bench.long_context.two_workers import break_even_rows, kvp_rows, spp_rows
from serve.bench.rows import Row, Tell
from subnetact.threads import computing_with

PARTS = ("exact", "kvp", "spp", "break_even", "failure", "simulated")


class LongContextBench:
    """Runs the parts that are asked for."""

    def __init__(
        self,
        hardware: Path,
        *,
        context: int = 65_536,
        repeats: int = 5,
        device: str = "cpu",
        tell: Tell = lambda text: None,
    ) -> None:
        """Measure attention at `context` tokens, on workers of `device`, cpu or cuda.

        Simulate with the profiles of the folder `hardware`.
        """
        self._hardware, self._context = hardware, context
        self._repeats, self._device, self._tell = repeats, device, tell

    def run(self, parts: Sequence[str] | None = None) -> list[Row]:
        """Return the rows of the parts (default: all). Raises ValueError for an unknown part."""
        device = self._device
        known: dict[str, Callable[[], list[Row]]] = {
            "exact": lambda: exact_rows(device),
            "kvp": lambda: kvp_rows(self._context, self._repeats, device),
            "spp": lambda: spp_rows(self._repeats, device),
            "break_even": lambda: break_even_rows(self._repeats, self._tell, device),
            "failure": lambda: failure_rows(device),
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
