"""Clients without a token that send much and slowly, to a server process, beside others that ask.

What nobody may send costs the server next to nothing; what anybody may send stays in the budget.
"""

from __future__ import annotations

import contextlib
import resource
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
import pytest

from serve.bench.mixed.hostile_clients import attacks, send_message
from serve.client import Client
from serve.proto import open_inference_pb2 as pb
from serve.proto.names import SERVICE

pytestmark = [pytest.mark.alone, pytest.mark.slow]

SECRET = "s" * 20
MIB = 2**20
CONNECTIONS = 40
ATTACKS = attacks("tiny")
SAMPLE = np.zeros((1, 1, 2, 2), dtype=np.uint8)


def resident_mib(server: Any) -> float:
    text = Path(f"/proc/{server.process.pid}/status").read_text()
    return int(text.partition("VmRSS:")[2].split()[0]) / 1024


@contextlib.contextmanager
def asking(url: str, token: str | None) -> Iterator[list[float]]:
    """Keep asking; yields the latencies in seconds."""
    latencies_s: list[float] = []
    is_over = threading.Event()

    def ask() -> None:
        with Client(url, "tiny", slo_ms=20_000, token=token) as client:
            while not is_over.wait(0.005):
                latencies_s.append(client.infer(SAMPLE).latency_s)

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield latencies_s
    finally:
        is_over.set()
        thread.join()


@pytest.fixture
def server(running, profile_file, tmp_path) -> Iterator[Any]:
    tokens = tmp_path / "tokens"
    tokens.write_text(f"alice infer {SECRET}\n")
    with running(profile_file, "--no-ray", "--set", f"tokens_file={tokens}") as process:
        yield process


@pytest.mark.parametrize("attack", [name for name in ATTACKS if "messages" not in name])
def test_clients_without_a_token_cost_64_kib_a_connection(server: Any, attack: str):
    check(server, attack, most_mib=CONNECTIONS / 16 + 8)


@pytest.mark.parametrize("attack", ["messages", "open_messages"])
def test_messages_of_clients_without_a_token_are_not_read(server: Any, attack: str):
    check(server, attack, most_mib=CONNECTIONS / 8 + 8)


def check(server: Any, attack: str, *, most_mib: float) -> None:
    with asking(server.url, SECRET) as latencies_s:
        time.sleep(2)
        quiet, before_mib = list(latencies_s), resident_mib(server)
        latencies_s.clear()
        flood = ATTACKS[attack]
        opened = [flood(server.address, server.rpc_address) for _ in range(CONNECTIONS)]
        time.sleep(1)
        grown_mib = resident_mib(server) - before_mib
        busy = list(latencies_s)
    for sock in opened:
        sock.close()
    p99_s = [float(np.quantile(values, 0.99)) for values in (quiet, busy)]
    print(f"{grown_mib:.1f} MiB more; others' p99 {p99_s[0] * 1e3:.1f} -> {p99_s[1] * 1e3:.1f} ms")
    assert grown_mib < most_mib
    assert p99_s[1] < 4 * p99_s[0] + 0.02  # twice on a quiet machine


def test_slow_messages_of_anybody_stay_within_the_budget(running, profile_file):
    options = ("--no-ray", "--set", f"max_inflight_bytes={64 * MIB}")
    with running(profile_file, *options) as server:
        channel = grpc.insecure_channel(server.rpc_address)
        infer = channel.unary_unary(
            f"/{SERVICE}/ModelInfer",
            request_serializer=pb.ModelInferRequest.SerializeToString,
            response_deserializer=pb.ModelInferResponse.FromString,
        )
        message = pb.ModelInferRequest(model_name="tiny", raw_input_contents=[bytes(4)])
        message.inputs.add(name="input", datatype="UINT8", shape=[1, 1, 2, 2])
        infer(message, timeout=10)
        before_mib = resident_mib(server)
        opened = [send_message(server.rpc_address, "ModelInfer") for _ in range(CONNECTIONS)]
        grown_mib = resident_mib(server) - before_mib
        start_s = time.monotonic()
        infer(message, timeout=10)  # the slowest makes room
        took_s = time.monotonic() - start_s
        for sock in opened:
            sock.close()
        channel.close()
    print(f"{grown_mib:.1f} MiB more, another call took {took_s * 1e3:.0f} ms")
    assert grown_mib < 64 * 1.5 + 16
    assert took_s < 1.0


def test_open_files_do_not_run_out(profile_file: Path):
    """300 idle connections against 256 files: health checks had failed."""
    code = "import resource, sys; resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256)); "
    code += "import runpy; sys.argv[0] = 'serve'; runpy.run_module('serve', run_name='__main__')"
    command = [
        sys.executable, "-c", code, "serve", "--no-ray", "--port", "0", "--device", "timed",
        "--profile", str(profile_file), "--set", "input_shape=1,2,2", "--set", "model_name=tiny",
    ]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        url = process.stdout.readline().partition("on ")[2].split()[0]
        host, port = url.removeprefix("http://").split(":")
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 4096), hard))
        idle = []
        for _ in range(400):
            idle.append(socket.create_connection((host, int(port)), timeout=5))
        codes = [httpx.get(f"{url}/v2/health/live", timeout=5).status_code for _ in range(20)]
        for sock in idle:
            sock.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert codes == [200] * 20
    finally:
        process.terminate()
        process.communicate(timeout=30)
