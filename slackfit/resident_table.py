"""`ResidentTable`: latencies beside one resident subgraph, a column of SUSHI's table.

SushiAbs (MLSys 2023, section 3) is a table L[subnet][subgraph]; a profile holds one table of
latencies per (subnet, batch size) for each subgraph that may be resident, beside the one for none.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

Rows = Mapping[str, Mapping[str, tuple[float, ...]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class ResidentTable:
    """{subnet id: {quantile: seconds per profiled batch size}} while a subgraph is resident.

    `load_s` is what making it resident takes; `encoding` is SUSHI's vector of kernels and channels
    per layer, in the order of the subnets' own (empty: not known).
    """

    residency_id: str
    num_bytes: int
    latency_s: Rows
    load_s: float = 0.0
    encoding: tuple[float, ...] = ()

    def check(self, num_sizes: int) -> None:
        """Raise ValueError naming the entry that is misshapen."""
        where = f"residency {self.residency_id!r}"
        if self.num_bytes < 0:
            raise ValueError(f"{where}: bytes is {self.num_bytes}, allowed 0 or more")
        if not 0 <= self.load_s < math.inf:
            raise ValueError(f"{where}: load_s is {self.load_s}, allowed 0 or more")
        for subnet_id, quantiles in self.latency_s.items():
            if "p50" not in quantiles:
                raise ValueError(f"{where}: subnet {subnet_id!r} has no p50")
            for quantile, row in quantiles.items():
                if len(row) != num_sizes or any(not math.isfinite(t) or t <= 0 for t in row):
                    raise ValueError(
                        f"{where}: {subnet_id!r} {quantile} is {list(row)}, "
                        f"expected {num_sizes} positive times"
                    )

    def scaled(self, factor: float, delay_s: float = 0.0) -> ResidentTable:
        """Return the table with every latency times `factor`, plus `delay_s`."""
        return replace(
            self,
            latency_s=_each(self.latency_s, factor, delay_s),
            load_s=self.load_s * factor,
        )

    def to_json(self) -> dict[str, Any]:
        """Return the file format (milliseconds)."""
        return {
            "id": self.residency_id,
            "bytes": self.num_bytes,
            **({"load_ms": round(self.load_s * 1e3, 6)} if self.load_s else {}),
            **({"encoding": list(self.encoding)} if self.encoding else {}),
            "subnets": {
                i: {q: [round(t, 6) for t in row] for q, row in quantiles.items()}
                for i, quantiles in _each(self.latency_s, 1e3).items()
            },
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> ResidentTable:
        """Build from the file format. Raises KeyError, TypeError or ValueError."""
        rows = {
            str(i): {str(q): tuple(float(t) for t in row) for q, row in quantiles.items()}
            for i, quantiles in data["subnets"].items()
        }
        return cls(
            residency_id=str(data["id"]),
            num_bytes=int(data["bytes"]),
            latency_s=_each(rows, 1e-3),
            load_s=float(data.get("load_ms", 0.0)) * 1e-3,
            encoding=tuple(float(x) for x in data.get("encoding", ())),
        )


def _each(
    rows: Rows, factor: float, delay_s: float = 0.0
) -> dict[str, dict[str, tuple[float, ...]]]:
    return {
        i: {q: tuple(t * factor + delay_s for t in row) for q, row in quantiles.items()}
        for i, quantiles in rows.items()
    }
