"""What a replay sends to: the `Target` protocol, and what crosses it.

In scope: one query out, one answer back, and what a model says about itself. Out of scope: how it
travels (HTTP, gRPC, in process) and what the model is; the server's clients fulfil the protocol.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

REPLY_STATUSES = ("ok", "dropped", "rejected", "failed")

DTYPES = {
    "BOOL": np.dtype(np.bool_),
    **{f"UINT{8 * n}": np.dtype(f"<u{n}") for n in (1, 2, 4, 8)},
    **{f"INT{8 * n}": np.dtype(f"<i{n}") for n in (1, 2, 4, 8)},
    **{f"FP{8 * n}": np.dtype(f"<f{n}") for n in (2, 4, 8)},
}
"""The Open Inference Protocol's datatypes that are numbers, little-endian as on the wire."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorSpec:
    """The tensor that a model takes; -1 in `shape` is any size."""

    name: str
    datatype: str
    shape: tuple[int, ...]

    @property
    def is_batched(self) -> bool:
        """Whether the first size counts samples; a fixed one other than 1 belongs to the sample."""
        return bool(self.shape) and self.shape[0] in (-1, 1)

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """The shape of one sample, without the batch."""
        return self.shape[1:] if self.is_batched else self.shape


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A model as its server describes it.

    `versions` are those that can be asked for, of a server of ours the subnets; `parameters` are
    whatever the server adds.
    """

    name: str
    tensor: TensorSpec
    versions: tuple[str, ...] = ()
    parameters: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayRequest:
    """One query to send now.

    `slo_s` is what is left until the query's deadline at the moment of sending: its SLO less the
    generator's lag. `timeout_s` is when the client gives up (None: never); `payload` is one sample
    of the model's shape and type, number `payload_id` of those that are sent over and over.
    `query_class` is None when the trace has no classes.
    """

    query_id: int
    payload: np.ndarray
    slo_s: float
    timeout_s: float | None = None
    query_class: int | None = None
    payload_id: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayReply:
    """What came back. `output` holds the logits of the one sample, when `status` is `ok`.

    `dropped` and `rejected` carry the server's reason. `accuracy` is the profiled accuracy (a
    fraction) of the subnet that served; times are the server's, in seconds; servers that are not
    ours say none of this. `batch_id` names the batch that the query ran in; when it is None,
    batches are told apart by what else is known. `retry_after_s` is what a refusing server asked
    for; `can_retry` marks a failure, such as a broken connection, after which the same query may
    be sent again. `earliest_finish_s` and `capacity_qps` are what the replica that answered
    forecasts of itself, `replica_tag` marks the list of the server's replicas: a target may choose
    by them.
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
    retry_after_s: float = 0.0
    can_retry: bool = False
    earliest_finish_s: float | None = None
    capacity_qps: float | None = None
    replica_tag: str = ""


class Target(Protocol):
    """A server as a replay sees it. `infer` runs many times at once and may raise anything."""

    async def prepare(self, payloads: np.ndarray) -> None:
        """Take all samples before the first is sent: what can be made ready is made now."""
        ...

    async def infer(self, request: ReplayRequest) -> ReplayReply:
        """Send one query and return its answer; a raised exception counts as `failed`."""
        ...

    async def close(self) -> None:
        """Release connections. The caller that made the target closes it."""
        ...


MakeTarget = Callable[[], Awaitable[Target]]
"""Makes a target in the process and event loop that will use it; picklable."""
