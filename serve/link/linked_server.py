"""`LinkedServer`: a server as a door's process has it: its engines are in another one.

Doors are the same as elsewhere. What they ask that is no inference (statistics, metrics, settings,
shared memory) is asked of the engine's process, so that it is one and the same whichever door a
client has.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from serve.access.build_guard import build_guard
from serve.access.guard import Caller
from serve.access.shared_rates import SharedRates
from serve.config import ServeConfig
from serve.doors.body_budget import BodyBudget
from serve.doors.server import Server
from serve.doors.shared_memory import SharedMemory
from serve.link.door_link import DoorLink
from serve.link.linked_engine import LinkedEngine
from serve.link.wire import unpack_live, unpack_regions, unpack_spec
from serve.models.image_decoder import ImageDecoder
from serve.models.limits import RefusedError
from serve.models.models import Models
from serve.models.replica_set import ReplicaSet
from serve.models.served_model import ServedModel
from serve.observe.demand import Demand
from serve.observe.request_observers import build_request_observers
from serve.observe.statistics import Statistics
from slackfit.profile import LatencyProfile

_LAST_WORDS_S = 1.0


@dataclass(frozen=True, kw_only=True)
class LinkedServer(Server):
    """The server of one door process."""

    link: DoorLink
    _end_at_s: list[float] = field(default_factory=list, init=False, repr=False)
    _live: dict[str, Any] = field(default_factory=dict, init=False, repr=False)

    def use(self, state: Mapping[str, Any]) -> None:
        """Know what the engine's process tells: states, settings, shared memory."""
        for model, told in zip(self.models, state["models"], strict=True):
            assert isinstance(model.engine, LinkedEngine), "as made"
            model.engine.tell(told)
            name = model.spec.name
            if told["live"] != self._live.get(name):
                self._live[name] = told["live"]
                model.reconfigure(unpack_live(told["live"]))
        self.memory.use(unpack_regions(state["regions"]))

    def end_within(self, timeout_s: float) -> None:
        """Note how long the end may take from now on."""
        self._end_at_s.append(time.monotonic() + timeout_s)

    def drain_left_s(self) -> float:
        """Return what is left of the time to end, at least what the last answers need."""
        end_at_s = self._end_at_s[0] if self._end_at_s else time.monotonic() + self.drain_timeout_s
        return max(_LAST_WORDS_S, end_at_s - time.monotonic())

    def refused(self, door: str, reason: str, tenant: str) -> None:
        """See `Server`."""
        self.link.send("refused", door, reason, tenant)

    async def render_metrics(self, caller: Caller) -> bytes:
        """See `Server`."""
        return await self.link.ask("metrics")

    async def statistics(
        self, caller: Caller, name: str | None = None, version: str | None = None
    ) -> list[dict[str, Any]]:
        """See `Server`."""
        return await self.link.ask("statistics", name, version)

    async def live_settings(self) -> dict[str, Any]:
        """See `Server`."""
        return await self.link.ask("settings")

    async def change_settings(self, fields: Any) -> dict[str, Any]:
        """See `Server`; when this returns, every door has the change."""
        return await self.link.ask("change", _text(fields))

    async def register_region(self, owner: str, name: str, asked: Mapping[str, Any]) -> None:
        """See `Server`; when this returns, every door knows the region."""
        await self.link.ask("register", owner, name, _text(dict(asked)))

    async def unregister_region(self, owner: str, name: str) -> None:
        """See `Server`."""
        await self.link.ask("unregister", owner, name)


def _text(fields: Any) -> str:
    """Return what a client sent as JSON, as JSON. Raises RefusedError for what is nested deeply."""
    try:
        return json.dumps(fields)
    except RecursionError:
        raise RefusedError("bad_request", "the request is nested too deeply") from None


def build_linked_server(
    config: ServeConfig,
    models: list[dict[str, Any]],
    link: DoorLink,
    rates: SharedRates | None,
    resources: contextlib.ExitStack,
) -> LinkedServer:
    """Return the server of a door process: `config` and packed `models` are as it was told.

    `resources` closes what was opened. Raises ServeConfigError.
    """
    served = [
        _build_model(index, fields, config, link, resources) for index, fields in enumerate(models)
    ]
    return LinkedServer(
        models=Models(served),
        guard=build_guard(config, time.monotonic, rates),
        max_body_bytes=config.max_body_bytes,
        max_json_bytes=config.max_json_bytes,
        budget=BodyBudget(config.max_inflight_bytes),
        memory=SharedMemory(),
        drain_timeout_s=config.drain_timeout_s,
        replicas=ReplicaSet(config.replica_urls),
        link=link,
    )


def _build_model(
    index: int,
    fields: Mapping[str, Any],
    config: ServeConfig,
    link: DoorLink,
    resources: contextlib.ExitStack,
) -> ServedModel:
    profile, live = LatencyProfile.from_json(fields["profile"]), unpack_live(fields["live"])
    assert live.policy is not None, "the whole of the settings"
    assert live.slo_ms is not None, "the whole of the settings"
    engine = LinkedEngine(index, link, profile, live.policy)
    link.engines.append(engine)
    decoder = ImageDecoder(
        max_pixels=config.max_image_pixels, max_waiting=config.max_queue, clock=engine.clock
    )
    resources.callback(decoder.close)
    return ServedModel(
        unpack_spec(fields["spec"]),
        engine,
        profile,
        live,
        statistics=Statistics(time.time),
        decoder=decoder,
        demand=Demand(profile, live.slo_ms * 1e-3),
        request_observers=build_request_observers(config, engine.clock, resources),
        reply_allowance_s=fields["allowance_s"],
    )
