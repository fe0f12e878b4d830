"""A trivial model server, a process of its own: answers every inference at once, or as it is told.

`python trivial_server.py [--stall AT_S,LENGTH_S] [--after N answer|garbage|refuse|break]`: prints
its port, and a line when the first inference comes. It knows one model, `t`, FP32 input `x`
[-1, 4], no extensions, no response parameters: the least that the Open Inference Protocol asks for.
After N inferences it turns to garbage (a 200 that is no JSON), refuses (429 with Retry-After, every
other time) or breaks (stops listening and closes all connections).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time

ABOUT = {
    "/v2": {"name": "trivial", "extensions": [], "models": ["t"]},
    "/v2/models/t": {
        "name": "t",
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 4]}],
        "outputs": [{"name": "y", "datatype": "FP32", "shape": [-1, 2]}],
    },
}
ANSWER = json.dumps(
    {"outputs": [{"name": "y", "datatype": "FP32", "shape": [1, 2], "data": [0.25, 0.75]}]}
).encode()


class Server:
    def __init__(self, stall: tuple[float, float] | None, after: int, then: str) -> None:
        self.stall = stall
        self.after = after
        self.then = then
        self.num_inferences = 0
        self.first_s = 0.0
        self.listener: asyncio.Server | None = None
        self.open: set[Connection] = set()

    def reply(self, path: str) -> bytes | None:
        """Return a whole HTTP answer; None closes the connection."""
        if path in ABOUT:
            return http(200, json.dumps(ABOUT[path]).encode())
        if path != "/v2/models/t/infer":
            return http(404, b'{"error": "unknown"}')
        self.num_inferences += 1
        now_s = time.monotonic()
        if self.num_inferences == 1:
            self.first_s = now_s
            print("the first inference is here", flush=True)
        if self.stall and now_s - self.first_s >= self.stall[0]:
            length_s, self.stall = self.stall[1], None
            time.sleep(length_s)  # on purpose in the loop: the whole server stands still
        if self.num_inferences <= self.after:
            return http(200, ANSWER)
        if self.then == "garbage":
            return http(200, b"<html>it works!</html>")
        if self.then == "refuse":
            is_odd = self.num_inferences % 2
            return http(429, b"", "Retry-After: 0.02\r\n") if is_odd else http(200, ANSWER)
        assert self.listener is not None
        self.listener.close()
        for connection in self.open:
            connection.transport.abort()
        return None


def http(status: int, body: bytes, headers: str = "") -> bytes:
    head = f"HTTP/1.1 {status} X\r\n{headers}Content-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


class Connection(asyncio.Protocol):
    def __init__(self, server: Server) -> None:
        self.server = server
        self.data = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: asyncio.Transport = transport  # type: ignore[assignment]
        self.server.open.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self.server.open.discard(self)

    def data_received(self, data: bytes) -> None:
        self.data += data
        while (end := self.data.find(b"\r\n\r\n")) >= 0:
            head = self.data[:end].decode("latin-1").lower()
            _, _, after = head.partition("content-length:")
            whole = end + 4 + (int(after.split("\r\n")[0]) if after else 0)
            if len(self.data) < whole:
                return
            self.data = self.data[whole:]
            reply = self.server.reply(head.split(" ", 2)[1])
            if reply is None:
                return
            self.transport.write(reply)


async def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--stall")
    parser.add_argument("--after", nargs=2, default=("1000000000", "answer"))
    given = parser.parse_args()
    stall = tuple(map(float, given.stall.split(","))) if given.stall else None
    server = Server(stall, int(given.after[0]), given.after[1])  # type: ignore[arg-type]
    loop = asyncio.get_running_loop()
    listener = await loop.create_server(lambda: Connection(server), "127.0.0.1", 0, backlog=4096)
    server.listener = listener
    print(listener.sockets[0].getsockname()[1], flush=True)
    await asyncio.sleep(120)  # a test that forgets it does not leave it for ever


if __name__ == "__main__":
    asyncio.run(main())
