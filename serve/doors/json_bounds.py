"""How much a JSON request may hold, judged from its text before a parser makes objects of it.

`[],[],[],` becomes twenty times its size in memory, and parsing it holds the interpreter. A request
for a tensor has as many commas as the largest batch has numbers, and as many brackets as it has
rows, plus some for the fields around it; counting both costs a pass over the bytes in C.
"""

from __future__ import annotations

import math

from serve.models.limits import RefusedError
from serve.models.request import ModelSpec
from serve.proto.names import BINARY_HEADER

_FIELDS = 1000  # names, parameters, outputs


def check_json(text: bytes, spec: ModelSpec, max_bytes: int) -> None:
    """Raise RefusedError, `too_large`, for more values or lists than a request can need.

    A text of more than `max_bytes` may hold strings (image files), but no tensor of numbers:
    reading those stops the server for everybody else.
    """
    batch, shape = spec.max_batch_size, spec.sample.shape
    numbers = batch * math.prod(shape)
    rows = batch * sum(math.prod(shape[:depth]) for depth in range(len(shape)))
    num_values = text.count(b",")
    if len(text) > max_bytes and num_values > _FIELDS:
        raise RefusedError(
            "too_large",
            f"the tensor is {len(text)} bytes of JSON, allowed {max_bytes} (max_json_bytes): "
            f"send it binary ({BINARY_HEADER}), or the image files",
        )
    _check("values", num_values, numbers + rows + _FIELDS)
    _check("lists or objects", text.count(b"[") + text.count(b"{"), rows + _FIELDS)


def _check(what: str, given: int, allowed: int) -> None:
    if given > allowed:
        text = f"the JSON holds {given} {what} or more, the model's largest request {allowed}"
        raise RefusedError("too_large", text)
