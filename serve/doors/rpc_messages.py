"""Open Inference Protocol V2, gRPC form: from a message to a request, from replies to a message.

Answers come in the form of the request: raw contents are answered raw, typed ones typed. Pure but
for tensors in shared memory: no other I/O, no clock.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from serve.doors.classification import BYTES_TYPE, classes_of, packed
from serve.doors.parameters import INPUT, REQUEST, check_names, slice_of, wanted_output
from serve.doors.shared_memory import NO_REGIONS, Region, RegionAccess
from serve.doors.shared_tensors import check_output, read_shared, write_output
from serve.engine.reply import Reply, describe, logits_of, version_of
from serve.models.limits import RefusedError
from serve.models.request import (
    InferRequest,
    ModelSpec,
    Parameter,
    Samples,
    WantedOutput,
    bad,
    check_images,
    check_output_name,
    check_tensor,
    read_raw,
)
from serve.proto import open_inference_pb2 as pb
from serve.proto.names import (
    EXTENSIONS,
    IMAGE_TYPE,
    INPUT_NAME,
    OUTPUT_NAME,
    OUTPUT_TYPE,
    PLATFORM,
    SERVER_NAME,
    VERSION,
)

_JSON_NUMBER_BYTES = 4
_CONTENTS = {"UINT8": "uint_contents", "INT32": "int_contents", "INT64": "int64_contents"}


def parse_infer(
    message: pb.ModelInferRequest,
    spec: ModelSpec,
    *,
    max_json_bytes: int,
    regions: RegionAccess = NO_REGIONS,
) -> InferRequest:
    """Read an inference request. Raises RefusedError: what was given, and what is allowed.

    Typed contents cost what JSON costs, so they have its limit, at four bytes a number. `regions`
    are those of the caller.
    """
    if len(message.inputs) != 1:
        given = [tensor.name for tensor in message.inputs]
        raise bad("bad_request", "inputs", given, f"one tensor, {INPUT_NAME!r}")
    if len(message.outputs) > 1:
        given = [tensor.name for tensor in message.outputs]
        raise bad("bad_request", "outputs", given, f"one tensor, {OUTPUT_NAME!r}")
    parameters = _parameters(message.parameters)
    check_names(parameters, REQUEST, "parameters")
    (tensor,) = message.inputs
    shape = check_tensor(tensor.name, tensor.datatype, tuple(tensor.shape), spec)
    own = _parameters(tensor.parameters)
    check_names(own, INPUT, "inputs[0]")
    shared = slice_of(own, "inputs[0]")
    is_raw = bool(message.raw_input_contents)
    output = _output(message, is_binary=is_raw or shared is not None)
    if shared is not None:
        if is_raw or tensor.HasField("contents"):
            raise RefusedError("bad_tensor", "the tensor has both contents and shared memory")
        samples = read_shared(tensor.datatype, shape, shared, spec, regions)
    elif is_raw:
        samples = _read_raw(message, tensor, shape, spec)
    else:
        samples = _read_typed(tensor, shape, spec, max_json_bytes // _JSON_NUMBER_BYTES)
    check_output(output, len(samples), spec, regions)
    return InferRequest(samples, message.id or None, parameters, output)


def build_response(
    request: InferRequest,
    spec: ModelSpec,
    policy: str,
    replies: Sequence[Reply],
    regions: RegionAccess = NO_REGIONS,
    replica_tag: str = "",
) -> pb.ModelInferResponse:
    """Return the answer to executed queries.

    An output that is wanted in shared memory is written there. Raises RefusedError.
    """
    logits, wanted = logits_of(replies), request.output
    answer = pb.ModelInferResponse(
        model_name=spec.name, model_version=version_of(replies), id=request.request_id or ""
    )
    for name, value in describe(replies, policy, replica_tag).items():
        answer.parameters[name].MergeFrom(_parameter(value))
    if wanted.class_count is not None:
        _add_classes(answer, classes_of(logits, wanted.class_count), is_raw=wanted.is_binary)
        return answer
    tensor = answer.outputs.add(name=OUTPUT_NAME, datatype=OUTPUT_TYPE, shape=logits.shape)
    if wanted.slice is not None:
        for name, value in write_output(wanted.slice, logits, regions).items():
            tensor.parameters[name].MergeFrom(_parameter(value))
    elif wanted.is_binary:
        answer.raw_output_contents.append(logits.tobytes())
    else:
        tensor.contents.fp32_contents.extend(logits.ravel().tolist())
    return answer


def _output(message: pb.ModelInferRequest, *, is_binary: bool) -> WantedOutput:
    """Check the requested outputs and return in which form the one that there is is wanted."""
    for output in message.outputs:
        check_output_name(output.name)
        return wanted_output(_parameters(output.parameters), "outputs[0]", is_binary=is_binary)
    return WantedOutput(is_binary)


def _add_classes(
    answer: pb.ModelInferResponse, texts: Sequence[Sequence[str]], *, is_raw: bool
) -> None:
    shape = (len(texts), len(texts[0]))
    tensor = answer.outputs.add(name=OUTPUT_NAME, datatype=BYTES_TYPE, shape=shape)
    flat = [text for row in texts for text in row]
    if is_raw:
        answer.raw_output_contents.append(packed(flat))
    else:
        tensor.contents.bytes_contents.extend(text.encode() for text in flat)


def server_metadata() -> pb.ServerMetadataResponse:
    """Return what the server is."""
    return pb.ServerMetadataResponse(name=SERVER_NAME, version=VERSION, extensions=EXTENSIONS)


def model_metadata(spec: ModelSpec) -> pb.ModelMetadataResponse:
    """Return what a model takes and gives; each subnet is a version that pins it."""
    tensor = pb.ModelMetadataResponse.TensorMetadata
    return pb.ModelMetadataResponse(
        name=spec.name,
        versions=spec.subnet_ids,
        platform=PLATFORM,
        inputs=[tensor(name=INPUT_NAME, datatype=spec.datatypes[0], shape=[-1, *spec.wire_shape])],
        outputs=[tensor(name=OUTPUT_NAME, datatype=OUTPUT_TYPE, shape=[-1, spec.num_classes])],
    )


def model_config(spec: ModelSpec, policy: str) -> pb.ModelConfigResponse:
    """Return the part of a model's configuration that clients ask for."""
    config = pb.ModelConfig(
        name=spec.name,
        platform=PLATFORM,
        backend=PLATFORM,
        max_batch_size=spec.max_batch_size,
        input=[
            pb.ModelInput(
                name=INPUT_NAME,
                data_type=f"TYPE_{spec.datatypes[0]}",
                dims=spec.wire_shape,
            )
        ],
        output=[pb.ModelOutput(name=OUTPUT_NAME, data_type=pb.TYPE_FP32, dims=[spec.num_classes])],
        parameters={
            name: pb.ModelParameter(string_value=str(value))
            for name, value in {**spec.about(policy), **spec.input_limits()}.items()
        },
    )
    return pb.ModelConfigResponse(config=config)


