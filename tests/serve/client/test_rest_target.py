"""Our client against the door: how each end of a query reads."""

from __future__ import annotations

import asyncio
import json

import httpx
import numpy as np
import pytest

from serve.client.http_wire import Response
from serve.client.rest_target import ClientError, RestTarget, connect
from traces.open_loop.replay import ReplayReply, ReplayRequest

pytestmark = pytest.mark.alone


class HttpxWire:
    """A wire into this process: to an ASGI application or a function, through httpx."""

    def __init__(self, transport: httpx.AsyncBaseTransport) -> None:
        self._client = httpx.AsyncClient(transport=transport)

    async def send(self, method, url, *, headers, content) -> Response:
        answer = await self._client.request(method, url, headers=headers, content=content)
        return Response(answer.status_code, answer.headers, answer.content)

    async def close(self) -> None:
        await self._client.aclose()


def request(value: int = 0, slo_s: float = 1.0, **options) -> ReplayRequest:
    payload = np.zeros((1, 2, 2), dtype=np.uint8)
    payload[0, 0, 0] = value
    return ReplayRequest(query_id=0, payload=payload, slo_s=slo_s, **options)


@pytest.fixture
def ask(serve_timed):
    def run(*requests: ReplayRequest, model: str = "tiny", **settings) -> list[ReplayReply]:
        async def main() -> list[ReplayReply]:
            async with serve_timed(**settings) as served:
                client = RestTarget("http://127.0.0.1", model, wire=HttpxWire(served._transport))
                return await asyncio.gather(*(client.infer(r) for r in requests))

        return asyncio.run(main())

    return run


def test_reply_carries_logits_and_how_it_was_served(ask):
    (reply,) = ask(request(7))
    assert reply.status == "ok"
    assert reply.output is not None
    assert reply.output.dtype == np.float32
    assert int(reply.output.argmax()) == 7
    assert (reply.subnet_id, reply.accuracy, reply.batch_size) == ("large", 0.9, 1)
    assert reply.execution_s >= 0.004
    assert reply.batch_id == "0"


def test_refusals_keep_the_servers_words(ask):
    (infeasible,) = ask(request(slo_s=0.0005))
    assert (infeasible.status, infeasible.reason) == ("rejected", "infeasible")
    (unknown,) = ask(request(), model="nobody")
    assert (unknown.status, unknown.reason) == ("rejected", "unknown_model")
    (late,) = ask(request(timeout_s=0.0015), drop_hopeless=False, policy="fixed:largest")
    assert (late.status, late.reason) == ("dropped", "expired")


def test_full_queue_is_rejected(ask):
    replies = ask(*(request(slo_s=9.0) for _ in range(10)), scale_s=0.01, max_queue=1)
    refused = {(r.status, r.reason) for r in replies if r.status != "ok"}
    assert refused == {("rejected", "queue_full")}


@pytest.mark.parametrize(
    ("status_code", "content", "expected"),
    [
        (408, b"", ("dropped", "expired")),
        (503, b"<html>", ("rejected", "http_503")),
        (500, b"oops", ("failed", "http_500")),
    ],
)
def test_answers_of_other_servers_are_read_by_their_status(status_code, content, expected):
    transport = httpx.MockTransport(lambda _: httpx.Response(status_code, content=content))
    client = RestTarget("http://127.0.0.1", "tiny", wire=HttpxWire(transport))
    reply = asyncio.run(client.infer(request()))
    assert (reply.status, reply.reason) == expected


class Elsewhere:
    """A server of others, in memory: what it says of itself, and what it answers."""

    def __init__(self, answer: httpx.Response | None = None, **server: object) -> None:
        self.server = {"name": "triton", "extensions": [], **server}
        self.model: object = {
            "name": "m",
            "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 2]}],
        }
        self.answer = answer or httpx.Response(200, json={"outputs": [TENSOR]})
        self.bodies: list[bytes] = []
        self.headers: list[httpx.Headers] = []

    def __call__(self, asked: httpx.Request) -> httpx.Response:
        if asked.url.path == "/v2":
            return httpx.Response(200, json=self.server)
        if asked.method == "GET":
            return httpx.Response(200, json=self.model)
        self.bodies.append(asked.read())
        self.headers.append(asked.headers)
        return httpx.Response(self.answer.status_code, content=self.answer.content,
                              headers=self.answer.headers)  # fmt: skip

    def ask(self, **options) -> ReplayReply:
        async def main() -> ReplayReply:
            client = RestTarget("http://h", "m", wire=HttpxWire(httpx.MockTransport(self)))
            self.described = await client.describe()
            sample = np.array([0.5, 2.0], dtype=np.float32)
            await client.prepare(sample[None])
            return await client.infer(
                ReplayRequest(query_id=0, payload=sample, payload_id=0, slo_s=0.25, **options)
            )

        return asyncio.run(main())


