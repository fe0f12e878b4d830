"""The options of `serve`: what each may be, and its help; None leaves it to the settings."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

CheckpointsOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="[NAME=]DIR", help="Folder of the supernet to serve; named, several of them."
    ),
]
ProfilesOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="[NAME=]FILE", help="Latency profile of this device; else one is measured."
    ),
]
PolicyOption = Annotated[
    str | None,
    typer.Option(help="drainfit, slackfit, fixed:smallest|middle|largest, .. (default drainfit)."),
]
SloOption = Annotated[
    float | None, typer.Option(help="Deadline of queries that bring none, in ms (default 100).")
]
NoRayOption = Annotated[bool, typer.Option("--no-ray", help="Serve without Ray.")]
HostOption = Annotated[str | None, typer.Option(help="Address to bind (default 127.0.0.1).")]
PortOption = Annotated[int | None, typer.Option(help="Port; 0 takes a free one (default 8000).")]
GrpcPortOption = Annotated[
    int | None, typer.Option(help="Speak gRPC on this port too; 0 takes a free one.")
]
DoorsOption = Annotated[
    int | None,
    typer.Option(
        help="Processes that parse and answer requests; above 1 beside the engine's own, "
        "without Ray (default 1)."
    ),
]
DeviceOption = Annotated[
    str | None,
    typer.Option(help="cpu, cuda, or timed (sleeps for profiled latencies) (default cpu)."),
]
ThreadsOption = Annotated[int | None, typer.Option(help="CPU threads of the engine (default 1).")]
MaxQueueOption = Annotated[
    int | None, typer.Option(help="Queries that may wait; more are refused (default 1000).")
]
SubnetsOption = Annotated[
    str | None, typer.Option(help="Ids of the subnets to offer, comma-separated (default all).")
]
LogFormatOption = Annotated[
    str | None, typer.Option(help="text for people, json for programs (default text).")
]
RecordOption = Annotated[
    Path | None, typer.Option(help="Write every scheduler call here, as JSON lines.")
]
ConfigOption = Annotated[
    Path | None, typer.Option(help="Settings as TOML or JSON; options go before it.")
]
SettingsOption = Annotated[
    list[str] | None, typer.Option("--set", help="Any further setting, as key=value.")
]
