"""What has waited at the door until no answer can be in time is refused unread, and counted."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import httpx
import pytest

from serve.doors.http_call import FIRST_BYTE

pytestmark = pytest.mark.alone

URL = "/v2/models/tiny/infer"


def ask(timed_door: Any, waited_s: float, *, headers: dict[str, str], content: bytes) -> Any:
    """Return the answer to a request whose first byte came `waited_s` ago, and the door."""
    door = timed_door(scale_s=0.005)  # 5 ms on the fastest subnet

    async def late(scope: Any, receive: Any, send: Any) -> None:
        scope[FIRST_BYTE] = time.monotonic() - waited_s
        await door(scope, receive, send)

    async def main() -> httpx.Response:
        transport = httpx.ASGITransport(late)
        async with (
            door.running(),
            httpx.AsyncClient(transport=transport, base_url="http://x") as client,
        ):
            return await client.post(URL, content=content, headers=headers)

    return asyncio.run(main()), door


@pytest.mark.parametrize("headers", [{"x-slo-ms": "50"}, {"x-request-timeout-seconds": "0.05"}])
def test_what_headers_say_is_refused_before_the_body_is_read(timed_door, headers):
    answer, door = ask(timed_door, 0.06, headers=headers, content=b"no JSON at all")
    assert (answer.status_code, answer.json()["reason"]) == (504, "infeasible")
    (model,) = door.server.models
    assert model.live_settings()["ended"] == {"rejected": 1}
    assert model.statistics.rows("tiny")[0]["inference_stats"]["fail"]["count"] == 1
    name, labels = "supernet_queries_total", {"model": "tiny", "status": "rejected"}
    registry = door.server.metrics.registry
    assert registry.get_sample_value(name, {**labels, "reason": "infeasible"}) == 1


@pytest.mark.parametrize(
    ("waited_s", "headers"),
    [(0.02, {"x-slo-ms": "50"}), (0.06, {"x-slo-ms": "0"}), (0.06, {}), (0.001, {"x-slo-ms": "1"})],
)
def test_what_could_be_in_time_or_names_no_time_is_read(timed_door, waited_s, headers):
    answer, _ = ask(timed_door, waited_s, headers=headers, content=b"no JSON at all")
    assert (answer.status_code, answer.json()["reason"]) == (400, "bad_request")


def test_a_body_may_only_shorten_what_headers_say(timed_door):
    tensor = b'{"name":"input","datatype":"UINT8","shape":[1,1,2,2],"data":[1,2,0,0]}'
    body = b'{"inputs":[%b],"parameters":{"slo_ms":30}}' % tensor
    answer, door = ask(timed_door, 0.04, headers={"x-slo-ms": "5000"}, content=body)
    assert (answer.status_code, answer.json()["reason"]) == (504, "infeasible")
    (model,) = door.server.models
    assert model.live_settings()["ended"] == {"rejected": 1}
