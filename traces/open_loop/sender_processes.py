"""A replay with several sender processes, for rates that one process can't keep.

Every sender takes each n-th query of the same plan and starts at the same moment of the machine's
monotonic clock; the answers are judged together, as if one had sent them all. Ctrl-C reaches the
parent only, which stops the senders and keeps what they have.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from traces.open_loop.answers import AnswerColumns
from traces.open_loop.pacing import MonotonicClock
from traces.open_loop.payloads import Payloads
from traces.open_loop.replay_options import DEFAULTS, ReplayOptions
from traces.open_loop.result import ReplayResult, make_result
from traces.open_loop.sender import (
    INTERRUPT_GRACE_S,
    PROGRESS_PERIOD_S,
    Progress,
    Sender,
    SendPlan,
    make_plan,
)
from traces.open_loop.target import MakeTarget
from traces.trace import Trace, TraceError

QPS_PER_SENDER = 500.0
"""Queries/s in the busiest second up to which one sender is asked to send."""
_POLL_S = 0.02
_START_DELAY_S = 0.1
_STARTING_S = 60.0


class SenderError(RuntimeError):
    """A sender process did not start or died."""


class _Ended(NamedTuple):
    """What a sender hands over when it has ended."""

    answers: AnswerColumns
    is_partial: bool
    ended_s: float
    cpu_s: float
    loop_lag_s: npt.NDArray[np.float64]


@dataclass(slots=True)
class _SenderProcess:
    process: Any
    pipe: Any  # a Connection, whose class depends on the platform
    progress: Progress = Progress(0, 0, 0, 0)  # noqa: RUF009 # immutable
    ended: _Ended | None = None


def processes_for(trace: Trace) -> int:
    """Return how many senders a trace's busiest second asks for, at most one per core."""
    if not len(trace):
        return 1
    # Only seconds in which something arrives: a trace may be mostly silence.
    _, counts = np.unique(trace.arrival_s.astype(np.int64), return_counts=True)
    wanted = math.ceil(float(counts.max()) / QPS_PER_SENDER)
    return max(1, min(wanted, os.cpu_count() or 1))


async def replay_in_processes(
    trace: Trace,
    make_target: MakeTarget,
    num_processes: int,
    payloads: Payloads,
    options: ReplayOptions = DEFAULTS,
    *,
    progress: Callable[[Progress], None] | None = None,
) -> ReplayResult:
    """Replay as `replay` does, from `num_processes` processes.

    `make_target` is called in each of them and so must be picklable.

    Raises:
        TraceError: for inputs that do not fit together; nothing has been sent then.
        SenderError: a process did not start, or died; nothing is kept then.
    """
    if num_processes < 1:
        raise TraceError(f"num_processes must be at least 1, got {num_processes}")
    plan = make_plan(trace, payloads, options)
    senders = [_start(make_target, plan.share(i, num_processes)) for i in range(num_processes)]
    try:
        await _until(senders, "ready")
        start_s = time.monotonic() + _START_DELAY_S
        for sender in senders:
            sender.pipe.send(start_s)
        await _collect(senders, progress)
    finally:
        for sender in senders:
            sender.process.join(timeout=INTERRUPT_GRACE_S)
            if sender.process.is_alive():
                sender.process.kill()
            sender.pipe.close()
    answers, ended = _taken(senders)
    is_partial = any(end.is_partial for end in ended)
    return make_result(
        trace,
        answers,
        slo_s=plan.slo_s,
        warmup_s=options.warmup_s,
        ended_s=max(end.ended_s for end in ended) if is_partial else None,
        max_lag_s=options.max_lag_s,
        cpu_s=[end.cpu_s for end in ended],
        loop_lag_s=np.concatenate([end.loop_lag_s for end in ended]),
    )


