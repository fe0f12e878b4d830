"""`supernet replay`: an open-loop trace against a live server, and the report of what came back."""

from __future__ import annotations

import asyncio
import shlex
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

if TYPE_CHECKING:
    import numpy as np

    from serve.client import OipClient
    from traces.replay import Progress, ReplayResult
    from traces.trace import Trace

_RANDOM_PAYLOADS = 64
_INTERRUPTED = 130


class Payload(NamedTuple):
    """What is sent: samples, their labels if known, where they come from."""

    images: np.ndarray
    labels: np.ndarray | None
    source: str


def replay(
    trace: Annotated[str, typer.Option(metavar="SPEC", help="Trace file or generator.")],
    url: Annotated[str, typer.Option(help="The server, e.g. http://127.0.0.1:8000.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder for the report.")],
    slo_ms: Annotated[
        float | None, typer.Option(help="Deadline of each query; default: the trace's own.")
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Samples and labels (images.npy, labels.npy); default: noise."
        ),
    ] = None,
    policy: Annotated[
        str | None, typer.Option(help="Name in the report; default: the server's policy.")
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="The model to ask; default: the server's first.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of everything that is drawn.")] = 0,
    warmup_s: Annotated[float, typer.Option(min=0, help="Seconds left out at the start.")] = 0.0,
) -> None:
    """Replay a trace against a live server; write report.json and report.html.

    Ctrl-C ends the run early with a valid report of what was sent until then.
    """
    from serve.client import ClientError
    from traces.cli import user_errors
    from traces.progress import replay_progress
    from traces.spec import parse_spec

    with user_errors():
        parsed = parse_spec(trace, seed=seed)
        words = ["supernet", "replay", "--trace", trace, "--url", url, "--seed", str(seed)]
        words += [] if slo_ms is None else ["--slo-ms", f"{slo_ms:g}"]
        words += [] if data is None else ["--data", str(data)]
        run = _Run(parsed, None if slo_ms is None else slo_ms * 1e-3, data, seed, warmup_s)
        try:
            with replay_progress("replay") as show:
                report, is_partial = asyncio.run(run.execute(url, model, policy, show))
        except ClientError as error:
            typer.echo(f"error: {error}", err=True)
            raise typer.Exit(2) from None
        write_report({**report, "command": shlex.join(words)}, out)
    if is_partial:
        raise typer.Exit(_INTERRUPTED)


class _Run:
    """One replay: what is sent, and when."""

    def __init__(
        self, trace: Trace, slo_s: float | None, data: Path | None, seed: int, warmup_s: float
    ) -> None:
        self._trace = trace
        self._slo_s = slo_s
        self._data = data
        self._seed = seed
        self._warmup_s = warmup_s

    async def execute(
        self,
        url: str,
        model: str | None,
        policy: str | None,
        progress: Callable[[Progress], None],
    ) -> tuple[dict[str, Any], bool]:
        """Return the report and whether it is of an interrupted run."""
        from serve.client import connect
        from traces.replay import replay as replay_trace

        client, about = await connect(url, model)
        try:
            payload = load_payload(self._data, about["inputs"][0]["shape"][1:], self._seed)
            start_s = time.monotonic()
            result = await replay_trace(
                self._trace,
                client,
                slo_s=self._slo_s,
                payloads=payload.images,
                labels=payload.labels,
                seed=self._seed,
                warmup_s=self._warmup_s,
                progress=progress,
            )
            wall_s = time.monotonic() - start_s
        finally:
            await client.close()
        return self._report(client, about, policy, payload, result, wall_s), result.is_partial

    def _report(
        self,
        client: OipClient,
        about: dict[str, Any],
        policy: str | None,
        payload: Payload,
        result: ReplayResult,
        wall_s: float,
    ) -> dict[str, Any]:
        import numpy as np

        from slackfit.metrics import summarize
        from traces.burstiness import trace_summary

        server = about.get("parameters", {})
        slo_s = self._slo_s
        if slo_s is None:
            assert self._trace.slo_s is not None, "replay refuses a trace without deadlines"
            slo_s = float(np.median(self._trace.slo_s))
        return summarize(
            result.outcomes,
            policy=policy or str(server.get("policy", "unknown")),
            slo_s=slo_s,
            duration_s=result.duration_s,
            seed=self._seed,
            profile=str(server.get("profile", "")),
            wall_s=wall_s,
            trace=trace_summary(self._trace),
            config={
                "model": client.model,
                "server_policy": server.get("policy"),
                "server_device": server.get("device"),
                "payloads": payload.source,
                "warmup_s": self._warmup_s,
            },
            **result.extra(),
        )


def load_payload(data: Path | None, shape: list[int], seed: int) -> Payload:
    """Return the samples of a payload folder, or noise of the model's shape.

    Raises TraceError when the samples do not have the shape that the model takes.
    """
    import numpy as np

    from traces.payloads import load_payloads
    from traces.trace import TraceError

    if data is None:
        rng = np.random.default_rng(seed)
        images = rng.integers(0, 256, size=(_RANDOM_PAYLOADS, *shape), dtype=np.uint8)
        return Payload(images, None, f"{_RANDOM_PAYLOADS} samples of uniform noise")
    loaded = load_payloads(data)
    if list(loaded.images.shape[1:]) != list(shape):
        raise TraceError(
            f"{data}: samples have shape {list(loaded.images.shape[1:])}, "
            f"the model takes {list(shape)}"
        )
    return Payload(loaded.images, loaded.labels, str(data))


def write_report(report: dict[str, Any], out: Path) -> None:
    """Write report.json and report.html into a folder and print the table."""
    from rich.console import Console

    from traces.report import write_report_html, write_report_json
    from traces.table import report_table

    out.mkdir(parents=True, exist_ok=True)
    write_report_json(out / "report.json", [report])
    write_report_html(out / "report.html", [report], title="Replay report")
    Console(width=None if sys.stdout.isatty() else 140).print(report_table([report]))
    typer.echo(f"report: {out / 'report.html'}", err=True)
