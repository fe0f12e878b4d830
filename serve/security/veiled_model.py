"""`VeiledModel`: a served model as one caller sees it, with the methods that doors call.

Every caller's queries are routed in the same way; who holds the scope `audit` is told all of it,
who holds `balance` the predicted finish besides what everybody is told. Whatever was queued is
answered, refused, counted and logged at a point of the grid, so that none of that tells when a
batch ended.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from serve.engine.reply import Reply, RequestOptions
from serve.models.deadline import usable
from serve.models.limits import RefusedError
from serve.models.models import Models
from serve.models.request import InferRequest, ModelSpec
from serve.models.served_model import ServedModel
from serve.models.tenant_limits import NO_LIMITS, TenantLimits
from serve.security.lattice import Specification
from serve.security.redaction import merged, reduced, release_s, veiled_refusal, veiled_reply
from serve.security.shield import Drawn, Shield, ShieldRefusedError

_Part = tuple[list[int], list[Reply]]
"""Places of the samples of one subnet, and how they ended."""


class _Question(NamedTuple):
    """One request whose samples are decoded and drawn for; `ids` are ours and its own."""

    samples: np.ndarray
    drawn: list[Drawn]
    specification: Specification
    options: RequestOptions
    headers: Mapping[str, str]
    arrival_s: float
    ids: tuple[str, str | None]


class Viewer:
    """Who asks, and what they may see."""

    __slots__ = ("is_auditor", "principal", "tells_outlook")

    def __init__(self, principal: str, scopes: frozenset[str]) -> None:
        self.principal = principal
        self.is_auditor = "audit" in scopes
        self.tells_outlook = self.is_auditor or "balance" in scopes


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
        """The statistics, by subnet for auditors; else counts of what has left."""
        return self._model.statistics if self._viewer.is_auditor else self._shield.counts

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
        counts, num_samples = self._shield.counts, len(request.samples)
        try:
            replies = await self._infer(
                request, headers, arrival_s, call_timeout_s, request_id, tenant
            )
        except RefusedError as error:
            counts.refused(num_samples)
            raise self._told(error) from None
        counts.answered(num_samples)
        return replies

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
        if floor:  # the tier's is what counts
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
        replies = await self._released(
            _Question(samples, drawn, specification, options, headers, arrival_s, ids)
        )
        return [self._given(reply, specification) for reply in replies]

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

    async def _released(self, asked: _Question) -> list[Reply]:
        """Have samples served, and return a reply for each when they may leave.

        A refusal leaves with the grid as well, unless nothing was queued. Raises RefusedError.
        """
        model, arrival_s = self._model, asked.arrival_s
        told: list[Reply] = []
        ended_s: float | None = None
        try:
            parts = await self._served(asked)
            ends = [reply for _, replies in parts for reply in replies]
            refusal = None
            try:
                model.check_answered(ends, asked.options)
            except RefusedError as error:
                refusal = error
            self._note(asked, ends)
            if any(end.outcome.status != "rejected" for end in ends):  # something was queued
                ended_s = await self._hold(asked)
            told = ends
        finally:  # a client that goes away is a cancellation here
            ended_s = model.engine.clock() if ended_s is None else ended_s
            about = (asked.options, asked.headers, asked.ids)
            model.tell_end(*about, told, arrival_s=arrival_s, ended_s=ended_s)
        if refusal is not None:
            raise refusal
        return merged(parts, len(asked.samples))

    async def _served(self, asked: _Question) -> list[_Part]:
        """Have each sample served on its own subnet, those of one subnet together.

        A request's samples share no draw: else one could be asked again beside others. All ends
        are awaited, whichever are refused.
        """
        samples, drawn, options = asked.samples, asked.drawn, asked.options
        infer = self._model.engine.infer
        if len(drawn) == 1:
            own = options._replace(subnet_id=drawn[0].subnet_id)
            return [([0], await infer(samples, arrival_s=asked.arrival_s, options=own))]
        places: dict[str, list[int]] = {}
        for place, one in enumerate(drawn):
            places.setdefault(one.subnet_id, []).append(place)
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(
                    infer(
                        samples[own],
                        arrival_s=asked.arrival_s,
                        options=options._replace(subnet_id=drawn[own[0]].subnet_id),
                    )
                )
                for own in places.values()
            ]
        return [(own, task.result()) for own, task in zip(places.values(), tasks, strict=True)]

    def _note(self, asked: _Question, ends: list[Reply]) -> None:
        """Write what was drawn and what served to the audit log."""
        outcomes = [reply.outcome for reply in ends]
        self._shield.note(
            self._viewer.principal,
            asked.specification,
            asked.drawn,
            served=[o.subnet_id for o in outcomes if o.subnet_id is not None],
            status=next((o.status for o in outcomes if o.status != "on_time"), "on_time"),
            request_id=asked.ids[0],
        )

    def _given(self, reply: Reply, specification: Specification) -> Reply:
        assert reply.output is not None, "refusals were raised"
        shield = self._shield
        output = reduced(reply.output, shield.form(specification.tier), shield.decimals)
        if self._viewer.is_auditor:
            return reply._replace(output=output)
        return veiled_reply(reply, output, tells_outlook=self._viewer.tells_outlook)

    async def _hold(self, asked: _Question) -> float:
        """Wait until the answer may leave; return when that is."""
        deadline_s = asked.options.given_deadline_s
        assert deadline_s is not None, "resolved"
        now_s = self._model.engine.clock()
        until_s = release_s(
            asked.arrival_s,
            now_s,
            asked.options.deadline_s,
            deadline_s,
            self._shield.lattice.grid_s,
            asked.specification.ready_steps,
        )
        if until_s > now_s:
            await asyncio.sleep(until_s - now_s)
        return until_s

    def _told(self, error: RefusedError) -> RefusedError:
        if self._viewer.is_auditor or isinstance(error, ShieldRefusedError):
            return error
        return veiled_refusal(error, tells_outlook=self._viewer.tells_outlook)


class VeiledModels:
    """The served models as one caller sees them."""

    def __init__(self, models: Models, shields: Mapping[str, Shield], viewer: Viewer) -> None:
        self._models = models
        self._shields = shields
        self._viewer = viewer
        self._veiled = {
            model.spec.name: VeiledModel(model, shields[model.spec.name], viewer)
            for model in models
        }

    def __iter__(self) -> Iterator[VeiledModel]:
        return iter(self._veiled.values())

    def find(self, name: str, version: str | None = None) -> VeiledModel:
        """Return a model; only auditors may name a version. Raises RefusedError."""
        if version is None or self._viewer.is_auditor:
            return self._veiled[self._models.find(name, version).spec.name]
        model = self._models.find(name)
        raise self._shields[model.spec.name].refuse_pin(self._viewer.principal)
