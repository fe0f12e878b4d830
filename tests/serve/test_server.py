"""A real `supernet serve --no-ray` process: start, ask, replay, interrupt."""

from __future__ import annotations

import concurrent.futures
import json
import logging
import logging.handlers
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
from typer.testing import CliRunner

from serve.cli import build_app
from serve.hosts.uvicorn_listener import uvicorn_config
from slackfit.policies import create_policy
from slackfit.profile import LatencyProfile
from slackfit.scheduling.record import replay_log
from slackfit.scheduling.scheduler import Scheduler

BODY = {"inputs": [{"name": "input", "datatype": "UINT8", "shape": [1, 1, 2, 2], "data": [0] * 4}]}


def test_server_answers_records_replays_and_ends_on_interrupt(
    running, profile_file: Path, tmp_path: Path
):
    log, out = tmp_path / "log.jsonl", tmp_path / "out"
    with running(profile_file, "--no-ray", "--record", str(log), "--slo-ms", "200") as server:
        answer = httpx.post(f"{server.url}/v2/models/tiny/infer", json=BODY).json()
        assert answer["parameters"]["status"] == "on_time"
        words = ["replay", "--trace", "poisson:rate=60,duration=1", "--url", server.url,
                 "--slo-ms", "200", "--out", str(out)]  # fmt: skip
        replayed = CliRunner().invoke(build_app(words), words)
        assert replayed.exit_code == 0, replayed.output
        assert "met %" in replayed.stdout
        assert server.interrupt() in (0, 130)
        host, port = server.url.removeprefix("http://").split(":")
        with socket.socket() as probe:
            assert probe.connect_ex((host, int(port))) != 0
    (report,) = json.loads((out / "report.json").read_text())
    assert report["policy"] == "drainfit"
    assert report["profile"] == "tiny"
    assert sum(report["outcomes"].values()) == report["num_queries"] > 30
    assert report["outcomes"]["failed"] == 0
    assert (out / "report.html").read_text().startswith("<!doctype html>")
    profile = LatencyProfile.load(profile_file)
    policy = create_policy("drainfit", profile)
    settings = {"drop_hopeless": True, "correct_latency": True, "triage": True}
    fresh = Scheduler(profile, policy, max_queue=1000, **settings)
    assert replay_log(log, fresh) > 60


