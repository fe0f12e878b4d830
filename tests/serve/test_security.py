"""Both doors with a guard: tokens, rates, bounds before allocation, texts of errors."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import httpx
import numpy as np
import pytest

from serve.doors.rest import RestDoor
from serve.doors.rpc import RpcDoor, rpc_listening
from serve.hosts.uvicorn_listener import listening
from serve.proto import open_inference_pb2 as pb
from serve.proto import open_inference_pb2_grpc as pb_grpc
from tests.serve.conftest import free_port

ADMIN, INFER = "a" * 16, "b" * 20
SECRET_PATH = "/srv/private/weights.bin"
BODY = {"inputs": [{"name": "input", "datatype": "UINT8", "shape": [1, 1, 2, 2], "data": [0] * 4}]}
URL = "/v2/models/tiny/infer"
MESSAGE = pb.ModelInferRequest(
    model_name="tiny",
    inputs=[
        pb.ModelInferRequest.InferInputTensor(name="input", datatype="UINT8", shape=[1, 1, 2, 2])
    ],
    raw_input_contents=[bytes(4)],
)


@pytest.fixture
def tokens_file(tmp_path: Path) -> str:
    path = tmp_path / "tokens"
    path.write_text(f"alice admin {ADMIN}\nbob infer {INFER}\n")
    return str(path)


@contextlib.asynccontextmanager
async def stub_of(door: RestDoor, **options: Any) -> AsyncIterator[Any]:
    listening = rpc_listening(
        RpcDoor(door.server),
        "127.0.0.1",
        0,
    )
    async with listening as rpc, grpc.aio.insecure_channel(f"127.0.0.1:{rpc.port}", **options) as c:
        yield pb_grpc.GRPCInferenceServiceStub(c)


def with_stub(door: RestDoor, use: Callable[[Any], Any], **options: Any) -> Any:
    async def main() -> Any:
        async with door._lifespan(door._app), stub_of(door, **options) as stub:
            return await use(stub)

    return asyncio.run(main())


def bearer(secret: str) -> dict[str, str]:
    return {"authorization": f"Bearer {secret}"}


def test_http_asks_for_tokens_and_health_does_not(serve_timed, tokens_file):
    async def main() -> dict[str, list[int]]:
        async with serve_timed(tokens_file=tokens_file) as client:
            paths = ("/v2/health/live", "/v2/health/ready", "/v2", "/metrics", "/admin/config")
            given: list[dict[str, str]] = [{}, bearer("c" * 16), bearer(INFER), bearer(ADMIN)]
            codes = {
                path: [(await client.get(path, headers=h)).status_code for h in given]
                for path in paths
            }
            codes[URL] = [(await client.post(URL, json=BODY, headers=h)).status_code for h in given]
            refused = await client.post(URL, json=BODY)
            assert refused.headers["www-authenticate"] == "Bearer"
            assert refused.json()["reason"] == "unauthenticated"
            return codes

    codes = asyncio.run(main())
    assert codes["/v2/health/live"] == codes["/v2/health/ready"] == [200] * 4
    assert codes["/v2"] == codes[URL] == [401, 401, 200, 200]
    assert codes["/metrics"] == codes["/admin/config"] == [401, 401, 403, 200]


def test_rpc_asks_for_tokens_and_health_does_not(timed_door, tokens_file):
    async def use(stub: Any) -> list[str]:
        assert (await stub.ServerLive(pb.ServerLiveRequest())).live
        assert (await stub.ServerReady(pb.ServerReadyRequest())).ready
        said = []
        for metadata in ((), (("authorization", f"Bearer {ADMIN}x"),)):
            for call, message in (
                (stub.ModelInfer, MESSAGE),
                (stub.ModelMetadata, pb.ModelMetadataRequest(name="tiny")),
            ):
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await call(message, metadata=metadata)
                said.append(caught.value.code().name)
                assert dict(caught.value.trailing_metadata() or ())["reason"] == "unauthenticated"
        answer = await stub.ModelInfer(MESSAGE, metadata=(("authorization", f"Bearer {INFER}"),))
        assert answer.model_version
        return said

    assert set(with_stub(timed_door(tokens_file=tokens_file), use)) == {"UNAUTHENTICATED"}


def test_http_limits_the_rate_of_a_principal(serve_timed):
    async def main() -> list[httpx.Response]:
        async with serve_timed(rate_limit_qps=0.5, rate_limit_burst=3) as client:
            twice = {"inputs": [{**BODY["inputs"][0], "shape": [2, 1, 2, 2], "data": [0] * 8}]}
            asked = [await client.post(URL, json=body) for body in (BODY, twice, BODY)]
            asked.append(await client.get("/v2"))
            return asked

    first, second, third, looked = asyncio.run(main())
    assert (first.status_code, second.status_code) == (200, 200)
    assert (third.status_code, third.json()["reason"]) == (429, "rate_limited")
    assert third.headers["retry-after"] == "2"
    assert 1 < third.json()["retry_after_s"] <= 2
    assert looked.status_code == 200, "looking costs nothing"


def test_rpc_limits_the_rate_of_a_principal(timed_door):
    async def use(stub: Any) -> tuple[str, dict[str, str]]:
        await stub.ModelInfer(MESSAGE)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.ModelInfer(MESSAGE)
        return caught.value.code().name, dict(caught.value.trailing_metadata() or ())

    code, details = with_stub(timed_door(rate_limit_qps=0.5, rate_limit_burst=1), use)
    assert (code, details["reason"]) == ("RESOURCE_EXHAUSTED", "rate_limited")
    assert 1 < float(details["retry_after_s"]) <= 2


# --- bounds --------------------------------------------------------------------------------------


def test_json_that_would_swell_is_refused_before_it_is_parsed(serve_timed, monkeypatch):
    """A model with inputs of four bytes: its largest request has 16 numbers."""

    async def main() -> list[tuple[int, str]]:
        async with serve_timed(max_body_bytes=2**20) as client:
            bombs = (b"[" + b"[]," * 100_000 + b"0]", b"[" + b"0," * 100_000 + b"0]", b"[" * 5000)
            answers = [await client.post(URL, content=bomb) for bomb in bombs]
            return [(a.status_code, a.json()["reason"]) for a in answers]

    def parse(_: object) -> object:
        raise AssertionError("it was parsed")

    monkeypatch.setattr("serve.doors.rest_messages._decode", parse)
    assert asyncio.run(main()) == [(413, "too_large")] * 3


def test_compressed_rpc_messages_are_refused_unopened(timed_door):
    """gRPC holds a message against its limit before it unpacks it: a bomb would pass."""
    bomb = pb.ModelInferRequest(model_name="tiny", id="x" * (16 * 2**20))  # 16 KiB once compressed

    async def use(stub: Any) -> str:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.ModelInfer(bomb, compression=grpc.Compression.Gzip)
        assert (await stub.ServerLive(pb.ServerLiveRequest())).live
        return caught.value.code().name

    limits = [("grpc.max_send_message_length", -1)]
    assert with_stub(timed_door(), use, options=limits) == "UNIMPLEMENTED"


# --- texts ---------------------------------------------------------------------------------------


def test_no_answer_tells_what_an_exception_said(timed_door, monkeypatch, tokens_file):
    """Texts of exceptions hold paths, addresses, values: they go to the log alone."""

    def fail(*_: object, **__: object) -> None:
        raise OSError(f"can't read {SECRET_PATH}")

    door = timed_door(tokens_file=tokens_file)
    (model,) = door.server.models
    headers = bearer(INFER)
    metadata = (("authorization", f"Bearer {INFER}"),)

    async def main() -> list[str]:
        said = []
        transport = httpx.ASGITransport(door)
        client = httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1")
        async with door._lifespan(door._app), client, stub_of(door) as stub:

            async def ask() -> None:
                answer = await client.post(URL, json=BODY, headers=headers)
                said.append(f"{answer.status_code} {answer.text} {answer.headers}")
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await stub.ModelInfer(MESSAGE, metadata=metadata)
                said.append(f"{caught.value.details()} {caught.value.trailing_metadata()}")

            with monkeypatch.context() as patch:
                patch.setattr(model.engine._runner.executor, "launch", fail)  # the model
                await ask()
            with monkeypatch.context() as patch:
                patch.setattr(model, "infer", fail)  # our own code
                await ask()
            patch = monkeypatch
            patch.setattr(model.engine, "_poll", fail)  # the device thread
            await ask()
            for path in ("/v2/health/live", "/v2/health/ready", "/v2/models/tiny/ready"):
                said.append((await client.get(path, headers=headers)).text)
            said.append((await client.get("/metrics", headers=bearer(ADMIN))).text)
            said.append((await client.get("/admin/config", headers=bearer(ADMIN))).text)
        return said

    said = asyncio.run(main())
    assert len(said) == 11
    for text in said:
        assert SECRET_PATH not in text
        assert "OSError" not in text or text.startswith('{"tiny"'), "but for an administrator"
        assert "Traceback" not in text
    assert said[0].startswith("500 ")
    assert "execution_failed" in said[0]
    assert "internal" in said[2]
    assert "device_failed" in said[4]


def test_our_commands_bring_the_token_of_the_environment(timed_door, tokens_file, monkeypatch):
    """What `supernet replay` sends, at both doors."""
    from serve.client.dial import dial
    from traces.open_loop.target import ReplayRequest

    door = timed_door(tokens_file=tokens_file)

    async def main() -> list[str]:
        port = free_port()
        rpc = rpc_listening(
            RpcDoor(door.server),
            "127.0.0.1",
            0,
        )
        said = []
        async with (
            door._lifespan(door._app),
            listening(door, "127.0.0.1", port, drain_left_s=lambda: 1.0, max_connections=100),
            rpc as opened,
        ):
            for url in (f"http://127.0.0.1:{port}", f"grpc://127.0.0.1:{opened.port}"):
                target, model = await dial(url, "tiny")
                payload = np.zeros((1, 2, 2), dtype=np.uint8)
                request = ReplayRequest(query_id=0, payload=payload, slo_s=5.0, timeout_s=5.0)
                said.append(f"{model.parameters['policy']} {(await target.infer(request)).status}")
                await target.close()
        return said

    monkeypatch.setenv("SUPERNET_TOKEN", INFER)
    assert asyncio.run(main()) == ["slackfit ok"] * 2
