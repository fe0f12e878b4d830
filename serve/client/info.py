"""What a server says of itself, read from either protocol.

`ModelInfo` and `ServerSettings` from a model's metadata, `SubnetStatistics` from its statistics.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from serve.client.errors import unreadable_answer
from serve.client.rest_answers import mapping


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelInfo:
    """A served model: a sample is a `datatype` tensor of `input_shape`, -1 being any size.

    An image is UINT8 (C, H, W), a text INT64 (-1,). `subnet_ids` are what `subnet=` pins.
    `parameters` are the server's: `policy`, `profile`, `device`, `output_kind`, `max_batch_size`,
    `input_range`, `settings`, of texts `max_tokens` and `pad_id` (empty over gRPC, whose metadata
    hold none).
    """

    name: str
    subnet_ids: tuple[str, ...]
    datatype: str
    input_shape: tuple[int, ...]
    num_classes: int
    parameters: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSettings:
    """How a server schedules a model: what a simulation of it must share.

    `slo_s` is the deadline of queries that bring none, `reply_allowance_s` how long before its
    deadline an answer should leave the device. The others are those of `Scheduler`.
    """

    policy: str
    slo_s: float
    max_batch_size: int
    reply_allowance_s: float
    max_queue: int | None
    drop_hopeless: bool | None
    triage: bool | None
    correct_latency: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class SubnetStatistics:
    """What one subnet did since the server started; times are sums, in seconds.

    `subnet_id` is empty in the row that counts the samples without an answer (`num_failed`).
    """

    model: str
    subnet_id: str
    num_served: int
    num_failed: int
    num_batches: int
    latency_s: float
    queue_s: float
    execution_s: float


def read_info(fields: Mapping[str, Any]) -> ModelInfo:
    """Return a model's metadata. Raises UnreadableAnswerError."""
    try:
        return ModelInfo(
            name=str(fields["name"]),
            subnet_ids=tuple(str(version) for version in fields.get("versions", ())),
            datatype=str(fields["inputs"][0]["datatype"]),
            input_shape=tuple(int(size) for size in fields["inputs"][0]["shape"][1:]),
            num_classes=int(fields["outputs"][0]["shape"][-1]),
            parameters=mapping(fields.get("parameters")),
        )
    except (KeyError, IndexError, TypeError, ValueError, AttributeError):
        raise unreadable_answer("no metadata of a model with one input and one output") from None


def read_settings(parameters: Mapping[str, Any]) -> ServerSettings | None:
    """Return the settings in a model's metadata, None where a server does not tell all of them."""
    told = parameters.get("settings")
    try:
        fields = mapping(told)
        return ServerSettings(
            policy=str(fields["policy"]),
            slo_s=float(fields["slo_ms"]) * 1e-3,
            max_batch_size=int(fields["max_batch_size"]),
            reply_allowance_s=float(fields["reply_allowance_ms"]) * 1e-3,
            max_queue=None if fields["max_queue"] is None else int(fields["max_queue"]),
            drop_hopeless=bool(fields["drop_hopeless"]),
            triage=bool(fields["triage"]),
            correct_latency=bool(fields["correct_latency"]),
        )
    except (KeyError, TypeError, ValueError, OverflowError, RecursionError):
        return None


def read_statistics(fields: Mapping[str, Any]) -> list[SubnetStatistics]:
    """Return the rows of the statistics extension. Raises UnreadableAnswerError."""
    try:
        return [_row(row) for row in fields.get("model_stats", ())]
    except (KeyError, TypeError, ValueError, AttributeError):
        raise unreadable_answer("no statistics of a model") from None


def _row(row: Mapping[str, Any]) -> SubnetStatistics:
    kinds = mapping(row.get("inference_stats"))

    def count(kind: str) -> int:
        return int(mapping(kinds.get(kind)).get("count", 0))

    def seconds(kind: str) -> float:
        return int(mapping(kinds.get(kind)).get("ns", 0)) * 1e-9

    return SubnetStatistics(
        model=str(row["name"]),
        subnet_id=str(row.get("version", "")),
        num_served=count("success"),
        num_failed=count("fail"),
        num_batches=int(row.get("execution_count", 0)),
        latency_s=seconds("success"),
        queue_s=seconds("queue"),
        execution_s=seconds("compute_infer"),
    )
