"""`EngineTarget`: an engine of this process in place of a server, for an open-loop replay.

Nothing crosses a wire: what is measured are queue, policy, executor and device. The sender shares
the interpreter with the engine, as a door in the same process would; a run in which it sends late
says that it is invalid.
"""

from __future__ import annotations

import numpy as np

from serve.engine.engine import Engine
from serve.engine.reply import Reply, RequestOptions
from traces.open_loop.target import ReplayReply, ReplayRequest


class EngineTarget:
    """A `Target` whose payloads are whole requests (samples, C, H, W), one query each."""

    def __init__(self, engine: Engine):
        self._engine = engine

    async def prepare(self, payloads: np.ndarray) -> None:
        """See `Target`; payloads go to the engine as they are."""

    async def infer(self, request: ReplayRequest) -> ReplayReply:
        """See `Target`; late answers are given too. Raises ValueError as `Engine.infer`."""
        now_s = self._engine.clock()
        options = RequestOptions(deadline_s=now_s + request.slo_s)
        replies = await self._engine.infer(request.payload, arrival_s=now_s, options=options)
        return _told(replies[0])

    async def close(self) -> None:
        """See `Target`; the engine is its maker's."""


def _told(reply: Reply) -> ReplayReply:
    outcome = reply.outcome
    return ReplayReply(
        status="ok" if reply.is_executed else outcome.status,
        reason=outcome.reason,
        output=reply.output,
        subnet_id=outcome.subnet_id,
        accuracy=outcome.accuracy,
        batch_size=outcome.batch_size,
        queue_s=reply.queue_s,
        execution_s=reply.execution_s,
        batch_id=None if reply.batch_id is None else str(reply.batch_id),
    )
