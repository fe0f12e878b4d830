"""A client of whichever kind the address asks for: `http://`, `https://`, `grpc://`, `grpcs://`."""

from __future__ import annotations

from dataclasses import dataclass

from serve.client.addresses import is_rpc
from serve.client.rest_target import connect
from traces.open_loop.target import Model, Target


async def dial(url: str, model: str | None = None) -> tuple[Target, Model]:
    """Return a target for replays and what its server says of the model.

    Raises ClientError when the server can't be reached or serves nothing that can be replayed.
    """
    if is_rpc(url):
        from serve.client.rpc_target import connect_rpc

        return await connect_rpc(url, model)
    return await connect(url, model)


@dataclass(frozen=True)
class Dial:
    """Makes targets of one model in whichever process asks (`MakeTarget` of a replay)."""

    url: str
    model: str

    async def __call__(self) -> Target:
        target, _ = await dial(self.url, self.model)
        return target
