"""A request that comes whole is answered without a task: the same answer as with one."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import socket
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

URL = "/v2/models/tiny/infer"
TENSOR = {"name": "input", "datatype": "UINT8", "shape": [1, 1, 2, 2]}
HEAD = json.dumps(
    {
        "inputs": [{**TENSOR, "parameters": {"binary_data_size": 4}}],
        "parameters": {"binary_data_output": True},
    }
).encode()
BINARY = {"inference-header-content-length": str(len(HEAD))}


def png() -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.full((2, 2), 7, dtype=np.uint8)).save(file, "PNG")
    return file.getvalue()


def plain(**fields: Any) -> bytes:
    return json.dumps({"inputs": [{**TENSOR, "data": [7, 0, 0, 0]}], **fields}).encode()


REQUESTS: dict[str, tuple[str, dict[str, str], bytes]] = {
    "JSON": (URL, {}, plain(id="mine")),
    "binary": (URL, BINARY, HEAD + bytes([7, 0, 0, 0])),
    "an image": (URL, {"content-type": "image/png"}, png()),
    "long JSON": (URL, {}, plain() + b" " * 20_000),
    "a pinned version": ("/v2/models/tiny/versions/small/infer", {}, plain()),
    "no such version": ("/v2/models/tiny/versions/huge/infer", {}, plain()),
    "no such model": ("/v2/models/nobody/infer", {}, plain()),
    "no JSON": (URL, {}, b"{"),
    "a wrong shape": (URL, {}, plain(inputs=[{**TENSOR, "shape": [1], "data": [1]}])),
    "too large": (URL, {}, plain() + b" " * 70_000),
    "packed": (URL, {"content-encoding": "gzip"}, plain()),
    "a wrong binary header": (URL, {"inference-header-content-length": "x"}, plain()),
    "no time": (URL, {"x-slo-ms": "0.01"}, plain()),
    "a hard limit": (URL, {"x-request-timeout-seconds": "0.0001"}, plain()),
    "a wish out of reach": (URL, {}, plain(parameters={"min_accuracy": 0.99})),
}
OURS = {"max_body_bytes": 65_536, "slo_ms": 20_000.0}


@pytest.fixture(scope="module")
def server(running, profile, tmp_path_factory) -> Iterator[Any]:
    path = tmp_path_factory.mktemp("at_once") / "profile.json"
    profile.save(path)
    sets = [word for key, value in OURS.items() for word in ("--set", f"{key}={value}")]
    with running(path, "--no-ray", "--policy", "slackfit", *sets) as process:
        yield process


def seen(answer: httpx.Response) -> tuple[Any, ...]:
    """Return what does not differ from time to time."""
    headers = {name: answer.headers.get(name) for name in ("content-type", "connection")}
    length = answer.headers.get("inference-header-content-length")
    text = answer.content[: int(length)] if length else answer.content
    fields = json.loads(text)
    kept = ("reason", "status", "id", "model_version", "outputs")
    return answer.status_code, headers, [fields.get(name) for name in kept], bool(length)


@pytest.mark.parametrize("case", REQUESTS)
def test_an_answer_at_once_is_that_of_a_task(server, serve_timed, case: str):
    path, headers, content = REQUESTS[case]
    with httpx.Client(base_url=server.url) as client:  # the listener of ours
        at_once = seen(client.post(path, headers=headers, content=content))

    async def by_a_task() -> tuple[Any, ...]:
        async with serve_timed(**OURS) as client:  # no listener: the app alone
            return seen(await client.post(path, headers=headers, content=content))

    assert at_once == asyncio.run(by_a_task())


def request(version: str = "1.1", **headers: str) -> bytes:
    lines = [f"{name}: {value}\r\n" for name, value in headers.items()]
    body = plain()
    head = f"POST {URL} HTTP/{version}\r\nhost: x\r\ncontent-length: {len(body)}\r\n"
    return head.encode() + "".join(lines).encode() + b"\r\n" + body


def statuses(server: Any, *pieces: bytes) -> list[bytes]:
    """Send the pieces one by one; return the status of each answer, until none comes any more."""
    host, port = server.address.split(":")
    answered = b""
    with socket.create_connection((host, int(port)), timeout=10) as sock:
        for piece, patience_s in zip(pieces, [0.15] * (len(pieces) - 1) + [0.5], strict=True):
            sock.sendall(piece)
            sock.settimeout(patience_s)
            with contextlib.suppress(TimeoutError):
                while data := sock.recv(65_536):
                    answered += data
    return [part[:3] for part in answered.split(b"HTTP/1.1 ")[1:]]


def test_however_it_is_cut_into_packets(server):
    whole = request()
    assert statuses(server, whole[:40], whole[40:200], whole[200:], whole) == [b"200", b"200"]
    assert statuses(server, whole[:-10], whole[-10:] + whole[:-10], whole[-10:]) == [b"200"] * 2


def test_several_in_one_packet_are_answered_in_their_order(server):
    missing = request().replace(b"/tiny/", b"/else/")
    assert statuses(server, request() + missing + request()) == [b"200", b"404", b"200"]
    assert statuses(server, missing + missing + request()) == [b"404", b"404", b"200"]


def test_a_client_that_waits_to_be_told_to_go_on_is_told(server):
    whole = request(expect="100-continue")
    end = len(whole) - len(plain())
    assert statuses(server, whole[:end], whole[end:]) == [b"100", b"200"]
    missing = request().replace(b"/tiny/", b"/else/")
    assert statuses(server, missing + whole[:end], whole[end:]) == [b"404", b"100", b"200"]


def test_a_refusal_before_the_body_was_asked_for_ends_the_connection(server):
    """The client may never send that body: its next request had been taken for it."""
    waits = request(expect="100-continue")
    head = waits[: len(waits) - len(plain())]
    missing = head.replace(b"/tiny/", b"/else/")
    assert statuses(server, missing, request()) == [b"404"]
    no_post = head.replace(b"/tiny/infer", b"/tiny/ready")
    assert statuses(server, no_post, request()) == [b"405"]


def test_what_is_no_http_behind_a_whole_request_is_refused(server):
    assert statuses(server, request() + b"garbage\r\n\r\n")[-1] == b"400"
    assert statuses(server, request("1.0")) == [b"200"]


def test_a_head_that_is_known_gets_the_same_answers(server):
    whole, other = request(), request(**{"x-slo-ms": "0.01"})
    missing = whole.replace(b"/tiny/", b"/else/")
    assert statuses(server, whole, missing, whole, other, missing, other, whole) == [
        b"200", b"404", b"200", b"504", b"404", b"504", b"200"
    ]  # fmt: skip
    assert statuses(server, whole, whole[:-10], whole[-10:], whole + whole, whole) == [b"200"] * 5
    closing = request(connection="close")
    assert statuses(server, whole, closing) == [b"200", b"200"]
    assert statuses(server, closing, whole) == [b"200"]


def test_a_known_head_with_what_is_no_body_of_its_length(server):
    whole = request()
    assert statuses(server, whole, whole[:-1], b"}" + whole) == [b"200"] * 3
    assert statuses(server, whole, whole + b"garbage\r\n\r\n")[-1] == b"400"
    assert statuses(server, whole, b"garbage\r\n\r\n" + whole) == [b"200", b"400"]
