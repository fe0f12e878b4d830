"""The demo: train a supernet, serve it on Ray, replay one bursty trace under four policies.

`python -m serve.demo --out runs/demo` trains (or takes the supernet that an earlier demo trained),
profiles this machine, starts Ray Serve, replays the same trace with SlackFit and with the
smallest, the middle and the largest fixed subnet, and stops what it started. It prints one table
and leaves `report.json`, `report.html`, `checkpoint/`, `profile.json` and `data/` in the folder.

The offered load follows from this machine's profile, not from the outcome: the mean rate is
`LOAD` times what the largest subnet can do alone, so bursts exceed it on any machine.
"""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from shutil import rmtree
from typing import Annotated, Any

import numpy as np
import torch
import typer

from serve.client.rest_target import RestTarget
from serve.config import ServeConfig, ServeConfigError, parse_config
from serve.hosts.ray_host import RayHost
from slackfit.metrics import summarize
from slackfit.plain_console import plain_console
from slackfit.profile import LatencyProfile
from slackfit.user_errors import user_errors
from supernet import Checkpoint, CheckpointError, load_checkpoint
from traces import Trace, TraceError, parse_spec
from traces.commands.command_line import command_line
from traces.open_loop.payloads import Payloads, load_payloads
from traces.open_loop.progress import replay_progress
from traces.open_loop.replay import replay
from traces.open_loop.replay_options import ReplayOptions
from traces.report.burst_zoom import burst_zoom
from traces.report.figures import with_figures
from traces.report.intervals import attainment_intervals
from traces.report.report import write_report_html, write_report_json
from traces.report.table import report_table
from training.commands.shown_training import train_with_progress
from training.config import TrainConfig, load_config
from training.data.data import load_dataset
from training.trainer.resume import RESUME_FILE, ResumeError

TRAIN_CONFIG = Path(__file__).parent.parent / "configs" / "train_digits.toml"
DATASET = "digits"
POLICIES = ("slackfit", "fixed:smallest", "fixed:middle", "fixed:largest")
BATCH_SIZES = (1, 2, 4, 8, 16)
PROFILE_REPEATS = 10
SLO_S = 0.1
LOAD = 0.9  # of what the largest subnet can do flat out: enough on average, not at the peaks
DURATION_S = 24.0
WARMUP_S = 2.0
TIMEOUT_S = 5.0


