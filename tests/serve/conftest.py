"""Fixtures of the serving tests: a small profile, a virtual clock and device, a served model."""

from __future__ import annotations

import contextlib
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path
from typing import IO

import httpx
import numpy as np
import pytest

from serve.access.build_guard import build_guard
from serve.config import ServeConfig, parse_config
from serve.doors.rest import RestDoor
from serve.doors.server import Server as DoorServer
from serve.engine.engine import Engine
from serve.engine.reply import RequestOptions
from serve.hosts.assemble import build_model
from serve.hosts.load_device import LoadedDevice
from serve.models.models import Models
from serve.observe.metrics import Metrics
from slackfit.policies import create_policy
from slackfit.profile import LatencyProfile, SubnetProfile
from slackfit.scheduling.scheduler import Scheduler
from subnetact.timed_executor import TimedExecutor, TimedLaunched
from supernet.sample import SampleSpec

SHAPE = (1, 2, 2)
collect_ignore = [  # run elsewhere
    "doors/triton_session.py", "doors/triton_text_session.py", "doors/triton_extensions_session.py",
    "openai/openai_session.py",
]  # fmt: skip


@pytest.fixture(autouse=True)
def _no_ray_unless_marked(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cluster started by accident outlives the test: without the mark there is no ray at all."""
    if request.node.get_closest_marker("ray") is None:
        monkeypatch.setitem(sys.modules, "ray", None)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def make_profile(scale_s: float = 1e-3) -> LatencyProfile:
    """Three subnets; `scale_s` is the latency of the fastest one at batch 1."""
    rows = {"small": (0.7, 1.0), "middle": (0.8, 2.0), "large": (0.9, 4.0)}
    return LatencyProfile(
        name="tiny",
        device="nowhere",
        dtype="float32",
        batch_sizes=(1, 2, 4),
        subnets=tuple(
            SubnetProfile(
                subnet_id=subnet_id,
                accuracy=accuracy,
                macs=0,
                latency_s={"p50": tuple(scale_s * cost * f for f in (1.0, 1.5, 2.5))},
            )
            for subnet_id, (accuracy, cost) in rows.items()
        ),
    )


@pytest.fixture(scope="session")
def profile() -> LatencyProfile:
    return make_profile()


class VirtualClock:
    """A clock that a test moves by hand."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


class VirtualDevice(TimedExecutor):
    """Occupies virtual time; while it is busy, `meanwhile(until_s)` lets the world go on."""

    def __init__(self, profile: LatencyProfile, clock: VirtualClock) -> None:
        super().__init__(profile, SampleSpec(shape=SHAPE), 10, clock=clock, sleep=self._pass)
        self._virtual = clock
        self.meanwhile: Callable[[float], None] = lambda until_s: None
        self.fail_next: Exception | None = None

    def result(self, launched: TimedLaunched) -> np.ndarray:
        logits = super().result(launched)
        if self.fail_next is not None:
            error, self.fail_next = self.fail_next, None
            raise error
        return logits

    def _pass(self, duration_s: float) -> None:
        finish_s = self._virtual.now_s + duration_s
        self.meanwhile(finish_s)
        self._virtual.now_s = finish_s


class Bench:
    """An engine on a virtual device, driven by hand."""

    def __init__(self, profile: LatencyProfile, policy_name: str = "slackfit", **options: object):
        self.clock = VirtualClock()
        self.device = VirtualDevice(profile, self.clock)
        policy = create_policy(policy_name, profile)
        self.drive(Scheduler(profile, policy, **options))  # type: ignore[arg-type]

    def drive(self, scheduler: Scheduler) -> Engine:
        """Return an engine around another scheduler (one that records, say)."""
        self.scheduler = scheduler
        self.engine = Engine(scheduler, self.device, clock=self.clock)
        self.engine._state = "ready"  # without a device thread: the test drives `step` itself
        return self.engine

    def submit(
        self, slo_s: float = 1.0, count: int = 1, first_bytes: Sequence[int] = (), **wishes: object
    ) -> list:
        """Submit a request now; the returned list is filled with its job when that is done."""
        done: list = []
        samples = np.zeros((count, *SHAPE), dtype=np.uint8)
        samples[: len(first_bytes), 0, 0, 0] = first_bytes[:count]
        now_s = self.clock()
        options = RequestOptions(now_s + slo_s, **wishes)  # type: ignore[arg-type]
        job = self.engine.submit(samples, arrival_s=now_s, options=options, on_done=done.append)
        self.last_job = job
        return done


@pytest.fixture(scope="session")
def make_bench() -> type[Bench]:
    return Bench


@pytest.fixture
def profile_file(tmp_path: Path) -> Path:
    path = tmp_path / "profile.json"
    make_profile().save(path)
    return path


@pytest.fixture
def timed_config(profile_file: Path) -> ServeConfig:
    return parse_config(
        {
            "policy": "slackfit",  # a first query on an idle server gets the largest subnet
            "device": "timed",
            "profile": str(profile_file),
            "input_shape": SHAPE,
            "num_classes": 10,
            "model_name": "tiny",
            "max_body_bytes": 4096,
            "port": 0,
        }
    )


def make_door(config: ServeConfig, profile: LatencyProfile) -> RestDoor:
    executor = TimedExecutor(profile, SampleSpec(shape=SHAPE), 10)
    metrics = Metrics()
    loaded = LoadedDevice(executor, profile, "tiny")
    resources = contextlib.ExitStack()  # closes what the door decodes with: it lives as long
    model = build_model(config, loaded, metrics, resources)
    return RestDoor(
        DoorServer(
            models=Models([model]),
            metrics=metrics,
            max_body_bytes=config.max_body_bytes,
            guard=build_guard(config, time.monotonic),
            drain_timeout_s=1.0,
        )
    )


@contextlib.asynccontextmanager
async def serving(door: RestDoor) -> AsyncIterator[httpx.AsyncClient]:
    """Run the door's lifespan and yield a client of it, in this process."""
    transport = httpx.ASGITransport(door)
    client = httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1")
    async with door._lifespan(door._app), client:
        yield client


@pytest.fixture
def timed_door(timed_config: ServeConfig) -> Callable[..., RestDoor]:
    """`timed_door(**settings)` is a door to the tiny profile, not yet started."""

    def make(scale_s: float = 1e-3, **settings: object) -> RestDoor:
        return make_door(timed_config.model_copy(update=settings), make_profile(scale_s))

    return make


@pytest.fixture(scope="session")
def serving_door() -> Callable[
    [RestDoor], contextlib.AbstractAsyncContextManager[httpx.AsyncClient]
]:
    """`serving_door(door)` is a context that runs a door and yields a client of it."""
    return serving


@pytest.fixture
def serve_timed(
    timed_door: Callable[..., RestDoor],
) -> Callable[..., contextlib.AbstractAsyncContextManager[httpx.AsyncClient]]:
    """`serve_timed(**settings)` is a context that serves the tiny profile and yields a client."""

    def start(**settings: object) -> contextlib.AbstractAsyncContextManager[httpx.AsyncClient]:
        return serving(timed_door(**settings))

    return start


def free_port() -> int:
    """A port of this machine that nobody listens at."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


class Server:
    """A `supernet serve` process on the timed device and free ports."""

    def __init__(
        self, process: subprocess.Popen[str], url: str, rpc_url: str, log: IO[str]
    ) -> None:
        self.process = process
        self.url = url
        self.rpc_url = rpc_url
        self._log = log

    def logged(self) -> str:
        """Return what it has written to stderr."""
        self._log.seek(0)
        return self._log.read()

    @property
    def address(self) -> str:
        """Its `host:port` for HTTP."""
        return self.url.removeprefix("http://")

    @property
    def rpc_address(self) -> str:
        """Its `host:port` for gRPC."""
        return self.rpc_url.removeprefix("grpc://")

    def interrupt(self) -> int:
        """Ask it to drain and end; return its code."""
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(timeout=20)


def run_server(profile_file: Path, *options: str) -> contextlib.AbstractContextManager[Server]:
    """Run a server process on the profile of a file, with more options of `supernet serve`."""
    return run_any_server(
        "--device", "timed", "--profile", str(profile_file), "--set", "input_shape=1,2,2",
        "--set", "model_name=tiny", *options,
    )  # fmt: skip


@contextlib.contextmanager
def run_any_server(*options: str) -> Iterator[Server]:
    """Run a server process on free ports with options of `supernet serve`."""
    command = [
        sys.executable, "-m", "serve", "serve", "--port", "0", "--grpc-port", "0", *options,
    ]  # fmt: skip
    # Not a pipe: one that nobody reads stops the server when it is full.
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            found = re.search(r"(http://\S+) and (grpc://\S+)", line)
            log.seek(0)
            assert found, f"not ready: {line!r} {log.read()}"
            yield Server(process, *found.groups(), log)
        finally:
            process.terminate()
            try:
                process.communicate(timeout=60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.communicate(timeout=10)


@pytest.fixture(scope="session")
def running() -> Callable[..., contextlib.AbstractContextManager[Server]]:
    """`running(profile_file, *options)` is a context with a server process."""
    return run_server


@pytest.fixture(scope="session")
def running_any() -> Callable[..., contextlib.AbstractContextManager[Server]]:
    """`running_any(*options)` is a context with a server process on whatever the options say."""
    return run_any_server


@pytest.fixture(scope="session")
def wire_python() -> str:
    """The interpreter of `.venv-wire`: tritonclient and the proto compiler run on protobuf 6."""
    path = Path(".venv-wire/bin/python")
    if not path.exists():
        pytest.skip(f"{path} is not there: `make test` installs it")
    return str(path)
