"""Malformed requests at both doors: never a 5xx of ours, never a dead engine.

Two kinds: requests of the protocol with some parts replaced by junk, and raw bytes. The quick
version runs in `make test`, 50,000 in `make test-slow`: in parts, because what hypothesis keeps of
the examples of one run, and the time it takes to vary them, grow faster than their number.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import grpc
import grpc.aio
import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from serve.doors.rest import RestDoor
from serve.doors.rpc import SERVICE, RpcDoor, rpc_listening
from serve.proto import open_inference_pb2 as pb

pytestmark = pytest.mark.alone

URL = "/v2/models/tiny/infer"
OPTIONS: dict[str, Any] = {
    "deadline": None,
    "suppress_health_check": [HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
}
QUICK = 60  # examples of up to 20 requests
PARTS, PART = 25, 100  # examples of 20 requests each: 50,000 in all
NO_HURRY_MS = 60_000  # the sound request that ends each example must not fail for the machine

junk = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)


def either(*good: Any) -> st.SearchStrategy[Any]:
    """Return something of the protocol most of the time, junk at others."""
    return st.sampled_from(good * 3) | junk


numbers = st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=5)
parameters = st.dictionaries(
    st.sampled_from(
        ["timeout", "deadline_unix_us", "slo_ms", "min_accuracy", "subnet", "priority"]
    ),
    either(5_000_000, 0, -1, "small", 0.75) | numbers,
)
tensors = st.fixed_dictionaries(
    {
        "name": either("input"),
        "datatype": either("UINT8", "BYTES", "FP32"),
        "shape": either([1, 1, 2, 2], [2, 1, 2, 2], [1], [1, 1], [-1, 1, 2, 2], [2**63, 1, 2, 2]),
    },
    optional={
        "data": either([1, 2, 3, 4], [[[[1, 2], [3, 4]]]], ["aGVsbG8="]),
        "parameters": either({"binary_data_size": 4}, {"content_type": "base64"}),
    },
)
bodies = st.fixed_dictionaries(
    {"inputs": st.lists(tensors, max_size=2) | junk},
    optional={
        "id": either("q"),
        "parameters": parameters | junk,
        "outputs": either([{"name": "logits", "parameters": {"binary_data": True}}]),
    },
)
contents = st.one_of(
    bodies.map(lambda body: json.dumps(body).encode()),
    st.tuples(bodies, st.binary(max_size=12)).map(lambda p: json.dumps(p[0]).encode() + p[1]),
    st.binary(max_size=200),
)
header_values = st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=12)
headers = st.fixed_dictionaries(
    {},
    optional={
        "inference-header-content-length": st.integers(-2, 400).map(str) | header_values,
        "x-slo-ms": st.sampled_from(["50", "0", "-1", "nan", "inf", "1e400"]) | header_values,
        "x-request-timeout-seconds": st.sampled_from(["1", "0", "nan"]) | header_values,
        "content-type": st.sampled_from(["application/json", "image/png", "image/jpeg", "x"]),
    },
)
http_requests = st.tuples(contents, headers)


def fuzz_part(
    part: int, requests: st.SearchStrategy[Any], check: Callable[[list[Any]], None]
) -> None:
    """Check `PART` examples of 20 requests, others for each number of part."""

    @seed(part)
    @settings(max_examples=PART, database=None, phases=[Phase.generate, Phase.shrink], **OPTIONS)
    @given(script=st.lists(requests, min_size=20, max_size=20))
    def run(script: list[Any]) -> None:
        check(script)

    run()


def check_http(serve_timed: Any, script: list[tuple[bytes, dict[str, str]]]) -> None:
    async def main() -> None:
        async with serve_timed(scale_s=1e-5) as client:
            for content, fields in script:
                answer = await client.post(URL, content=content, headers=fields)
                assert answer.status_code in (200, 400, 413, 429, 504), (content, answer.text)
                if answer.status_code != 200:
                    assert answer.json()["reason"]
            good = {"name": "input", "datatype": "UINT8", "shape": [1, 1, 2, 2], "data": [1] * 4}
            body = {"inputs": [good], "parameters": {"slo_ms": NO_HURRY_MS}}
            assert (await client.post(URL, json=body)).status_code == 200

    asyncio.run(main())


@settings(max_examples=QUICK, **OPTIONS)
@given(script=st.lists(http_requests, min_size=1, max_size=20))
def test_http_door_survives_malformed_requests(serve_timed, script):
    check_http(serve_timed, script)


@pytest.mark.slow
@pytest.mark.parametrize("part", range(PARTS))
def test_http_door_survives_50000_malformed_requests(serve_timed, part):
    fuzz_part(part, http_requests, lambda script: check_http(serve_timed, script))


def _message(parts: tuple[Any, ...]) -> bytes:
    model, version, shape, datatype, raw, typed, wishes = parts
    tensor = pb.ModelInferRequest.InferInputTensor(name="input", datatype=datatype, shape=shape)
    if typed is not None:
        tensor.contents.uint_contents.extend(typed)
    message = pb.ModelInferRequest(
        model_name=model, model_version=version, inputs=[tensor], raw_input_contents=raw
    )
    for name, value in wishes.items():
        message.parameters[name].MergeFrom(value)
    return message.SerializeToString()


rpc_parameters = st.one_of(
    st.integers(-(2**63), 2**63 - 1).map(lambda n: pb.InferParameter(int64_param=n)),
    st.floats().map(lambda x: pb.InferParameter(double_param=x)),
    st.integers(0, 2**64 - 1).map(lambda n: pb.InferParameter(uint64_param=n)),
    st.text(max_size=5).map(lambda text: pb.InferParameter(string_param=text)),
    st.just(pb.InferParameter()),
)
rpc_messages = st.one_of(
    st.tuples(
        st.sampled_from(["tiny", "tiny", "tiny", "nobody", ""]),
        st.sampled_from(["", "", "small", "huge"]),
        st.sampled_from([[1, 1, 2, 2], [1, 1, 2, 2], [1], [2**62, 4], [], [-1, 1, 2, 2]]),
        st.sampled_from(["UINT8", "UINT8", "BYTES", "FP32"]),
        st.lists(st.binary(max_size=8), max_size=2),
        st.none() | st.lists(st.integers(0, 2**32 - 1), max_size=5),
        st.dictionaries(
            st.sampled_from(["timeout", "min_accuracy", "priority", "subnet"]), rpc_parameters
        ),
    ).map(_message),
    st.binary(max_size=100),
)
REFUSALS = {"OK", "INVALID_ARGUMENT", "NOT_FOUND", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED"}


def check_rpc(door: RestDoor, script: list[bytes]) -> None:
    async def main() -> None:
        listening = rpc_listening(RpcDoor(door.server), "127.0.0.1", 0)
        async with (
            door._lifespan(door._app),
            listening as rpc,
            grpc.aio.insecure_channel(f"127.0.0.1:{rpc.port}") as channel,
        ):
            call = channel.unary_unary(f"/{SERVICE}/ModelInfer")
            for message in script:
                await answer_or_refusal(call, message)
            slo = {"slo_ms": pb.InferParameter(int64_param=NO_HURRY_MS)}
            good = ("tiny", "", [1, 1, 2, 2], "UINT8", [bytes(4)], None, slo)
            assert pb.ModelInferResponse.FromString(await call(_message(good))).model_version

    asyncio.run(main())


async def answer_or_refusal(call: Any, message: bytes) -> None:
    code = "OK"
    try:
        await call(message, timeout=10)
    except grpc.aio.AioRpcError as error:
        code = error.code().name
    # What is no message at all never reaches us: gRPC itself answers INTERNAL or UNKNOWN.
    assert code in REFUSALS or not _is_message(message), (message, code)


def _is_message(data: bytes) -> bool:
    try:
        pb.ModelInferRequest.FromString(data)
    except Exception:  # protobuf's DecodeError, and what its Python code raises
        return False
    return True


@settings(max_examples=15, **OPTIONS)
@given(script=st.lists(rpc_messages, min_size=1, max_size=20))
def test_grpc_door_survives_malformed_messages(timed_door, script):
    check_rpc(timed_door(scale_s=1e-5), script)


@pytest.mark.slow
@pytest.mark.parametrize("part", range(PARTS))
def test_grpc_door_survives_50000_malformed_messages(timed_door, part):
    fuzz_part(part, rpc_messages, lambda script: check_rpc(timed_door(scale_s=1e-5), script))
