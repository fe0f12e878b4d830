"""Open Inference Protocol V2, HTTP form: parse an inference request, build its answer.

Tensors travel as JSON (flat or nested) or with the binary tensor extension; image files as raw
BYTES elements, in base64 where the parameter `content_type` of the tensor says so, or alone as the
body of the request. A JSON number costs the server about a hundred times what a byte costs, so
clients that care send binary. Pure but for tensors in shared memory: no other I/O, no clock.
"""

from __future__ import annotations

import base64
import binascii
import functools
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, cast

import numpy as np

from serve.doors.classification import BYTES_TYPE, classes_of, packed
from serve.doors.json_bounds import check_json
from serve.doors.parameters import INPUT, REQUEST, check_names, slice_of, wanted_output
from serve.doors.shared_memory import NO_REGIONS, RegionAccess
from serve.doors.shared_tensors import check_output, read_shared, write_output
from serve.engine.reply import Reply, describe, logits_of, outlook_of, version_of
from serve.models.limits import RefusedError
from serve.models.request import (
    InferRequest,
    ModelSpec,
    Parameter,
    Samples,
    SharedSlice,
    WantedOutput,
    bad,
    check_images,
    check_output_name,
    check_tensor,
    read_raw,
)
from serve.proto.names import (
    BINARY_HEADER,
    EXTENSIONS,
    IMAGE_TYPE,
    INPUT_NAME,
    OUTPUT_NAME,
    OUTPUT_TYPE,
    PLATFORM,
    SERVER_NAME,
    VERSION,
)

IMAGE_CONTENT_TYPES = ("image/jpeg", "image/png")
_BASE64 = "base64"
_HEAD_BYTES = 1024  # of JSON that may come again
_HEADS = 512
_OUTPUT_ITEM_BYTES = 4  # FP32
_BINARY = WantedOutput(is_binary=True)
_SCALARS = frozenset((str, int, float, bool))


class BodyForm(NamedTuple):
    """What the headers say of a body: its content type, and the binary extension's header if sent.

    A content type of an image says that the body is one image file and nothing else.
    """

    content_type: str = ""
    binary_header: str | None = None

    @property
    def is_image(self) -> bool:
        """Whether the body is an image file."""
        return bool(self.content_type) and _is_image(self.content_type)

    @property
    def is_json(self) -> bool:
        """Whether all of the body is JSON."""
        return self.binary_header is None and not self.is_image

    def json_length(self, body: bytes | bytearray) -> int:
        """Return how much of a body is JSON. Raises RefusedError."""
        return 0 if self.is_image else _json_length(body, self.binary_header)


@functools.lru_cache(maxsize=256)
def _is_image(content_type: str) -> bool:
    return content_type.partition(";")[0].strip().lower() in IMAGE_CONTENT_TYPES


def parse_infer(
    body: bytes | bytearray,
    form: BodyForm,
    spec: ModelSpec,
    *,
    max_json_bytes: int,
    regions: RegionAccess = NO_REGIONS,
) -> InferRequest:
    """Parse the body of an inference request; tensors in JSON have at most `max_json_bytes`.

    `regions` are those of the caller. Raises RefusedError that says what was given, and what is
    allowed.
    """
    if form.is_image:
        if spec.sample.is_text or spec.sample.is_node:
            allowed = f"application/json: {'token' if spec.sample.is_text else 'node'} ids"
            raise bad("bad_tensor", "content-type", form.content_type, allowed)
        return InferRequest((bytes(body),), None, {})
    json_length = form.json_length(body)
    text, tail = bytes(body[:json_length]), memoryview(body)[json_length:]
    is_short = json_length <= _HEAD_BYTES and len(tail) > 0
    head = (_read_known if is_short else _read_head)(text, spec, max_json_bytes)
    samples = _read_tensor(head, tail, spec, regions)
    check_output(head.output, len(samples), spec, regions)
    parameters = dict(head.parameters)  # who asks may add to them
    return InferRequest(samples, head.request_id, parameters, head.output)


class _Head(NamedTuple):
    """What the JSON of a request says; `fields` and `own` are the tensor's and its parameters."""

    request_id: str | None
    parameters: dict[str, Parameter]
    output: WantedOutput
    datatype: str
    shape: tuple[int, ...]
    own: dict[str, Parameter]
    shared: SharedSlice | None
    has_data: bool
    data: Any


