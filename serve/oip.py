"""Open Inference Protocol V2, HTTP form: parse an inference request, build its answer.

One input tensor `input`, UINT8 [B, C, H, W], as JSON (flat or nested) or with the binary tensor
extension; one output tensor `logits`, FP32 [B, num_classes]. A JSON number costs the server about
a hundred times what a byte costs, so clients that care send binary. Pure: no I/O, no clock.
"""

from __future__ import annotations

import json
import reprlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, cast

import numpy as np

from serve.limits import RefusedError
from serve.reply import Reply

INPUT_NAME, INPUT_TYPE = "input", "UINT8"
OUTPUT_NAME, OUTPUT_TYPE = "logits", "FP32"
BINARY_HEADER = "inference-header-content-length"
EXTENSIONS = ("binary_tensor_data", "schedule_policy")

Parameter = str | int | float | bool


class ModelSpec(NamedTuple):
    """What the door must know of a model to judge a request."""

    name: str
    input_shape: tuple[int, int, int]
    num_classes: int
    max_batch_size: int
    subnet_ids: tuple[str, ...]
    profile: str = ""
    device: str = ""


class InferRequest(NamedTuple):
    """A parsed request: its samples, uint8 (B, C, H, W), its id and parameters."""

    samples: np.ndarray
    request_id: str | None
    parameters: dict[str, Parameter]
    is_binary_output: bool

    def min_accuracy(self) -> float:
        """Return the accuracy floor, a fraction. Raises RefusedError."""
        floor = self.parameters.get("min_accuracy", 0.0)
        if isinstance(floor, bool) or not isinstance(floor, int | float) or not 0 <= floor <= 1:
            raise _bad("bad_request", "parameter min_accuracy", floor, "a fraction 0 to 1")
        return float(floor)

    def subnet_id(self) -> str | None:
        """Return the pinned subnet, if any. Raises RefusedError."""
        subnet_id = self.parameters.get("subnet")
        if subnet_id is not None and not isinstance(subnet_id, str):
            raise _bad("bad_request", "parameter subnet", subnet_id, "a subnet id")
        return subnet_id


def parse_infer(body: bytes, binary_header: str | None, spec: ModelSpec) -> InferRequest:
    """Parse the body of an inference request; `binary_header` is the extension's header, if sent.

    Raises RefusedError that says what was given, and what is allowed.
    """
    json_length = _json_length(body, binary_header)
    fields = _object(_decode(body[:json_length]), "the request")
    request_id = fields.get("id")
    if request_id is not None and not isinstance(request_id, str):
        raise _bad("bad_request", "id", request_id, "a string")
    parameters = _parameters(fields.get("parameters"), "parameters")
    inputs = fields.get("inputs")
    if not isinstance(inputs, list) or len(inputs) != 1:
        raise _bad("bad_request", "inputs", inputs, f"a list of one tensor, {INPUT_NAME!r}")
    is_binary_output = _wants_binary(fields.get("outputs"), parameters)
    tensor = _object(inputs[0], "inputs[0]")
    samples = _read_tensor(tensor, memoryview(body)[json_length:], spec)
    return InferRequest(samples, request_id, parameters, is_binary_output)


def build_response(
    request: InferRequest, spec: ModelSpec, policy: str, replies: Sequence[Reply]
) -> tuple[bytes, int | None]:
    """Return the body of an answer and, when its tensor is binary, the length of the JSON part."""
    logits = np.stack([cast("np.ndarray", reply.output) for reply in replies])  # (B, num_classes)
    tensor: dict[str, Any] = {
        "name": OUTPUT_NAME,
        "datatype": OUTPUT_TYPE,
        "shape": list(logits.shape),
    }
    answer: dict[str, Any] = {"model_name": spec.name, "outputs": [tensor]}
    if request.request_id is not None:
        answer["id"] = request.request_id
    answer["parameters"] = {"policy": policy, **_reply_parameters(replies)}
    if request.is_binary_output:
        data = np.ascontiguousarray(logits, dtype="<f4").tobytes()
        tensor["parameters"] = {"binary_data_size": len(data)}
        head = json.dumps(answer).encode()
        return head + data, len(head)
    tensor["data"] = logits.ravel().tolist()
    return json.dumps(answer).encode(), None


def build_error(error: RefusedError, request_id: str | None = None) -> bytes:
    """Return the body of a refusal: the protocol's `error` string, and what a program needs."""
    fields: dict[str, Any] = {
        "error": error.message,
        "reason": error.reason,
        "status": error.status,
    }
    if request_id is not None:
        fields["id"] = request_id
    return json.dumps(fields).encode()


def server_metadata(version: str, models: Iterable[str]) -> dict[str, Any]:
    """Return the answer of `GET /v2`; the names of the models are an addition of ours."""
    return {
        "name": "supernet",
        "version": version,
        "extensions": list(EXTENSIONS),
        "models": list(models),
    }


def model_metadata(spec: ModelSpec, policy: str) -> dict[str, Any]:
    """Return the answer of `GET /v2/models/{m}`; each subnet is a version that pins it."""
    return {
        "name": spec.name,
        "versions": list(spec.subnet_ids),
        "platform": "supernet",
        "inputs": [{"name": INPUT_NAME, "datatype": INPUT_TYPE, "shape": [-1, *spec.input_shape]}],
        "outputs": [
            {"name": OUTPUT_NAME, "datatype": OUTPUT_TYPE, "shape": [-1, spec.num_classes]}
        ],
        "parameters": {
            "max_batch_size": spec.max_batch_size,
            "policy": policy,
            "profile": spec.profile,
            "device": spec.device,
        },
    }


