"""`VeiledModel`: a served model as one caller sees it, with the methods that doors call.

Every caller's queries are routed in the same way; who holds the scope `audit` is told all of it,
who holds `balance` the predicted finish besides what everybody is told.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from serve.engine.reply import Reply, RequestOptions
from serve.models.deadline import usable
from serve.models.limits import RefusedError
from serve.models.models import Models
from serve.models.request import InferRequest, ModelSpec
from serve.models.served_model import ServedModel
from serve.models.tenant_limits import NO_LIMITS, TenantLimits
from serve.security.lattice import Specification
from serve.security.redaction import (
    merged,
    reduced,
    release_s,
    veiled_refusal,
    veiled_reply,
    veiled_rows,
)
from serve.security.shield import Drawn, Shield


class Viewer:
    """Who asks, and what they may see."""

    __slots__ = ("is_auditor", "principal", "tells_outlook")

    def __init__(self, principal: str, scopes: frozenset[str]) -> None:
        self.principal = principal
        self.is_auditor = "audit" in scopes
        self.tells_outlook = self.is_auditor or "balance" in scopes


class VeiledStatistics:
    """The protocol's statistics without what tells a subnet."""

    def __init__(self, model: ServedModel) -> None:
        self._model = model

    def rows(self, name: str, version: str | None = None) -> list[dict[str, Any]]:
        """Return one row of the model."""
        return veiled_rows(self._model.statistics.rows(name), name, version)