def _read_head(text: bytes, spec: ModelSpec, max_json_bytes: int) -> _Head:
    """Read and check all that is JSON, but for numbers in it. Raises RefusedError."""
    check_json(text, spec, max_json_bytes)
    fields = _object(_decode(text), "the request")
    request_id = fields.get("id")
    if request_id is not None and not isinstance(request_id, str):
        raise bad("bad_request", "id", request_id, "a string")
    parameters = _parameters(fields.get("parameters"), "parameters")
    check_names(parameters, REQUEST, "parameters")
    inputs = fields.get("inputs")
    if not isinstance(inputs, list) or len(inputs) != 1:
        raise bad("bad_request", "inputs", inputs, f"a list of one tensor, {INPUT_NAME!r}")
    output = _output(fields.get("outputs"), parameters)
    tensor = _object(inputs[0], "inputs[0]")
    datatype = str(tensor.get("datatype"))
    shape = check_tensor(tensor.get("name"), datatype, tensor.get("shape"), spec)
    own = _parameters(tensor.get("parameters"), "inputs[0].parameters")
    check_names(own, INPUT, "inputs[0]")
    shared = slice_of(own, "inputs[0]")
    has_data, data = "data" in tensor, tensor.get("data")
    return _Head(request_id, parameters, output, datatype, shape, own, shared, has_data, data)


# A client sends the same JSON before every binary tensor of a shape, unless it numbers them.
_read_known = functools.lru_cache(maxsize=_HEADS)(_read_head)


def build_response(
    request: InferRequest,
    spec: ModelSpec,
    policy: str,
    replies: Sequence[Reply],
    regions: RegionAccess = NO_REGIONS,
    replica_tag: str = "",
) -> tuple[bytes, int | None]:
    """Return the body of an answer and, when its tensor is binary, the length of the JSON part.

    An output that is wanted in shared memory is written there. Raises RefusedError.
    """
    logits, wanted = logits_of(replies), request.output
    if wanted == _BINARY and len(replies) == 1:
        return _single(request.request_id, spec, policy, replies[0], logits, replica_tag)
    tensor: dict[str, Any] = {
        "name": OUTPUT_NAME,
        "datatype": OUTPUT_TYPE,
        "shape": list(logits.shape),
    }
    answer: dict[str, Any] = {
        "model_name": spec.name,
        "model_version": version_of(replies),
        "outputs": [tensor],
        "parameters": describe(replies, policy, replica_tag),
    }
    if request.request_id is not None:
        answer["id"] = request.request_id
    if wanted.class_count is not None:
        texts = classes_of(logits, wanted.class_count)
        tensor |= {"datatype": BYTES_TYPE, "shape": [len(texts), len(texts[0])]}
        if not wanted.is_binary:
            tensor["data"] = [text for row in texts for text in row]
            return json.dumps(answer).encode(), None
        return _with_tail(answer, tensor, packed(text for row in texts for text in row))
    if wanted.slice is not None:
        tensor["parameters"] = write_output(wanted.slice, logits, regions)
        return json.dumps(answer).encode(), None
    if wanted.is_binary:
        return _with_tail(answer, tensor, logits.tobytes())
    tensor["data"] = logits.ravel().tolist()
    return json.dumps(answer).encode(), None


def _single(
    request_id: str | None,
    spec: ModelSpec,
    policy: str,
    reply: Reply,
    logits: np.ndarray,
    replica_tag: str,
) -> tuple[bytes, int]:
    """Return the binary answer to one query, as nearly all are: the same for a quarter."""
    outcome = reply.outcome
    told = (policy, outcome.status, outcome.subnet_id, outcome.accuracy, reply.form)
    template = _template(spec.name, logits.shape, *told)
    number = float.__repr__
    head = template % (
        reply.batch_id,
        outcome.batch_size,
        number(reply.queue_s),
        number(reply.execution_s),
        number(reply.slack_s),
        "".join([f', "{n}": {_json(value)}' for n, value in outlook_of(reply, replica_tag)]),
        "" if request_id is None else f', "id": {json.dumps(request_id)}',
    )
    encoded = head.encode()
    return encoded + logits.tobytes(), len(encoded)


def _json(value: str | float) -> str:
    return repr(value) if type(value) is float and math.isfinite(value) else json.dumps(value)


