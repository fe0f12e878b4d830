"""The demo of streams: one bursty minute of prompts, the largest width alone against all widths.

`python -m serve.demo_streams --checkpoint runs/demo-lm/checkpoint --out runs/demo-stream` measures
what iterations of the decoder take here, serves it on Ray behind OpenAI's protocol, replays the
same minute under two policies, prints how fluent the streams were, and writes report.html. The
rate is one that the largest width alone does not carry in the bursts.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.table import Table

from serve.commands.stream_replay import send_streams, stream_report
from serve.config import ServeConfig, ServeConfigError, parse_config
from slackfit.plain_console import plain_console
from slackfit.policies.streams import create_stream_policy
from slackfit.profile import LatencyProfile
from slackfit.scheduling.streams.stream_scheduler import StreamScheduler
from slackfit.simulation.simulate_streams import simulate_streams
from slackfit.streams.iteration_cost import IterationCosts
from slackfit.user_errors import user_errors
from supernet.checkpoint import CheckpointError, load_checkpoint
from traces.commands.command_line import command_line
from traces.report.report import write_report_html, write_report_json
from traces.simulation.stream_simulation import StreamSlo, stream_queries
from traces.spec.spec import parse_spec
from traces.trace import Trace, TraceError

POLICIES = ("slackwidth", "fixed:largest")
DURATION_S = 60.0
WANTED_FLUIDITY = 0.75
"""What the largest width alone is to reach in the demo's minute, by simulation."""
SLO = StreamSlo(ttft_s=2.0, tpot_s=0.25)
_PROMPT, _OUTPUT = (60.0, 0.6), (24.0, 0.5)  # medians and spreads of lognormal lengths
_LEAST_STREAMS = 10
_MOST_STEPS = 100
_LONGEST_S = 120.0
_KV_TOKENS = 8192


def demo(
    context: typer.Context,
    checkpoint: Annotated[Path, typer.Option(help="A decoder, such as `make demo-lm` leaves.")],
    out: Annotated[Path, typer.Option(help="Folder for everything the demo makes.")],
    seed: Annotated[int, typer.Option(help="Seed of arrivals, lengths and prompts.")] = 0,
    duration_s: Annotated[float, typer.Option(min=5, help="Length of the trace.")] = DURATION_S,
) -> None:
    """Serve a decoder on Ray, replay a bursty minute under two policies, show the difference."""
    with user_errors(ServeConfigError, CheckpointError, TraceError, OSError):
        profile = _profile(checkpoint, out)
        trace = burst(IterationCosts.of(profile), seed, duration_s)
        typer.echo(
            f"{len(trace)} streams in {duration_s:.0f} s, first token within {SLO.ttft_s:g} s, "
            f"each later one {SLO.tpot_s * 1e3:.0f} ms after",
            err=True,
        )
        config = parse_config(
            {
                "checkpoint": str(checkpoint),
                "profile": str(out / "profile.json"),
                "model_name": "lm",
                "kv_tokens": _KV_TOKENS,
                "prefix_cache": False,
                "port": 0,
            }
        )
        reports = _compare(config, trace, seed)
    for report in reports:
        report["command"] = command_line(context, "python -m serve.demo_streams")
    write_report_json(out / "report.json", reports)
    write_report_html(out / "report.html", reports, title="Demo: streams, one width against all")
    plain_console().print(table_of(reports))
    typer.echo(f"open {out / 'report.html'}", err=True)


def burst(costs: IterationCosts, seed: int, duration_s: float = DURATION_S) -> Trace:
    """Return bursty arrivals with drawn lengths, of a rate that the largest width can't carry.

    The least, in steps of a tenth, at which it leaves its readers waiting in a quarter of the
    periods, by simulation. Half of the rate comes evenly, half in bursts with a squared coefficient
    of variation of 8.
    """
    rate_qps = _LEAST_STREAMS / duration_s
    for _ in range(_MOST_STEPS):
        trace = _drawn(rate_qps, seed, duration_s)
        if simulated_fluidity(costs, trace, "fixed:largest") < WANTED_FLUIDITY:
            return trace
        rate_qps *= 1.1
    raise TraceError("no rate is too much for the largest width: the profile's times can't be")


