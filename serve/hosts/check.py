"""`check`: refuses settings that can't be served, without touching the device."""

from __future__ import annotations

import time

from serve.access.build_guard import build_guard
from serve.access.guard import UNIX
from serve.config import ServeConfig, ServeConfigError
from serve.hosts.load_decoder import check_decoder, serves_streams
from serve.hosts.load_device import check_model
from serve.hosts.several_models import each_model


def check(config: ServeConfig) -> None:
    """Raise what loading `config` on Ray would raise.

    For a driver that loads in another process and wants its errors here.
    """
    if config.host.startswith(UNIX):
        raise ServeConfigError(f"host {config.host}: on Ray an address is needed, or give --no-ray")
    build_guard(config, time.monotonic)
    for own in each_model(config):
        if serves_streams(own):
            if config.autoscaling is not None:
                text = "autoscaling goes by queries that end at once, and knows no streams yet"
                raise ServeConfigError(f"{text}: give replicas")
            check_decoder(own)
        else:
            check_model(own)
