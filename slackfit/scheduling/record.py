"""Recording a scheduler's calls, and deciding a recorded run again.

The log (`call_log`) has a header that names policy, profile and settings, then every call with its
times and its result or error. Fed to a fresh scheduler, the same calls give the same decisions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from slackfit.graph_forms import GRAPHS, as_captured
from slackfit.policy import ALONE, DeviceLoad, Policy
from slackfit.profile import LatencyProfile
from slackfit.query import Outcome, Query
from slackfit.scheduling.call_log import (
    CallRecorder,
    LogError,
    ReplayDifferenceError,
    TextSink,
    replay_calls,
)
from slackfit.scheduling.scheduler import Dispatch, PolicyError, Scheduler

__all__ = [
    "LogError",
    "RecordingScheduler",
    "ReplayDifferenceError",
    "TextSink",
    "replay_log",
]

FORMAT = 1
_FAULTS = (PolicyError, ValueError)
_Result = TypeVar("_Result")


class RecordingScheduler(Scheduler):
    """A scheduler that writes down each call with its result.

    The caller owns `sink` and closes it. Like any scheduler it must not be called by two threads at
    once; under one lock the lines are in the order of the calls.
    """

    def __init__(
        self, profile: LatencyProfile, policy: Policy, *, sink: TextSink, **settings: Any
    ) -> None:
        """Start empty; `settings` are those of `Scheduler`, which says what is raised."""
        self._recorder = CallRecorder(sink, _FAULTS)
        self._recorder.unwritten(super().__init__, profile, policy, **settings)
        self._recorder.write(_header(self))

    def submit(self, query: Query, now_s: float) -> Outcome | None:
        """See `Scheduler.submit`."""
        return self._recorder.do("submit", super().submit, query, now_s)

    def submit_all(self, queries: Sequence[Query]) -> list[Outcome]:
        """See `Scheduler.submit_all`; written as one `submit` each."""
        outcomes = [self.submit(query, query.arrival_s) for query in queries]
        return [outcome for outcome in outcomes if outcome is not None]

    def cancel(self, query_id: int, now_s: float, reason: str = "cancelled") -> Outcome | None:
        """See `Scheduler.cancel`."""
        return self._recorder.do("cancel", super().cancel, query_id, now_s, reason)

    def poll(
        self, now_s: float, worker_id: int | None = None, others: DeviceLoad = ALONE
    ) -> Dispatch:
        """See `Scheduler.poll`; others are written where there are some."""
        shared = () if others == ALONE else (others,)
        return self._recorder.do("poll", super().poll, now_s, worker_id, *shared)

    def poll_behind(
        self, now_s: float, worker_id: int | None = None, others: DeviceLoad = ALONE
    ) -> Dispatch:
        """See `Scheduler.poll_behind`; others are written where there are some."""
        shared = () if others == ALONE else (others,)
        return self._recorder.do("poll_behind", super().poll_behind, now_s, worker_id, *shared)

    def complete(self, batch_id: int, now_s: float) -> tuple[Outcome, ...]:
        """See `Scheduler.complete`."""
        return self._recorder.do("complete", super().complete, batch_id, now_s)

    def fail(self, batch_id: int, now_s: float, reason: str) -> tuple[Outcome, ...]:
        """See `Scheduler.fail`."""
        return self._recorder.do("fail", super().fail, batch_id, now_s, reason)

    def retire(self, worker_id: int) -> None:
        """See `Scheduler.retire`."""
        self._recorder.do("retire", super().retire, worker_id)

    def cancel_all(self, now_s: float, reason: str = "cancelled") -> tuple[Outcome, ...]:
        """See `Scheduler.cancel_all`."""
        return self._recorder.do("cancel_all", super().cancel_all, now_s, reason)

    def reconfigure(
        self,
        *,
        policy: Policy | None = None,
        profile: LatencyProfile | None = None,
        max_queue: int | None = None,
        drop_hopeless: bool | None = None,
    ) -> None:
        """See `Scheduler.reconfigure`; policy and profile are written by name.

        Of a profile as it is while there are certain graphs, those are written too.
        """

        reconfigure = super().reconfigure

        def change(names: Mapping[str, object]) -> None:
            reconfigure(
                policy=policy, profile=profile, max_queue=max_queue, drop_hopeless=drop_hopeless
            )

        names: dict[str, Any] = {
            "policy": policy.name if policy else None,
            "profile": profile.name if profile else None,
            "max_queue": max_queue,
            "drop_hopeless": drop_hopeless,
        }
        if profile is not None and GRAPHS in profile.extra:
            names[GRAPHS] = profile.extra[GRAPHS]
        self._recorder.do("reconfigure", change, names)

    def drain(self) -> None:
        """See `Scheduler.drain`."""
        self._recorder.do("drain", super().drain)


def replay_log(
    log: str | Path | Iterable[str],
    scheduler: Scheduler,
    *,
    policies: Mapping[str, Policy] | None = None,
    profiles: Mapping[str, LatencyProfile] | None = None,
) -> int:
    """Make the recorded calls on a fresh `scheduler`; return how many calls agreed.

    `log` is a path or the lines. `policies` and `profiles` are what recorded reconfigurations
    switch to, by name; the scheduler's own profile need not be among them. Raises
    ReplayDifferenceError at the first call that does something else, and LogError for a malformed
    log or one recorded with other settings.
    """
    known = _Known(scheduler, policies or {}, profiles or {})
    return replay_calls(log, known.methods, _header(scheduler), _FAULTS)


class _Known:
    """What a log's calls may do to the scheduler that it is replayed on."""

    def __init__(
        self,
        scheduler: Scheduler,
        policies: Mapping[str, Policy],
        profiles: Mapping[str, LatencyProfile],
    ) -> None:
        self._scheduler = scheduler
        self._policies = policies
        self._profiles = {scheduler.offered.name: scheduler.offered, **profiles}
        self.methods: dict[str, Callable[..., object]] = {
            "submit": self._submit,
            "cancel": scheduler.cancel,
            "poll": self._poll,
            "poll_behind": self._poll_behind,
            "complete": scheduler.complete,
            "fail": scheduler.fail,
            "retire": scheduler.retire,
            "cancel_all": scheduler.cancel_all,
            "reconfigure": self._reconfigure,
            "drain": scheduler.drain,
        }

    def _submit(self, fields: list[Any], now_s: float) -> Outcome | None:
        return self._scheduler.submit(Query(*fields), now_s)

    def _poll(self, now_s: float, worker_id: int | None, *others: list[Any]) -> Dispatch:
        loads = (DeviceLoad(*fields) for fields in others)
        return self._scheduler.poll(now_s, worker_id, *loads)

    def _poll_behind(self, now_s: float, worker_id: int | None, *others: list[Any]) -> Dispatch:
        loads = (DeviceLoad(*fields) for fields in others)
        return self._scheduler.poll_behind(now_s, worker_id, *loads)

    def _reconfigure(self, names: dict[str, Any]) -> None:
        profile = _by_name("profile", names["profile"], self._profiles)
        if profile is not None and GRAPHS in names:
            profile = as_captured(profile, names[GRAPHS])
        self._scheduler.reconfigure(
            policy=_by_name("policy", names["policy"], self._policies),
            profile=profile,
            max_queue=names["max_queue"],
            drop_hopeless=names["drop_hopeless"],
        )


def _by_name(kind: str, name: str | None, known: Mapping[str, _Result]) -> _Result | None:
    if name is None:
        return None
    if name not in known:
        given = ", ".join(known) or "none"
        raise LogError(f"the log switches to {kind} {name!r}, which was not given (given: {given})")
    return known[name]


def _header(scheduler: Scheduler) -> dict[str, object]:
    return {
        "format": FORMAT,
        "policy": scheduler.policy.name,
        "profile": scheduler.profile.name,
        "num_workers": scheduler.num_workers,
        "max_queue": scheduler.max_queue,
        "drop_hopeless": scheduler.drop_hopeless,
        "correct_latency": scheduler.latency_factor is not None,
        "triage": scheduler.triage,
        **scheduler.tenant_settings,
    }
