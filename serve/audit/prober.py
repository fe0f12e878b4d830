"""`Prober`: asks one server over the public client, and counts.

What an attacker sees of an answer is the output, how long it took, and whether it came. Which
subnet served is what the auditor's token is told: attacks are scored by it, and where one is said
to be adaptive it may look.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import NamedTuple, Self

import numpy as np

from serve.client import AsyncClient, InferError
from serve.client.info import ModelInfo

_ANSWERED_ELSE = ("accuracy_floor", "infeasible", "expired", "bad_deadline")


class Probe(NamedTuple):
    """A specification: a floor on accuracy and a deadline, or a pinned subnet."""

    min_accuracy: float = 0.0
    slo_ms: float | None = None
    subnet: str | None = None


class Seen(NamedTuple):
    """What came back: logits (classes,) or None, seconds, and the subnet where it is told."""

    logits: np.ndarray | None
    took_s: float
    subnet_id: str = ""
    accuracy: float = 0.0
    told: tuple[float, float, float] = (0.0, 0.0, 0.0)
    reason: str = ""

    @property
    def is_answered(self) -> bool:
        """Whether there is an output."""
        return self.logits is not None


class Prober:
    """One principal's questions to one server; `num_queries` counts them."""

    def __init__(self, url: str, token: str | None, model: str | None = None) -> None:
        self._client = AsyncClient(url, model, token=token, spread=False)
        self.num_queries = 0

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.close()

    async def info(self) -> ModelInfo:
        """Return the model's metadata. Raises InferError."""
        return await self._client.model_info()

    async def ask(self, image: np.ndarray, asked: Probe) -> Seen:
        """Ask once. Raises InferError for what is no end of a query, such as a lost token."""
        self.num_queries += 1
        began_s = time.monotonic()
        try:
            result = await self._client.infer(
                image,
                slo_ms=asked.slo_ms,
                min_accuracy=asked.min_accuracy or None,
                subnet=asked.subnet,
            )
        except InferError as error:
            if error.reason not in _ANSWERED_ELSE:
                raise
            return Seen(None, time.monotonic() - began_s, reason=error.reason)
        told = (result.queue_s, result.execution_s, float(result.batch_size))
        took_s = time.monotonic() - began_s
        return Seen(result.logits[0], took_s, result.subnet_id, result.accuracy, told)

    async def ask_all(
        self, images: Sequence[np.ndarray] | np.ndarray, asked: Sequence[Probe], in_flight: int
    ) -> list[Seen]:
        """Ask each image with its specification, so many at once; answers in their order."""
        seen: list[Seen | None] = [None] * len(images)
        places = iter(range(len(images)))

        async def work() -> None:
            for place in places:
                seen[place] = await self.ask(images[place], asked[place])

        async with asyncio.TaskGroup() as group:
            for _ in range(in_flight):
                group.create_task(work())
        return [one for one in seen if one is not None]
