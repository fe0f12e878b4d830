"""Reading what any Open Inference Protocol server answers over HTTP. Pure: no I/O, no clock.

Nothing a server sends may end a replay: what can't be read becomes a `failed` reply that says so,
and what a server does not say (subnet, accuracy, times: ours do) is left empty.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from traces.target import DTYPES, Model, ReplayReply, TensorSpec

OUR_STATUSES = ("dropped", "rejected", "failed")


class ClientError(RuntimeError):
    """The server can't be reached, or does not serve what was asked for."""


def read_model(fields: Any, where: str) -> Model:
    """Return the model that its metadata describe. Raises ClientError if it can't be replayed."""
    try:
        (tensor,) = fields["inputs"]
        shape = tuple(int(size) for size in tensor["shape"])
        spec = TensorSpec(name=str(tensor["name"]), datatype=str(tensor["datatype"]), shape=shape)
    except (KeyError, TypeError, ValueError):
        inputs = fields.get("inputs") if isinstance(fields, Mapping) else None
        said = f"{len(inputs)} inputs" if isinstance(inputs, list) else "no inputs"
        raise ClientError(
            f"{where}: the metadata list {said}; a replay needs one, with name, datatype and shape"
        ) from None
    return Model(
        name=str(fields.get("name", "")), tensor=spec, parameters=_mapping(fields.get("parameters"))
    )


def read_answer(body: bytes, head_length: str | None) -> ReplayReply:
    """Return the reply in a 200's body; `head_length` is the binary extension's header, if sent."""
    try:
        length = len(body) if head_length is None else int(head_length)
        fields = json.loads(body[:length])
        outputs = fields["outputs"]
        output = _first_output(outputs, memoryview(body)[length:])
    except (ValueError, RecursionError):
        return unreadable("neither JSON nor the binary extension's form")
    except (KeyError, TypeError, IndexError, AttributeError):
        return unreadable("it holds no output tensor")
    return executed(output, _mapping(fields.get("parameters")))


def executed(output: np.ndarray | None, said: Mapping[str, Any]) -> ReplayReply:
    """Return the reply with an output, and with what the response parameters say of it."""
    return ReplayReply(
        status="ok",
        output=output,
        subnet_id=_text(said.get("subnet")),
        accuracy=_number(said.get("accuracy")),
        batch_size=int(_number(said.get("batch_size"))),
        batch_id=_text(said.get("batch_id")),
        queue_s=_number(said.get("queue_s")),
        execution_s=_number(said.get("execution_s")),
    )


def unreadable(why: str) -> ReplayReply:
    """Return the reply to an answer that nobody can read."""
    return ReplayReply(status="failed", reason=f"unreadable answer: {why}")


def seconds(text: str | None) -> float:
    """Return what `Retry-After` says; a date, which the header may also hold, counts as now."""
    try:
        return _number(float(text or 0))
    except ValueError:
        return 0.0


def read_refusal(status_code: int, body: bytes, retry_after: str | None) -> ReplayReply:
    """Read how a query ended from the server's word; another server's from the HTTP status."""
    try:
        fields = _mapping(json.loads(body))
    except (ValueError, RecursionError):
        fields = {}
    wait_s = seconds(retry_after)
    status, reason = fields.get("status"), str(fields.get("reason", ""))
    if status in OUR_STATUSES:
        return ReplayReply(status=status, reason=reason, retry_after_s=wait_s)
    if status == "late" or status_code in (408, 504):
        return ReplayReply(status="dropped", reason="expired")
    kind = "rejected" if status_code in (429, 503) else "failed"
    return ReplayReply(status=kind, reason=f"http_{status_code}", retry_after_s=wait_s)


def error_text(body: bytes) -> str:
    """Return the protocol's `error` string, or the beginning of whatever came instead."""
    try:
        return str(json.loads(body)["error"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return repr(body[:200])


def _first_output(outputs: Any, tail: memoryview) -> np.ndarray | None:
    """Return the first output tensor, flat; None when it holds no numbers."""
    tensor = outputs[0]
    dtype = DTYPES.get(str(tensor.get("datatype")))
    size = _mapping(tensor.get("parameters")).get("binary_data_size")
    if dtype is None:
        return None
    if size is not None:
        return np.frombuffer(tail[: int(size)], dtype=dtype)
    return np.asarray(tensor["data"], dtype=dtype).ravel()


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _text(value: Any) -> str | None:
    return None if value is None else str(value)


def _number(value: Any) -> float:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number and np.isfinite(value) and value >= 0 else 0.0
