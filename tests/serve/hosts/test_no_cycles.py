"""What was answered is freed at once: requests hold tensors, and Python seldom looks for cycles."""

from __future__ import annotations

import ast
import contextlib
import io
import json
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import httpx
import numpy as np
import pytest
from PIL import Image

from serve.proto import open_inference_pb2 as pb
from serve.proto.names import SERVICE

URL = "/v2/models/tiny/infer"
TENSOR = {"name": "input", "datatype": "UINT8", "shape": [1, 1, 2, 2]}
SERVER = """
import contextlib, gc, runpy
from collections import Counter
from serve.hosts import uvicorn_host

@contextlib.contextmanager
def counting():
    gc.collect()
    gc.disable()
    yield
    gc.set_debug(gc.DEBUG_SAVEALL)
    gc.collect()
    counts = Counter(type(found).__name__ for found in gc.garbage)
    bodies = [getattr(found, "body", None) for found in gc.garbage]
    counts["bytes of bodies"] = sum(len(body) for body in bodies if type(body) is bytearray)
    print("garbage:", dict(counts), flush=True)

uvicorn_host.tuned_process = counting
runpy.run_module("serve", run_name="__main__")
"""
TIMES = 40
HOLDERS = ("InferRequest", "Job", "HttpCall", "Call", "OpenRequest", "bytes of bodies", "frame")


class Counted:
    """A server that looks for cycles when it ends, and not before."""

    def __init__(self, *options: str) -> None:
        command = [sys.executable, "-c", SERVER, "serve", "--no-ray", "--port", "0"]
        self.process = subprocess.Popen(
            [*command, "--grpc-port", "0", *options], stdout=subprocess.PIPE, text=True
        )
        assert self.process.stdout is not None
        urls = re.search(r"http://(\S+)(?: and grpc://(\S+))?", self.process.stdout.readline())
        assert urls, "not ready"
        self.address, self.rpc_address = urls.groups()

    def garbage(self) -> dict[str, int]:
        """End it, and return how many objects of each type nobody could reach."""
        self.process.send_signal(signal.SIGINT)
        told, _ = self.process.communicate(timeout=30)
        return ast.literal_eval(told.split("garbage:")[1].strip())


@contextlib.contextmanager
def counted(*options: str) -> Iterator[Counted]:
    server = Counted(*options)
    try:
        yield server
    finally:
        server.process.kill()
        server.process.communicate(timeout=10)


def png() -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.full((2, 2), 7, dtype=np.uint8)).save(file, "PNG")
    return file.getvalue()


def over_http(server: Counted) -> None:
    head = json.dumps({"inputs": [{**TENSOR, "parameters": {"binary_data_size": 4}}]}).encode()
    length = {"inference-header-content-length": str(len(head))}
    plain = json.dumps({"inputs": [{**TENSOR, "data": [7, 0, 0, 0]}]}).encode()
    with httpx.Client(base_url=f"http://{server.address}") as client:
        for _ in range(TIMES):
            assert client.post(URL, content=head + b"\7" * 4, headers=length).is_success
            assert client.post(URL, content=plain).is_success
            assert client.post(URL, content=plain + b" " * 20_000).is_success
            hard = {"x-request-timeout-seconds": "20"}
            assert client.post(URL, content=plain, headers=hard).is_success
            assert client.post(URL, content=png(), headers={"content-type": "image/png"})
            assert client.post(URL, content=b"{").status_code == 400
            assert client.post(URL, content=plain, headers={"x-slo-ms": "0.01"}).is_error


def in_shared_memory(server: Counted) -> None:
    shared = {"shared_memory_region": "mine", "shared_memory_byte_size": 4}
    told = json.dumps({"inputs": [{**TENSOR, "parameters": shared}]}).encode()
    region = Path("/dev/shm/supernet_test_no_cycles")
    region.write_bytes(bytes(4))
    try:
        with httpx.Client(base_url=f"http://{server.address}") as client:
            register = {"key": f"/{region.name}", "offset": 0, "byte_size": 4}
            client.post("/v2/systemsharedmemory/region/mine/register", json=register)
            for _ in range(TIMES):
                assert client.post(URL, content=told).is_success
    finally:
        region.unlink()


def over_grpc(server: Counted) -> None:
    asked = pb.ModelInferRequest(model_name="tiny", raw_input_contents=[bytes(4)])
    asked.inputs.add(name="input", datatype="UINT8", shape=[1, 1, 2, 2])
    with grpc.insecure_channel(server.rpc_address) as channel:
        infer = channel.unary_unary(
            f"/{SERVICE}/ModelInfer", request_serializer=pb.ModelInferRequest.SerializeToString
        )
        for _ in range(TIMES):
            infer(asked)
        asked.model_name = "nobody"
        for _ in range(TIMES):
            with pytest.raises(grpc.RpcError):
                infer(asked)


def gone_before_the_answer(server: Counted) -> None:
    host, port = server.address.split(":")
    body = json.dumps({"inputs": [{**TENSOR, "data": [7, 0, 0, 0]}]}).encode()
    head = f"POST {URL} HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n".encode()
    for _ in range(TIMES):
        with socket.create_connection((host, int(port))) as sock:
            sock.sendall(head + body)


@pytest.mark.parametrize("asked", [over_http, in_shared_memory, over_grpc, gone_before_the_answer])
def test_requests_leave_no_cycles(profile_file: Path, asked: Callable[[Counted], None]) -> None:
    timed = ("--device", "timed", "--profile", str(profile_file))
    with counted(*timed, "--set", "input_shape=1,2,2", "--set", "model_name=tiny") as server:
        asked(server)
        found = server.garbage()
    assert {name: found[name] for name in HOLDERS if found.get(name, 0) > 2} == {}, found
