"""Check and time the CUDA path in one command: `python -m serve.bench.gpu --json FILE`.

Parts run in order of value, the smoke part first, each within what is left of `--minutes`; every
row is written as it is made, so that whatever ends the run leaves what was measured. `--device cpu`
runs every line on tiny networks, with the CPU in place of the device: a check of this program, its
times mean nothing.
Exit code 1 when a part failed or results disagreed.
"""

from __future__ import annotations

import argparse
import json
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import torch

from serve.bench.gpu.cases import RUN_FOLDER, GpuBench
from serve.bench.gpu.decoding import decoding
from serve.bench.gpu.device_memory import device_bytes
from serve.bench.gpu.latency import compiled, equality, latency, switching
from serve.bench.gpu.overlap import overlap
from serve.bench.gpu.residency import profile, residency, streaming
from serve.bench.gpu.settings import FULL, TINY
from serve.bench.gpu.smoke import smoke
from slackfit.output_files import check_outputs, write_text
from subnetact.ieee_float32 import ieee_float32


def main(argv: list[str] | None = None) -> int:
    """Run the parts; see the module."""
    options = _parse(argv)
    try:
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
    parts: dict[str, Callable[[GpuBench], None]] = {
        "smoke": smoke,
        "equality": equality,
        "latency": latency,
        "profile": profile,
        "overlap": overlap,
        "streaming": streaming,
        "switching": switching,
        "residency": residency,
        "decoding": decoding,
        "compiled": compiled,
        "bytes": device_bytes,
    }
    wanted = list(parts) if options.parts is None else options.parts.split(",")
    unknown = sorted(set(wanted) - set(parts))
    if unknown:
        print(
            f"serve.bench.gpu: unknown part {', '.join(unknown)}; allowed {', '.join(parts)}",
            file=sys.stderr,
        )
        return 2
    check_outputs(out)
    is_whole = True
    with ieee_float32():  # also of the extracted networks that subnets are compared with
        for name in wanted:
            is_whole &= run_part(bench, name, parts[name])
    print(f"{out}: {len(bench.rows)} rows", file=sys.stderr)
    return 0 if is_whole and not bench.failures else 1


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


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m serve.bench.gpu", description=__doc__)
    parser.add_argument("--json", type=Path, help="file of rows (default: a dated one in runs/gpu)")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--minutes", type=float, default=7.5, help="no part starts after this")
    parser.add_argument("--parts", help="only these, comma-separated")
    parser.add_argument("--profiles", type=Path, default=RUN_FOLDER, help="folder of the profile")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
