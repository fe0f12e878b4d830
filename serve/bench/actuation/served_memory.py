"""The memory part of `supernet bench actuation`, first half: what served subnets hold in a process.

Each set is loaded by a process of its own from a warm cache, and each subnet run once at batch 1.
`sessions` are the compiled subnets alone; `views` the supernet's weights and every subnet's views;
`served` what a server holds, which is both, since views serve what is not resident.
"""

from __future__ import annotations

from pathlib import Path

from serve.bench.actuation.fresh_process import FreshLoad, FreshReport, run_fresh
from serve.bench.actuation.startup import form_ids
from serve.bench.rows import Row, Tell, row
from supernet.checkpoint import load_checkpoint

_SETS = {
    "views": ("views", "fp32"),
    "sessions_fp32": ("sessions", "fp32"),
    "sessions_int8": ("sessions", "int8"),
    "served_fp32": ("graphs", "fp32"),
    "served_int8": ("graphs", "int8"),
}
"""{set: what the process holds, precision of its subnets}."""


def served_memory_rows(
    net: str, folder: Path, cache_folder: Path, *, tell: Tell = print
) -> list[Row]:
    """Measure every set of a checkpoint folder; rows of megabytes, and of int8 over fp32."""
    checkpoint = load_checkpoint(folder)
    everything = FreshLoad(checkpoint=str(folder), subnet_ids=form_ids(checkpoint, "both"))
    run_fresh(everything, cache_folder)  # warms the cache
    count = len(checkpoint.subnets)
    rows: list[Row] = []
    megabytes: dict[str, float] = {}
    for name, (holds, precision) in _SETS.items():
        ids = form_ids(checkpoint, precision)
        load = FreshLoad(checkpoint=str(folder), subnet_ids=ids, holds=holds, runs=True)
        report: FreshReport = run_fresh(load, cache_folder)
        megabytes[name] = report.num_bytes / 1e6
        detail = (
            f"resident set above imports, {count} subnets, each run once at batch 1; of it "
            f"{report.file_bytes / 1e6:.1f} MB are pages of files"
        )
        rows.append(
            row(f"actuation/{net}/memory/{count}_subnets/{name}", megabytes[name], "MB", detail)
        )
        tell(f"  {net} {name}: {megabytes[name]:.1f} MB")
    for kind in ("sessions", "served"):
        int8, fp32 = megabytes[f"{kind}_int8"], megabytes[f"{kind}_fp32"]
        figure = f"actuation/{net}/memory/{count}_subnets/{kind}_int8_over_fp32"
        rows.append(row(figure, int8 / fp32, "ratio", f"{int8:.1f} over {fp32:.1f} MB"))
    return rows
