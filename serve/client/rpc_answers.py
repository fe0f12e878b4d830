"""What a gRPC server answers, as plain values; twin of `rest_answers`."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import numpy as np

from serve.client.rest_answers import Refusal, seconds
from serve.proto import open_inference_pb2 as pb
from serve.proto.names import REPLICAS
from traces.open_loop.target import DTYPES

_JSON_TEXTS = {"settings", "input_range", "max_tokens", "pad_id", REPLICAS}


def read_parameters(answer: pb.ModelInferResponse) -> dict[str, Any]:
    """Return the response parameters as plain values."""
    return {name: _value(parameter) for name, parameter in answer.parameters.items()}


def read_metadata(trailing: Any) -> dict[str, Any]:
    """Return what a model's metadata say in their trailer, as HTTP says it in `parameters`."""
    texts = {key: value for key, value in trailing or () if isinstance(value, str)}
    parameters: dict[str, Any] = dict(texts)
    for name in _JSON_TEXTS & texts.keys():
        with contextlib.suppress(ValueError, RecursionError):
            parameters[name] = json.loads(texts[name])
    return parameters


def read_first_output(answer: pb.ModelInferResponse) -> np.ndarray | None:
    """Return the first output tensor, flat; None if it holds no numbers. Raises ValueError."""
    tensor = answer.outputs[0]
    dtype = DTYPES.get(tensor.datatype)
    if dtype is None:
        return None
    if answer.raw_output_contents:
        return np.frombuffer(answer.raw_output_contents[0], dtype=dtype)
    filled = [values for _, values in tensor.contents.ListFields()]
    return np.asarray(filled[0], dtype=dtype) if filled else None


def parse_refusal(error: Any) -> Refusal:
    """Return what a failed call says: its trailing metadata and details."""
    metadata = {
        key: value for key, value in error.trailing_metadata() or () if isinstance(value, str)
    }
    earliest = metadata.get("earliest_finish_s")
    return Refusal(
        metadata.get("status", ""),
        metadata.get("reason", ""),
        error.details() or "",
        seconds(metadata.get("retry_after_s")),
        None if earliest is None else seconds(earliest),
    )


def _value(parameter: pb.InferParameter) -> Any:
    kind = parameter.WhichOneof("parameter_choice")
    return None if kind is None else getattr(parameter, kind)
