"""A client of whichever kind the address asks for: `http://`, `https://`, `grpc://`, `grpcs://`.

Several addresses, with commas between, are servers that serve the same; and a server may name its
replicas. Then queries are spread over all of them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from serve.client.addresses import is_rpc
from serve.client.replicas import Chooser, Replicas, split_urls
from serve.client.rest_answers import ClientError
from serve.client.rest_target import connect
from serve.client.spread_target import ReplicaTarget, SpreadTarget
from serve.proto.names import REPLICAS
from traces.open_loop.target import Model, Target


async def dial(
    url: str,
    model: str | None = None,
    *,
    spread: bool = True,
    chooser: Chooser | None = None,
) -> tuple[Target, Model]:
    """Return a target for replays and what its server says of the model.

    `spread` false: only the addresses given, not those that the server names. `chooser` None
    spreads as our clients do.

    Raises ClientError when the server can't be reached or serves nothing that can be replayed.
    """
    replicas = Replicas(split_urls(url), follows=spread, chooser=chooser)
    url, first, about = await _dial_any(replicas.given, model)

    async def reach(other: str) -> ReplicaTarget:
        return (await _dial_one(other, about.name))[0]

    target = SpreadTarget(replicas, {url: first}, reach)
    try:
        named = await first.server() if spread else {}
    except ClientError:  # optional: the model has answered, so somebody is there
        named = {}
    if REPLICAS in named:
        await target.look(named, "")
    return (target if len(replicas.urls) > 1 else first), about


async def _dial_any(urls: Sequence[str], model: str | None) -> tuple[str, ReplicaTarget, Model]:
    """Return the first address that answers, with its target and model."""
    for url in urls[:-1]:
        with contextlib.suppress(ClientError):
            return (url, *await _dial_one(url, model))
    return (urls[-1], *await _dial_one(urls[-1], model))


async def _dial_one(url: str, model: str | None) -> tuple[ReplicaTarget, Model]:
    if is_rpc(url):
        from serve.client.rpc_target import connect_rpc

        return await connect_rpc(url, model)
    return await connect(url, model)


@dataclass(frozen=True)
class Dial:
    """Makes targets of one model in whichever process asks (`MakeTarget` of a replay).

    `chooser`, picklable, makes the rule by which replicas are chosen; None: as our clients do.
    """

    url: str
    model: str
    spread: bool = True
    chooser: Callable[[], Chooser] | None = None

    async def __call__(self) -> Target:
        chooser = None if self.chooser is None else self.chooser()
        target, _ = await dial(self.url, self.model, spread=self.spread, chooser=chooser)
        return target
