"""The startup part of `supernet bench actuation`: how long a fresh process takes to be ready.

Ready is: the checkpoint read and every subnet's session open, counted from the process's start,
imports included. The first start finds an empty cache folder, the second what the first left there.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryDirectory

from serve.bench.actuation.fresh_process import FreshLoad, run_fresh
from serve.bench.rows import Row, Tell, row
from supernet.checkpoint import Checkpoint, load_checkpoint


def startup_rows(
    net: str, folder: Path, *, precisions: Iterable[str] = ("fp32", "both"), tell: Tell = print
) -> list[Row]:
    """Measure a checkpoint folder: fp32 alone, int8 alone, or both."""
    checkpoint = load_checkpoint(folder)
    rows: list[Row] = []
    for precision in precisions:
        load = FreshLoad(checkpoint=str(folder), subnet_ids=form_ids(checkpoint, precision))
        with TemporaryDirectory() as cache:
            for start in ("first", "second"):
                report = run_fresh(load, Path(cache))
                figure = (
                    f"{net}/startup/{len(checkpoint.subnets)}_subnets/{precision}/{start}_start"
                )
                detail = (
                    f"{len(load.subnet_ids)} sessions, ready after the process's start, of which "
                    f"imports {report.imported_s:.2f} s"
                )
                rows.append(row(f"actuation/{figure}", report.loaded_s, "s", detail))
                tell(f"  {figure}: {report.loaded_s:.2f} s")
    return rows


def form_ids(checkpoint: Checkpoint, precision: str) -> tuple[str, ...]:
    """Return the ids of all subnets in `fp32`, `int8` or `both`.

    Raises ValueError for another precision.
    """
    ids = {
        "fp32": checkpoint.subnet_ids,
        "int8": tuple(subnet.subnet_id for subnet in checkpoint.int8_subnets),
        "both": tuple(subnet.subnet_id for subnet in checkpoint.forms),
    }
    if precision not in ids:
        raise ValueError(f"precision is {precision!r}, allowed {', '.join(ids)}")
    return ids[precision]