def index(rows: Iterable[Mapping[str, str]]) -> pb.RepositoryIndexResponse:
    """Return the rows of `Models.index` as a message."""
    row = pb.RepositoryIndexResponse.ModelIndex
    return pb.RepositoryIndexResponse(models=[row(**fields) for fields in rows])


def statistics(rows: Iterable[Mapping[str, Any]]) -> pb.ModelStatisticsResponse:
    """Return rows of `Statistics` as a message."""
    return pb.ModelStatisticsResponse(model_stats=[pb.ModelStatistics(**row) for row in rows])


def regions_status(regions: Iterable[Region]) -> pb.SystemSharedMemoryStatusResponse:
    """Return the registered regions of shared memory."""
    answer = pb.SystemSharedMemoryStatusResponse()
    for region in regions:
        told = answer.regions[region.name]
        told.name, told.key = region.name, region.key
        told.offset, told.byte_size = region.offset, region.byte_size
    return answer


def _read_raw(
    message: pb.ModelInferRequest,
    tensor: pb.ModelInferRequest.InferInputTensor,
    shape: tuple[int, ...],
    spec: ModelSpec,
) -> Samples:
    count = len(message.raw_input_contents)
    if count != 1:
        raise bad("bad_tensor", "the number of raw_input_contents", count, "one for each input")
    if tensor.HasField("contents"):
        raise RefusedError("bad_tensor", "the tensor has both contents and raw_input_contents")
    return read_raw(tensor.datatype, shape, message.raw_input_contents[0], spec)


def _read_typed(
    tensor: pb.ModelInferRequest.InferInputTensor,
    shape: tuple[int, ...],
    spec: ModelSpec,
    most_numbers: int,
) -> Samples:
    if tensor.datatype == IMAGE_TYPE:
        return check_images(tensor.contents.bytes_contents, shape)
    field = _CONTENTS[tensor.datatype]
    numbers = getattr(tensor.contents, field)
    if len(numbers) > most_numbers:
        text = f"{field} has {len(numbers)} numbers, allowed {most_numbers} (max_json_bytes / 4)"
        raise RefusedError("too_large", f"{text}: send raw_input_contents")
    values = np.array(numbers, dtype=np.int64)
    size = int(np.prod(shape))
    if values.size != size:
        raise bad("bad_tensor", f"the length of {field}", values.size, f"{size} for the shape")
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > spec.sample.highest:
        given = low if low < 0 else high
        raise bad("bad_tensor", f"a value of {field}", given, f"0 to {spec.sample.highest}")
    return values.astype(spec.sample.dtype).reshape(shape)


def _parameters(fields: Mapping[str, pb.InferParameter]) -> dict[str, Parameter]:
    parameters: dict[str, Parameter] = {}
    for name, field in fields.items():
        kind = field.WhichOneof("parameter_choice")
        if kind is None:
            raise bad("bad_request", f"parameter {name}", None, "a string, number or boolean")
        parameters[name] = getattr(field, kind)
    return parameters


def _parameter(value: Parameter) -> pb.InferParameter:
    match value:
        case bool():  # before int, which it is too
            return pb.InferParameter(bool_param=value)
        case int():
            return pb.InferParameter(int64_param=value)
        case float():
            return pb.InferParameter(double_param=value)
        case str():
            return pb.InferParameter(string_param=value)
