"""A replica on ports that others share, in a process of its own, whose device hangs on a signal.

`python -m serve.bench.mixed.shared_replica SETTINGS [SLOWER]`: a JSON file of `ServeConfig`, and
how many times slower than profiled its device is. It prints `ready`; SIGUSR1 makes its device hang,
as one does that no call of ours can end.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
import threading
import time
from pathlib import Path

from serve.config import parse_config, read_config_file
from serve.doors.body_budget import BodyBudget
from serve.doors.rest import RestDoor
from serve.doors.server import Server
from serve.hosts.assemble import build_model
from serve.hosts.listeners import Listeners
from serve.hosts.load_device import LoadedDevice
from serve.models.models import Models
from serve.observe.metrics import Metrics
from slackfit.profile import LatencyProfile
from subnetact.timed_executor import TimedExecutor
from supernet.sample import SampleSpec


async def serve_until_killed(path: Path, slower: float) -> None:
    """Serve the timed device of a settings file, `slower` times as slow as profiled."""
    config = parse_config(read_config_file(path))
    assert config.profile is not None, "the timed device has one"
    assert config.input_shape is not None, "as it has a shape"
    hangs = threading.Event()
    signal.signal(signal.SIGUSR1, lambda *_: hangs.set())

    def sleep(duration_s: float) -> None:
        time.sleep(slower * duration_s)
        while hangs.is_set():
            time.sleep(1)

    profile, metrics = LatencyProfile.load(Path(config.profile)), Metrics()
    sample = SampleSpec(shape=config.input_shape)
    executor = TimedExecutor(profile, sample, config.num_classes or 10, sleep=sleep)
    with contextlib.ExitStack() as resources:
        loaded = LoadedDevice(executor, profile, config.model_name or "model")
        models = Models([build_model(config, loaded, metrics, resources)])
        budget = BodyBudget(config.max_inflight_bytes)
        server = Server(models=models, metrics=metrics, budget=budget)
        listeners = Listeners(config, server, is_replica=True)
        door = RestDoor(server)
        async with door.running(), listeners.opened(door):
            print("ready", flush=True)
            await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(serve_until_killed(Path(sys.argv[1]), float([*sys.argv, "1"][2])))
