"""Closed loops over HTTP and gRPC that cost their client as little as can be.

What is measured is a server's processor time per request; a client that costs as much as the server
would only make it wait. Requests are bytes made beforehand, and no answer is parsed.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import grpc
import grpc.aio
import numpy as np

from serve.proto import open_inference_pb2 as pb
from serve.proto.names import BINARY_HEADER, SERVICE, SLO_HEADER

_PLACE = "the time"  # in a body, until the time stands there
_MS_WIDTH = 12
_TIME = re.compile(rb'(?:\r\nx-slo-ms:|"slo_ms":) ')


def http_request(
    url: str,
    model: str,
    samples: np.ndarray,
    subnet_id: str | None,
    *,
    slo_s: float = 10.0,
    has_slo_header: bool = False,
) -> bytes:
    """Return a whole HTTP request for an inference of samples (B, ...), in the binary form.

    `subnet_id` None leaves the subnet to the policy. The time stands in the body, or in a header as
    our clients send it; see `TimedRequest` for one that says another time whenever it is sent.
    """
    asked: dict[str, Any] = {} if subnet_id is None else {"subnet": subnet_id}
    headers: dict[str, str] = {}
    if has_slo_header:
        headers[SLO_HEADER] = _ms_text(slo_s)
    else:
        asked["slo_ms"] = _PLACE
    head = (
        json.dumps(
            {
                "inputs": [
                    {
                        "name": "input",
                        "datatype": samples.dtype.name.upper(),
                        "shape": list(samples.shape),
                        "parameters": {"binary_data_size": samples.nbytes},
                    }
                ],
                "parameters": {"binary_data_output": True, **asked},
            }
        )
        .replace(json.dumps(_PLACE), _ms_text(slo_s))
        .encode()
    )
    body = head + samples.tobytes()
    headers[BINARY_HEADER] = str(len(head))
    return http_post(url, f"/v2/models/{model}/infer", body, headers)


class TimedRequest:
    """An `http_request` that says how much time is left whenever it is sent, at little cost."""

    def __init__(self, request: bytes) -> None:
        """Raises ValueError for a request that says no time."""
        found = _TIME.search(request)
        if found is None:
            raise ValueError(f"the request has no {SLO_HEADER} and no slo_ms to be set")
        self._before, self._after = request[: found.end()], request[found.end() + _MS_WIDTH :]

    def __call__(self, left_s: float) -> bytes:
        """Return it with so many seconds left."""
        return self._before + _ms_text(left_s).encode() + self._after


def _ms_text(time_s: float) -> str:
    """Return milliseconds in as many characters whatever they are."""
    return f"{time_s * 1e3:{_MS_WIDTH}.4f}"


def http_post(url: str, path: str, body: bytes, headers: dict[str, str]) -> bytes:
    """Return a whole HTTP request."""
    lines = [f"POST {path} HTTP/1.1", f"host: {urlsplit(url).netloc}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    lines += [f"content-length: {len(body)}", "", ""]
    return "\r\n".join(lines).encode() + body


def rpc_request(model: str, samples: np.ndarray, subnet_id: str) -> bytes:
    """Return a serialized request for an inference of samples (B, ...)."""
    message = pb.ModelInferRequest(
        model_name=model, model_version=subnet_id, raw_input_contents=[samples.tobytes()]
    )
    message.inputs.add(name="input", datatype=samples.dtype.name.upper(), shape=list(samples.shape))
    message.parameters["slo_ms"].int64_param = 10_000
    return message.SerializeToString()


async def http_loop(url: str, request: bytes, *, connections: int, duration_s: float) -> int:
    """Send `request` over and over on each connection; return how many were answered with 200."""
    end_s = time.monotonic() + duration_s
    where = urlsplit(url)
    counts = await asyncio.gather(
        *(_http_connection(where.hostname, where.port, request, end_s) for _ in range(connections))
    )
    return sum(counts)


async def rpc_loop(url: str, request: bytes, *, calls: int, duration_s: float) -> int:
    """Send `request` over and over, `calls` at once on one channel; return how many ended well."""
    end_s = time.monotonic() + duration_s
    async with grpc.aio.insecure_channel(url.removeprefix("grpc://")) as channel:
        infer = channel.unary_unary(f"/{SERVICE}/ModelInfer")  # bytes both ways

        async def loop() -> int:
            count = 0
            while time.monotonic() < end_s:
                await infer(request)
                count += 1
            return count

        return sum(await asyncio.gather(*(loop() for _ in range(calls))))


def processor_s(pid: int) -> float:
    """Return the processor time that the threads of a process have used, user and system."""
    total_ns = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        try:
            total_ns += int((task / "schedstat").read_text(encoding="ascii").split()[0])
        except OSError:  # the thread has ended meanwhile
            continue
    return total_ns * 1e-9


async def _http_connection(host: str | None, port: int | None, request: bytes, end_s: float) -> int:
    reader, writer = await asyncio.open_connection(host, port)
    count = 0
    while time.monotonic() < end_s:
        writer.write(request)
        head = await reader.readuntil(b"\r\n\r\n")
        if not head.startswith(b"HTTP/1.1 200 "):
            raise RuntimeError(f"an idle server refused: {head!r}")
        length = head.lower().partition(b"\r\ncontent-length: ")[2].partition(b"\r\n")[0]
        await reader.readexactly(int(length))
        count += 1
    writer.close()
    return count
