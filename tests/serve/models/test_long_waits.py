"""What has waited at the door until no answer can be in time is refused unread, and counted."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import grpc
import grpc.aio
import httpx
import pytest

from serve.doors.http_call import FIRST_BYTE
from serve.doors.rpc import RpcDoor, rpc_listening
from serve.proto import open_inference_pb2 as pb
from serve.proto import open_inference_pb2_grpc as pb_grpc

pytestmark = pytest.mark.alone

URL = "/v2/models/tiny/infer"
TENSOR = b'{"name":"input","datatype":"UINT8","shape":[1,1,2,2],"data":[1,2,0,0]}'


def ask(
    timed_door: Any,
    waited_s: float,
    *,
    headers: dict[str, str],
    content: bytes,
    is_overdue: Any = None,
) -> Any:
    """Return the answer to a request whose first byte came `waited_s` ago, and the door."""
    door = timed_door(scale_s=0.005)  # 5 ms on the fastest subnet
    (model,) = door.server.models
    model.is_overdue = is_overdue or model.is_overdue

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
    body = b'{"inputs":[%b],"parameters":{"slo_ms":30}}' % TENSOR
    answer, door = ask(timed_door, 0.04, headers={"x-slo-ms": "5000"}, content=body)
    assert (answer.status_code, answer.json()["reason"]) == (504, "infeasible")
    (model,) = door.server.models
    assert model.live_settings()["ended"] == {"rejected": 1}


def half(waited_s: float, given_s: float) -> bool:
    """What an intake says while its queue stands."""
    return waited_s >= given_s / 2


@pytest.mark.parametrize(
    ("headers", "content"),
    [
        pytest.param({"x-slo-ms": "50"}, b"no JSON at all", id="unread"),
        pytest.param({}, b'{"inputs":[%b],"parameters":{"slo_ms":50}}' % TENSOR, id="in the body"),
    ],
)
def test_where_the_door_has_to_choose_half_of_the_time_is_too_long(timed_door, headers, content):
    answer, door = ask(timed_door, 0.03, headers=headers, content=content, is_overdue=half)
    assert (answer.status_code, answer.json()["reason"]) == (429, "queue_full")
    assert answer.headers["retry-after"] == "1"
    (model,) = door.server.models
    assert model.live_settings()["ended"] == {"rejected": 1}


def test_who_has_waited_for_less_is_read(timed_door):
    headers = {"x-slo-ms": "50"}
    answer, _ = ask(timed_door, 0.02, headers=headers, content=b"no JSON", is_overdue=half)
    assert (answer.status_code, answer.json()["reason"]) == (400, "bad_request")


def test_the_grpc_door_says_the_same(timed_door):
    door = timed_door(scale_s=0.005)
    message = pb.ModelInferRequest(model_name="tiny", raw_input_contents=[bytes(4)])
    message.inputs.add(name="input", datatype="UINT8", shape=[1, 1, 2, 2])

    async def main() -> grpc.aio.AioRpcError:
        (model,) = door.server.models
        async with (
            door.running(),
            rpc_listening(RpcDoor(door.server), "127.0.0.1", 0) as rpc,
            grpc.aio.insecure_channel(f"127.0.0.1:{rpc.port}") as channel,
        ):
            model.is_overdue = half
            door.server.loop_lag.now_s = lambda: 0.3
            stub = pb_grpc.GRPCInferenceServiceStub(channel)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await stub.ModelInfer(message, metadata=(("x-slo-ms", "500"),))
            return caught.value

    error = asyncio.run(main())
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert dict(error.trailing_metadata() or ())["reason"] == "queue_full"
