"""`Server`: what all doors of one process share, and what they ask that is no inference."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

from serve.access.guard import Caller, Guard
from serve.config import ServeConfigError, parse_live_config
from serve.doors.body_budget import BodyBudget
from serve.doors.shared_memory import Region, SharedMemory
from serve.models.intake import Intake
from serve.models.limits import RefusedError
from serve.models.models import Models
from serve.models.replica_set import ReplicaSet
from serve.models.request import bad
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
    loop keeps requests waiting, `intake` where they wait their turn. `drain_timeout_s` is how long
    queued queries are finished for once the server ends. Clients may choose among `replicas`;
    `others_note` says, where this is one of several, how settings reach all. `door_load` tells the
    lag and the bytes in flight where doors are elsewhere. `security` hides which subnets serve
    (None: nothing is hidden).
    """

    models: Models
    metrics: Metrics = field(default_factory=Metrics)
    guard: Guard = field(default_factory=Guard)
    max_body_bytes: int = _BODY_BYTES
    max_json_bytes: int = _JSON_BYTES
    budget: BodyBudget = field(default_factory=lambda: BodyBudget(_INFLIGHT_BYTES))
    memory: SharedMemory = field(default_factory=SharedMemory)
    loop_lag: LoopLag = field(default_factory=LoopLag)
    intake: Intake = field(default_factory=Intake)
    drain_timeout_s: float = 10.0
    replicas: ReplicaSet = field(default_factory=ReplicaSet)
    others_note: str = ""
    door_load: Callable[[], tuple[float, int]] | None = None
    security: Security | None = None
    _drain_began: list[float] = field(default_factory=list, init=False, repr=False)

    def __post_init__(self) -> None:
        for model in self.models:
            model.is_overdue = self.intake.is_overdue

    def models_for(self, caller: Caller) -> Models:
        """Return the models as a caller may see them."""
        if self.security is None:
            return self.models
        seen = self.security.models_for(self.models, caller.principal, caller.scopes)
        return cast("Models", seen)  # the same methods, as far as doors call them

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
        self.metrics.refresh_streams((d.spec.name, d.engine) for d in self.models.decoders)
        if self.door_load is None:
            self.metrics.refresh_doors(self.loop_lag.longest_s(), self.budget.used_bytes)
        else:
            self.metrics.refresh_doors(*self.door_load())

    def refused(self, door: str, reason: str, tenant: str) -> None:
        """Count a request that got an error at the `http` or the `grpc` door."""
        self.metrics.refused(door, reason, tenant)

    # --- what doors ask; awaited, since a door of its own process asks another --------------------

    async def render_metrics(self, caller: Caller) -> bytes:
        """Return the metrics that a caller may see, in Prometheus' text form."""
        self.refresh_metrics()
        if self.security is None:
            return self.metrics.render()
        return self.security.render_metrics(self.metrics, caller.scopes)

    async def statistics(
        self, caller: Caller, name: str | None = None, version: str | None = None
    ) -> list[dict[str, Any]]:
        """Return what a caller may see of the statistics of a model, or of one version of it.

        Without a name those of all models. Raises RefusedError.
        """
        seen = self.models_for(caller)
        models = seen if name is None else [seen.find(name, version)]
        return [row for m in models for row in m.statistics.rows(m.spec.name, version)]

    async def live_settings(self) -> dict[str, Any]:
        """Return the settings in force, and the state, of each model."""
        return self.models.live_settings()

    async def change_settings(self, fields: Any) -> dict[str, Any]:
        """Change live settings as a client asks; return those in force. Raises RefusedError."""
        name, is_for_one = None, False
        if isinstance(fields, dict):
            fields = dict(fields)
            name = fields.pop("model", None)
            is_for_one = fields.pop("only_this_replica", False) is True
        if self.others_note and not is_for_one:
            raise RefusedError("several_replicas", self.others_note)
        if name is not None and not isinstance(name, str):
            raise bad("bad_request", "model", name, "the name of a model")
        try:
            change = parse_live_config(fields)
            if name is None:
                return self.models.reconfigure(change)
            return {name: self.models.reconfigure_one(name, change)}
        except ServeConfigError as error:
            raise RefusedError("bad_request", str(error)) from None

    async def register_region(self, owner: str, name: str, asked: Mapping[str, Any]) -> None:
        """Register shared memory: `key`, `offset`, `byte_size`. Raises RefusedError."""
        key, offset, size = asked.get("key"), asked.get("offset", 0), asked.get("byte_size")
        self.memory.register(owner, name, key, offset, size)

    async def unregister_region(self, owner: str, name: str) -> None:
        """Forget a region, or all of an owner's."""
        self.memory.unregister(owner, name)

    def regions(self, owner: str, name: str) -> list[Region]:
        """Return an owner's regions, or the one of that name. Raises RefusedError if it is none."""
        return self.memory.status(owner, name)