def simulated_fluidity(costs: IterationCosts, trace: Trace, policy: str) -> float:
    """Return the mean fluidity of a trace's streams in virtual time."""
    scheduler = StreamScheduler(
        costs, create_stream_policy(policy, costs), kv_tokens=_KV_TOKENS, extent_tokens=64
    )
    outcomes = simulate_streams(stream_queries(trace, SLO), scheduler)
    return sum(outcome.fluidity for outcome in outcomes) / max(len(outcomes), 1)


def _drawn(rate_qps: float, seed: int, duration_s: float) -> Trace:
    half = rate_qps / 2
    spec = f"bursty:base={half:.4f},variant={half:.4f},cv2=8,duration={duration_s:g}"
    trace = parse_spec(spec, seed=seed)
    rng = np.random.default_rng(seed)
    lengths = [
        np.maximum(1, rng.lognormal(math.log(median), spread, len(trace))).astype(np.int64)
        for median, spread in (_PROMPT, _OUTPUT)
    ]
    return trace.with_lengths(*lengths, note="drawn lengths: prompts of 60, outputs of 24 tokens")


def table_of(reports: Sequence[dict[str, Any]]) -> Table:
    """Return the table of the demo: a row per policy."""
    table = Table(title="the same minute under two policies")
    for name in ("policy", "on time %", "fluidity", "by quality", "mean quality", "first p95 ms"):
        table.add_column(name, justify="left" if name == "policy" else "right")
    for report in reports:
        streams = report["streams"]
        first = streams["ttft_ms"]["p95"]
        table.add_row(
            report["label"],
            f"{report['slo_attainment'] * 100:.1f}",
            f"{streams['fluidity']:.3f}",
            f"{streams['weighted_fluidity']:.3f}",
            f"{streams['mean_quality']:.4f}",
            "-" if first is None else f"{first:.0f}",
        )
    return table


def _profile(checkpoint: Path, out: Path) -> LatencyProfile:
    """Return what iterations take here: measured, or as an earlier demo has measured it."""
    from subnetact.decoding.stream_executor import StreamExecutor
    from subnetact.profiling.iteration_profiler import measure_iterations

    path = out / "profile.json"
    loaded = load_checkpoint(checkpoint)
    if path.exists() and LatencyProfile.load(path).checkpoint == loaded.fingerprint:
        return LatencyProfile.load(path)
    out.mkdir(parents=True, exist_ok=True)
    typer.echo("measuring iterations, about a minute", err=True)
    executor = StreamExecutor(loaded, capacity_tokens=_KV_TOKENS)
    profile = measure_iterations(executor, loaded, decodes=(1, 4, 8), repeats=2, max_error=math.inf)
    profile.save(path)
    return profile


def _compare(config: ServeConfig, trace: Trace, seed: int) -> list[dict[str, Any]]:
    from serve.hosts.ray_host import on_ray

    queries = stream_queries(trace, SLO)
    reports: list[dict[str, Any]] = []
    with on_ray(config) as host:
        for policy in POLICIES:
            host.reconfigure({"policy": policy})
            started_s = time.monotonic()
            model, seen = asyncio.run(
                send_streams(queries, host.url, seed=seed, timeout_s=_LONGEST_S)
            )
            wall_s = time.monotonic() - started_s
            reports.append(
                stream_report(seen, model, trace, SLO, label=policy, seed=seed, wall_s=wall_s)
            )
            typer.echo(f"{policy}: {wall_s:.0f} s", err=True)
    return reports


if __name__ == "__main__":
    typer.run(demo)
