"""A process of its own that loads a checkpoint's subnets and says what that took.

`python -m serve.bench.actuation.fresh_process JSON` is the process; `run_fresh` starts it and reads
the line that it prints. Memory is the resident set (Linux: /proc/self/statm) above what imports had
taken.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from subnetact.load import graph_folder, load_executor
from supernet.checkpoint import Checkpoint, load_checkpoint
from supernet.served_form import ServedForm

HOLDS = ("views", "graphs", "sessions")
"""What a process holds: an executor on views, one on graphs (and views), or sessions alone."""
_TIMEOUT_S = 900.0


@dataclass(frozen=True, kw_only=True)
class FreshLoad:
    """What a process loads: subnets by id (an int8 one ends in -i8), and whether it runs them."""

    checkpoint: str
    subnet_ids: Sequence[str]
    holds: str = "graphs"
    runs: bool = False

    def __post_init__(self) -> None:
        if self.holds not in HOLDS:
            raise ValueError(f"holds is {self.holds!r}, allowed {', '.join(HOLDS)}")


@dataclass(frozen=True, kw_only=True)
class FreshReport:
    """Seconds from the start of the process, and bytes of its resident set above its imports.

    `file_bytes` of them are pages of files, of the checkpoint for instance, which the system may
    take back.
    """

    imported_s: float
    loaded_s: float
    num_bytes: int
    file_bytes: int


def run_fresh(load: FreshLoad, cache_folder: Path) -> FreshReport:
    """Start the process, with its compiled graphs in `cache_folder`, and return what it reports.

    Raises RuntimeError with what it wrote when it fails or takes longer than a quarter of an hour.
    """
    order = json.dumps(asdict(load) | {"start_s": time.monotonic()})
    command = [sys.executable, "-m", __name__, order]
    environment = os.environ | {"SUPERNET_CACHE_DIR": str(cache_folder)}
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=_TIMEOUT_S
        )
    except subprocess.TimeoutExpired:
        raise RuntimeError(f"loading {load.checkpoint} took more than {_TIMEOUT_S:.0f} s") from None
    if done.returncode != 0:
        raise RuntimeError(f"loading {load.checkpoint} ended with {done.returncode}: {done.stderr}")
    return FreshReport(**json.loads(done.stdout.splitlines()[-1]))


def _main(order: dict[str, Any]) -> FreshReport:
    start_s = order.pop("start_s")
    import_all()
    (before_bytes, files_before), imported_s = _resident_bytes(), time.monotonic() - start_s
    held = _load(FreshLoad(**order))
    loaded_s = time.monotonic() - start_s
    num_bytes, file_bytes = _resident_bytes()
    del held  # alive until its bytes were counted
    return FreshReport(
        imported_s=imported_s,
        loaded_s=loaded_s,
        num_bytes=num_bytes - before_bytes,
        file_bytes=file_bytes - files_before,
    )


def import_all() -> None:
    """Import what any form needs, so that all are counted above the same."""
    for name in ("onnx", "subnetact.cpu.graph_executor"):
        import_module(name)
    from subnetact.cpu.ort_session import onnxruntime

    onnxruntime()


def _load(load: FreshLoad) -> object:
    checkpoint = load_checkpoint(load.checkpoint)
    if load.holds == "sessions":
        return _sessions(checkpoint, load)
    packing = "views" if load.holds == "views" else "graph"
    executor = load_executor(checkpoint, packing=packing, subnet_ids=load.subnet_ids)
    for subnet_id in load.subnet_ids if load.runs else ():
        executor.run(subnet_id, executor.sample.zeros(1))
    return executor


def _sessions(checkpoint: Checkpoint, load: FreshLoad) -> object:
    from subnetact.cpu.activation_ranges import ranges_from_tensors
    from subnetact.cpu.graph_cache import GraphCache
    from subnetact.cpu.subnet_sessions import SubnetSessions

    ranges = {i: ranges_from_tensors(own) for i, own in checkpoint.activation_ranges.items()}
    made = SubnetSessions(checkpoint, ranges=ranges, cache=GraphCache(graph_folder()))
    sessions = [made.open(ServedForm.parse(subnet_id)) for subnet_id in load.subnet_ids]
    for session in sessions if load.runs else ():
        session.run(checkpoint.sample.zeros(1))
    return sessions


def _resident_bytes() -> tuple[int, int]:
    """Return all of the resident set, and what of it is pages of files."""
    _, all_pages, file_pages, *_ = Path("/proc/self/statm").read_text(encoding="ascii").split()
    page_bytes = os.sysconf("SC_PAGE_SIZE")
    return int(all_pages) * page_bytes, int(file_pages) * page_bytes


if __name__ == "__main__":
    print(json.dumps(asdict(_main(json.loads(sys.argv[1])))))
