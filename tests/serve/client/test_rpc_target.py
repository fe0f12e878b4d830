"""Our gRPC client against a server in this process that says what it is told to."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import grpc
import grpc.aio
import numpy as np
import pytest

from serve.client.dial import dial
from serve.client.rest_answers import ClientError
from serve.proto import open_inference_pb2 as pb
from traces.open_loop.replay import ReplayReply, ReplayRequest

pytestmark = pytest.mark.alone

SAMPLE = np.array([0.5, 2.0], dtype=np.float32)


class Server(grpc.GenericRpcHandler):
    """Serves a model `m` that takes FP32 `x` [-1, 2]; `answer` fills or refuses each inference."""

    def __init__(self, answer: Callable[[pb.ModelInferResponse, Any], Any]) -> None:
        self.answer = answer
        self.asked: list[tuple[pb.ModelInferRequest, dict[str, str], float | None]] = []

    def service(self, handler_call_details):
        name = handler_call_details.method.rpartition("/")[2]
        methods = {
            "ModelMetadata": (self.metadata, pb.ModelMetadataRequest),
            "ModelInfer": (self.infer, pb.ModelInferRequest),
        }
        handle, asks = methods[name]
        return grpc.unary_unary_rpc_method_handler(
            handle,
            request_deserializer=asks.FromString,
            response_serializer=lambda message: message.SerializeToString(),
        )

    async def metadata(self, message, context):
        if message.name != "m":
            await context.abort(grpc.StatusCode.NOT_FOUND, "no such model")
        about = pb.ModelMetadataResponse(name="m")
        about.inputs.add(name="x", datatype="FP32", shape=[-1, 2])
        return about

    async def infer(self, message, context):
        self.asked.append((message, dict(context.invocation_metadata()), context.time_remaining()))
        answer = pb.ModelInferResponse(model_name="m")
        await self.answer(answer, context)
        return answer

    def ask(self, model: str | None = "m", **options) -> ReplayReply:
        async def main() -> ReplayReply:
            server = grpc.aio.server()
            server.add_generic_rpc_handlers((self,))
            port = server.add_insecure_port("127.0.0.1:0")
            await server.start()
            try:
                client, _ = await dial(f"grpc://127.0.0.1:{port}", model)
                await client.prepare(SAMPLE[None])
                request = ReplayRequest(query_id=0, payload=SAMPLE, slo_s=0.25, **options)
                try:
                    return await client.infer(request)
                finally:
                    await client.close()
            finally:
                await server.stop(0)

        return asyncio.run(main())


async def logits(answer: pb.ModelInferResponse, _: Any) -> None:
    answer.outputs.add(name="y", datatype="FP32", shape=[1, 2])
    answer.raw_output_contents.append(np.array([0.25, 0.75], "<f4").tobytes())


def test_a_sample_travels_raw_with_deadline_timeout_and_class():
    server = Server(logits)
    reply = server.ask(query_class=2, timeout_s=5.0)
    assert (reply.status, reply.subnet_id, reply.accuracy) == ("ok", None, 0.0)
    np.testing.assert_array_equal(reply.output, [0.25, 0.75])
    ((message, metadata, remaining_s),) = server.asked
    assert message.raw_input_contents[0] == SAMPLE.tobytes()
    (tensor,) = message.inputs
    assert (tensor.name, tensor.datatype, list(tensor.shape)) == ("x", "FP32", [1, 2])
    assert metadata["x-slo-ms"] == "250"
    assert message.parameters["priority"].int64_param == 8
    assert remaining_s == pytest.approx(5.0, abs=0.5)


def test_typed_contents_and_our_parameters_are_read():
    async def typed(answer, _):
        tensor = answer.outputs.add(name="y", datatype="FP32", shape=[1, 2])
        tensor.contents.fp32_contents.extend([1.0, 3.0])
        answer.parameters["subnet"].string_param = "small"
        answer.parameters["accuracy"].double_param = 0.9
        answer.parameters["batch_size"].int64_param = 4
        answer.parameters["batch_id"].int64_param = 17
        answer.parameters["queue_s"].string_param = "long"

    reply = Server(typed).ask()
    np.testing.assert_array_equal(reply.output, [1.0, 3.0])
    assert (reply.subnet_id, reply.accuracy, reply.batch_size) == ("small", 0.9, 4)
    assert (reply.batch_id, reply.queue_s) == ("17", 0.0)


@pytest.mark.parametrize(
    ("code", "trailing", "expected"),
    [
        ("RESOURCE_EXHAUSTED", {"status": "rejected", "reason": "queue_full",
                                "retry_after_s": "0.5"}, ("rejected", "queue_full", 0.5, False)),
        ("DEADLINE_EXCEEDED", {}, ("dropped", "expired", 0.0, False)),
        ("RESOURCE_EXHAUSTED", {}, ("rejected", "RESOURCE_EXHAUSTED", 0.0, False)),
        ("UNAVAILABLE", {}, ("failed", "grpc UNAVAILABLE", 0.0, True)),
        ("INTERNAL", {}, ("failed", "grpc INTERNAL", 0.0, False)),
    ],
)  # fmt: skip
def test_refusals_are_read_by_word_else_by_status(code, trailing, expected):
    async def refuse(_, context):
        context.set_trailing_metadata(tuple(trailing.items()))
        await context.abort(getattr(grpc.StatusCode, code), "no")

    reply = Server(refuse).ask()
    assert (reply.status, reply.reason, reply.retry_after_s, reply.can_retry) == expected


def test_unreadable_answers_are_failed_queries():
    async def nothing(_answer, _context):
        pass

    async def half(answer, _):
        answer.outputs.add(name="y", datatype="FP32", shape=[1, 2])
        answer.raw_output_contents.append(b"123")

    for answer, text in ((nothing, "no output tensor"), (half, "do not fit its type")):
        reply = Server(answer).ask()
        assert reply.status == "failed"
        assert text in reply.reason


def test_a_wrong_model_or_address_is_said():
    with pytest.raises(ClientError, match="NOT_FOUND: no such model"):
        Server(logits).ask("other")
    with pytest.raises(ClientError, match="give --model"):
        Server(logits).ask(None)
    with pytest.raises(ClientError, match="no answer"):
        asyncio.run(dial("grpc://127.0.0.1:9", "m"))
