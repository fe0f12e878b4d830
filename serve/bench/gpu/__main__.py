"""Check and time the CUDA path in one command: `python -m serve.bench.gpu --json FILE`.

Parts run in order of value, the smoke part first, each within what is left of `--minutes`; every
row is written as it is made, so that whatever ends the run leaves what was measured. At the end
they are held against the bars of docs/actuation.md; `--check FILE` does that alone, with the rows
of a file. `--device cpu` runs every line on tiny networks, with the CPU in place of the device: a
check of this program, its times mean nothing and no bar of theirs counts.
Exit code 1 when a part failed, results disagreed or a bar is missed; 2 for what can't be read.
"""

from __future__ import annotations

import argparse
import json
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from serve.bench.gpu.bars import BarError, compare, read_bars, read_rows, summary
from serve.bench.gpu.cases import RUN_FOLDER, GpuBench
from serve.bench.gpu.compiled import compiled
from serve.bench.gpu.decoding import decoding
from serve.bench.gpu.device_memory import device_bytes
from serve.bench.gpu.engine_overhead import engine_overhead
from serve.bench.gpu.latency import equality, latency, switching
from serve.bench.gpu.loading_table import loading
from serve.bench.gpu.memory_table import memory
from serve.bench.gpu.overlap import overlap
from serve.bench.gpu.residency import profile, residency, streaming
from serve.bench.gpu.settings import FULL, TINY
from serve.bench.gpu.smoke import smoke
from serve.bench.gpu.trace import trace
from serve.bench.gpu.training import training
from serve.bench.rows import Row
from slackfit.output_files import check_outputs, write_text
from subnetact.ieee_float32 import ieee_float32

PARTS: dict[str, Callable[[GpuBench], None]] = {
    "smoke": smoke,
    "equality": equality,
    "latency": latency,
    "profile": profile,
    "memory": memory,
    "loading": loading,
    "trace": trace,
    "overlap": overlap,
    "engine": engine_overhead,
    "switching": switching,
    "training": training,
    "decoding": decoding,
    "streaming": streaming,
    "residency": residency,
    "compiled": compiled,
    "bytes": device_bytes,
}
"""What there is to run, in order of value."""


def main(argv: list[str] | None = None) -> int:
    """Run the parts, or compare a file; see the module."""
    options = _parse(argv)
    try:
        if options.check is not None:
            return 0 if is_reached(read_rows(options.check)) else 1
        wanted = _wanted(options.parts)
        bench = GpuBench(
            options.device,
            FULL if options.device == "cuda" else TINY,
            60.0 * options.minutes,
            lambda text: print(text, file=sys.stderr, flush=True),
            profiles=options.profiles,
        )
    except ValueError as error:
        print(f"serve.bench.gpu: {error}", file=sys.stderr)
        return 2
    out = options.json or RUN_FOLDER / f"{bench.date}-{options.device}.json"
    bench.keep = lambda rows: write_text(out, json.dumps(rows, indent=1) + "\n")
    check_outputs(out)
    is_right = run(bench, wanted)
    print(f"{out}: {len(bench.rows)} rows", file=sys.stderr)
    try:
        # Times of a dry run are no reason to call it wrong, bytes are.
        is_right &= is_reached(bench.rows, on=None if options.device == "cuda" else "any")
    except BarError as error:  # an installation without docs/: what was measured stands
        print(f"serve.bench.gpu: {error}", file=sys.stderr)
    return 0 if is_right else 1


def run(bench: GpuBench, wanted: Sequence[str]) -> bool:
    """Run parts, and record what failed or disagreed; whether nothing did."""
    with ieee_float32():  # also of the extracted networks that subnets are compared with
        failed = [name for name in wanted if not run_part(bench, name, PARTS[name])]
    detail = ", ".join(failed) or f"of {', '.join(wanted)}"
    bench.record("failed_parts", len(failed), "count", detail)
    detail = "; ".join(bench.failures) or "everything that was compared agrees"
    bench.record("disagreements", len(bench.failures), "count", detail)
    return not (failed or bench.failures)


def is_reached(rows: Sequence[Row], *, on: str | None = None) -> bool:
    """Print how rows stand to the bars; whether none is missed, of those for `on` alone if given.

    Raises BarError.
    """
    bars = read_bars()
    print(summary(compare(rows, bars)))
    counting = [bar for bar in bars if on in (None, bar.on)]
    return not any(verdict.state == "missed" for verdict in compare(rows, counting))


def run_part(bench: GpuBench, name: str, part: Callable[[GpuBench], None]) -> bool:
    """Run one part in the time that is left; a fault is a row, and ends that part only."""
    bench.tell(f"{name} ({bench.left_s:.0f} s left)")
    if bench.left_s <= 0:
        bench.record(f"{name}/skipped", 1, "count", "no time was left")
        return True
    try:
        with torch.inference_mode():
            part(bench)
    except Exception as error:  # any: the other parts are still worth their time
        traceback.print_exc()
        bench.record(f"{name}/failed", 1, "count", f"{type(error).__name__}: {error}"[:500])
        return False
    if bench.left_s <= 0:
        bench.record(f"{name}/cut", 1, "count", "the time ended in this part: it may lack rows")
    return True


def _wanted(names: str | None) -> list[str]:
    """Return the parts to run. Raises ValueError listing the known ones."""
    wanted = list(PARTS if names is None else dict.fromkeys(n.strip() for n in names.split(",")))
    unknown = sorted(set(wanted) - set(PARTS))
    if unknown:
        raise ValueError(f"unknown part {', '.join(unknown)}; allowed {', '.join(PARTS)}")
    return wanted


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m serve.bench.gpu",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="file of rows (default: a dated one in runs/gpu)"
    )
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument(
        "--minutes", type=float, default=7.5, metavar="N", help="no part starts after this (7.5)"
    )
    parser.add_argument("--parts", metavar="NAME[,NAME...]", help=f"only these: {', '.join(PARTS)}")
    parser.add_argument(
        "--profiles", type=Path, default=RUN_FOLDER, metavar="DIR", help="folder of the profile"
    )
    parser.add_argument(
        "--check",
        type=Path,
        metavar="FILE",
        help="run nothing: compare the rows of FILE with the bars of docs/actuation.md",
    )
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
