"""A client's request and its answer: `InferCall` and `InferResult`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from serve.client.rest_answers import number_of, text_of, told_of
from serve.proto.names import REPLICAS

Inputs = np.ndarray | bytes | Sequence[bytes]
"""Images: uint8 (C, H, W) or (B, C, H, W), or a JPEG or PNG file as bytes, or a sequence of files.

Texts: token ids, int64 or int32 (N,) or (B, N). The server fills shorter texts up beside longer
ones of other requests; within one request they have one length, filled up with the `pad_id` that
the model's metadata name.

Nodes of a graph: their ids, int64 or int32 (B, 1).
"""

GRACE_S = 0.25
"""Extra seconds that a client waits, so that the server's own refusal arrives first."""


_SAMPLE_AXES = {"uint8": 3, "int32": 1, "int64": 1}
_LIMIT_S = 30.0
_SLACK_S = 1.0
_LEAST_CONNECT_S = 0.25


class TimeLimits(NamedTuple):
    """What is left of a query's times: its SLO, and when it is of no use any more.

    What is not given does not travel, so that the deployment's own SLO holds when none is.
    """

    slo_s: float | None
    timeout_s: float | None

    @property
    def limit_s(self) -> float:
        """How long the client waits: a little longer than it lets the server."""
        if self.timeout_s is not None:
            return self.timeout_s + GRACE_S
        return max(_LIMIT_S, 2 * (self.slo_s or 0.0))

    @property
    def connect_s(self) -> float:
        """How long a connection may take where another replica could be asked instead."""
        return min(self.limit_s, max(self.slack_s / 2, _LEAST_CONNECT_S))

    @property
    def slack_s(self) -> float:
        """How long a retry may be of use."""
        given = [given_s for given_s in self if given_s is not None]
        return min(given, default=_SLACK_S)


class InferCall(NamedTuple):
    """One inference request: a batch of samples, (B, ...) numbers or B image files."""

    model: str
    samples: np.ndarray | tuple[bytes, ...]
    parameters: Mapping[str, str | int | float]


@dataclass(frozen=True, slots=True, kw_only=True)
class InferResult:
    """The answer to one request of B samples.

    `logits` are float32 (B, num_classes). `subnet_id` and `accuracy` say which subnet served and
    its profiled accuracy, a fraction (of several: joined by commas, and the mean). `queue_s`,
    `execution_s` and `slack_s` (left until the deadline; negative when late) are the server's;
    `latency_s` is what the caller waited, retries included. `earliest_finish_s` is how long one
    more request would have taken there when this one ended, `capacity_qps` the most that this
    replica serves, both as predicted; `replica_tag` marks the list of the server's replicas.
    """

    logits: np.ndarray
    subnet_id: str
    accuracy: float
    policy: str
    is_late: bool
    batch_size: int
    queue_s: float
    execution_s: float
    slack_s: float
    latency_s: float = 0.0
    num_retries: int = 0
    earliest_finish_s: float | None = None
    capacity_qps: float | None = None
    replica_tag: str = ""

    @property
    def labels(self) -> np.ndarray:
        """The class of the highest logit of each sample, int64 (B,)."""
        return self.logits.argmax(axis=1)


def make_infer_call(
    model: str,
    inputs: Inputs,
    *,
    priority: int,
    min_accuracy: float | None,
    subnet: str | None,
) -> InferCall:
    """Return a request. Raises ValueError for inputs that no model takes."""
    parameters: dict[str, str | int | float] = {}
    if priority:
        parameters["priority"] = priority
    if min_accuracy is not None:
        parameters["min_accuracy"] = min_accuracy
    if subnet is not None:
        parameters["subnet"] = subnet
    return InferCall(model, _samples(inputs), parameters)


def make_time_limits(slo_ms: float | None, timeout_s: float | None) -> TimeLimits:
    """Return the times of a query. Raises ValueError unless they are above 0."""
    for name, value in (("slo_ms", slo_ms), ("timeout_s", timeout_s)):
        if value is not None and not 0 < value < math.inf:
            raise ValueError(f"{name} is {value!r}, allowed a finite number above 0")
    return TimeLimits(None if slo_ms is None else slo_ms * 1e-3, timeout_s)


def make_infer_result(
    output: np.ndarray | None, parameters: Mapping[str, Any], count: int
) -> InferResult:
    """Return the result in an answer's first output (flat, for `count` samples) and parameters.

    Raises ValueError when the output does not fit.
    """
    if output is None or not output.size:
        raise ValueError("it holds no logits")
    return InferResult(
        logits=output.astype(np.float32, copy=False).reshape(count, -1),
        subnet_id=text_of(parameters.get("subnet")) or "",
        accuracy=number_of(parameters.get("accuracy")),
        policy=text_of(parameters.get("policy")) or "",
        is_late=parameters.get("status") == "late",
        batch_size=int(number_of(parameters.get("batch_size"))),
        queue_s=number_of(parameters.get("queue_s")),
        execution_s=number_of(parameters.get("execution_s")),
        slack_s=_signed(parameters.get("slack_s")),
        earliest_finish_s=told_of(parameters, "earliest_finish_s"),
        capacity_qps=told_of(parameters, "capacity_qps"),
        replica_tag=text_of(parameters.get(REPLICAS)) or "",
    )


def _samples(inputs: Inputs) -> np.ndarray | tuple[bytes, ...]:
    if isinstance(inputs, bytes):
        return (inputs,)
    if not isinstance(inputs, np.ndarray):
        files = tuple(inputs)
        if not files or not all(isinstance(file, bytes) for file in files):
            raise ValueError("inputs is a sequence of something else than the bytes of image files")
        return files
    num_axes = _SAMPLE_AXES.get(inputs.dtype.name)
    if num_axes is None or inputs.ndim not in (num_axes, num_axes + 1) or not inputs.size:
        raise ValueError(
            f"inputs are {inputs.dtype} {inputs.shape}, allowed images, uint8 (C, H, W) or "
            "(B, C, H, W), or token ids, int64 or int32 (N,) or (B, N)"
        )
    little = inputs.astype(inputs.dtype.newbyteorder("<"), copy=False)  # as it travels
    return little if inputs.ndim > num_axes else little[np.newaxis]


def _signed(value: Any) -> float:
    number = number_of(value)
    return number if number else -number_of(-value if isinstance(value, int | float) else None)