@functools.lru_cache(maxsize=1024)
def _template(
    model: str, shape: tuple[int, ...], policy: str, status: str, subnet_id: str | None,
    accuracy: float, form: str,
) -> str:  # fmt: skip
    """Return the text of such answers, with room for what differs."""
    version = str(subnet_id)
    size = math.prod(shape) * _OUTPUT_ITEM_BYTES
    parameters = {
        "policy": policy,
        "status": "late" if status == "late" else "on_time",
        "subnet": version,
        "accuracy": accuracy,
    }
    tensor = {
        "name": OUTPUT_NAME,
        "datatype": OUTPUT_TYPE,
        "shape": list(shape),
        "parameters": {"binary_data_size": size},
    }
    answer = {"model_name": model, "model_version": version, "outputs": [tensor]}
    before = json.dumps({**answer, "parameters": parameters})[:-2].replace("%", "%%")
    told = json.dumps(form).replace("%", "%%")
    return (
        f'{before}, "batch_id": "%s", "form": {told}, "batch_size": %d, "queue_s": %s, '
        '"execution_s": %s, "slack_s": %s%s}%s}'
    )


def _with_tail(answer: dict[str, Any], tensor: dict[str, Any], data: bytes) -> tuple[bytes, int]:
    tensor["parameters"] = {"binary_data_size": len(data)}
    head = json.dumps(answer).encode()
    return head + data, len(head)


def build_error(error: RefusedError, request_id: str | None = None) -> bytes:
    """Return the body of a refusal: the protocol's `error` string, and what a program needs."""
    fields: dict[str, Any] = {"error": error.message, **error.details()}
    if request_id is not None:
        fields["id"] = request_id
    return json.dumps(fields).encode()


def server_metadata(
    models: Iterable[str], replicas: Mapping[str, Sequence[str]] | None = None
) -> dict[str, Any]:
    """Return the answer of `GET /v2`; the models and the URLs of replicas are additions of ours."""
    return {
        "name": SERVER_NAME,
        "version": VERSION,
        "extensions": list(EXTENSIONS),
        "models": list(models),
        **({} if replicas is None else {"replicas": replicas}),
    }


