"""A day's plan as a user makes it, streamed by the hour: how long it takes, and what memory."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from serve.bench.policies.superserve_paper import RESNET_SLO_S
from serve.bench.process_tree import tree_bytes
from serve.bench.rows import Row, Tell, row
from slackfit.profile import LatencyProfile
from traces.planning.candidates import candidates
from traces.planning.catalog import Catalog, DeviceOffer
from traces.planning.promise import parse_promise

_POLICIES = (
    *("drainfit", "drainfit@reserve=0", "slackfit", "slackfit@num_buckets=40"),
    *("slackfit@num_buckets=20", "slackfit@variant=bucket", "maxbatch", "maxacc"),
    *("infaas", "sushi"),
)
_PROMISE = "attainment>=0.999,accuracy>=0.775"
_QPS, _SEEDS = 6400, 5
_MOST_S, _MOST_BYTES = 900, 1e9
_POLL_S = 0.2


def command(profile: Path, duration_s: float) -> list[str]:
    """Return the words of the plan of a day, or of so much of one."""
    return [
        *("supernet", "plan", "--profile", str(profile)),
        *("--trace", f"diurnal:rate={_QPS},peak=1.5,duration={duration_s:g},cv2=4"),
        *("--slo", _PROMISE, "--slo-ms", f"{RESNET_SLO_S * 1e3:g}"),
        *("--stream", "--seeds", str(_SEEDS), "--policies", ",".join(_POLICIES)),
    ]


def rows(profile: Path, duration_s: float, processes: int | None, tell: Tell) -> list[Row]:
    """Return the seconds and the bytes that the plan took, all its processes together."""
    words = command(profile, duration_s)
    if processes is not None:
        words += ["--processes", str(processes)]
    tell(" ".join(words))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "plan.json"
        took_s, peak_bytes = _run([*words, "--json", str(path)])
        plan = json.loads(path.read_text(encoding="utf-8"))
    tried = _num_candidates(LatencyProfile.load(profile))
    detail = _detail(plan, duration_s, tried)
    return [
        row("policies/day/wall", took_s, "s", f"<= {_MOST_S} of a whole day; {detail}", digits=1),
        row("policies/day/peak_memory", peak_bytes, "bytes", f"<= {_MOST_BYTES:g}; {detail}",
            digits=None),
        row("policies/day/workers", plan.get("workers", 0), "count", detail, digits=None),
    ]  # fmt: skip


def _run(words: list[str]) -> tuple[float, int]:
    """Run a `supernet` command; return its seconds, and the most bytes that it had resident."""
    began_s = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-m", "serve", *words[1:]], stdout=subprocess.DEVNULL
    )
    peak_bytes = 0
    while process.poll() is None:
        peak_bytes = max(peak_bytes, tree_bytes(process.pid))
        time.sleep(_POLL_S)
    if process.returncode not in (0, 3):
        raise RuntimeError(f"{' '.join(words)} ended with status {process.returncode}")
    return time.monotonic() - began_s, peak_bytes


def _num_candidates(profile: LatencyProfile) -> int:
    catalog = Catalog(offers=(DeviceOffer(name=profile.name, profile=profile),))
    return len(candidates(catalog, _POLICIES, parse_promise(_PROMISE), RESNET_SLO_S))


def _detail(plan: dict[str, Any], duration_s: float, tried: int) -> str:
    found = f"saturated: {plan['why']}" if plan["saturated"] else (
        f"{plan['fleet']} with {plan['policy']}, attainment {plan['attainment']:.5f}, accuracy "
        f"{plan['accuracy']:.5f}, {len(plan['seeds'])} seeds"
    )  # fmt: skip
    return (
        f"{duration_s / 3600:g} h of {_QPS} queries/s, {plan['trace']['num_queries']:,} queries, "
        f"{tried} candidates; {found}"
    )