TENSOR = {"name": "y", "datatype": "FP32", "shape": [1, 2], "data": [0.25, 0.75]}


def test_a_server_of_others_gets_what_its_model_takes():
    elsewhere = Elsewhere()
    reply = elsewhere.ask()
    assert (elsewhere.described.name, elsewhere.described.tensor.name) == ("m", "x")
    assert (reply.status, reply.subnet_id, reply.accuracy) == ("ok", None, 0.0)
    np.testing.assert_array_equal(reply.output, [0.25, 0.75])
    assert json.loads(elsewhere.bodies[0]) == {
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [0.5, 2.0]}],
        "parameters": {},
    }
    assert elsewhere.headers[0]["x-slo-ms"] == "250"


def test_bytes_deadline_and_class_travel_where_the_extensions_are():
    elsewhere = Elsewhere(extensions=["binary_tensor_data", "schedule_policy"])
    elsewhere.ask(query_class=3, timeout_s=2.0)
    (body,), (headers,) = elsewhere.bodies, elsewhere.headers
    length = int(headers["Inference-Header-Content-Length"])
    fields = json.loads(body[:length])
    assert fields["parameters"] == {"binary_data_output": True, "priority": 7, "timeout": 250_000}
    assert fields["inputs"][0]["parameters"] == {"binary_data_size": 8}
    assert body[length:] == np.array([0.5, 2.0], dtype="<f4").tobytes()
    assert headers["x-request-timeout-seconds"] == "2"


def test_a_binary_answer_is_cut_to_its_first_tensor():
    head = json.dumps(
        {
            "outputs": [
                {"name": "y", "datatype": "FP16", "parameters": {"binary_data_size": 4}},
                {"name": "z", "datatype": "INT64", "parameters": {"binary_data_size": 8}},
            ]
        }
    ).encode()
    body = head + np.array([1.0, 2.0], "<f2").tobytes() + bytes(8)
    headers = {"Inference-Header-Content-Length": str(len(head))}
    reply = Elsewhere(httpx.Response(200, content=body, headers=headers)).ask()
    np.testing.assert_array_equal(reply.output, [1.0, 2.0])


@pytest.mark.parametrize(
    ("content", "headers", "reason"),
    [
        (b"<html>", {}, "neither JSON"),
        (b"[" * 10_000, {}, "neither JSON"),
        (b"{}", {}, "no output tensor"),
        (b'{"outputs": []}', {}, "no output tensor"),
        (b'{"outputs": [3]}', {}, "no output tensor"),
        (b"[1]", {}, "no output tensor"),
        (b'{"outputs": [{"datatype": "FP32", "data": ["a"]}]}', {}, "neither JSON"),
        (b"{}", {"Inference-Header-Content-Length": "many"}, "neither JSON"),
    ],
)
def test_an_answer_that_nobody_can_read_is_a_failed_query(content, headers, reason):
    reply = Elsewhere(httpx.Response(200, content=content, headers=headers)).ask()
    assert reply.status == "failed"
    assert reason in reply.reason


def test_what_a_server_says_oddly_counts_as_not_said():
    odd = {"accuracy": "high", "batch_size": -1, "queue_s": True, "execution_s": 0.5, "subnet": 7}
    answer = httpx.Response(200, json={"outputs": [TENSOR], "parameters": odd})
    reply = Elsewhere(answer).ask()
    assert (reply.accuracy, reply.batch_size, reply.queue_s) == (0.0, 0, 0.0)
    assert (reply.execution_s, reply.subnet_id) == (0.5, "7")


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ([], "no JSON object"),
        ({"name": "m"}, "list no inputs"),
        ({"inputs": [{}, {}]}, "list 2 inputs; a replay needs one"),
        ({"inputs": [{"name": "x", "shape": "big"}]}, "list 1 inputs"),
    ],
)
def test_metadata_that_can_not_be_replayed_are_refused(model, message):
    elsewhere = Elsewhere()
    elsewhere.model = model
    with pytest.raises(ClientError, match=message):
        elsewhere.ask()


def test_a_refusal_says_when_to_come_back():
    for text, wait_s in (("0.5", 0.5), ("Wed, 21 Oct 2026 07:28:00 GMT", 0.0), (None, 0.0)):
        headers = {} if text is None else {"Retry-After": text}
        reply = Elsewhere(httpx.Response(429, headers=headers)).ask()
        assert (reply.status, reply.retry_after_s) == ("rejected", wait_s)


def test_server_that_is_not_there_fails_the_query_and_the_connection():
    client = RestTarget("http://127.0.0.1:9", "tiny")

    async def main() -> ReplayReply:
        try:
            return await client.infer(request())
        finally:
            await client.close()

    reply = asyncio.run(main())
    assert (reply.status, reply.can_retry) == ("failed", True)
    with pytest.raises(ClientError, match="no answer"):
        asyncio.run(connect("http://127.0.0.1:9"))
