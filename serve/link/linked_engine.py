"""`LinkedEngine`: an engine in another process, as a door's process knows it.

What it is asked travels over the door's link; how it is, the engine's process tells.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np

from serve.engine.job import EngineStatus
from serve.engine.open_request import OnEnd, Withdraw, replies_of
from serve.engine.reply import Reply, RequestOptions
from serve.engine.served_engine import EarliestAnswer
from slackfit.policy import Policy
from slackfit.profile import LatencyProfile
from slackfit.query import Query
from slackfit.scheduling.outcomes import unserved


class EngineLink(Protocol):
    """What a linked engine needs of its link; `index` says which of a server's engines it is."""

    def open_request(
        self,
        index: int,
        samples: np.ndarray,
        arrival_s: float,
        options: RequestOptions,
        on_end: OnEnd,
    ) -> Withdraw: ...

    def send(self, *message: Any) -> None: ...

    async def ended(self, timeout_s: float) -> bool: ...


class LinkedEngine:
    """Fulfils `ServedEngine`; `profile` is what is offered at the start."""

    def __init__(self, index: int, link: EngineLink, profile: LatencyProfile, policy: str) -> None:
        self.clock = time.monotonic  # of the machine: the same in every process
        self._index = index
        self._link = link
        self._profile = profile
        self._settings: dict[str, int | bool | None] = {}
        self._status = EngineStatus("starting", policy, 0, 0, "", "", {})
        self.told_earliest: EarliestAnswer | None = None

    @property
    def policy_name(self) -> str:
        """The name of the policy in force."""
        return self._status.policy

    @property
    def profile(self) -> LatencyProfile:
        """The offered subnets, as profiled."""
        return self._profile

    @property
    def drops_hopeless(self) -> bool:
        """Whether what cannot be in time is refused, not served late."""
        return bool(self._settings.get("drop_hopeless", True))

    def tell(self, told: Mapping[str, Any]) -> None:
        """Take in how the engine is."""
        self._settings = dict(told["settings"])
        self._status = self._status._replace(
            state=told["state"],
            policy=told["policy"],
            fallback=told["fallback"],
            fault=told["fault"],
        )

    def lose(self, fault: str) -> None:
        """Note that the engine's process is gone."""
        self._status = self._status._replace(state="stopped", fault=fault)

    async def start(self) -> None:
        """Start nothing: the engine's process has done so."""

    async def drain(self, timeout_s: float) -> bool:
        """Wait until what this door has asked has ended; return whether it has in time."""
        return await self._link.ended(timeout_s)

    async def stop(self, timeout_s: float = 0.0) -> None:
        """Stop nothing: the engine ends with its process."""

    async def infer(
        self, samples: np.ndarray, *, arrival_s: float, options: RequestOptions
    ) -> list[Reply]:
        """See `Engine.infer`."""
        return await replies_of(
            lambda end: self.open_request(samples, arrival_s=arrival_s, options=options, on_end=end)
        )

    def open_request(
        self, samples: np.ndarray, *, arrival_s: float, options: RequestOptions, on_end: OnEnd
    ) -> Withdraw:
        """See `Engine.open_request`."""
        return self._link.open_request(self._index, samples, arrival_s, options, on_end)

    def refuse(
        self, reason: str, *, arrival_s: float, options: RequestOptions, samples: int
    ) -> Reply:
        """See `Engine.refuse`; the engine's process counts it, and gives it an id of its own."""
        self._link.send("refuse", self._index, reason, arrival_s, options, samples)
        return unserved_reply("rejected", reason, arrival_s, options, samples)

    def reconfigure(
        self, *, policy: Policy | None = None, profile: LatencyProfile | None = None
    ) -> None:
        """Know what is offered now; which policy chooses is told with the engine's state."""
        if profile is not None:
            self._profile = profile

    def scheduler_settings(self) -> dict[str, int | bool | None]:
        """Return how the scheduler is set."""
        return dict(self._settings)

    def status(self) -> EngineStatus:
        """Return the engine's state as it was told last; what it counts is not told to doors."""
        return self._status

    def backlog(self) -> tuple[tuple[Query, ...], float]:
        """Return that nothing waits here: the queue is the engine's."""
        return (), self.clock()

    def device_counts(self) -> Mapping[str, int]:
        """Return nothing: the device is the engine's."""
        return {}

    def earliest_answer(self) -> EarliestAnswer:
        """Return what was told with the last refusal; before there is one, of an idle device."""
        idle_s = self._profile.fastest().latency_s[1]
        return self.told_earliest or EarliestAnswer(idle_s, idle_s)


def unserved_reply(
    status: Any, reason: str, arrival_s: float, options: RequestOptions, samples: int
) -> Reply:
    """Return how a request ended that no engine has answered."""
    query = Query(
        -1,
        arrival_s,
        options.deadline_s,
        samples=samples,
        tenant=options.tenant,
        given_deadline_s=options.given_deadline_s,
    )
    outcome = unserved(query, status, reason, time.monotonic())
    return Reply(outcome, tenant=options.tenant)
