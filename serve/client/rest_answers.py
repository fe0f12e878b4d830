"""Reading what any Open Inference Protocol server answers over HTTP. Pure: no I/O, no clock.

Nothing a server sends may end a replay: what can't be read becomes a `failed` reply that says so,
and what a server does not say (subnet, accuracy, times: ours do) is left empty.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from serve.proto.names import REPLICAS
from traces.open_loop.target import DTYPES, Model, ReplayReply, TensorSpec

OUR_STATUSES = ("dropped", "rejected", "failed")


class ClientError(RuntimeError):
    """The server can't be reached, or does not serve what was asked for."""


class UnreadableError(ValueError):
    """An answer is not in the protocol's form; the text says how."""


class Refusal(NamedTuple):
    """An answer without output, as the server puts it; what it does not say is empty."""

    status: str
    reason: str
    message: str
    retry_after_s: float = 0.0
    earliest_finish_s: float | None = None


def read_model(fields: Any, where: str) -> Model:
    """Return the model that its metadata describe. Raises ClientError if it can't be replayed."""
    try:
        (tensor,) = fields["inputs"]
        shape = tuple(int(size) for size in tensor["shape"])
        spec = TensorSpec(name=str(tensor["name"]), datatype=str(tensor["datatype"]), shape=shape)
    except (KeyError, TypeError, ValueError):
        inputs = fields.get("inputs") if isinstance(fields, Mapping) else None
        listed = f"{len(inputs)} inputs" if isinstance(inputs, list) else "no inputs"
        raise ClientError(
            f"{where}: the metadata list {listed}; a replay needs one, "
            "with name, datatype and shape"
        ) from None
    listed = fields.get("versions")
    return Model(
        name=str(fields.get("name", "")),
        tensor=spec,
        versions=tuple(str(version) for version in listed) if isinstance(listed, list) else (),
        parameters=mapping(fields.get("parameters")),
    )


def read_outputs(
    body: bytes, head_length: str | None
) -> tuple[np.ndarray | None, Mapping[str, Any]]:
    """Return the first output tensor of a 200's body, flat, and the response parameters.

    `head_length` is the binary extension's header, if sent; the tensor is None when it holds no
    numbers. Raises UnreadableError.
    """
    try:
        length = len(body) if head_length is None else int(head_length)
        fields = json.loads(body[:length])
        output = _first_output(fields["outputs"], memoryview(body)[length:])
    except (ValueError, RecursionError):
        raise UnreadableError("neither JSON nor the binary extension's form") from None
    except (KeyError, TypeError, IndexError, AttributeError):
        raise UnreadableError("it holds no output tensor") from None
    return output, mapping(fields.get("parameters"))


def read_answer(body: bytes, head_length: str | None) -> ReplayReply:
    """Return the reply in a 200's body; `head_length` is the binary extension's header, if sent."""
    try:
        return executed(*read_outputs(body, head_length))
    except UnreadableError as error:
        return unreadable(str(error))


def executed(output: np.ndarray | None, parameters: Mapping[str, Any]) -> ReplayReply:
    """Return the reply with an output, and with what the response parameters say of it."""
    return ReplayReply(
        status="ok",
        output=output,
        subnet_id=text_of(parameters.get("subnet")),
        accuracy=number_of(parameters.get("accuracy")),
        batch_size=int(number_of(parameters.get("batch_size"))),
        batch_id=text_of(parameters.get("batch_id")),
        queue_s=number_of(parameters.get("queue_s")),
        execution_s=number_of(parameters.get("execution_s")),
        earliest_finish_s=told_of(parameters, "earliest_finish_s"),
        capacity_qps=told_of(parameters, "capacity_qps"),
        replica_tag=text_of(parameters.get(REPLICAS)) or "",
    )


def unreadable(why: str) -> ReplayReply:
    """Return the reply to an answer that nobody can read."""
    return ReplayReply(status="failed", reason=f"unreadable answer: {why}")


def seconds(text: str | None) -> float:
    """Return what `Retry-After` says; a date, which the header may also hold, counts as now."""
    try:
        return number_of(float(text or 0))
    except ValueError:
        return 0.0


def parse_refusal(body: bytes, retry_after: str | None) -> Refusal:
    """Return what the body of an HTTP refusal says; `retry_after` is the header, if sent."""
    try:
        fields = mapping(json.loads(body))
    except (ValueError, RecursionError):
        fields = {}
    wait_s = number_of(fields.get("retry_after_s")) or seconds(retry_after)
    earliest_s = fields.get("earliest_finish_s")
    return Refusal(
        str(fields.get("status", "")),
        str(fields.get("reason", "")),
        error_text(body),
        wait_s,
        None if earliest_s is None else number_of(earliest_s),
    )


def read_refusal(status_code: int, body: bytes, retry_after: str | None) -> ReplayReply:
    """Read how a query ended from the server's word; another server's from the HTTP status."""
    refusal = parse_refusal(body, retry_after)
    wait_s = refusal.retry_after_s
    if refusal.status in OUR_STATUSES:
        return ReplayReply(
            status=refusal.status,
            reason=refusal.reason,
            retry_after_s=wait_s,
            earliest_finish_s=refusal.earliest_finish_s,
        )
    if refusal.status == "late" or status_code in (408, 504):
        return ReplayReply(status="dropped", reason="expired")
    kind = "rejected" if status_code in (429, 503) else "failed"
    return ReplayReply(status=kind, reason=f"http_{status_code}", retry_after_s=wait_s)


def error_text(body: bytes) -> str:
    """Return the protocol's `error` string, or the beginning of whatever came instead."""
    try:
        return str(json.loads(body)["error"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return repr(body[:200])


def mapping(value: Any) -> Mapping[str, Any]:
    """Return a JSON object; anything else counts as an empty one."""
    return value if isinstance(value, Mapping) else {}


def text_of(value: Any) -> str | None:
    """Return a value as text, None as it is."""
    return None if value is None else str(value)


def number_of(value: Any) -> float:
    """Return a finite number of at least 0; anything else counts as 0."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number and np.isfinite(value) and value >= 0 else 0.0


def told_of(parameters: Mapping[str, Any], name: str) -> float | None:
    """Return a number of at least 0 that a server tells; None where it does not."""
    return number_of(parameters[name]) if name in parameters else None


def _first_output(outputs: Any, tail: memoryview) -> np.ndarray | None:
    """Return the first output tensor, flat; None when it holds no numbers."""
    tensor = outputs[0]
    dtype = DTYPES.get(str(tensor.get("datatype")))
    size = mapping(tensor.get("parameters")).get("binary_data_size")
    if dtype is None:
        return None
    if size is not None:
        return np.frombuffer(tail[: int(size)], dtype=dtype)
    return np.asarray(tensor["data"], dtype=dtype).ravel()