def model_metadata(
    spec: ModelSpec, policy: str, settings: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Return the answer of `GET /v2/models/{m}`; each subnet is a version that pins it.

    `settings` is how the model is scheduled, where that is to be told.
    """
    return {
        "name": spec.name,
        "versions": list(spec.subnet_ids),
        "platform": PLATFORM,
        "inputs": [
            {"name": INPUT_NAME, "datatype": spec.datatypes[0], "shape": [-1, *spec.wire_shape]}
        ],
        "outputs": [
            {"name": OUTPUT_NAME, "datatype": OUTPUT_TYPE, "shape": [-1, spec.num_classes]}
        ],
        "parameters": {
            "max_batch_size": spec.max_batch_size,
            **spec.input_limits(),
            **spec.about(policy),
            **({} if settings is None else {"settings": settings}),
        },
    }


def model_config(spec: ModelSpec, policy: str) -> dict[str, Any]:
    """Return the answer of `GET /v2/models/{m}/config`: the part that clients ask for."""
    return {
        "name": spec.name,
        "platform": PLATFORM,
        "backend": PLATFORM,
        "max_batch_size": spec.max_batch_size,
        "input": [
            {
                "name": INPUT_NAME,
                "data_type": f"TYPE_{spec.datatypes[0]}",
                "dims": spec.wire_shape,
            }
        ],
        "output": [
            {"name": OUTPUT_NAME, "data_type": f"TYPE_{OUTPUT_TYPE}", "dims": [spec.num_classes]}
        ],
        "parameters": {key: {"string_value": text} for key, text in spec.about(policy).items()},
    }


def _json_length(body: bytes | bytearray, binary_header: str | None) -> int:
    if binary_header is None:
        return len(body)
    if not binary_header.isascii() or not binary_header.isdigit() or len(binary_header) > 18:
        raise bad("bad_request", BINARY_HEADER, binary_header, "a whole number of bytes")
    length = int(binary_header)
    if length > len(body):
        raise bad("bad_request", BINARY_HEADER, length, f"at most the body's {len(body)} bytes")
    return length


def _decode(text: bytes) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RefusedError("bad_request", f"the request is not JSON: {error}") from None


def _object(value: Any, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise bad("bad_request", what, value, "a JSON object")
    return cast("dict[str, Any]", value)


def _parameters(value: Any, what: str) -> dict[str, Parameter]:
    if value is None:
        return {}
    fields = _object(value, what)
    for name, entry in fields.items():
        if type(entry) not in _SCALARS:
            raise bad("bad_request", f"parameter {name}", entry, "a string, number or boolean")
    return fields


def _output(outputs: Any, parameters: Mapping[str, Parameter]) -> WantedOutput:
    """Check the requested outputs and return in which form the one that there is is wanted."""
    default = parameters.get("binary_data_output") is True
    if outputs is None or outputs == []:
        return WantedOutput(default)
    if not isinstance(outputs, list) or len(outputs) != 1:
        raise bad("bad_request", "outputs", outputs, f"a list of one tensor, {OUTPUT_NAME!r}")
    fields = _object(outputs[0], "outputs[0]")
    check_output_name(fields.get("name"))
    own = _parameters(fields.get("parameters"), "outputs[0].parameters")
    return wanted_output(own, "outputs[0]", is_binary=default)


def _read_tensor(head: _Head, tail: memoryview, spec: ModelSpec, regions: RegionAccess) -> Samples:
    own, shared, datatype, shape = head.own, head.shared, head.datatype, head.shape
    size = own.get("binary_data_size")
    if (size is not None) + head.has_data + (shared is not None) > 1:
        ways = {
            "data": head.has_data,
            "binary_data_size": size is not None,
            "shared_memory_region": shared is not None,
        }
        given = [name for name, is_given in ways.items() if is_given]
        raise RefusedError("bad_tensor", f"the tensor has both {' and '.join(given)}")
    if size is not None:
        if size != len(tail):
            text = f"binary_data_size is {size!r}, {len(tail)} bytes follow the JSON"
            raise RefusedError("bad_tensor", text)
        return read_raw(datatype, shape, tail, spec)
    if len(tail):
        raise RefusedError("bad_tensor", f"{len(tail)} bytes follow the JSON, none was announced")
    if shared is not None:
        return read_shared(datatype, shape, shared, spec, regions)
    if datatype == IMAGE_TYPE:
        return _read_base64(head.data, own, shape)
    return _read_json_data(head.data, shape, spec)


def _read_base64(data: Any, parameters: Mapping[str, Parameter], shape: tuple[int, ...]) -> Samples:
    if parameters.get("content_type") != _BASE64:
        given = parameters.get("content_type")
        raise bad("bad_tensor", "content_type of a BYTES tensor in JSON", given, repr(_BASE64))
    if not isinstance(data, list) or not all(isinstance(text, str) for text in data):
        raise bad("bad_tensor", "data", data, "a list of strings, images in base64")
    try:
        return check_images([base64.b64decode(text, validate=True) for text in data], shape)
    except (binascii.Error, ValueError):
        raise RefusedError("bad_tensor", "data holds a string that is not base64") from None


def _read_json_data(data: Any, shape: tuple[int, ...], spec: ModelSpec) -> np.ndarray:
    numbers = f"whole numbers 0 to {spec.sample.highest}"
    if not isinstance(data, list):
        raise bad("bad_tensor", "data", data, f"a list of {numbers}")
    size = math.prod(shape)
    try:
        values = _unnested(data, shape) if data and isinstance(data[0], list) else data
        if spec.sample.is_text or spec.sample.is_node:
            samples = _ids(values, spec)
        else:
            samples = np.frombuffer(bytes(values), dtype=np.uint8)  # raises unless 0 to 255
    except (TypeError, ValueError, OverflowError):
        text = f"data holds something else than {size} {numbers}"
        raise RefusedError("bad_tensor", f"{text}, flat or nested as shape {list(shape)}") from None
    if samples.size != size:
        raise bad("bad_tensor", "the length of data", samples.size, f"{size} for {list(shape)}")
    return samples.reshape(shape)


def _unnested(data: list[Any], shape: tuple[int, ...]) -> list[Any]:
    """Return what lists that are nested as a shape hold. Raises ValueError for others."""
    rows: list[Any] = [data]
    for size in shape:
        if not all(isinstance(row, list) and len(row) == size for row in rows):
            raise ValueError
        rows = [value for row in rows for value in row]
    return rows


def _ids(values: list[Any], spec: ModelSpec) -> np.ndarray:
    """Return ids in the type that samples have. Raises TypeError, ValueError, OverflowError.

    Types are looked at first: of numbers with a text among them NumPy makes texts, each with as
    much memory as the longest.
    """
    if any(type(value) is not int for value in values):
        raise TypeError
    ids = np.array(values, dtype=np.int64)
    if ids.size and (ids.min() < 0 or ids.max() > spec.sample.highest):
        raise ValueError
    return ids.astype(spec.sample.dtype)
