"""The least that can answer: uvicorn and grpc.aio around nothing, for the cost of a door beside it.

`python -m serve.bench.serving.bare_server http|grpc` reads a request whole and answers it with as
many bytes as an inference over that protocol gets. It parses nothing, and runs nothing.
"""

from __future__ import annotations

import asyncio
import socket
import sys
from typing import Any

import grpc
import grpc.aio
import uvicorn

_ANSWER = bytes(400)  # ten logits and how they came about
_HEADERS = [(b"content-length", b"%d" % len(_ANSWER)), (b"content-type", b"text/plain")]


async def app(scope: Any, receive: Any, send: Any) -> None:
    """Read the body, answer."""
    more = True
    while more:
        more = (await receive()).get("more_body", False)
    await send({"type": "http.response.start", "status": 200, "headers": _HEADERS})
    await send({"type": "http.response.body", "body": _ANSWER})


class _Handler(grpc.GenericRpcHandler):
    def service(self, handler_call_details: Any) -> Any:
        return grpc.unary_unary_rpc_method_handler(self._answer)

    async def _answer(self, request: bytes, context: Any) -> bytes:
        return _ANSWER


async def _serve_rpc() -> None:
    server = grpc.aio.server(options=[("grpc.max_receive_message_length", 2**31 - 1)])
    server.add_generic_rpc_handlers((_Handler(),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(f"ready: grpc://127.0.0.1:{port}", flush=True)
    await server.wait_for_termination()


def main() -> None:
    """Serve until a signal; prints where."""
    if sys.argv[1] == "grpc":
        asyncio.run(_serve_rpc())
        return
    config = uvicorn.Config(
        app, log_level="error", access_log=False, lifespan="off", proxy_headers=False
    )
    with socket.create_server(("127.0.0.1", 0)) as listener:
        print(f"ready: http://127.0.0.1:{listener.getsockname()[1]}", flush=True)
        uvicorn.Server(config).run(sockets=[listener])


if __name__ == "__main__":
    main()
