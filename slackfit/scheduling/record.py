"""Recording a scheduler's calls, and deciding a recorded run again.

A log is JSON lines: first a header that names policy, profile and settings, then one line per
call with its arguments (times among them) and its result or error. Numbers survive unchanged
(Python writes the shortest text that reads back as the same float). Fed to a fresh scheduler, the
same calls give the same decisions; the first one that does not is reported.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar, cast

from slackfit.policy import ALONE, DeviceLoad, Policy
from slackfit.profile import LatencyProfile
from slackfit.query import Outcome, Query
from slackfit.scheduling.scheduler import Dispatch, PolicyError, Scheduler

FORMAT = 1
_Result = TypeVar("_Result")


class LogError(ValueError):
    """A log is malformed, or was recorded with other settings than the scheduler's."""


class ReplayDifferenceError(AssertionError):
    """A replayed call did not do what was recorded; `line` is its number in the log, from 1."""

    def __init__(self, line: int, call: object, recorded: object, replayed: object) -> None:
        self.line = line
        self.call = call
        self.recorded = recorded
        self.replayed = replayed
        super().__init__(
            f"line {line}: {json.dumps(call)} gave {json.dumps(replayed)}, "
            f"recorded was {json.dumps(recorded)}"
        )


class TextSink(Protocol):
    """Where a recorder writes: an open text file, say."""

    def write(self, text: str, /) -> object: ...


class RecordingScheduler(Scheduler):
    """A scheduler that writes down each call with its result.

    The caller owns `sink` and closes it. Like any scheduler it must not be called by two threads at
    once; under one lock the lines are in the order of the calls.
    """

    def __init__(
        self, profile: LatencyProfile, policy: Policy, *, sink: TextSink, **settings: Any
    ) -> None:
        """Start empty; `settings` are those of `Scheduler`, which says what is raised."""
        self._sink = sink
        self._is_within_call = True  # what a call does by other calls is not written
        super().__init__(profile, policy, **settings)
        self._is_within_call = False
        self._write(_header(self))

    def submit(self, query: Query, now_s: float) -> Outcome | None:
        """See `Scheduler.submit`."""
        return self._do("submit", super().submit, query, now_s)

    def submit_all(self, queries: Sequence[Query]) -> list[Outcome]:
        """See `Scheduler.submit_all`; written as one `submit` each."""
        outcomes = [self.submit(query, query.arrival_s) for query in queries]
        return [outcome for outcome in outcomes if outcome is not None]

    def cancel(self, query_id: int, now_s: float, reason: str = "cancelled") -> Outcome | None:
        """See `Scheduler.cancel`."""
        return self._do("cancel", super().cancel, query_id, now_s, reason)

    def poll(
        self, now_s: float, worker_id: int | None = None, others: DeviceLoad = ALONE
    ) -> Dispatch:
        """See `Scheduler.poll`; others are written where there are some."""
        shared = () if others == ALONE else (others,)
        return self._do("poll", super().poll, now_s, worker_id, *shared)

    def complete(self, batch_id: int, now_s: float) -> tuple[Outcome, ...]:
        """See `Scheduler.complete`."""
        return self._do("complete", super().complete, batch_id, now_s)

    def fail(self, batch_id: int, now_s: float, reason: str) -> tuple[Outcome, ...]:
        """See `Scheduler.fail`."""
        return self._do("fail", super().fail, batch_id, now_s, reason)

    def retire(self, worker_id: int) -> None:
        """See `Scheduler.retire`."""
        self._do("retire", super().retire, worker_id)

    def cancel_all(self, now_s: float, reason: str = "cancelled") -> tuple[Outcome, ...]:
        """See `Scheduler.cancel_all`."""
        return self._do("cancel_all", super().cancel_all, now_s, reason)

    def reconfigure(
        self,
        *,
        policy: Policy | None = None,
        profile: LatencyProfile | None = None,
        max_queue: int | None = None,
        drop_hopeless: bool | None = None,
    ) -> None:
        """See `Scheduler.reconfigure`; policy and profile are written by name."""

        reconfigure = super().reconfigure

        def change(names: Mapping[str, object]) -> None:
            reconfigure(
                policy=policy, profile=profile, max_queue=max_queue, drop_hopeless=drop_hopeless
            )

        names = {
            "policy": policy.name if policy else None,
            "profile": profile.name if profile else None,
            "max_queue": max_queue,
            "drop_hopeless": drop_hopeless,
        }
        self._do("reconfigure", change, names)

    def drain(self) -> None:
        """See `Scheduler.drain`."""
        self._do("drain", super().drain)

    def _do(self, call: str, method: Callable[..., _Result], *args: object) -> _Result:
        if self._is_within_call:
            return method(*args)
        line: dict[str, object] = {"call": call, "args": args}
        self._is_within_call = True
        try:
            result = method(*args)
        except (PolicyError, ValueError) as error:
            self._write({**line, "error": _describe(error)})
            raise
        finally:
            self._is_within_call = False
        self._write({**line, "result": result})
        return result

    def _write(self, line: Mapping[str, object]) -> None:
        self._sink.write(json.dumps(line, separators=(",", ":")) + "\n")