def test_interrupted_replay_leaves_a_valid_partial_report(
    running, profile_file: Path, tmp_path: Path
):
    with running(profile_file, "--no-ray") as server:
        replaying = subprocess.Popen(
            [sys.executable, "-m", "serve", "replay", "--trace", "poisson:rate=20,duration=600",
             "--url", server.url, "--slo-ms", "200", "--out", str(tmp_path)],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        try:
            wait_for_queries(server.url)
            replaying.send_signal(signal.SIGINT)
            output, _ = replaying.communicate(timeout=120)  # drawing takes seconds of processor
        finally:
            replaying.kill()
            replaying.communicate(timeout=10)
    assert replaying.returncode == 130
    (report,) = json.loads((tmp_path / "report.json").read_text())
    assert report["is_partial"]
    assert 0 < report["num_queries"] < 12000
    assert "drainfit" in output


def wait_for_queries(url: str) -> None:
    with httpx.Client() as client:
        for _ in range(200):
            ended = client.get(f"{url}/admin/config", timeout=5).json()["tiny"]["ended"]
            if ended.get("on_time", 0) > 3:
                return
            time.sleep(0.05)
    pytest.fail("the replay sent nothing")


@pytest.mark.alone
def test_interrupt_lets_queued_queries_finish(running, tmp_path: Path, slow_profile_file: Path):
    with running(slow_profile_file, "--no-ray", "--slo-ms", "5000") as server:
        url = f"{server.url}/v2/models/tiny/infer"
        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            asks = [pool.submit(httpx.post, url, json=BODY, timeout=10) for _ in range(4)]
            time.sleep(0.25)  # all are there, the first one runs
            code = server.interrupt()
            answers = [ask.result() for ask in asks]
    assert code in (0, 130)
    assert [answer.status_code for answer in answers] == [200] * 4


@pytest.fixture
def slow_profile_file(tmp_path: Path, profile_file: Path) -> Path:
    data = json.loads(profile_file.read_text())
    for subnet in data["subnets"]:
        row = subnet["latency_ms"]["p50"]
        subnet["latency_ms"]["p50"] = [200.0 * ms / row[0] for ms in row]
    path = tmp_path / "slow.json"
    path.write_text(json.dumps(data))
    return path


def test_a_listener_leaves_the_logging_of_the_process_alone(timed_door):
    """Ray asks the handlers of its replicas for their file when its controller was restarted."""
    target = logging.NullHandler()
    theirs = logging.handlers.MemoryHandler(1, target=target)
    uvicorn_config(timed_door(), None, max_connections=10)
    assert theirs.target is target
    theirs.close()


def test_port_in_use_ends_with_code_2(profile_file: Path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        done = subprocess.run(
            [sys.executable, "-m", "serve", "serve", "--no-ray", "--port", port, "--device",
             "timed", "--profile", str(profile_file)],
            capture_output=True, text=True, timeout=30, check=False,
        )  # fmt: skip
    assert done.returncode == 2
    assert f"port {port} on 127.0.0.1 is not free" in done.stderr


@pytest.mark.alone
def test_client_that_hangs_up_is_taken_out_of_the_queue(running, slow_profile_file: Path):
    body = json.dumps(BODY).encode()
    head = f"POST /v2/models/tiny/infer HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n"
    with running(slow_profile_file, "--no-ray", "--slo-ms", "5000") as server:
        host, port = server.url.removeprefix("http://").split(":")
        clients = [socket.create_connection((host, int(port))) for _ in range(3)]
        for client in clients:
            client.sendall(head.encode() + body)
            time.sleep(0.05)  # in order: the first one runs
        for client in clients[1:]:
            client.close()
        assert clients[0].recv(100).startswith(b"HTTP/1.1 200")
        clients[0].close()
        ended = httpx.get(f"{server.url}/admin/config").json()["tiny"]["ended"]
        assert ended == {"on_time": 1, "dropped": 2}


def test_a_unix_socket_is_an_address_of_both_doors(running, profile_file: Path, tmp_path: Path):
    import grpc

    from serve.proto import open_inference_pb2 as pb
    from serve.proto import open_inference_pb2_grpc as pb_grpc

    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))  # by a server that is no more
    with running(profile_file, "--no-ray", "--host", f"unix:{path}") as server:
        assert server.url == f"http://unix:{path}"
        transport = httpx.HTTPTransport(uds=str(path))
        with httpx.Client(transport=transport, base_url="http://localhost") as client:
            assert client.post("/v2/models/tiny/infer", json=BODY).status_code == 200
            assert client.post("/admin/config", json={"slo_ms": 70}).status_code == 200
        with grpc.insecure_channel(server.rpc_address) as channel:
            stub = pb_grpc.GRPCInferenceServiceStub(channel)
            assert stub.ServerReady(pb.ServerReadyRequest(), timeout=5).ready
            status = pb.SystemSharedMemoryStatusRequest()
            assert not stub.SystemSharedMemoryStatus(status, timeout=5).regions
        second = subprocess.run(
            [sys.executable, "-m", "serve", "serve", "--no-ray", "--device", "timed", "--profile",
             str(profile_file), "--host", f"unix:{path}"],
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert second.returncode == 2
        assert "can't be bound (Address already in use)" in second.stderr
        assert server.interrupt() in (0, 130)
    assert not path.exists()


def test_an_address_of_ipv6_is_printed_so_that_it_can_be_pasted(running, profile_file: Path):
    with running(profile_file, "--no-ray", "--host", "::1") as server:
        assert server.url.startswith("http://[::1]:")
        assert server.rpc_url.startswith("grpc://[::1]:")
        assert httpx.get(f"{server.url}/v2/health/live").status_code == 200


def test_an_idle_connection_is_kept_for_as_long_as_is_set(running, profile_file: Path):
    with running(profile_file, "--no-ray", "--set", "keep_alive_s=0.4") as server:
        host, port = server.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=5) as sock:
            sock.sendall(b"GET /v2/health/live HTTP/1.1\r\nhost: x\r\n\r\n")
            start_s = time.monotonic()
            while sock.recv(4096):
                pass
            assert 0.3 < time.monotonic() - start_s < 3
