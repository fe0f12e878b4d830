"""`grpc.health.v1` and reflection, asked by the stubs of their own packages, as tools do."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from serve.doors.rpc import RpcDoor, rpc_listening

pytestmark = pytest.mark.alone

SERVING, NOT_SERVING = (
    health_pb2.HealthCheckResponse.SERVING,
    health_pb2.HealthCheckResponse.NOT_SERVING,
)
SECRET = "s" * 20


@pytest.fixture
def ask(timed_door):
    """`ask(use, **settings)` serves and awaits `use(channel, door)`."""

    def run(use: Any, **settings: Any) -> Any:
        async def main() -> Any:
            door = timed_door(**settings)
            listening = rpc_listening(RpcDoor(door.server), "127.0.0.1", 0)
            async with contextlib.AsyncExitStack() as stack:
                await stack.enter_async_context(door.running())
                rpc = await stack.enter_async_context(listening)
                channel = grpc.aio.insecure_channel(rpc.address)
                return await use(await stack.enter_async_context(channel), door)

        return asyncio.run(main())

    return run


def request(service: str = "") -> health_pb2.HealthCheckRequest:
    return health_pb2.HealthCheckRequest(service=service)


@pytest.fixture
def tokens(tmp_path) -> str:
    path = tmp_path / "tokens"
    path.write_text(f"bob infer {SECRET}\n")
    return str(path)


def test_server_and_models_are_checked_without_a_token(ask, tokens):
    async def use(channel, _) -> list[int]:
        stub = health_pb2_grpc.HealthStub(channel)
        services = ("", "inference.GRPCInferenceService", "tiny")
        return [(await stub.Check(request(service))).status for service in services]

    assert ask(use, tokens_file=tokens) == [SERVING] * 3


def test_an_unknown_service_is_not_found(ask):
    async def use(channel, _) -> tuple[str, int]:
        stub = health_pb2_grpc.HealthStub(channel)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.Check(request("nobody"))
        watched = stub.Watch(request("nobody"))
        return caught.value.code().name, (await watched.read()).status

    unknown = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
    assert ask(use) == ("NOT_FOUND", unknown)


def test_all_are_listed(ask):
    async def use(channel, _) -> dict[str, int]:
        listed = await health_pb2_grpc.HealthStub(channel).List(health_pb2.HealthListRequest())
        return {name: told.status for name, told in listed.statuses.items()}

    assert ask(use) == dict.fromkeys(("", "inference.GRPCInferenceService", "tiny"), SERVING)


def test_a_drain_is_seen_by_who_checks_and_by_who_watches(ask):
    async def use(channel, door) -> tuple[list[int], int, int]:
        stub = health_pb2_grpc.HealthStub(channel)
        watched, seen = stub.Watch(request("tiny")), []
        while (told := await watched.read()) is not grpc.aio.EOF:  # the stream ends
            seen.append(told.status)
            await door.server.drain()
        checks = [(await stub.Check(request(service))).status for service in ("", "tiny")]
        return seen, *checks

    assert ask(use) == ([SERVING, NOT_SERVING], NOT_SERVING, NOT_SERVING)


def test_reflection_lists_and_describes_the_services(ask):
    async def use(channel, _) -> tuple[list[str], list[bytes]]:
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        asked = [
            reflection_pb2.ServerReflectionRequest(list_services=""),
            reflection_pb2.ServerReflectionRequest(
                file_containing_symbol="inference.GRPCInferenceService"
            ),
        ]
        told = [answer async for answer in stub.ServerReflectionInfo(iter(asked))]
        names = [service.name for service in told[0].list_services_response.service]
        return names, list(told[1].file_descriptor_response.file_descriptor_proto)

    names, files = ask(use)
    assert {"grpc.health.v1.Health", "inference.GRPCInferenceService"} < set(names)
    assert b"ModelInfer" in files[0]


def test_reflection_needs_a_token_where_there_are_tokens(ask, tokens):
    async def use(channel, _) -> tuple[str, int]:
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        asked = [reflection_pb2.ServerReflectionRequest(list_services="")]
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            async for _ in stub.ServerReflectionInfo(iter(asked)):
                pass
        metadata = (("authorization", f"Bearer {SECRET}"),)
        told = [a async for a in stub.ServerReflectionInfo(iter(asked), metadata=metadata)]
        return caught.value.code().name, len(told)

    assert ask(use, tokens_file=tokens) == ("UNAUTHENTICATED", 1)


def test_both_versions_of_reflection_are_answered(ask):
    async def use(channel, _) -> list[int]:
        counts = []
        for version in ("v1", "v1alpha"):
            call = channel.stream_stream(
                f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo",
                request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
                response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
            )
            asked = [reflection_pb2.ServerReflectionRequest(list_services="")]
            counts.append(len([a async for a in call(iter(asked))]))
        return counts

    assert ask(use) == [1, 1]
