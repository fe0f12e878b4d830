"""`Server`: what all doors of one process share."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

from serve.access.guard import Caller, Guard
from serve.doors.body_budget import BodyBudget
from serve.doors.shared_memory import SharedMemory
from serve.models.limits import RefusedError
from serve.models.models import Models
from serve.models.replica_set import ReplicaSet
from serve.observe.loop_lag import LoopLag
from serve.observe.metrics import Metrics

if TYPE_CHECKING:
    from serve.security.security import Security

_LAST_WORDS_S = 1.0
_BODY_BYTES = 16 * 2**20
_JSON_BYTES = 256 * 2**10
_INFLIGHT_BYTES = 256 * 2**20


@dataclass(frozen=True, kw_only=True)
class Server:
    """The served models, who may ask them, and what is counted of it.

    `max_body_bytes` bounds a request at every door, `max_json_bytes` a tensor in JSON, `budget` all
    requests at once. `memory` is what clients on this host share, `loop_lag` how long the doors'
    loop keeps requests waiting. `drain_timeout_s` is how long queued queries are finished for once
    the server ends. Clients may choose among `replicas`; `others_note` says, where this is one of
    several, how settings reach all. `security` hides which subnets serve (None: nothing is hidden).
    """

    models: Models
    metrics: Metrics = field(default_factory=Metrics)
    guard: Guard = field(default_factory=Guard)
    max_body_bytes: int = _BODY_BYTES
    max_json_bytes: int = _JSON_BYTES
    budget: BodyBudget = field(default_factory=lambda: BodyBudget(_INFLIGHT_BYTES))
    memory: SharedMemory = field(default_factory=SharedMemory)
    loop_lag: LoopLag = field(default_factory=LoopLag)
    drain_timeout_s: float = 10.0
    replicas: ReplicaSet = field(default_factory=ReplicaSet)
    others_note: str = ""
    security: Security | None = None
    _drain_began: list[float] = field(default_factory=list, init=False, repr=False)

    def models_for(self, caller: Caller) -> Models:
        """Return the models as a caller may see them."""
        if self.security is None:
            return self.models
        seen = self.security.models_for(self.models, caller.principal, caller.scopes)
        return cast("Models", seen)  # the same methods, as far as doors call them

    def render_metrics(self, caller: Caller) -> bytes:
        """Return the metrics that a caller may see, as of now."""
        self.refresh_metrics()
        if self.security is None:
            return self.metrics.render()
        return self.security.render_metrics(self.metrics, caller.scopes)

    def check_alone(self) -> None:
        """Raise RefusedError where live settings would reach one of several replicas only."""
        if self.others_note:
            raise RefusedError("several_replicas", self.others_note)

    async def drain(self) -> bool:
        """Refuse new queries and finish the queued ones; return whether all ended in time."""
        self._drain_began.append(time.monotonic())
        return await self.models.drain(self.drain_timeout_s)

    def drain_left_s(self) -> float:
        """Return what is left of `drain_timeout_s`, which every step of the end shares.

        At least as much as the last answers need to be written.
        """
        began_s = self._drain_began[0] if self._drain_began else time.monotonic()
        return max(_LAST_WORDS_S, began_s + self.drain_timeout_s - time.monotonic())

    def refresh_metrics(self) -> None:
        """Set what is a state and not an event; called when the metrics are read."""
        self.metrics.refresh(self.models.engines())
        self.metrics.refresh_doors(self.loop_lag.longest_s(), self.budget.used_bytes)
