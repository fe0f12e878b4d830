"""The gRPC door in this process: the protocol, every refusal with its status and details."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import urllib.parse
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
import grpc.aio
import numpy as np
import pytest

from serve.config import ServeConfig, ServeConfigError
from serve.doors.rest import RestDoor
from serve.doors.rpc import RpcDoor, rpc_listening
from serve.models.limits import REASONS
from serve.proto import open_inference_pb2 as pb
from serve.proto import open_inference_pb2_grpc as pb_grpc
from tests.serve.conftest import make_door

pytestmark = pytest.mark.alone

Use = Callable[[Any], Awaitable[Any]]


@pytest.fixture
def ask(timed_door: Callable[..., RestDoor]):
    """`ask(use, **settings)` serves, awaits `use(stub)`, and returns what it returned."""

    def run(use: Use, **settings: Any) -> Any:
        return asyncio.run(_serve(timed_door(**settings), use))

    return run


async def _serve(door: RestDoor, use: Use) -> Any:
    async with door._lifespan(door._app), stub_of(door) as stub:
        return await use(stub)


@contextlib.asynccontextmanager
async def stub_of(door: RestDoor) -> AsyncIterator[Any]:
    listening = rpc_listening(RpcDoor(door.server), "127.0.0.1", 0)
    async with listening as rpc, grpc.aio.insecure_channel(f"127.0.0.1:{rpc.port}") as channel:
        yield pb_grpc.GRPCInferenceServiceStub(channel)


def request(
    data: bytes | None = bytes([1, 2, 0, 0]), shape: tuple[int, ...] = (1, 1, 2, 2), **fields: Any
) -> pb.ModelInferRequest:
    tensor = {"name": "input", "datatype": "UINT8", **fields.pop("tensor", {})}
    parameters = fields.pop("parameters", {})
    message = pb.ModelInferRequest(
        **{"model_name": "tiny", "id": "q1", **fields},
        inputs=[pb.ModelInferRequest.InferInputTensor(shape=shape, **tensor)],
    )
    for name, value in parameters.items():
        kind = {int: "int64_param", str: "string_param", float: "double_param"}[type(value)]
        message.parameters[name].MergeFrom(pb.InferParameter(**{kind: value}))
    if data is not None:
        message.raw_input_contents.append(data)
    return message


def infer(message: pb.ModelInferRequest, **options: Any) -> Use:
    return lambda stub: stub.ModelInfer(message, **options)


def parameters_of(answer: pb.ModelInferResponse) -> dict[str, Any]:
    return {k: getattr(v, v.WhichOneof("parameter_choice")) for k, v in answer.parameters.items()}


def refused(ask: Any, use: Use, **settings: Any) -> tuple[str, dict[str, str], str]:
    """Return the status name, the details and the text of a call that must be refused."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        ask(use, **settings)
    error = caught.value
    return error.code().name, dict(error.trailing_metadata() or ()), error.details() or ""


def test_raw_tensors_are_answered_raw_with_how_they_were_served(ask):
    answer = ask(infer(request()))
    assert (answer.model_name, answer.model_version, answer.id) == ("tiny", "large", "q1")
    (output,) = answer.outputs
    assert (output.name, output.datatype, list(output.shape)) == ("logits", "FP32", [1, 10])
    (raw,) = answer.raw_output_contents
    assert int(np.frombuffer(raw, dtype="<f4").argmax()) == 3
    about = parameters_of(answer)
    assert (about["status"], about["policy"], about["subnet"]) == ("on_time", "slackfit", "large")
    assert (about["accuracy"], about["batch_size"]) == (0.9, 1)
    assert about["execution_s"] >= 0.004
    assert about["queue_s"] >= 0
    assert 0 < about["slack_s"] < 0.1


def test_typed_contents_are_answered_typed(ask):
    contents = pb.InferTensorContents(uint_contents=[1, 2, 0, 0, 7, 0, 0, 0])
    answer = ask(infer(request(None, (2, 1, 2, 2), tensor={"contents": contents})))
    logits = np.reshape(answer.outputs[0].contents.fp32_contents, answer.outputs[0].shape)
    assert logits.argmax(axis=1).tolist() == [3, 7]
    assert not answer.raw_output_contents