def demo(
    context: typer.Context,
    out: Annotated[Path, typer.Option(help="Folder for everything the demo makes.")],
    trace: Annotated[
        str | None,
        typer.Option(
            help="Trace SPEC to replay. Default: a generator with the published shape of the "
            "Azure Functions 2019 trace, at a rate set by this machine's profile."
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the trace and of the order of images.")] = 0,
) -> None:
    """Train, serve on Ray, replay a bursty trace under four policies, show the trade-off."""
    with user_errors(ServeConfigError, CheckpointError, TraceError):
        started_s = time.monotonic()
        if trace is not None:  # a wrong SPEC must not cost a training first
            parse_spec(trace_spec(trace, rate_qps=1.0), seed=seed)
        checkpoint = train_supernet(out / "checkpoint")
        payloads = _write_payloads(out / "data")
        profile = _profile(out)
        spec = trace_spec(trace, rate_qps=LOAD * largest_capacity_qps(profile))
        arrivals = parse_spec(spec, seed=seed)
        typer.echo(
            f"trace: {spec}: {len(arrivals)} queries in {arrivals.duration_s:.0f} s, "
            f"SLO {SLO_S * 1e3:.0f} ms",
            err=True,
        )
        config = parse_config(
            {
                "checkpoint": str(out / "checkpoint"),
                "profile": str(out / "profile.json"),
                "slo_ms": SLO_S * 1e3,
                "port": 0,
            }
        )
        reports = _serve_and_replay(config, checkpoint, arrivals, payloads, seed)
    for report in reports:
        report |= {
            "command": command_line(context, "python -m serve.demo"),
            "trace": {"spec": spec, "source": arrivals.source, **arrivals.metadata},
            "profile_device": profile.device,
            "seed": seed,
        }
    write_report_json(out / "report.json", reports)
    write_report_html(out / "report.html", reports, title="Demo: one supernet, four policies")
    plain_console().print(report_table(reports, title=f"{len(arrivals)} queries, {spec}"))
    _print_agreement(reports, len(payloads.images))
    typer.echo(f"{time.monotonic() - started_s:.0f} s in all; open {out / 'report.html'}", err=True)


def trace_spec(given: str | None, *, rate_qps: float) -> str:
    """Return the SPEC to replay: the given one, or the default at `rate_qps`.

    A genuine Azure trace that names no rate gets the same rate and duration as the default.
    """
    rate = f"qps={rate_qps:.0f},duration={DURATION_S:.0f}"
    if given is None:
        return f"azure2019-shape:{rate}"
    if given.startswith("azure2019") and "qps=" not in given:
        return f"{given.rstrip(',.')},{rate}"
    return given


def largest_capacity_qps(profile: LatencyProfile) -> float:
    """Return how many queries a second the most accurate subnet does alone, in full batches."""
    largest = profile.subnet_ids[-1]
    return profile.max_batch_size / profile.latency_s(largest, profile.max_batch_size)


def train_supernet(folder: Path) -> Checkpoint:
    """Train the demo's supernet into `folder`, go on with a run there, or take a finished one.

    Raises typer.Exit when interrupted.
    """
    config = load_config(TRAIN_CONFIG)
    known = _trained_before(folder, config)
    if known is not None:
        typer.echo(f"supernet: taken from {folder} (delete it to train again)", err=True)
        return known
    typer.echo(f"supernet: training with {TRAIN_CONFIG.name}", err=True)
    try:
        checkpoint = train_with_progress(config, folder, resume=(folder / RESUME_FILE).exists())
    except ResumeError:
        typer.echo(f"{folder} holds a run of another version of the demo: starting over", err=True)
        rmtree(folder)
        checkpoint = train_with_progress(config, folder, resume=False)
    if checkpoint is None:
        typer.echo("stopped; the same command goes on from here", err=True)
        raise typer.Exit(130)
    return load_checkpoint(folder)


def _trained_before(folder: Path, config: TrainConfig) -> Checkpoint | None:
    if not (folder / "supernet.json").exists():
        return None
    checkpoint = load_checkpoint(folder)
    is_same = checkpoint.provenance.get("config") == json.loads(json.dumps(asdict(config)))
    return checkpoint if is_same else None


def _write_payloads(folder: Path) -> Payloads:
    """Write the test images, which nothing was trained or chosen on, as a payload folder."""
    data = load_dataset(DATASET, load_config(TRAIN_CONFIG).seed)
    folder.mkdir(parents=True, exist_ok=True)
    test = data.test.take(torch.arange(len(data.test)))
    np.save(folder / "images.npy", test.images.numpy())
    np.save(folder / "labels.npy", test.labels.numpy())
    (folder / "classes.json").write_text(json.dumps(data.classes))
    return load_payloads(folder)


def _profile(out: Path) -> LatencyProfile:
    from subnetact.cli import profile as measure

    measure(
        checkpoint=out / "checkpoint",
        out=out / "profile.json",
        batch_sizes=",".join(map(str, BATCH_SIZES)),
        repeats=PROFILE_REPEATS,
    )
    return LatencyProfile.load(out / "profile.json")


def _serve_and_replay(
    config: ServeConfig, checkpoint: Checkpoint, trace: Trace, payloads: Payloads, seed: int
) -> list[dict[str, Any]]:
    reports: list[dict[str, Any]] = []
    host = RayHost(config)
    typer.echo("starting Ray Serve on this machine", err=True)
    try:
        url = host.start()
        typer.echo(f"serving {checkpoint.name} at {url}", err=True)
        for policy in POLICIES:
            host.reconfigure({"policy": policy})
            report = asyncio.run(_replay(url, checkpoint.name, policy, trace, payloads, seed))
            reports.append(report)
    finally:
        host.stop()
    return reports


async def _replay(
    url: str, model: str, policy: str, trace: Trace, payloads: Payloads, seed: int
) -> dict[str, Any]:
    client = RestTarget(url, model)
    started_s = time.monotonic()
    try:
        about = await client.metadata()
        with replay_progress(f"{policy:<15}") as progress:
            result = await replay(
                trace,
                client,
                payloads,
                ReplayOptions(slo_s=SLO_S, seed=seed, timeout_s=TIMEOUT_S, warmup_s=WARMUP_S),
                progress=progress,
            )
    finally:
        await client.close()
    report = summarize(
        result.outcomes,
        zoom=burst_zoom(result.outcomes, result.duration_s),
        policy=about["parameters"]["policy"],
        slo_s=SLO_S,
        duration_s=result.duration_s,
        seed=seed,
        profile=about["parameters"]["profile"],
        wall_s=time.monotonic() - started_s,
        **result.extra(),
    )
    report["slo_attainment_95"] = attainment_intervals(report)
    return with_figures(report, result.outcomes, trace)


def _print_agreement(reports: Sequence[dict[str, Any]], num_sent: int) -> None:
    """Compare measured and profiled accuracy over the same answers, with their sampling error.

    Accuracy was profiled on the `num_sent` test images that are sent, each as often as it is drawn.
    """
    for report in reports:
        measured, answered = report["measured_accuracy"], list(report["subnets"].values())
        if measured is None or not answered:
            continue
        total = sum(subnet["queries"] for subnet in answered)
        profiled = sum(subnet["queries"] * subnet["accuracy"] for subnet in answered) / total
        error = 1.96 * math.sqrt(profiled * (1 - profiled) / num_sent)
        typer.echo(
            f"{report['policy']}: measured - profiled accuracy of the answers "
            f"{(measured - profiled) * 100:+.2f} points (sampling error {error * 100:.2f})",
            err=True,
        )


if __name__ == "__main__":
    typer.run(demo)
