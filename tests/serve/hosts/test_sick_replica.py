"""A replica that is sick but alive, beside a sound one on the same port: nobody stays with it."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import numpy as np
import pytest

from serve.client import AsyncClient, Client
from serve.client.errors import DeviceFailedError, InferError
from serve.doors.rest import RestDoor
from serve.hosts.listeners import Listeners
from tests.serve.conftest import free_port

pytestmark = pytest.mark.alone

SAMPLE = np.zeros((1, 1, 2, 2), dtype=np.uint8)


@pytest.fixture
def replica(timed_config, timed_door) -> Callable[..., Any]:
    """`replica(http port, gRPC port)` is a context with a replica on ports that others share."""

    @contextlib.asynccontextmanager
    async def start(door_port: int, grpc_port: int) -> AsyncIterator[RestDoor]:
        door = timed_door(hung_after_s=0.2, drain_timeout_s=1.0)
        ports = {"door_port": door_port, "grpc_port": grpc_port}
        listeners = Listeners(timed_config.model_copy(update=ports), door.server, is_replica=True)
        async with door._lifespan(door._app), listeners.opened(door):
            yield door

    return start


async def fall_ill(door: RestDoor) -> None:
    """Let the device of a replica hang, and wait until that is known."""
    (model,) = door.server.models
    model.engine._ledger.deliver(model.engine._give_up("the device hangs"))
    await asyncio.sleep(0.2)


async def drain(door: RestDoor) -> None:
    await door.server.drain()
    await asyncio.sleep(0.2)


@pytest.mark.parametrize("leave", [fall_ill, drain])
@pytest.mark.parametrize("scheme", ["http", "grpc"])
def test_clients_of_a_sick_or_draining_replica_go_to_the_other(replica, leave: Any, scheme: str):
    """Retries had gone over the kept connection, to the same replica: 5 of 12 clients lost all."""
    ports = free_port(), free_port()
    url = f"{scheme}://127.0.0.1:{ports[scheme == 'grpc']}"

    async def ask(client: AsyncClient) -> str:
        try:
            await client.infer(SAMPLE)
        except InferError as error:
            return error.reason
        return "ok"

    async def main() -> tuple[Counter[str], set[str]]:
        async with contextlib.AsyncExitStack() as stack:
            doors = [await stack.enter_async_context(replica(*ports)) for _ in range(2)]
            clients = [
                await stack.enter_async_context(AsyncClient(url, "tiny", slo_ms=1000))
                for _ in range(12)
            ]
            for client in clients:  # each keeps a connection
                await ask(client)
            served = [door.server.models.find("tiny").engine.status().ended for door in doors]
            await leave(doors[0])
            ends = Counter([await ask(client) for client in clients for _ in range(3)])
            return ends, {str(sorted(counts)) for counts in served}

    ends, _ = asyncio.run(main())
    assert ends == Counter(ok=36)


@pytest.mark.parametrize(("leave", "reason"), [(fall_ill, "device_failed"), (drain, "draining")])
def test_a_refusal_that_sends_elsewhere_ends_the_connection(serve_timed, timed_door, leave, reason):
    door = timed_door()

    async def main() -> httpx.Response:
        async with door._lifespan(door._app):
            await leave(door)
            client = httpx.AsyncClient(
                transport=httpx.ASGITransport(door), base_url="http://127.0.0.1"
            )
            async with client:
                body = {"name": "input", "datatype": "UINT8", "shape": [1, 1, 2, 2]}
                body["data"] = [0] * 4
                return await client.post("/v2/models/tiny/infer", json={"inputs": [body]})

    answer = asyncio.run(main())
    assert (answer.status_code, answer.json()["reason"]) == (503, reason)
    assert answer.headers["connection"] == "close"


def test_both_clients_drop_a_connection_on_which_a_server_says_503():
    """Also one of others, that does not say that it closes."""
    reason = b'{"error": "gone", "reason": "device_failed", "status": "rejected"}'
    head = b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: %d\r\n\r\n" % len(reason)
    connections = 0

    def answer(listener: socket.socket) -> None:
        nonlocal connections
        with contextlib.suppress(OSError):
            while True:
                sock, _ = listener.accept()
                connections += 1
                threading.Thread(target=keep_answering, args=(sock,), daemon=True).start()

    def keep_answering(sock: socket.socket) -> None:
        with sock, contextlib.suppress(OSError):
            while sock.recv(65_536):
                sock.sendall(head + reason)

    async def ask_awaited(url: str) -> int:
        async with AsyncClient(url, "tiny", slo_ms=200) as client:
            with pytest.raises(DeviceFailedError) as caught:
                await client.infer(SAMPLE)
        return caught.value.num_retries

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=answer, args=(listener,), daemon=True).start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        retries = asyncio.run(ask_awaited(url))
        assert connections == retries + 1 > 2
        connections = 0
        with Client(url, "tiny", slo_ms=200) as client, pytest.raises(DeviceFailedError) as caught:
            client.infer(SAMPLE)
        assert connections == caught.value.num_retries + 1 > 2
        listener.shutdown(socket.SHUT_RDWR)
