"""Servers of one choice at a time: ours by a policy, and others' batching around one network.

Each is up for the length of a `with` block, which yields a `Use`: with it, what is served is chosen
for the length of another block, which yields the URL to send to.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile

import httpx

from serve.bench.serving.cluster import running
from serve.bench.serving.peers import LoadPoint
from serve.bench.serving.server_process import server_process
from serve.bench.serving.setting import Setting

Use = Callable[[str, LoadPoint], AbstractContextManager[str]]
"""`with use(subnet_id, point) as url`: that network is served, batched so."""

Batcher = Callable[[Setting, Sequence[str]], AbstractContextManager[Use]]
"""`with batcher(setting, subnet_ids) as use`: a server that may be asked for any of the subnets."""

LITSERVE_PYTHON = Path(".venv-litserve/bin/python")
_READY_S = 120.0
_POLL_S = 0.1
_STOP_S = 10.0


class MissingPeerError(RuntimeError):
    """A peer is not installed here; the text says how to install it."""


@contextlib.contextmanager
def own_door(setting: Setting) -> Iterator[Callable[[str], str]]:
    """Run a server of ours; what is yielded has it decide by a policy and returns its URL."""
    with server_process(setting.config(policy="slackfit")) as server:

        def use(policy: str) -> str:
            answer = httpx.post(f"{server.url}/admin/config", json={"policy": policy})
            answer.raise_for_status()
            return server.url

        yield use


@contextlib.contextmanager
def ray_batching(setting: Setting, subnet_ids: Sequence[str]) -> Iterator[Use]:
    """Run Ray Serve's `@serve.batch` around one network at a time (`ray_peer.py`).

    Ours is up on the same cluster with one subnet, and idle, as in part `peers`.
    """
    config = setting.config(subnets=subnet_ids[:1])
    with running(config, setting.profile.max_batch_size, subnet_ids) as cluster:

        @contextlib.contextmanager
        def use(subnet_id: str, point: LoadPoint) -> Iterator[str]:
            cluster.tune((subnet_id, False, *point))
            yield cluster.peer_url

        yield use


@contextlib.contextmanager
def litserve_batching(setting: Setting, subnet_ids: Sequence[str]) -> Iterator[Use]:
    """Run LitServe around one exported network at a time (`litserve_server.py`).

    It is started anew for each, since its batching is set at the start. Raises MissingPeerError
    where its environment is not installed.
    """
    if not LITSERVE_PYTHON.exists():
        raise MissingPeerError(f"{LITSERVE_PYTHON} is not there: `make litserve` installs it")
    with TemporaryDirectory() as folder:
        paths = {i: Path(folder) / f"{i}.onnx" for i in subnet_ids}
        write_graphs(setting.checkpoint, paths)

        @contextlib.contextmanager
        def use(subnet_id: str, point: LoadPoint) -> Iterator[str]:
            about = {
                "model": setting.load.model,
                "subnet": subnet_id,
                "accuracy": setting.profile.accuracy(subnet_id),
                "shape": setting.input_shape,
            }
            order = {"graph": str(paths[subnet_id]), "threads": setting.threads, **about}
            with _litserve_process({**order, **point._asdict()}) as url:
                yield url

        yield use


def write_graphs(checkpoint: Path, paths: dict[str, Path]) -> None:
    """Write subnets by id as ONNX files: uint8 samples in, normalisation inside, logits out."""
    import onnx

    from subnetact.cpu.activation_ranges import ranges_from_tensors
    from subnetact.cpu.subnet_sessions import SubnetSessions
    from supernet import load_checkpoint
    from supernet.served_form import ServedForm

    loaded = load_checkpoint(checkpoint)
    ranges = {i: ranges_from_tensors(t) for i, t in loaded.activation_ranges.items()}
    sessions = SubnetSessions(loaded, ranges=ranges)
    for subnet_id, path in paths.items():
        onnx.save(sessions.graph(ServedForm.parse(subnet_id)), path)


@contextlib.contextmanager
def _litserve_process(order: dict[str, object]) -> Iterator[str]:
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as found:
        port = found.getsockname()[1]
    command = [
        str(LITSERVE_PYTHON), "-m", "serve.bench.static.litserve_server",
        json.dumps({**order, "port": port}),
    ]  # fmt: skip
    # Its workers are processes of a group of their own, so that all of them end with it.
    with TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            command,
            stdout=subprocess.DEVNULL,
            stderr=errors,
            start_new_session=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        try:
            url = f"http://127.0.0.1:{port}"
            if not _is_ready(process, f"{url}/health"):
                errors.seek(0)
                raise RuntimeError(f"LitServe did not come up: {errors.read().strip()}")
            yield url
        finally:
            _end(process)


def _is_ready(process: subprocess.Popen[bytes], url: str) -> bool:
    """Wait until the server says so; False when it has ended, or is not after two minutes."""
    give_up_s = time.monotonic() + _READY_S
    while process.poll() is None and time.monotonic() < give_up_s:
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(url, timeout=5.0).status_code == 200:
                return True
        time.sleep(_POLL_S)
    return False


def _end(process: subprocess.Popen[bytes]) -> None:
    for number in (signal.SIGINT, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_STOP_S)
