"""`ServedModel`: one supernet behind a name: its engine, its default SLO, its live settings."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from serve.config import LiveConfig, ServeConfigError
from serve.engine.guarded import Guarded
from serve.engine.job import EngineStatus
from serve.engine.open_request import Withdraw
from serve.engine.reply import Reply, RequestOptions, cause_of
from serve.engine.served_engine import ServedEngine
from serve.models.deadline import earliest_sent_s, resolve_deadline, usable
from serve.models.image_decoder import ImageDecoder
from serve.models.limits import RefusedError, check_floor, refusal_of, wish_text
from serve.models.recent_refusals import RecentRefusals
from serve.models.reply_lag import ReplyLag
from serve.models.request import InferRequest, ModelSpec, Samples
from serve.models.tenant_limits import NO_LIMITS, TenantLimits
from serve.observe.demand import Demand, Signals
from serve.observe.request_record import RequestObserver, RequestRecord
from serve.observe.statistics import Statistics
from serve.proto.names import class_of
from slackfit.policies import create_policy
from slackfit.profile import LatencyProfile, ProfileError
from slackfit.query import Outcome

_LONG_WAIT_S = 0.002  # at the door; up to that nothing is looked at


class _Terms(NamedTuple):
    """What a request is served by: its options, its ids (ours and its own), its headers."""

    options: RequestOptions
    ids: tuple[str, str | None]
    headers: Mapping[str, str]


class ServedModel:
    """What a door talks to; `profile` holds every subnet that could be offered.

    `unix_clock` serves absolute deadlines of clients only; all else is on the engine's clock.
    """

    def __init__(
        self,
        spec: ModelSpec,
        engine: ServedEngine,
        profile: LatencyProfile,
        live: LiveConfig,
        *,
        statistics: Statistics,
        decoder: ImageDecoder,
        demand: Demand,
        reply_allowance_s: float = 0.0,
        request_observers: Sequence[RequestObserver] = (),
        unix_clock: Callable[[], float] = time.time,
        check_offer: Callable[[LatencyProfile], None] | None = None,
    ) -> None:
        """`check_offer` raises ServeConfigError for subnets that may not be offered alone."""
        assert live.policy is not None, "a served model has a policy"
        assert live.slo_ms is not None, "a served model has a default SLO"
        self.spec = spec
        self.engine = engine
        self.statistics = statistics
        self._decoder = decoder
        self._demand = demand
        self._profile = profile
        self._start = live
        self._policy: str = live.policy
        self._slo_s: float = live.slo_ms * 1e-3
        self._subnets = live.subnets
        self._max_batch_size = profile.max_batch_size
        self._reply_allowance_s = reply_allowance_s
        self._reply_lag = ReplyLag()
        self._late_refusals = RecentRefusals(engine.clock, engine.earliest_answer)
        self._unix_clock = unix_clock
        self._check_offer = check_offer
        self.is_overdue: Callable[[float, float], bool] = lambda waited_s, given_s: False
        self._request_observers = [Guarded(observer) for observer in request_observers]

    @property
    def profile(self) -> LatencyProfile:
        """Every subnet that could be offered."""
        return self._profile

    @property
    def reply_allowance_s(self) -> float:
        """What the way back to a client takes, as configured."""
        return self._reply_allowance_s

    @property
    def policy_name(self) -> str:
        """The name of the policy in force."""
        return self.engine.policy_name

    def check_waited(
        self, headers: Mapping[str, str], *, arrival_s: float, request_id: str, tenant: TenantLimits
    ) -> None:
        """Refuse, unread, what the headers say has waited at the door for too long already.

        Beyond what a door can carry everything waits. To read what no device can answer in time
        any more would keep those behind it waiting for nothing, until nothing is in time. Raises
        RefusedError: `infeasible`, or `queue_full` where the door has to choose (`bad_deadline`).
        """
        waited_s = self.engine.clock() - arrival_s
        if waited_s < _LONG_WAIT_S:
            return
        given_s = earliest_sent_s(headers)
        if given_s is None or given_s <= 0:
            return
        deadline_s = arrival_s + usable(given_s, self.allowance_s)
        reason = self._why_too_late(waited_s, given_s, deadline_s)
        if not reason:
            return
        options = RequestOptions(
            deadline_s, given_deadline_s=arrival_s + given_s, tenant=tenant.name
        )
        terms = _Terms(options, (request_id, None), headers)
        outcome = self._end_late(reason, terms, arrival_s, 1)
        # They come by the thousand a second: one tells all of some milliseconds the same.
        raise self._late_refusals.of(outcome).with_traceback(None)

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
        """Serve the samples of one request. Raises RefusedError when one gets no output.

        `call_timeout_s`, from arrival, is the deadline that a gRPC call brings itself.
        """
        terms = self._terms(request, headers, arrival_s, call_timeout_s, request_id, tenant)
        samples = request.samples
        if isinstance(samples, tuple):
            samples = await self._decode(samples, terms.options.deadline_s)
        return await self._serve(samples, terms, arrival_s)

    async def _serve(self, samples: np.ndarray, terms: _Terms, arrival_s: float) -> list[Reply]:
        submitted_s = self.engine.clock()
        replies: list[Reply] = []
        try:
            replies = await self.engine.infer(samples, arrival_s=arrival_s, options=terms.options)
        finally:  # a client that goes away is a cancellation here
            self._record(terms, arrival_s, submitted_s, replies)
        self.check_answered(replies, terms.options)
        return replies

    def open_request(
        self,
        request: InferRequest,
        headers: Mapping[str, str],
        *,
        arrival_s: float,
        request_id: str,
        tenant: TenantLimits,
        on_end: Callable[[list[Reply] | RefusedError], None],
    ) -> Withdraw:
        """Serve a request without a task: `on_end` is called with its replies, or the refusal.

        It may be called before this returns. Samples are decoded already. Raises RefusedError for
        what is refused before it is queued.
        """
        terms = self._terms(request, headers, arrival_s, None, request_id, tenant)
        assert not isinstance(request.samples, tuple), "decoded"
        submitted_s = self.engine.clock()

        def end(replies: list[Reply]) -> None:
            try:
                self._record(terms, arrival_s, submitted_s, replies)
                self.check_answered(replies, terms.options)
            except RefusedError as error:
                on_end(error)
            else:
                on_end(replies)

        return self.engine.open_request(
            request.samples, arrival_s=arrival_s, options=terms.options, on_end=end
        )

    def _terms(
        self,
        request: InferRequest,
        headers: Mapping[str, str],
        arrival_s: float,
        call_timeout_s: float | None,
        request_id: str,
        tenant: TenantLimits,
    ) -> _Terms:
        """Return what a request is served by. Raises RefusedError, also for one that waited."""
        options = self.resolve(
            request, headers, arrival_s=arrival_s, call_timeout_s=call_timeout_s, tenant=tenant
        )
        terms = _Terms(options, (request_id, request.request_id), headers)
        self._check_in_time(terms, arrival_s, len(request.samples))
        return terms

    def _check_in_time(self, terms: _Terms, arrival_s: float, num_samples: int) -> None:
        """Refuse a request that waited at the door for too long. Raises RefusedError."""
        waited_s = self.engine.clock() - arrival_s
        if waited_s < _LONG_WAIT_S:
            return
        options = terms.options
        by_s = options.given_deadline_s
        given_s = (options.deadline_s if by_s is None else by_s) - arrival_s
        if reason := self._why_too_late(waited_s, given_s, options.deadline_s):
            raise self._refusal(self._end_late(reason, terms, arrival_s, num_samples), options)

    def resolve(
        self,
        request: InferRequest,
        headers: Mapping[str, str],
        *,
        arrival_s: float,
        call_timeout_s: float | None = None,
        tenant: TenantLimits = NO_LIMITS,
    ) -> RequestOptions:
        """Return deadlines and wishes of a request. Raises RefusedError."""
        deadlines = resolve_deadline(
            request.parameters,
            headers,
            arrival_s=arrival_s,
            default_slo_s=self._slo_s,
            unix_arrival_s=self._unix_clock() - (self.engine.clock() - arrival_s),
            reply_allowance_s=self.allowance_s,
            call_timeout_s=call_timeout_s,
            tenant=tenant,
        )
        priority, subnet_id, floor = request.priority(), request.subnet_id(), request.min_accuracy()
        tenant.check_wishes(priority, subnet_id)
        check_floor(floor, subnet_id, self.engine.profile)
        return RequestOptions(
            deadlines.deadline_s,
            deadlines.hard_deadline_s,
            given_deadline_s=deadlines.given_deadline_s,
            min_accuracy=floor,
            query_class=class_of(priority),
            subnet_id=subnet_id,
            tenant=tenant.name,
        )

    async def ready(
        self,
        samples: Samples,
        options: RequestOptions,
        headers: Mapping[str, str],
        arrival_s: float,
        ids: tuple[str, str | None],
    ) -> np.ndarray:
        """Return a request's samples, decoded, unless it waited too long. Raises RefusedError."""
        self._check_in_time(_Terms(options, ids, headers), arrival_s, len(samples))
        if isinstance(samples, tuple):
            return await self._decode(samples, options.deadline_s)
        return samples

    def tell_end(
        self,
        options: RequestOptions,
        headers: Mapping[str, str],
        ids: tuple[str, str | None],
        replies: list[Reply],
        *,
        arrival_s: float,
        ended_s: float,
    ) -> None:
        """Tell who watches requests how one ended whose samples the engine was asked for apart.

        `replies` is empty where the client went away first.
        """
        terms = _Terms(options, ids, headers)
        self._record(terms, arrival_s, arrival_s, replies, ended_s=ended_s)

    @property
    def allowance_s(self) -> float:
        """How long before its deadline an answer should leave the device."""
        return self._reply_allowance_s + self._reply_lag.lag_s

    def _why_too_late(self, waited_s: float, given_s: float, deadline_s: float) -> str:
        """Return why a request that waited at the door is refused, nothing if it is not.

        No idle device could answer in time, or the door has to choose; late answers may be wanted.
        """
        is_overdue = self.is_overdue(waited_s, given_s)
        if not self.engine.drops_hopeless:
            return ""
        if deadline_s - self.engine.clock() < self.engine.profile.fastest().latency_s[1]:
            return "infeasible"
        return "queue_full" if is_overdue else ""

    def _end_late(self, reason: str, terms: _Terms, arrival_s: float, num_samples: int) -> Outcome:
        """End a request that waited at the door for too long, and tell who watches requests."""
        options = terms.options
        reply = self.engine.refuse(
            reason, arrival_s=arrival_s, options=options, samples=num_samples
        )
        self._record(terms, arrival_s, self.engine.clock(), [reply])
        return reply.outcome

    def _record(
        self,
        terms: _Terms,
        arrival_s: float,
        submitted_s: float,
        replies: list[Reply],
        ended_s: float | None = None,
    ) -> None:
        """Tell who watches requests how one ended."""
        if self._request_observers:
            ended_s = self.engine.clock() if ended_s is None else ended_s
            times_s = (arrival_s, submitted_s, ended_s)
            about = (*terms.ids, terms.headers, *times_s, replies, terms.options.tenant)
            record = RequestRecord(self.spec.name, *about)
            for observer in self._request_observers:
                observer(record)

    async def _decode(self, files: Sequence[bytes], deadline_s: float) -> np.ndarray:
        """Return images as samples, in time for the device to answer. Raises RefusedError."""
        until_s = math.inf
        if self.engine.drops_hopeless:
            until_s = deadline_s - self.engine.earliest_answer().idle_finish_s
        shape = self.spec.sample.shape
        return await self._decoder.decode(files, shape, deadline_s=deadline_s, until_s=until_s)

    def check_answered(self, replies: Sequence[Reply], options: RequestOptions) -> None:
        """Raise RefusedError unless every query has an output that its client still wants."""
        ended = [reply.outcome for reply in replies if not reply.is_executed]
        if options.hard_deadline_s is not None:
            ended += [r.outcome for r in replies if r.outcome.finish_s > options.hard_deadline_s]
        if ended:
            raise self._refusal(cause_of(ended), options)
        self._reply_lag.observe(self.engine.clock() - replies[-1].outcome.finish_s)

    def _refusal(self, outcome: Outcome, options: RequestOptions) -> RefusedError:
        wish = wish_text(options.min_accuracy, options.subnet_id)
        return refusal_of(outcome, self.engine.earliest_answer(), wish)

    def check_ready(self) -> None:
        """Raise RefusedError unless the engine takes queries."""
        status = self.engine.status()
        state = status.state
        if state != "ready":
            reason = "not_ready" if state == "starting" else "draining"
            reason = "device_failed" if status.fault else reason
            raise RefusedError(reason, f"model {self.spec.name!r} is {state}")

    def reconfigure(self, change: LiveConfig, *, from_start: bool = False) -> dict[str, Any]:
        """Switch policy, SLO or offered subnets between two batches; all of it or nothing.

        What is not given stays, or (`from_start`) is as it was at the start; no subnets are all.
        Returns the settings in force. Raises ServeConfigError for unknown policies or subnets.
        """
        if from_start:
            change = self._whole(change)
        subnets = self._subnets if change.subnets is None else change.subnets
        policy_name = change.policy or self._policy
        max_batch_size = change.max_batch_size or self._max_batch_size
        offered = None
        if change.policy or change.subnets is not None or change.max_batch_size:
            try:
                offered = self._profile.select(subnets) if subnets else self._profile
                offered = offered.capped(max_batch_size)
                policy = create_policy(policy_name, offered)
                if self._check_offer is not None:
                    self._check_offer(offered)
            except (ValueError, ProfileError) as error:
                raise ServeConfigError(str(error)) from None
            is_new = offered.subnets != self.engine.profile.subnets
            # The profile that is offered already is left alone, with what was learned of it.
            self.engine.reconfigure(policy=policy, profile=offered if is_new else None)
            self.spec = self.spec._replace(subnet_ids=offered.subnet_ids)
        if change.slo_ms is not None:
            self._slo_s = change.slo_ms * 1e-3
        if offered is not None or change.slo_ms is not None:
            self._demand.use(self.engine.profile, self._slo_s)
        self._subnets, self._policy, self._max_batch_size = subnets, policy_name, max_batch_size
        return self.live_settings()

    def _whole(self, change: LiveConfig) -> LiveConfig:
        """Return a change that says everything: what it left out is as at the start."""
        given, start = change.model_dump(exclude_none=True), self._start
        first = {
            "policy": start.policy,
            "slo_ms": start.slo_ms,
            "subnets": start.subnets or (),
            "max_batch_size": self._profile.max_batch_size,
        }
        return LiveConfig(**{**first, **given})

    def live_config(self) -> LiveConfig:
        """Return the whole of the live settings in force."""
        return LiveConfig(
            policy=self._policy,
            slo_ms=self._slo_s * 1e3,
            subnets=self._subnets or (),
            max_batch_size=self._max_batch_size,
        )

    def signals(self) -> Signals:
        """Return what the last seconds asked of the device: what replicas are scaled by."""
        return self._demand.signals(self.engine.clock(), *self.engine.backlog())

    def settings(self) -> dict[str, Any]:
        """Return what a simulated twin must share with the model, for its metadata.

        `policy` has its parameters; where the engine fell back on another, it is that one. Subnets
        are left out: metadata list them as versions, and gRPC's trailers have room for 8 KiB.
        """
        fell_back = bool(self.engine.status().fallback)
        return {
            "policy": self.engine.policy_name if fell_back else self._policy,
            "slo_ms": self._slo_s * 1e3,
            "max_batch_size": self._max_batch_size,
            "reply_allowance_ms": self._reply_allowance_s * 1e3,
            **self.engine.scheduler_settings(),
        }

    def live_settings(self) -> dict[str, Any]:
        """Return the settings in force and the engine's state, as plain data."""
        status: EngineStatus = self.engine.status()
        return {
            "policy": status.policy,
            "slo_ms": self._slo_s * 1e3,
            "subnets": list(self.spec.subnet_ids),
            "max_batch_size": self._max_batch_size,
            "state": status.state,
            "queue_depth": status.queue_depth,
            "fallback": status.fallback,
            "fault": status.fault,
            "ended": dict(status.ended),
            "latency_factor": status.latency_factor,
            "latency_delay_ms": None
            if status.latency_delay_s is None
            else status.latency_delay_s * 1e3,
        }
