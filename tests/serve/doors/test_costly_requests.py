"""Requests that cost the door long: refused, parsed in turn, and counted as waiting for others."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import time
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio
import httpx
import numpy as np
import pytest
from PIL import Image

from serve.doors.http_call import FIRST_BYTE
from serve.doors.parse_turn import SMALL_BYTES, ParseTurn
from serve.doors.rpc import RpcDoor, rpc_listening
from serve.observe.loop_lag import LoopLag
from serve.proto import open_inference_pb2 as pb
from serve.proto import open_inference_pb2_grpc as pb_grpc

URL = "/v2/models/tiny/infer"
SHAPE = (1, 40, 50)


def tensor(count: int = 1) -> dict[str, Any]:
    size = count * int(np.prod(SHAPE))
    return {"name": "input", "datatype": "UINT8", "shape": [count, *SHAPE], "data": [123] * size}


@pytest.fixture
def costly(timed_config, profile):
    """`costly(**settings)` is a door to a model of larger samples."""
    import contextlib

    from serve.access.build_guard import build_guard
    from serve.doors.rest import RestDoor
    from serve.doors.server import Server
    from serve.hosts.assemble import build_model
    from serve.hosts.load_device import LoadedDevice
    from serve.models.models import Models
    from serve.observe.metrics import Metrics
    from subnetact.timed_executor import TimedExecutor
    from supernet.sample import SampleSpec

    def make(max_json_bytes: int) -> RestDoor:
        executor, metrics = TimedExecutor(profile, SampleSpec(shape=SHAPE), 10), Metrics()
        loaded = LoadedDevice(executor, profile, "tiny")
        model = build_model(timed_config, loaded, metrics, contextlib.ExitStack())
        return RestDoor(
            Server(
                models=Models([model]),
                metrics=metrics,
                guard=build_guard(timed_config, time.monotonic),
                max_json_bytes=max_json_bytes,
            )
        )

    return make


def post(door: Any, serving_door: Any, content: dict[str, Any]) -> httpx.Response:
    async def main() -> httpx.Response:
        async with serving_door(door) as client:
            return await client.post(URL, content=json.dumps(content, separators=(",", ":")))

    return asyncio.run(main())


def test_a_large_tensor_in_json_is_refused_and_told_to_come_binary(costly, serving_door):
    """16 samples of 3 x 224 x 224 had stopped the server for half a second."""
    answer = post(costly(9_000), serving_door, {"inputs": [tensor(4)]})
    assert (answer.status_code, answer.json()["reason"]) == (413, "too_large")
    assert "allowed 9000 (max_json_bytes): send it binary" in answer.json()["error"]
    assert post(costly(9_000), serving_door, {"inputs": [tensor(1)]}).status_code == 200


def test_the_rest_of_a_large_tensor_is_not_read(costly, serving_door):
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        yield b'{"inputs": [{"name": "input", "data": ['
        while sent < 10_000_000:
            sent += 5000
            yield b"123, " * 1000

    async def main() -> httpx.Response:
        async with serving_door(costly(9_000)) as client:
            return await client.post(URL, content=endless())

    answer = asyncio.run(main())
    assert (answer.status_code, answer.headers["connection"]) == (413, "close")
    assert sent < 20_000


def test_an_image_file_in_json_may_be_larger(costly, serving_door, rng):
    file = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (200, 200), dtype=np.uint8)).save(file, "PNG")
    text = base64.b64encode(file.getvalue()).decode()
    assert len(text) > 9_000
    image = {"name": "input", "datatype": "BYTES", "shape": [1], "data": [text]}
    image["parameters"] = {"content_type": "base64"}
    assert post(costly(9_000), serving_door, {"inputs": [image]}).status_code == 200


def test_typed_contents_of_grpc_have_the_same_limit(costly):
    door = costly(9_000)
    message = pb.ModelInferRequest(model_name="tiny")
    given = message.inputs.add(name="input", datatype="UINT8", shape=[2, *SHAPE])
    given.contents.uint_contents.extend([7] * 2 * int(np.prod(SHAPE)))

    async def main() -> grpc.aio.AioRpcError:
        async with (
            door._lifespan(door._app),
            rpc_listening(RpcDoor(door.server), "127.0.0.1", 0) as rpc,
            grpc.aio.insecure_channel(f"127.0.0.1:{rpc.port}") as channel,
        ):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await pb_grpc.GRPCInferenceServiceStub(channel).ModelInfer(message)
            return caught.value

    error = asyncio.run(main())
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "uint_contents has 4000 numbers, allowed 2250" in (error.details() or "")
    assert "send raw_input_contents" in (error.details() or "")


@pytest.mark.alone
def test_what_is_long_to_parse_leaves_the_loop_to_others_between():
    """Eight that come at once had kept all others waiting eight times."""

    async def main() -> float:
        turn = ParseTurn()
        longest_s = 0.0

        async def parse() -> None:
            async with turn.of(SMALL_BYTES + 1):
                time.sleep(0.02)

        async def others() -> None:
            nonlocal longest_s
            while not all(task.done() for task in parsing):
                start_s = time.perf_counter()
                await asyncio.sleep(0)
                longest_s = max(longest_s, time.perf_counter() - start_s)

        parsing = [asyncio.ensure_future(parse()) for _ in range(8)]
        await others()
        return longest_s

    assert asyncio.run(main()) < 0.04


@pytest.mark.alone
def test_the_lag_of_the_loop_is_measured_and_ends():
    async def main() -> tuple[float, float, float, float]:
        lag = LoopLag()
        assert lag.now_s() == 0.0
        with lag.running():
            await asyncio.sleep(0.05)
            quiet_s = lag.now_s()
            time.sleep(0.2)
            stalled_s = lag.now_s()
            await asyncio.sleep(0.05)
            return quiet_s, stalled_s, lag.now_s(), lag.longest_s()

    quiet_s, stalled_s, after_s, longest_s = asyncio.run(main())
    assert quiet_s < 0.05
    assert 0.15 < stalled_s < 0.4
    assert after_s < 0.05
    assert longest_s == pytest.approx(stalled_s, abs=0.1)


@pytest.mark.alone
def test_what_the_loop_kept_waiting_counts_as_waiting(timed_door, serving_door):
    """A clock that was read when the loop got there had told nothing of a stalled door."""

    async def main() -> float:
        door = timed_door()
        async with serving_door(door) as client:
            content = {"inputs": [{**tensor(), "shape": [1, 1, 2, 2], "data": [0] * 4}]}
            await client.post(URL, json=content)
            patient = {"x-slo-ms": "5000"}
            asked = asyncio.ensure_future(client.post(URL, json=content, headers=patient))
            time.sleep(0.3)
            answer = await asked
            return answer.json()["parameters"]["queue_s"]

    assert asyncio.run(main()) > 0.2


def test_a_listener_says_when_the_first_byte_came(timed_door):
    calls = timed_door()._calls

    def waited_s(**told: float) -> float:
        call = calls.call({"headers": [], **told}, None)
        return time.monotonic() - call.arrival_s

    assert waited_s(**{FIRST_BYTE: time.monotonic() - 0.5}) == pytest.approx(0.5, abs=0.1)
    assert waited_s() < 0.1


@pytest.mark.parametrize("content", ['{"model": []}', '{"model": {}}', "[" * 60_000, "null", "3"])
def test_a_change_of_settings_that_is_none_is_a_bad_request(serve_timed, content: str):
    async def main() -> httpx.Response:
        async with serve_timed() as client:
            return await client.post("/admin/config", content=content)

    answer = asyncio.run(main())
    assert (answer.status_code, answer.json()["reason"]) == (400, "bad_request")
