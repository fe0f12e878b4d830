"""How much a JSON request may hold, judged from its text before a parser makes objects of it.

`[],[],[],` becomes twenty times its size in memory, and parsing it holds the interpreter. A request
for a tensor has as many commas as the largest batch has numbers, and as many brackets as it has
rows, plus some for the fields around it; counting both costs a pass over the bytes in C.
"""

from __future__ import annotations

import math

from serve.models.limits import RefusedError
from serve.models.request import ModelSpec

_FIELDS = 1000  # names, parameters, outputs


def check_json(text: bytes, spec: ModelSpec) -> None:
    """Raise RefusedError, `too_large`, for more values or lists than a request can need."""
    batch, shape = spec.max_batch_size, spec.sample.shape
    numbers = batch * math.prod(shape)
    rows = batch * sum(math.prod(shape[:depth]) for depth in range(len(shape)))
    _check("values", text.count(b","), numbers + rows + _FIELDS)
    _check("lists or objects", text.count(b"[") + text.count(b"{"), rows + _FIELDS)


def _check(what: str, given: int, allowed: int) -> None:
    if given > allowed:
        text = f"the JSON holds {given} {what} or more, the model's largest request {allowed}"
        raise RefusedError("too_large", text)
