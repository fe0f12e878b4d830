"""`doors: 2`: two processes in front of the engine's; everything means what it means with one."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from serve.client import AsyncClient, Client
from serve.config import ServeConfigError, parse_config

pytestmark = pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="two doors take two cores")

BODY = {
    "inputs": [{"name": "input", "datatype": "UINT8", "shape": [1, 1, 2, 2], "data": [7, 0, 0, 0]}]
}
INFER = "/v2/models/tiny/infer"
SAMPLE = np.zeros((1, 1, 2, 2), dtype=np.uint8)


@pytest.fixture(scope="module")
def server(running, profile, tmp_path_factory) -> Iterator[Any]:
    path = tmp_path_factory.mktemp("doors") / "profile.json"
    profile.save(path)
    with running(path, "--no-ray", "--set", "doors=2", "--slo-ms", "20000") as process:
        yield process


def door_of(answer: httpx.Response) -> str:
    """Return what a door's own request ids begin with."""
    return answer.headers["x-request-id"].partition("-")[0]


def at_each_door(url: str, ask: Callable[[httpx.Client], httpx.Response]) -> dict[str, Any]:
    """Return what each door answers; a new connection goes to either."""
    found: dict[str, Any] = {}
    for _ in range(64):
        with httpx.Client(base_url=url, timeout=20) as client:
            answer = ask(client)
            found[door_of(answer)] = answer
        if len(found) == 2:
            return found
    pytest.fail("64 connections went to one door")


def pids(server: Any) -> list[int]:
    """Return the processes of the doors."""
    task = Path(f"/proc/{server.process.pid}/task")
    return [int(pid) for each in task.iterdir() for pid in (each / "children").read_text().split()]


def counted(url: str, name: str) -> float:
    lines = httpx.get(f"{url}/metrics").text.splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(f"{name}{{"))


def test_both_doors_answer_the_same_and_are_counted_together(server):
    before = counted(server.url, "supernet_queries_total")
    refused = counted(server.url, "supernet_refused_requests_total")
    asked = 0

    def ask(client: httpx.Client) -> httpx.Response:
        nonlocal asked
        asked += 1
        assert client.post("/v2/models/nobody/infer", json=BODY).status_code == 404
        return client.post(INFER, json=BODY)

    for answer in at_each_door(server.url, ask).values():
        (output,) = answer.json()["outputs"]
        assert output["data"].index(1.0) == 7
        assert answer.json()["parameters"]["policy"] == "drainfit"
    assert counted(server.url, "supernet_queries_total") == before + asked
    assert counted(server.url, "supernet_refused_requests_total") == refused + asked
    rows = httpx.get(f"{server.url}/v2/models/tiny/stats").json()["model_stats"]
    assert sum(row["inference_count"] for row in rows) == before + asked
    for text in ("supernet_loop_lag_seconds ", "supernet_inflight_bytes "):
        assert text in httpx.get(f"{server.url}/metrics").text


@pytest.mark.parametrize("kind", ["url", "rpc_url"])
def test_both_protocols_are_served_by_both_clients(server, kind: str):
    url = getattr(server, kind)
    with Client(url, "tiny") as client:
        assert client.is_ready()
        assert client.model_info().name == "tiny"
        assert client.statistics()
        assert client.infer(np.repeat(SAMPLE, 4, axis=0)).logits.shape == (4, 10)

    async def main() -> Counter[int]:
        async with AsyncClient(url, "tiny") as client:
            samples = [SAMPLE + np.uint8(i % 2) for i in range(100)]
            results = await asyncio.gather(*(client.infer(sample) for sample in samples))
            return Counter(int(result.labels[0]) for result in results)

    assert asyncio.run(main()) == {0: 50, 4: 50}


def test_a_change_of_settings_is_in_force_at_every_door_when_it_is_answered(server):
    try:
        for slo_ms in (70.0, 90.0, 20_000.0):
            httpx.post(f"{server.url}/admin/config", json={"slo_ms": slo_ms}).raise_for_status()
            found = at_each_door(server.url, lambda client: client.get("/v2/models/tiny"))
            told = [answer.json()["parameters"]["settings"]["slo_ms"] for answer in found.values()]
            assert told == [slo_ms, slo_ms]
        answer = httpx.post(f"{server.url}/admin/config", json={"subnets": ["small"]})
        assert answer.json()["tiny"]["subnets"] == ["small"]
        pinned = "/v2/models/tiny/versions/large/infer"
        found = at_each_door(server.url, lambda client: client.post(pinned, json=BODY))
        assert [answer.status_code for answer in found.values()] == [404, 404]
    finally:
        httpx.post(f"{server.url}/admin/config", json={"subnets": []})
    for wrong in ({"slo_ms": -1}, {"model": []}, 3, "x"):
        answer = httpx.post(f"{server.url}/admin/config", json=wrong)
        assert (answer.status_code, answer.json()["reason"]) == (400, "bad_request")


def test_shared_memory_that_one_door_registers_is_known_at_both(server):
    path = Path("/dev/shm") / f"supernet_test_{os.getpid()}"
    path.write_bytes(bytes([3, 0, 0, 0]))
    tensor = {**BODY["inputs"][0], "parameters": {
        "shared_memory_region": "r", "shared_memory_byte_size": 4,
    }}  # fmt: skip
    del tensor["data"]
    region = f"{server.url}/v2/systemsharedmemory/region/r"
    try:
        asked = {"key": f"/{path.name}", "offset": 0, "byte_size": 4}
        assert httpx.post(f"{region}/register", json=asked).status_code == 200
        assert httpx.post(f"{region}/register", json=asked).status_code == 400, "it is there"
        body = {"inputs": [tensor]}
        for answer in at_each_door(server.url, lambda c: c.post(INFER, json=body)).values():
            assert answer.json()["outputs"][0]["data"].index(1.0) == 3
        assert httpx.post(f"{region}/unregister").status_code == 200
        found = at_each_door(server.url, lambda c: c.post(INFER, json=body))
        assert [answer.status_code for answer in found.values()] == [400, 400]
    finally:
        path.unlink()