class VeiledModel:
    """One model for one caller."""

    def __init__(self, model: ServedModel, shield: Shield, viewer: Viewer) -> None:
        self._model = model
        self._shield = shield
        self._viewer = viewer

    @property
    def spec(self) -> ModelSpec:
        """What a door must know; the subnets, the profile and the device for auditors only."""
        spec = self._model.spec
        if self._viewer.is_auditor:
            return spec
        return spec._replace(subnet_ids=(), profile="", device="")

    @property
    def policy_name(self) -> str:
        """The policy's name, which may name a subnet."""
        return self._model.policy_name if self._viewer.is_auditor else ""

    @property
    def statistics(self) -> Any:
        """The statistics, by subnet for auditors only."""
        if self._viewer.is_auditor:
            return self._model.statistics
        return VeiledStatistics(self._model)

    def settings(self) -> dict[str, Any]:
        """Return what everybody may know of the defence; all settings for auditors."""
        settings = self._model.settings() if self._viewer.is_auditor else {}
        return {**settings, **self._shield.told()}

    def check_ready(self) -> None:
        """Raise RefusedError unless the engine takes queries."""
        self._model.check_ready()

    def check_waited(
        self, headers: Mapping[str, str], *, arrival_s: float, request_id: str, tenant: TenantLimits
    ) -> None:
        """See `ServedModel.check_waited`."""
        try:
            self._model.check_waited(
                headers, arrival_s=arrival_s, request_id=request_id, tenant=tenant
            )
        except RefusedError as error:
            raise self._told(error) from None

    async def infer(
        self,
        request: InferRequest,
        headers: Mapping[str, str],
        *,
        arrival_s: float,
        call_timeout_s: float | None = None,
        request_id: str = "",
        tenant: TenantLimits = NO_LIMITS,
    ) -> list[Reply]:
        """Serve one request on subnets that are drawn. Raises RefusedError."""
        try:
            return await self._infer(
                request, headers, arrival_s, call_timeout_s, request_id, tenant
            )
        except RefusedError as error:
            raise self._told(error) from None

    async def _infer(
        self,
        request: InferRequest,
        headers: Mapping[str, str],
        arrival_s: float,
        call_timeout_s: float | None,
        request_id: str,
        tenant: TenantLimits,
    ) -> list[Reply]:
        model, shield, principal = self._model, self._shield, self._viewer.principal
        ids = (request_id, request.request_id)
        if request.subnet_id() is not None:
            if not self._viewer.is_auditor:
                raise shield.refuse_pin(principal)
            return await model.infer(
                request,
                headers,
                arrival_s=arrival_s,
                call_timeout_s=call_timeout_s,
                request_id=request_id,
                tenant=tenant,
            )
        if shield.lattice.profile is not model.engine.profile:
            shield.use(model.engine.profile)  # another set of subnets is offered since
        floor = request.min_accuracy()
        request = request._replace(parameters={**request.parameters, "min_accuracy": 0.0})
        options = model.resolve(
            request, headers, arrival_s=arrival_s, call_timeout_s=call_timeout_s, tenant=tenant
        )
        assert options.given_deadline_s is not None, "resolved"
        given_s = options.given_deadline_s - arrival_s
        specification = shield.specification(shield.tier(principal, floor, given_s), given_s)
        options = self._narrowed(options, specification, arrival_s)
        samples = await model.ready(request.samples, options, headers, arrival_s, ids)
        drawn = [shield.drawn(principal, specification, sample) for sample in samples]
        replies = await self._serve(samples, drawn, options, headers, arrival_s, ids)
        self._note(specification, drawn, replies, request_id)
        replies = [self._given(reply, specification) for reply in replies]
        await self._hold(arrival_s, options)
        return replies

    def _narrowed(
        self, options: RequestOptions, specification: Specification, arrival_s: float
    ) -> RequestOptions:
        """Return the options with the tier's floor, and the deadline of the grid to work for.

        The scheduler must not take for slack what the answer waits for at the door.
        """
        on_grid_s = specification.steps * self._shield.lattice.grid_s
        deadline_s = arrival_s + usable(on_grid_s, self._model.allowance_s)
        return options._replace(
            deadline_s=min(options.deadline_s, deadline_s), min_accuracy=specification.tier.floor
        )

    async def _serve(
        self,
        samples: np.ndarray,
        drawn: list[Drawn],
        options: RequestOptions,
        headers: Mapping[str, str],
        arrival_s: float,
        ids: tuple[str, str | None],
    ) -> list[Reply]:
        """Have each sample served on its own subnet, those of one subnet together.

        A request's samples share no draw: else one could be asked again beside others.
        """
        places: dict[str, list[int]] = {}
        for place, one in enumerate(drawn):
            places.setdefault(one.subnet_id, []).append(place)
        serve = self._model.serve
        if len(places) == 1:
            own = options._replace(subnet_id=drawn[0].subnet_id)
            return await serve(samples, own, headers, arrival_s, ids)
        async with asyncio.TaskGroup() as group:
            tasks = {
                subnet_id: group.create_task(
                    _outcome(
                        serve(
                            samples[indices],
                            options._replace(subnet_id=drawn[indices[0]].subnet_id),
                            headers,
                            arrival_s,
                            ids,
                        )
                    )
                )
                for subnet_id, indices in places.items()
            }
        ends = {subnet_id: task.result() for subnet_id, task in tasks.items()}
        parts: list[tuple[list[int], list[Reply]]] = []
        for subnet_id, end in ends.items():
            if isinstance(end, RefusedError):
                raise end
            parts.append((places[subnet_id], end))
        return merged(parts, len(samples))

    def _note(
        self,
        specification: Specification,
        drawn: list[Drawn],
        replies: list[Reply],
        request_id: str,
    ) -> None:
        served = sorted({str(reply.outcome.subnet_id) for reply in replies})
        about = {
            "request_id": request_id,
            "digest": drawn[0].digest.hex(),
            "samples": len(drawn),
            "drawn": sorted({str(one.subnet_id) for one in drawn}),
            "served": served,
            "status": replies[0].outcome.status,
        }
        self._shield.note(self._viewer.principal, specification, about)

    def _given(self, reply: Reply, specification: Specification) -> Reply:
        assert reply.output is not None, "refusals were raised"
        shield = self._shield
        output = reduced(reply.output, shield.form(specification.tier), shield.decimals)
        reply = reply._replace(output=output)
        if self._viewer.is_auditor:
            return reply
        return veiled_reply(reply, tells_outlook=self._viewer.tells_outlook)

    async def _hold(self, arrival_s: float, options: RequestOptions) -> None:
        """Wait until the answer may leave."""
        clock, deadline_s = self._model.engine.clock, options.given_deadline_s
        assert deadline_s is not None, "resolved"
        now_s = clock()
        until_s = release_s(
            arrival_s, now_s, options.deadline_s, deadline_s, self._shield.lattice.grid_s
        )
        if until_s > now_s:
            await asyncio.sleep(until_s - now_s)

    def _told(self, error: RefusedError) -> RefusedError:
        if self._viewer.is_auditor:
            return error
        return veiled_refusal(error, tells_outlook=self._viewer.tells_outlook)


class VeiledModels:
    """The served models as one caller sees them."""

    def __init__(self, models: Models, shields: Mapping[str, Shield], viewer: Viewer) -> None:
        self._models = models
        self._shields = shields
        self._viewer = viewer

    def __iter__(self) -> Iterator[VeiledModel]:
        return (self._veiled(model) for model in self._models)

    def find(self, name: str, version: str | None = None) -> VeiledModel:
        """Return a model; only auditors may name a version. Raises RefusedError."""
        if version is None or self._viewer.is_auditor:
            return self._veiled(self._models.find(name, version))
        model = self._models.find(name)
        raise self._shields[model.spec.name].refuse_pin(self._viewer.principal)

    def _veiled(self, model: ServedModel) -> VeiledModel:
        return VeiledModel(model, self._shields[model.spec.name], self._viewer)


async def _outcome(serving: Any) -> list[Reply] | RefusedError:
    """Return how a part of a request ended: one that is refused must not cancel the others'."""
    try:
        return await serving
    except RefusedError as error:
        return error