def _reply_parameters(replies: Sequence[Reply]) -> dict[str, Parameter]:
    """Describe the samples of one answer: the slowest of each time, the mean of the accuracy."""
    outcomes = [reply.outcome for reply in replies]
    subnet_ids = dict.fromkeys(str(outcome.subnet_id) for outcome in outcomes)
    is_late = any(outcome.status == "late" for outcome in outcomes)
    return {
        "status": "late" if is_late else "on_time",
        "subnet": ",".join(subnet_ids),
        "accuracy": sum(outcome.accuracy for outcome in outcomes) / len(outcomes),
        "batch_id": str(replies[0].batch_id),
        "batch_size": max(outcome.batch_size for outcome in outcomes),
        "queue_s": max(reply.queue_s for reply in replies),
        "execution_s": max(reply.execution_s for reply in replies),
        "slack_s": min(reply.slack_s for reply in replies),
    }


def _json_length(body: bytes, binary_header: str | None) -> int:
    if binary_header is None:
        return len(body)
    if not binary_header.isascii() or not binary_header.isdigit() or len(binary_header) > 18:
        raise _bad("bad_request", BINARY_HEADER, binary_header, "a whole number of bytes")
    length = int(binary_header)
    if length > len(body):
        raise _bad("bad_request", BINARY_HEADER, length, f"at most the body's {len(body)} bytes")
    return length


def _decode(text: bytes) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RefusedError("bad_request", f"the request is not JSON: {error}") from None


def _object(value: Any, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _bad("bad_request", what, value, "a JSON object")
    return cast("dict[str, Any]", value)


def _parameters(value: Any, what: str) -> dict[str, Parameter]:
    if value is None:
        return {}
    fields = _object(value, what)
    for name, entry in fields.items():
        if not isinstance(entry, str | int | float | bool):
            raise _bad("bad_request", f"parameter {name}", entry, "a string, number or boolean")
    return fields


def _wants_binary(outputs: Any, parameters: Mapping[str, Parameter]) -> bool:
    """Check the requested outputs and return whether the logits are wanted as bytes."""
    default = parameters.get("binary_data_output") is True
    if outputs is None or outputs == []:
        return default
    if not isinstance(outputs, list) or len(outputs) != 1:
        raise _bad("bad_request", "outputs", outputs, f"a list of one tensor, {OUTPUT_NAME!r}")
    fields = _object(outputs[0], "outputs[0]")
    if fields.get("name") != OUTPUT_NAME:
        raise _bad("bad_tensor", "the output's name", fields.get("name"), repr(OUTPUT_NAME))
    own = _parameters(fields.get("parameters"), "outputs[0].parameters")
    return own.get("binary_data", default) is True


def _read_tensor(tensor: dict[str, Any], tail: memoryview, spec: ModelSpec) -> np.ndarray:
    if tensor.get("name") != INPUT_NAME:
        raise _bad("bad_tensor", "the input's name", tensor.get("name"), repr(INPUT_NAME))
    if tensor.get("datatype") != INPUT_TYPE:
        raise _bad("bad_tensor", "datatype", tensor.get("datatype"), repr(INPUT_TYPE))
    shape = _shape(tensor.get("shape"), spec)
    parameters = _parameters(tensor.get("parameters"), "inputs[0].parameters")
    size = int(np.prod(shape))
    if "binary_data_size" in parameters:
        if "data" in tensor:
            raise RefusedError("bad_tensor", "the tensor has both data and binary_data_size")
        given = parameters["binary_data_size"]
        if given != size or len(tail) != size:
            text = f"shape {list(shape)} needs {size} bytes: binary_data_size is {given!r}"
            raise RefusedError("bad_tensor", f"{text}, {len(tail)} bytes follow the JSON")
        return np.frombuffer(tail, dtype=np.uint8).reshape(shape)
    if len(tail):
        raise RefusedError("bad_tensor", f"{len(tail)} bytes follow the JSON, none was announced")
    return _read_json_data(tensor.get("data"), shape, size)


def _shape(value: Any, spec: ModelSpec) -> tuple[int, ...]:
    allowed = f"[B, {', '.join(map(str, spec.input_shape))}] with B from 1 to {spec.max_batch_size}"
    is_list = isinstance(value, list) and all(type(size) is int for size in value)
    if not is_list or tuple(value[1:]) != spec.input_shape:
        raise _bad("bad_tensor", "shape", value, allowed)
    if not 1 <= value[0] <= spec.max_batch_size:
        raise _bad("bad_tensor", "shape", value, allowed)
    return tuple(value)


def _read_json_data(data: Any, shape: tuple[int, ...], size: int) -> np.ndarray:
    if not isinstance(data, list):
        raise _bad("bad_tensor", "data", data, "a list of whole numbers 0 to 255")
    try:
        if data and isinstance(data[0], list):
            return _read_nested(data, shape)
        samples = np.frombuffer(bytes(data), dtype=np.uint8)  # raises unless whole and 0 to 255
    except (TypeError, ValueError, OverflowError):
        text = f"data holds something else than {size} whole numbers 0 to 255"
        raise RefusedError("bad_tensor", f"{text}, flat or nested as shape {list(shape)}") from None
    if samples.size != size:
        raise _bad("bad_tensor", "the length of data", samples.size, f"{size} for {list(shape)}")
    return samples.reshape(shape)


def _read_nested(data: list[Any], shape: tuple[int, ...]) -> np.ndarray:
    values = np.array(data)
    if values.dtype.kind not in "iu" or values.shape != shape:
        raise ValueError
    if values.min() < 0 or values.max() > 255:
        raise ValueError
    return values.astype(np.uint8)


def _bad(reason: str, what: str, given: object, allowed: str) -> RefusedError:
    return RefusedError(reason, f"{what} is {reprlib.repr(given)}, allowed {allowed}")
