"""Recording a stream scheduler's calls, and deciding a recorded run again.

The log is that of `call_log`; its header names policy, widths and settings.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from slackfit.scheduling.call_log import CallRecorder, LogError, TextSink, replay_calls
from slackfit.scheduling.streams.schedule_view import StreamPolicyError
from slackfit.scheduling.streams.stream_scheduler import StepDispatch, StreamScheduler
from slackfit.streams.iteration_cost import IterationCosts
from slackfit.streams.stream_policy import StreamPolicy
from slackfit.streams.stream_query import StreamOutcome, StreamQuery

FORMAT = 1
_FAULTS = (StreamPolicyError, ValueError)


class RecordingStreamScheduler(StreamScheduler):
    """A stream scheduler that writes down each call with its result.

    The caller owns `sink` and closes it.
    """

    def __init__(
        self, costs: IterationCosts, policy: StreamPolicy, *, sink: TextSink, **settings: Any
    ) -> None:
        """Start empty; `settings` are those of `StreamScheduler`, which says what is raised."""
        self._recorder = CallRecorder(sink, _FAULTS)
        super().__init__(costs, policy, **settings)
        self._recorder.write(_header(self))

    def submit(self, query: StreamQuery, now_s: float) -> StreamOutcome | None:
        """See `StreamScheduler.submit`."""
        return self._recorder.do("submit", super().submit, query, now_s)

    def recompute(self, query_id: int, now_s: float) -> None:
        """See `StreamScheduler.recompute`."""
        return self._recorder.do("recompute", super().recompute, query_id, now_s)

    def cancel(
        self, query_id: int, now_s: float, reason: str = "cancelled"
    ) -> StreamOutcome | None:
        """See `StreamScheduler.cancel`."""
        return self._recorder.do("cancel", super().cancel, query_id, now_s, reason)

    def cancel_all(self, now_s: float, reason: str = "cancelled") -> tuple[StreamOutcome, ...]:
        """See `StreamScheduler.cancel_all`."""
        return self._recorder.do("cancel_all", super().cancel_all, now_s, reason)

    def poll(self, now_s: float) -> StepDispatch:
        """See `StreamScheduler.poll`."""
        return self._recorder.do("poll", super().poll, now_s)

    def complete(
        self,
        step_id: int,
        now_s: float,
        ended: Collection[int] = (),
        failed: Collection[tuple[int, str]] = (),
    ) -> tuple[StreamOutcome, ...]:
        """See `StreamScheduler.complete`."""
        args = (step_id, now_s, sorted(ended), sorted(failed))
        return self._recorder.do("complete", super().complete, *args)

    def fail(self, step_id: int, now_s: float, reason: str) -> tuple[StreamOutcome, ...]:
        """See `StreamScheduler.fail`."""
        return self._recorder.do("fail", super().fail, step_id, now_s, reason)

    def reconfigure(
        self,
        now_s: float,
        *,
        policy: StreamPolicy | None = None,
        costs: IterationCosts | None = None,
    ) -> None:
        """See `StreamScheduler.reconfigure`; the policy is written by name, costs in full."""
        reconfigure = super().reconfigure

        def change(now_s: float, _: str | None, __: object) -> None:
            reconfigure(now_s, policy=policy, costs=costs)

        name = None if policy is None else policy.name
        written = None if costs is None else costs.to_json() | {"qualities": _qualities(costs)}
        self._recorder.do("reconfigure", change, now_s, name, written)

    def drain(self) -> None:
        """See `StreamScheduler.drain`."""
        self._recorder.do("drain", super().drain)


def replay_stream_log(
    log: str | Path | Iterable[str],
    scheduler: StreamScheduler,
    *,
    policies: Mapping[str, StreamPolicy] | None = None,
) -> int:
    """Make the recorded calls on a fresh `scheduler`; return how many calls agreed.

    `policies` are what recorded reconfigurations switch to, by name. Raises as `replay_calls`.
    """
    known = policies or {}

    def submit(fields: list[Any], now_s: float) -> StreamOutcome | None:
        return scheduler.submit(StreamQuery(*fields), now_s)

    def reconfigure(now_s: float, name: str | None, costs: dict[str, Any] | None) -> None:
        if name is not None and name not in known:
            given = ", ".join(known) or "none"
            raise LogError(f"the log switches to policy {name!r}, given were {given}")
        scheduler.reconfigure(
            now_s,
            policy=None if name is None else known[name],
            costs=None if costs is None else IterationCosts.from_json(costs, costs["qualities"]),
        )

    methods = {
        "submit": submit,
        "recompute": scheduler.recompute,
        "cancel": scheduler.cancel,
        "cancel_all": scheduler.cancel_all,
        "poll": scheduler.poll,
        "complete": scheduler.complete,
        "fail": scheduler.fail,
        "reconfigure": reconfigure,
        "drain": scheduler.drain,
    }
    return replay_calls(log, methods, _header(scheduler), _FAULTS)


def _header(scheduler: StreamScheduler) -> dict[str, object]:
    return {
        "format": FORMAT,
        "policy": scheduler.policy.name,
        "widths": list(scheduler.costs.subnet_ids),
        **scheduler.settings,
    }


def _qualities(costs: IterationCosts) -> dict[str, float]:
    return {rung.subnet_id: rung.quality for rung in costs.rungs}
