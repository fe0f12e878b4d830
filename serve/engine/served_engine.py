"""`ServedEngine`: what a served model asks of its engine, in this process or in another."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple, Protocol

import numpy as np

from serve.engine.job import EngineStatus
from serve.engine.open_request import OnEnd, Withdraw
from serve.engine.reply import Reply, RequestOptions
from slackfit.policy import Policy
from slackfit.profile import LatencyProfile
from slackfit.query import Query


class EarliestAnswer(NamedTuple):
    """The earliest answer that a device can promise, in seconds from now; a refusal tells it.

    `finish_s` behind all that waits and runs, `idle_finish_s` on an idle device.
    """

    finish_s: float
    idle_finish_s: float


class ServedEngine(Protocol):
    """`Engine`, or what stands for one in a door process; see there."""

    clock: Callable[[], float]

    @property
    def policy_name(self) -> str: ...

    @property
    def profile(self) -> LatencyProfile: ...

    @property
    def drops_hopeless(self) -> bool: ...

    async def start(self) -> None: ...

    async def drain(self, timeout_s: float) -> bool: ...

    async def stop(self, timeout_s: float = ...) -> None: ...

    async def infer(
        self, samples: np.ndarray, *, arrival_s: float, options: RequestOptions
    ) -> list[Reply]: ...

    def open_request(
        self, samples: np.ndarray, *, arrival_s: float, options: RequestOptions, on_end: OnEnd
    ) -> Withdraw: ...

    def refuse(
        self, reason: str, *, arrival_s: float, options: RequestOptions, samples: int
    ) -> Reply: ...

    def reconfigure(
        self, *, policy: Policy | None = ..., profile: LatencyProfile | None = ...
    ) -> None: ...

    def scheduler_settings(self) -> dict[str, int | bool | None]: ...

    def status(self) -> EngineStatus: ...

    def backlog(self) -> tuple[tuple[Query, ...], float]: ...

    def device_counts(self) -> Mapping[str, int]: ...

    def earliest_answer(self) -> EarliestAnswer: ...