def replay_log(
    log: str | Path | Iterable[str],
    scheduler: Scheduler,
    *,
    policies: Mapping[str, Policy] | None = None,
    profiles: Mapping[str, LatencyProfile] | None = None,
) -> int:
    """Make the recorded calls on a fresh `scheduler`; return how many calls agreed.

    `log` is a path or the lines. `policies` and `profiles` are what recorded reconfigurations
    switch to, by name. Raises ReplayDifferenceError at the first call that does something else, and
    LogError for a malformed log or one recorded with other settings.
    """
    if isinstance(log, (str, Path)):
        with Path(log).open(encoding="utf-8") as lines:
            return replay_log(lines, scheduler, policies=policies, profiles=profiles)
    numbered = enumerate(log, start=1)
    _check_header(_parse(*next(numbered, (1, ""))), scheduler)
    known = _Known(scheduler, policies or {}, profiles or {})
    count = 0
    for number, text in numbered:
        line = _parse(number, text)
        recorded = {key: line[key] for key in ("result", "error") if key in line}
        if not recorded or not isinstance(line.get("args"), list):
            raise LogError(f"line {number}: a call needs call, args, and result or error")
        replayed = _outcome_of(known.method(number, line.get("call")), line["args"])
        if replayed != recorded:
            call = {"call": line["call"], "args": line["args"]}
            raise ReplayDifferenceError(number, call, recorded, replayed)
        count += 1
    return count


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
        self._profiles = profiles
        self._methods: dict[str, Callable[..., object]] = {
            "submit": self._submit,
            "cancel": scheduler.cancel,
            "poll": self._poll,
            "complete": scheduler.complete,
            "fail": scheduler.fail,
            "retire": scheduler.retire,
            "cancel_all": scheduler.cancel_all,
            "reconfigure": self._reconfigure,
            "drain": scheduler.drain,
        }

    def method(self, number: int, call: object) -> Callable[..., object]:
        """Return what carries out a recorded call."""
        if call not in self._methods:
            allowed = ", ".join(self._methods)
            raise LogError(f"line {number}: call {call!r} is unknown, allowed {allowed}")
        return self._methods[cast("str", call)]

    def _submit(self, fields: list[Any], now_s: float) -> Outcome | None:
        return self._scheduler.submit(Query(*fields), now_s)

    def _poll(self, now_s: float, worker_id: int | None, *others: list[Any]) -> Dispatch:
        loads = (DeviceLoad(*fields) for fields in others)
        return self._scheduler.poll(now_s, worker_id, *loads)

    def _reconfigure(self, names: dict[str, Any]) -> None:
        self._scheduler.reconfigure(
            policy=_by_name("policy", names["policy"], self._policies),
            profile=_by_name("profile", names["profile"], self._profiles),
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


def _outcome_of(method: Callable[..., object], args: list[Any]) -> dict[str, Any]:
    try:
        result = {"result": method(*args)}
    except LogError:
        raise
    except (PolicyError, ValueError) as error:
        result = {"error": _describe(error)}
    return json.loads(json.dumps(result))  # tuples become lists, as in the log


def _describe(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


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


def _check_header(header: dict[str, Any], scheduler: Scheduler) -> None:
    for key, value in _header(scheduler).items():
        if header.get(key) != value:
            raise LogError(
                f"line 1: the log was recorded with {key} {header.get(key)!r}, "
                f"the scheduler has {value!r}"
            )


def _parse(number: int, text: str) -> dict[str, Any]:
    try:
        line = json.loads(text)
    except json.JSONDecodeError as error:
        raise LogError(f"line {number}: not JSON ({error})") from None
    if not isinstance(line, dict):
        raise LogError(f"line {number}: expected a JSON object, got {text.strip()}")
    return cast("dict[str, Any]", line)
