"""A plan's forecast of live servers, held against replays: timed devices on loopback."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

from serve.bench.mixed.timed_server import TIMED, config_of
from serve.bench.rows import Row, Tell, row
from serve.bench.serving.server_process import server_process
from serve.commands.verified_plan import PlanCheck, verify_plan
from slackfit.profile import LatencyProfile
from traces.planning.promise import Promise
from traces.planning.verification import verification_lines
from traces.spec.spec import parse_spec

_SLOWER = 10.0  # than published: what this machine adds to a batch, a millisecond, does not count
_SLO_S = 0.36


class _VerifiedCase(NamedTuple):
    """Traffic, and over how many servers it is spread."""

    spec: str
    num_servers: int = 1


_CASES = {
    "poisson": _VerifiedCase("poisson:rate=900,duration=60"),
    "cv4": _VerifiedCase("gamma:rate=900,cv2=4,duration=60"),
    "two_servers": _VerifiedCase("poisson:rate=900,duration=60", 2),
}
_PROMISE = Promise(0.99)
_BARS = {0.5: 0.005, 0.7: 0.005, 0.85: 0.01, 0.95: 0.03}
_LATENCY_BAR = 0.1
_SHAPE = (3, 8, 8)


def rows(profile: Path, duration_s: float, tell: Tell) -> list[Row]:
    """Return the errors at each load, foretold before the run; each load lasts `duration_s`."""
    found: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "slower.json"
        slower = LatencyProfile.load(profile).scaled(_SLOWER)
        slower.save(path)
        config = config_of(
            profile=str(path), input_shape=_SHAPE, num_classes=10, slo_ms=_SLO_S * 1e3
        )
        for name, case in _CASES.items():
            with ExitStack() as stack:
                servers = [
                    stack.enter_context(server_process(config)) for _ in range(case.num_servers)
                ]
                check = PlanCheck(
                    url=",".join(server.url for server in servers),
                    trace=parse_spec(case.spec), profile=slower, promise=_PROMISE,
                    slo_s=_SLO_S, duration_s=duration_s,
                )  # fmt: skip
                verification = verify_plan(check, lambda _: None, tell)
            tell("\n".join(verification_lines(verification)))
            found += _rows(name, verification)
    return found


def _rows(name: str, verification: dict[str, Any]) -> Sequence[Row]:
    about = (
        f"{verification['cpu']}, load {verification['load_average']:.2f} before, "
        f"{verification['load_average_after']:.2f} after; capacity "
        f"{verification['capacity_qps']:.1f} queries/s; {TIMED}"
    )
    rows: list[Row] = []
    for level in verification["levels"]:
        load, invalid = level["load"], level["invalid_reason"]
        detail = f"{'INVALID: ' + invalid + '; ' if invalid else ''}{about}"
        figure = f"policies/verify/{name}/load{load * 100:g}"
        bars = {"slo_attainment": _BARS[load]}
        if load <= 0.85:
            bars |= {"p50_ms": _LATENCY_BAR, "p95_ms": _LATENCY_BAR}
        for what, bar in bars.items():
            predicted, live = level["predicted"][what], level["live"][what]
            told = f"|error| <= {bar:g}; predicted {predicted:.4f}, live {live:.4f}; {detail}"
            rows.append(row(f"{figure}/{what}_error", level["error"][what], "fraction", told))
    for at, server in enumerate(verification["servers"]):
        told = (
            f"{server['num_queries']} queries; {server['idle_ms']:.2f} ms besides execution "
            "when idle"
        )
        figure = f"policies/verify/{name}/server{at}/door_ms"
        rows.append(row(figure, server["request_ms"], "ms", told))
    return rows