def test_health_metadata_and_configuration(ask):
    async def use(stub: Any) -> list[Any]:
        name = {"name": "tiny"}
        return [
            await stub.ServerLive(pb.ServerLiveRequest()),
            await stub.ServerReady(pb.ServerReadyRequest()),
            await stub.ModelReady(pb.ModelReadyRequest(**name, version="small")),
            await stub.ServerMetadata(pb.ServerMetadataRequest()),
            await (metadata := stub.ModelMetadata(pb.ModelMetadataRequest(**name))),
            await stub.ModelConfig(pb.ModelConfigRequest(**name)),
            dict(await metadata.trailing_metadata()),
            await stub.RepositoryIndex(pb.RepositoryIndexRequest(ready=True)),
        ]

    live, ready, model_ready, server, model, config, about, index = ask(use)
    assert live.live
    assert ready.ready
    assert model_ready.ready
    assert "statistics" in server.extensions
    assert list(model.versions) == ["small", "middle", "large"]
    assert list(model.inputs[0].shape) == [-1, 1, 2, 2]
    assert list(model.outputs[0].shape) == [-1, 10]
    assert config.config.max_batch_size == 4
    assert config.config.input[0].data_type == pb.TYPE_UINT8
    serves = {
        "policy": "slackfit", "profile": "tiny", "device": "nowhere", "output_kind": "logits",
    }  # fmt: skip
    parameters = {k: v.string_value for k, v in config.config.parameters.items()}
    assert parameters == {**serves, "input_range": "[0, 255]"}
    assert about.items() >= serves.items()
    assert json.loads(about["settings"])["max_queue"] == 1000
    assert [(row.name, row.state) for row in index.models] == [("tiny", "READY")]


def test_statistics_have_a_row_for_each_subnet_that_served(ask):
    async def use(stub: Any) -> Any:
        await stub.ModelInfer(request(bytes(8), (2, 1, 2, 2), model_version="small"))
        await stub.ModelInfer(request())
        with pytest.raises(grpc.aio.AioRpcError):
            await stub.ModelInfer(request(parameters={"timeout": 100}))
        return await stub.ModelStatistics(pb.ModelStatisticsRequest(name="tiny"))

    rows = {row.version: row for row in ask(use).model_stats}
    assert rows.keys() == {"", "small", "large"}
    small = rows["small"]
    assert (small.inference_count, small.execution_count) == (2, 1)
    assert small.batch_stats[0].batch_size == 2
    assert small.batch_stats[0].compute_infer.ns >= 1_500_000
    assert small.inference_stats.success.ns >= small.inference_stats.compute_infer.ns
    assert rows[""].inference_stats.fail.count == 1


def test_version_and_parameter_pin_a_subnet(ask):
    assert ask(infer(request(model_version="middle"))).model_version == "middle"
    assert ask(infer(request(parameters={"subnet": "small"}))).model_version == "small"


INT = pb.InferTensorContents(uint_contents=[1, 2, 3, 256])


@pytest.mark.parametrize(
    ("message", "reason", "text"),
    [
        (request(bytes(9), (1, 1, 3, 3)), "bad_tensor", "allowed [B, 1, 2, 2]"),
        (request(bytes(20), (5, 1, 2, 2)), "bad_tensor", "with B from 1 to 4"),
        (request(bytes(3)), "bad_tensor", "needs 4 bytes, 3 were given"),
        (request(tensor={"datatype": "FP32"}), "bad_tensor", "'FP32', allowed 'UINT8'"),
        (request(tensor={"name": "image"}), "bad_tensor", "'image', allowed 'input'"),
        (request(tensor={"contents": INT}), "bad_tensor", "both contents"),
        (request(None, tensor={"contents": INT}), "bad_tensor", "256, allowed 0 to 255"),
        (request(None), "bad_tensor", "length of uint_contents is 0, allowed 4"),
        (pb.ModelInferRequest(model_name="tiny"), "bad_request", "allowed one tensor"),
        (request(parameters={"min_accuracy": 90}), "bad_request", "a fraction 0 to 1"),
        (request(parameters={"subnet": "huge"}), "unknown_subnet", "not offered"),
        (request(parameters={"timeout": "soon"}), "bad_deadline", "allowed a finite number"),
    ],
)
def test_bad_input_is_an_invalid_argument_with_its_reason(ask, message, reason, text):
    code, details, said = refused(ask, infer(message))
    assert (code, details["reason"], details["status"]) == ("INVALID_ARGUMENT", reason, "rejected")
    assert text in said


def test_unknown_model_and_version(ask):
    code, details, said = refused(ask, infer(request(model_name="nobody")))
    assert (code, details["reason"]) == ("NOT_FOUND", "unknown_model")
    assert "served: tiny" in said
    assert refused(ask, infer(request(model_version="huge")))[0] == "NOT_FOUND"


def test_message_over_the_limit_is_refused_unread(ask):
    code, _, said = refused(ask, infer(request(bytes(200_000))))
    assert code == REASONS["too_large"].grpc
    assert "larger than max" in said


def test_own_deadline_of_the_call_is_what_is_scheduled_for(ask):
    async def use(stub: Any) -> Any:
        return [await stub.ModelInfer(request(), timeout=t) for t in (0.15, 1.0, 5.0)]

    first, second, third = (parameters_of(answer) for answer in ask(use, scale_s=0.05))
    assert first["subnet"] in ("small", "middle"), "the largest takes 200 ms"
    assert second["subnet"] == "large"
    assert second["slack_s"] < 1.0
    assert third["slack_s"] > 4


def test_infeasible_deadline_says_when_it_could_be(ask):
    code, details, _ = refused(ask, infer(request(parameters={"timeout": 500})))
    assert (code, details["reason"]) == ("DEADLINE_EXCEEDED", "infeasible")
    assert float(details["earliest_finish_s"]) == pytest.approx(0.001, abs=1e-3)
    assert "retry_after_s" not in details, "the device is idle: the same again is of no use"


