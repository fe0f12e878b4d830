"""`supernet serve`: settings from a file and from options, then one of the two hosts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from serve.commands.serve_options import (
    CheckpointsOption,
    ConfigOption,
    DeviceOption,
    DoorsOption,
    GrpcPortOption,
    HostOption,
    LogFormatOption,
    MaxQueueOption,
    NoRayOption,
    PolicyOption,
    PortOption,
    ProfilesOption,
    RecordOption,
    SettingsOption,
    SloOption,
    SubnetsOption,
    ThreadsOption,
)
from serve.config import ServeConfig, ServeConfigError, parse_config, read_config_file
from serve.hosts.several_models import model_settings
from serve.observe.logs import configure_logs
from slackfit.profile import ProfileError
from slackfit.user_errors import user_errors


def serve(
    checkpoint: CheckpointsOption = None,
    profile: ProfilesOption = None,
    policy: PolicyOption = None,
    slo_ms: SloOption = None,
    no_ray: NoRayOption = False,
    host: HostOption = None,
    port: PortOption = None,
    grpc_port: GrpcPortOption = None,
    doors: DoorsOption = None,
    device: DeviceOption = None,
    threads: ThreadsOption = None,
    max_queue: MaxQueueOption = None,
    subnets: SubnetsOption = None,
    log_format: LogFormatOption = None,
    record: RecordOption = None,
    config: ConfigOption = None,
    settings: SettingsOption = None,
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
