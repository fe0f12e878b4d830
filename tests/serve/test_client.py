"""Our client against the door: how each end of a query reads."""

from __future__ import annotations

import asyncio

import httpx
import numpy as np
import pytest

from serve.client import ClientError, OipClient, connect
from traces.replay import ReplayReply, ReplayRequest


def request(value: int = 0, slo_s: float = 1.0, **options) -> ReplayRequest:
    payload = np.zeros((1, 2, 2), dtype=np.uint8)
    payload[0, 0, 0] = value
    return ReplayRequest(query_id=0, payload=payload, slo_s=slo_s, **options)


@pytest.fixture
def ask(serve_timed):
    def run(*requests: ReplayRequest, model: str = "tiny", **settings) -> list[ReplayReply]:
        async def main() -> list[ReplayReply]:
            async with serve_timed(**settings) as served:
                client = OipClient("http://127.0.0.1", model, transport=served._transport)
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
    client = OipClient("http://127.0.0.1", "tiny", transport=transport)
    reply = asyncio.run(client.infer(request()))
    assert (reply.status, reply.reason) == expected


def test_server_that_is_not_there_fails_the_query_and_the_connection():
    client = OipClient("http://127.0.0.1:9", "tiny")

    async def main() -> ReplayReply:
        try:
            return await client.infer(request())
        finally:
            await client.close()

    assert asyncio.run(main()).status == "failed"
    with pytest.raises(ClientError, match="no answer"):
        asyncio.run(connect("http://127.0.0.1:9"))