def test_a_door_that_is_killed_is_started_again_and_leaves_nothing(server):
    """Its queries end, the other door's go on; the memory of neither has a name."""
    before = sorted(pids(server))
    assert len(before) == 2
    ends: Counter[str] = Counter()
    is_over = threading.Event()

    def ask() -> None:
        while not is_over.is_set():
            try:
                with httpx.Client(base_url=server.url, timeout=20) as client:
                    ends[str(client.post(INFER, json=BODY).status_code)] += 1
            except httpx.HTTPError as error:
                ends[type(error).__name__] += 1

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    time.sleep(0.2)
    os.kill(before[0], signal.SIGKILL)
    end_s = time.monotonic() + 30
    while len(pids(server)) < 2 or pids(server) == before:
        assert time.monotonic() < end_s, "it was not started again"
        time.sleep(0.05)
    at_each_door(server.url, lambda client: client.get("/v2/health/ready"))
    is_over.set()
    for thread in threads:
        thread.join()
    assert ends.pop("200") > 10
    assert sum(ends.values()) <= 16, f"only what the dead door held: {ends}"
    assert before[1] in pids(server)
    assert "ended with code -9; it is started again" in server.logged()
    status = httpx.get(f"{server.url}/admin/config").json()["tiny"]
    assert (status["queue_depth"], status["fault"]) == (0, "")
    assert not list(Path("/dev/shm").glob("supernet-*"))


def test_a_client_that_hangs_up_is_taken_out_of_the_queue(running, slow_profile_file: Path):
    body = json.dumps(BODY).encode()
    head = f"POST {INFER} HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n".encode()
    options = ("--no-ray", "--set", "doors=2", "--slo-ms", "20000")
    with running(slow_profile_file, *options) as server:
        host, port = server.url.removeprefix("http://").split(":")
        clients = [socket.create_connection((host, int(port))) for _ in range(6)]
        for client in clients:
            client.sendall(head + body)
            time.sleep(0.05)  # in order: the first one runs
        for client in clients[1:5]:
            client.close()
        assert clients[0].recv(100).startswith(b"HTTP/1.1 200")
        time.sleep(0.1)
        threading.Timer(0.1, server.process.send_signal, (signal.SIGTERM,)).start()
        assert clients[5].recv(100).startswith(b"HTTP/1.1 200"), "a drain finishes it"
        assert server.process.wait(20) == 0
        for sock in (clients[0], clients[5]):
            sock.close()
        assert is_closed(int(port))


def is_closed(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


@pytest.fixture
def slow_profile_file(tmp_path: Path, profile_file: Path) -> Path:
    data = json.loads(profile_file.read_text())
    for subnet in data["subnets"]:
        row = subnet["latency_ms"]["p50"]
        subnet["latency_ms"]["p50"] = [500.0 * ms / row[0] for ms in row]
    path = tmp_path / "slow.json"
    path.write_text(json.dumps(data))
    return path


def test_rates_and_connections_are_those_of_the_whole_server_and_doors_end_with_it(
    running, profile_file: Path
):
    options = ("rate_limit_qps=0.01", "rate_limit_burst=10", "max_connections=8")
    sets = [word for option in options for word in ("--set", option)]
    with running(profile_file, "--no-ray", "--set", "doors=2", *sets) as server:
        doors: set[str] = set()
        ends: Counter[int] = Counter()
        for _ in range(32):
            answer = httpx.post(f"{server.url}{INFER}", json=BODY)
            ends[answer.status_code] += 1
            doors.add(door_of(answer))
        assert (len(doors), ends) == (2, {200: 10, 429: 22})
        host, port = server.url.removeprefix("http://").split(":")
        idle = [socket.create_connection((host, int(port))) for _ in range(40)]
        time.sleep(0.3)
        for sock in idle:
            sock.setblocking(False)
        assert sum(is_open(sock) for sock in idle) <= 8
        for sock in idle:
            sock.close()
        left = pids(server)
        server.process.kill()
        server.process.wait()
        end_s = time.monotonic() + 10
        while any(Path(f"/proc/{pid}/status").exists() and is_alive(pid) for pid in left):
            assert time.monotonic() < end_s, "a door outlives its engines"
            time.sleep(0.05)


def is_open(sock: socket.socket) -> bool:
    try:
        return sock.recv(1) != b""
    except BlockingIOError:
        return True
    except OSError:
        return False


def is_alive(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"doors": 0}, "doors"),
        ({"doors": 4096}, r"doors is 4096, allowed 1 to \d+: the cores"),
        ({"doors": 2, "max_inflight_bytes": 2**24}, "allowed 33554432 or more"),
        ({"doors": 2, "max_connections": 1}, "max_connections is 1, allowed 2 or more"),
        ({"doors": 2, "host": "unix:/s", "grpc_port": 0}, "give doors=1, a host, or no grpc_port"),
    ],
)
def test_what_doors_can_not_be_is_refused_with_what_they_can(settings, message):
    with pytest.raises(ServeConfigError, match=message):
        parse_config({"checkpoint": "x", **settings})


def test_a_subnet_whose_name_is_no_unicode_is_not_offered(server):
    """It was never answered, nor was what other clients had sent in the same moment."""
    content = json.dumps({**BODY, "parameters": {"subnet": "\ud800"}})
    answer = httpx.post(f"{server.url}{INFER}", content=content, timeout=10)
    assert (answer.status_code, answer.json()["reason"]) == (400, "unknown_subnet")
