"""`supernet serve`: settings from a file and from options, then one of the two hosts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from serve.config import ServeConfig, ServeConfigError, parse_config, read_config_file
from serve.hosts.several_models import model_settings
from serve.observe.logs import configure_logs
from slackfit.profile import ProfileError
from slackfit.user_errors import user_errors


def serve(
    checkpoint: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[NAME=]DIR", help="Folder of the supernet to serve; named, several of them."
        ),
    ] = None,
    profile: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[NAME=]FILE", help="Latency profile of this device; else one is measured."
        ),
    ] = None,
    policy: Annotated[
        str | None,
        typer.Option(
            help="drainfit, slackfit, fixed:smallest|middle|largest, .. (default drainfit)."
        ),
    ] = None,
    slo_ms: Annotated[
        float | None, typer.Option(help="Deadline of queries that bring none, in ms (default 100).")
    ] = None,
    no_ray: Annotated[bool, typer.Option("--no-ray", help="Serve without Ray.")] = False,
    host: Annotated[str | None, typer.Option(help="Address to bind (default 127.0.0.1).")] = None,
    port: Annotated[
        int | None, typer.Option(help="Port; 0 takes a free one (default 8000).")
    ] = None,
    grpc_port: Annotated[
        int | None, typer.Option(help="Speak gRPC on this port too; 0 takes a free one.")
    ] = None,
    doors: Annotated[
        int | None,
        typer.Option(
            help="Processes that parse and answer requests; above 1 beside the engine's own, "
            "without Ray (default 1)."
        ),
    ] = None,
    device: Annotated[
        str | None,
        typer.Option(help="cpu, cuda, or timed (sleeps for profiled latencies) (default cpu)."),
    ] = None,
    threads: Annotated[
        int | None, typer.Option(help="CPU threads of the engine (default 1).")
    ] = None,
    max_queue: Annotated[
        int | None, typer.Option(help="Queries that may wait; more are refused (default 1000).")
    ] = None,
    subnets: Annotated[
        str | None, typer.Option(help="Ids of the subnets to offer, comma-separated (default all).")
    ] = None,
    log_format: Annotated[
        str | None, typer.Option(help="text for people, json for programs (default text).")
    ] = None,
    record: Annotated[
        Path | None, typer.Option(help="Write every scheduler call here, as JSON lines.")
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="Settings as TOML or JSON; options go before it.")
    ] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="Any further setting, as key=value.")
    ] = None,
) -> None:
    """Serve a checkpoint behind the Open Inference Protocol, on Ray unless --no-ray is given.

    Ctrl-C refuses new queries, finishes the queued ones and ends the server.
    """
    options = {
        "policy": policy,
        "slo_ms": slo_ms,
        "host": host,
        "port": port,
        "grpc_port": grpc_port,
        "doors": doors,
        "device": device,
        "threads": threads,
        "max_queue": max_queue,
        "subnets": subnets,
        "record": record,
        "log_format": log_format,
    }
    with user_errors(ServeConfigError, ProfileError, prefix="supernet serve"):
        options |= model_settings(checkpoint or [], profile or [])
        parsed = _settings(config, settings or [], options)
        configure_logs(parsed.log_format)
        if no_ray:
            from serve.hosts.uvicorn_host import serve_forever
        else:
            from serve.hosts.ray_host import serve_forever
        serve_forever(parsed)


def _settings(config: Path | None, pairs: list[str], options: dict[str, Any]) -> ServeConfig:
    fields: dict[str, Any] = {} if config is None else read_config_file(config)
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals:
            raise ServeConfigError(f"--set is {pair!r}, allowed key=value")
        fields[key] = value
    for key, value in options.items():
        if value is not None:
            fields[key] = str(value) if isinstance(value, Path) else value
    return parse_config(fields)