def _taken(senders: list[_SenderProcess]) -> tuple[AnswerColumns, list[_Ended]]:
    """Return all answers, and how the senders ended without theirs: kept once, not twice."""
    ended = [s.ended for s in senders if s.ended is not None]
    answers = AnswerColumns.joined([end.answers for end in ended])
    for sender in senders:
        sender.ended = None
    return answers, [end._replace(answers=AnswerColumns.of([])) for end in ended]


def _start(make_target: MakeTarget, plan: SendPlan) -> _SenderProcess:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_send, args=(theirs, make_target, plan), daemon=True)
    process.start()
    theirs.close()
    return _SenderProcess(process, ours)


async def _until(senders: list[_SenderProcess], word: str) -> None:
    deadline_s = time.monotonic() + _STARTING_S
    for sender in senders:
        while not sender.pipe.poll():
            if not sender.process.is_alive() or time.monotonic() > deadline_s:
                raise SenderError(f"a sender process is not {word}; see its message above")
            await asyncio.sleep(_POLL_S)
        message = _received(sender)
        if message != word:
            raise SenderError(f"a sender could not start: {message}")


async def _collect(
    senders: list[_SenderProcess], progress: Callable[[Progress], None] | None
) -> None:
    """Wait until every sender has handed over its answers; a cancellation stops them early."""
    next_progress_s = 0.0
    while any(sender.ended is None for sender in senders):
        await _pause(senders)
        for sender in senders:
            _receive_progress(sender)
        if progress is not None and time.monotonic() >= next_progress_s:
            next_progress_s = time.monotonic() + PROGRESS_PERIOD_S
            progress(_sum(senders))
    if progress is not None:
        progress(_sum(senders))


async def _pause(senders: list[_SenderProcess]) -> None:
    """Wait a moment; when this is cancelled, have the senders stop."""
    try:
        await asyncio.sleep(_POLL_S)
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if task is not None:
            task.uncancel()
        for sender in senders:
            if sender.ended is None:
                with contextlib.suppress(OSError):  # it is gone, which receiving will find out
                    sender.pipe.send("stop")


def _receive_progress(sender: _SenderProcess) -> None:
    while sender.ended is None and sender.pipe.poll():
        message = _received(sender)
        if isinstance(message, Progress):
            sender.progress = message
        else:
            sender.ended = message


def _sum(senders: list[_SenderProcess]) -> Progress:
    return Progress(*(sum(counts) for counts in zip(*(s.progress for s in senders), strict=True)))


def _received(sender: _SenderProcess) -> Any:
    try:
        return sender.pipe.recv()
    except EOFError:
        raise SenderError(
            f"a sender process died (exit code {sender.process.exitcode}); nothing was kept"
        ) from None


def _send(pipe: Connection, make_target: MakeTarget, plan: SendPlan) -> None:
    """Run one sender: the entry point of its process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    asyncio.run(_sender(pipe, make_target, plan))


async def _sender(pipe: Connection, make_target: MakeTarget, plan: SendPlan) -> None:
    try:
        target = await make_target()
        await target.prepare(plan.payloads)
    except Exception as error:  # the process boundary: the parent gets a message, and stops
        pipe.send(f"{type(error).__name__}: {error}")
        return
    try:
        pipe.send("ready")
        start_s = pipe.recv()
        sending = Sender(plan, target, MonotonicClock(), pipe.send)
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None, "run by asyncio.run"
        loop.add_reader(pipe.fileno(), _stop, pipe, task)
        is_partial = await sending.execute(start_s)
        loop.remove_reader(pipe.fileno())
        pipe.send(
            _Ended(
                sending.answers.hand_over(),
                is_partial,
                sending.ended_s,
                sending.cpu_s,
                np.array(sending.loop_lag_s),
            )
        )
    finally:
        await target.close()


def _stop(pipe: Connection, task: asyncio.Task[Any]) -> None:
    """End the run early: the parent sent a stop, or is gone."""
    asyncio.get_running_loop().remove_reader(pipe.fileno())
    task.cancel()
