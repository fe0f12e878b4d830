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
    check_begun(text, max_bytes)
    _check("values", text.count(b","), numbers + rows + _FIELDS)
    _check("lists or objects", text.count(b"[") + text.count(b"{"), rows + _FIELDS)


def check_begun(text: bytes, max_bytes: int) -> None:
    """Raise RefusedError when the beginning of a JSON text shows that it is too large a tensor."""
    if len(text) > max_bytes and text.count(b",") > _FIELDS:
        raise RefusedError(
            "too_large",
            f"the tensor is {len(text)} bytes of JSON or more, allowed {max_bytes} "
            f"(max_json_bytes): send it binary ({BINARY_HEADER}), or the image files",
        )


def _check(what: str, given: int, allowed: int) -> None:
    if given > allowed:
        text = f"the JSON holds {given} {what} or more, the model's largest request {allowed}"
        raise RefusedError("too_large", text)