def test_soft_deadline_travels_as_metadata(ask):
    answer = ask(infer(request(), metadata=(("x-slo-ms", "30"),)))
    assert parameters_of(answer)["slack_s"] < 0.03
    code, details, _ = refused(ask, infer(request(), metadata=(("x-slo-ms", "soon"),)))
    assert (code, details["reason"]) == ("INVALID_ARGUMENT", "bad_deadline")


def test_full_queue_says_when_to_come_back(ask):
    async def use(stub: Any) -> list[Any]:
        calls = [stub.ModelInfer(request(), timeout=5.0) for _ in range(12)]
        return await asyncio.gather(*calls, return_exceptions=True)

    results = ask(use, scale_s=0.01, max_queue=2)
    errors = [r for r in results if isinstance(r, grpc.aio.AioRpcError)]
    assert errors
    for error in errors:
        details = dict(error.trailing_metadata() or ())
        assert (error.code().name, details["reason"]) == ("RESOURCE_EXHAUSTED", "queue_full")
        assert 0 < float(details["retry_after_s"]) < 0.2


def test_cancelled_call_leaves_no_query_behind(timed_door):
    door = timed_door(scale_s=0.02)

    async def use(stub: Any) -> None:
        running = stub.ModelInfer(request())
        await asyncio.sleep(0.03)
        gone = stub.ModelInfer(request(), timeout=9.0)
        await asyncio.sleep(0.03)
        gone.cancel()
        await running
        (model,) = door.server.models
        for _ in range(100):
            if model.engine.status().ended.get("dropped"):
                return
            await asyncio.sleep(0.01)
        pytest.fail("the cancelled call's query is still there")

    asyncio.run(_serve(door, use))


def test_draining_server_refuses_and_says_so(timed_door):
    door = timed_door()

    async def use(stub: Any) -> Any:
        await door.server.drain()
        return await stub.ModelInfer(request())

    with pytest.raises(grpc.aio.AioRpcError) as caught:
        asyncio.run(_serve(door, use))
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert dict(caught.value.trailing_metadata() or ())["reason"] == "draining"
    counted = {"door": "grpc", "reason": "draining", "tenant": ""}
    name = "supernet_refused_requests_total"
    assert door.server.metrics.registry.get_sample_value(name, counted) == 1


def test_answers_and_refusals_name_the_request(ask):
    async def use(stub: Any) -> list[str]:
        named = (("x-request-id", "mine"),)
        answered = stub.ModelInfer(request(), metadata=named)
        await answered
        refused = stub.ModelInfer(request(model_name="nobody"), metadata=named)
        with pytest.raises(grpc.aio.AioRpcError):
            await refused
        unnamed = stub.ServerLive(pb.ServerLiveRequest())
        await unnamed
        calls = (answered, refused, unnamed)
        return [dict(await call.trailing_metadata())["x-request-id"] for call in calls]

    first, second, given = ask(use)
    assert (first, second) == ("mine", "mine")
    assert given.endswith("-0")


def test_taken_port_is_a_user_error(timed_door, timed_config: ServeConfig):
    async def main() -> None:
        door = RpcDoor(timed_door().server)
        async with rpc_listening(door, "127.0.0.1", 0) as rpc:
            port = rpc.port
            with pytest.raises(
                ServeConfigError, match=f"gRPC port {port} on 127.0.0.1 is not free"
            ):
                async with rpc_listening(door, "127.0.0.1", port):
                    pytest.fail("two servers on one port")

    asyncio.run(main())


def test_every_reason_has_a_status_of_grpc():
    for code in REASONS.values():
        assert code.grpc in grpc.StatusCode.__members__


@pytest.mark.parametrize("letter", ["\u00e9", "\U0001f600", "%", "x"])
def test_a_long_text_of_any_letters_leaves_room_for_how_the_call_ended(ask, letter: str):
    """Percent-encoded it was beyond what clients take of trailers: they read RESOURCE_EXHAUSTED."""
    code, details, text = refused(ask, infer(request(model_version=letter * 5000)))
    assert (code, details["reason"]) == ("NOT_FOUND", "unknown_model")
    assert f"has no version '{letter * 100}" in text
    assert len(urllib.parse.quote(text)) < 8000


def test_a_profile_of_any_name_is_told_by_the_metadata(timed_config: ServeConfig, profile):
    """One letter that is no ASCII in it, and gRPC ended the call with INTERNAL."""
    named = dataclasses.replace(profile, name="mod\u00e8le\n1")

    async def use(stub: Any) -> dict[str, Any]:
        call = stub.ModelMetadata(pb.ModelMetadataRequest(name="tiny"), timeout=10)
        assert (await call).name == "tiny"
        return dict(await call.trailing_metadata())

    about = asyncio.run(_serve(make_door(timed_config, named), use))
    assert about["profile"] == "mod\\xe8le\\n1"
    assert json.loads(about["settings"])["policy"]
