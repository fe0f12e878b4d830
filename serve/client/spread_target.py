"""Several replicas of one model as the target of a replay, spread over as our clients spread.

A query whose replica drains, is sick or breaks the connection is sent to another one at once, with
what is left of its deadline: that is what a client of several replicas does.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Protocol

import numpy as np

from serve.client.replicas import Replicas
from serve.client.rest_answers import ClientError
from traces.open_loop.target import ReplayReply, ReplayRequest, Target

_ELSEWHERE = ("device_failed", "draining", "not_ready")


class ReplicaTarget(Target, Protocol):
    """A target that also says what its server is: that of HTTP, or of gRPC."""

    async def server(self) -> Mapping[str, Any]: ...


class SpreadTarget:
    """Sends each query to one of the replicas; follows the list that the server keeps."""

    def __init__(
        self,
        replicas: Replicas,
        targets: Mapping[str, ReplicaTarget],
        connect: Callable[[str], Awaitable[ReplicaTarget]],
    ) -> None:
        """`targets` are those there are, by URL; `connect` makes the others. Raises ClientError."""
        self._replicas = replicas
        self._connect = connect
        self._targets = dict(targets)
        self._payloads: np.ndarray | None = None
        self._looking: asyncio.Task[None] | None = None

    async def prepare(self, payloads: np.ndarray) -> None:
        """Prepare every target; those that come later get the same."""
        self._payloads = payloads
        for target in self._targets.values():
            await target.prepare(payloads)

    async def infer(self, request: ReplayRequest) -> ReplayReply:
        """Send one query to a replica, to another where that one sends it away."""
        began_s = time.monotonic()
        left = request
        while True:
            reply = await self._infer_once(left)
            if not self._replicas.has_other() or not _is_elsewhere(reply):
                return reply
            left_s = request.slo_s - (time.monotonic() - began_s)
            if left_s <= 0:
                return reply
            left = dataclasses.replace(request, slo_s=left_s)

    async def look(self, server: Mapping[str, Any], tag: str) -> None:
        """Use the replicas that a server's metadata name, as far as they can be reached."""
        self._replicas.name(server, tag)
        for url in self._replicas.urls:
            if url not in self._targets:
                with contextlib.suppress(ClientError):
                    await self._reach(url)

    async def close(self) -> None:
        """Close the connections."""
        if self._looking is not None:
            self._looking.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._looking
        for target in self._targets.values():
            await target.close()

    async def _infer_once(self, request: ReplayRequest) -> ReplayReply:
        url = self._replicas.choose()
        try:
            target = self._targets.get(url) or await self._reach(url)
            reply = await target.infer(request)
        except ClientError as error:  # it can't even be asked what it takes
            reply = ReplayReply(status="failed", reason=f"connection: {error}", can_retry=True)
        except BaseException:
            self._replicas.forgotten(url)
            raise
        if _is_elsewhere(reply):
            self._replicas.failed(url)
        else:
            self._replicas.answered(url, reply.earliest_finish_s, reply.capacity_qps)
        if self._replicas.should_look(reply.replica_tag):
            self._looking = asyncio.create_task(self._read_list(url, reply.replica_tag))
        return reply

    async def _reach(self, url: str) -> ReplicaTarget:
        target = await self._connect(url)
        if self._payloads is not None:
            await target.prepare(self._payloads)
        known = self._targets.setdefault(url, target)
        if known is not target:  # another query was as quick
            await target.close()
        return known

    async def _read_list(self, url: str, tag: str) -> None:
        with contextlib.suppress(ClientError):
            await self.look(await self._targets[url].server(), tag)


def _is_elsewhere(reply: ReplayReply) -> bool:
    """Whether another replica should be asked."""
    return reply.can_retry or (reply.status != "ok" and reply.reason in _ELSEWHERE)
