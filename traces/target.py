"""What a replay sends to: the `Target` protocol, and the request and reply that cross it.

In scope: one query out, one answer back. Out of scope: how it travels (HTTP, gRPC, in process) and
what the model is; the server's client fulfils the protocol.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

REPLY_STATUSES = ("ok", "dropped", "rejected", "failed")


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayRequest:
    """One query to send now.

    `slo_s` is what is left until the query's deadline at the moment of sending: its SLO less the
    generator's lag. `timeout_s` is when the client gives up (None: never); `payload` is one sample
    (C, H, W) uint8.
    """

    query_id: int
    payload: np.ndarray
    slo_s: float
    timeout_s: float | None = None
    query_class: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayReply:
    """What came back. `output` holds the logits of the one sample, when `status` is `ok`.

    `dropped` and `rejected` carry the server's reason. `accuracy` is the profiled accuracy (a
    fraction) of the subnet that served; times are the server's, in seconds. `batch_id` names the
    batch that the query ran in; when it is None, batches are told apart by what else is known.
    """

    status: str
    reason: str = ""
    output: np.ndarray | None = None
    subnet_id: str | None = None
    accuracy: float = 0.0
    batch_size: int = 0
    queue_s: float = 0.0
    execution_s: float = 0.0
    batch_id: str | None = None


class Target(Protocol):
    """A server as a replay sees it. `infer` runs many times at once and may raise anything."""

    async def infer(self, request: ReplayRequest) -> ReplayReply:
        """Send one query and return its answer; a raised exception counts as `failed`."""
        ...

    async def close(self) -> None:
        """Release connections. The caller that made the target closes it."""
        ...
