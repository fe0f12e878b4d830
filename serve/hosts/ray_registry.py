"""Replicas on Ray tell each other where they listen, so that each can name all of them to clients.

Each writes its URLs into the cluster's key-value store once a second, beside a count that grows;
whose count has stood still for `_GONE_S` is not named any more, which needs no clocks that agree.
A replica that drains or whose device has failed takes its entry out at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import logging
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from typing import Protocol

from serve.models.replica_set import ReplicaSet

logger = logging.getLogger(__name__)

_PERIOD_S = 1.0
_GONE_S = 5.0
_SWEPT_S = 60.0


class Store(Protocol):
    """Texts by name, shared by all replicas of one application."""

    def put(self, name: str, text: str) -> None: ...
    def all(self) -> Mapping[str, str]: ...
    def remove(self, name: str) -> None: ...


class RayStore:
    """The key-value store of the Ray cluster that this process belongs to."""

    def __init__(self, application: str) -> None:
        self._prefix = f"supernet/{application}/"

    def put(self, name: str, text: str) -> None:
        """Write a text."""
        from ray.experimental.internal_kv import _internal_kv_put

        _internal_kv_put(self._prefix + name, text, overwrite=True, namespace="serve")

    def all(self) -> Mapping[str, str]:
        """Return every text; one that was taken out meanwhile is left out."""
        from ray.experimental.internal_kv import _internal_kv_get, _internal_kv_list

        keys = [key.decode() for key in _internal_kv_list(self._prefix, namespace="serve")]
        found = {key: _internal_kv_get(key, namespace="serve") for key in keys}
        return {k.removeprefix(self._prefix): v.decode() for k, v in found.items() if v}

    def remove(self, name: str) -> None:
        """Take a text out."""
        from ray.experimental.internal_kv import _internal_kv_del

        _internal_kv_del(self._prefix + name, namespace="serve")


class Registry:
    """One replica's entry, and what it has seen of the others'. Calls may block: use a thread."""

    def __init__(
        self, store: Store, urls: Iterable[str], *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._store = store
        self._urls = list(urls)
        self._clock = clock
        self._name = uuid.uuid4().hex
        self._counts = itertools.count()
        self._seen: dict[str, tuple[str, float]] = {}  # what it said last, and since when

    def renew(self) -> list[str]:
        """Write the own entry; return the URLs of all replicas that write theirs."""
        self._store.put(self._name, json.dumps([next(self._counts), *self._urls]))
        now_s, urls = self._clock(), list[str]()
        for name, text in self._store.all().items():
            before, since_s = self._seen.get(name, ("", now_s))
            if text != before:
                self._seen[name] = text, now_s
            elif now_s - since_s > _SWEPT_S:
                self._store.remove(name)
            if text != before or now_s - since_s <= _GONE_S:
                urls += json.loads(text)[1:]
        return urls

    def leave(self) -> None:
        """Take the own entry out."""
        self._store.remove(self._name)


@contextlib.asynccontextmanager
async def announced(
    registry: Registry, replicas: ReplicaSet, takes_queries: Callable[[], bool]
) -> AsyncIterator[None]:
    """Tell and hear, during an `async with` block, who else is there; `replicas` is kept up to it.

    What the store fails at is logged; the last list stays.
    """

    async def keep() -> None:
        is_there = True
        while True:
            with contextlib.suppress(asyncio.TimeoutError):
                try:
                    if takes_queries():
                        replicas.use(await asyncio.to_thread(registry.renew))
                    elif is_there:
                        is_there = False
                        await asyncio.to_thread(registry.leave)
                except Exception:  # the boundary to Ray: a server without it still serves
                    logger.exception("the replicas' addresses can't be kept up to date")
            await asyncio.sleep(_PERIOD_S if is_there and takes_queries() else _PERIOD_S / 10)

    task = asyncio.ensure_future(keep())
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        with contextlib.suppress(Exception):  # Ray may be gone already
            await asyncio.to_thread(registry.leave)
