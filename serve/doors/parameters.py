"""The parameters of the protocol and its extensions: which are served, and where they stand.

What is not served is refused by its name. To ignore it would answer something else than what was
asked for, and a name with a slip in it would be ignored for ever. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from serve.models.limits import RefusedError
from serve.models.request import Parameter, SharedSlice, WantedOutput, bad

_SLICE = ("shared_memory_region", "shared_memory_offset", "shared_memory_byte_size")
REQUEST = (
    "timeout", "deadline_unix_us", "slo_ms", "priority", "subnet", "min_accuracy",
    "binary_data_output",
)  # fmt: skip
INPUT = ("binary_data_size", "content_type", *_SLICE)
OUTPUT = ("binary_data", "classification", *_SLICE)


def check_names(given: Iterable[str], known: tuple[str, ...], where: str) -> None:
    """Raise RefusedError, `bad_request`, naming the parameters that are not served there."""
    unknown = [name for name in given if name not in known]
    if unknown:
        names = ", ".join(f"{name:.80}" for name in unknown[:8])
        text = f"{where}: parameter {names} is not served, allowed {', '.join(known)}"
        raise RefusedError("bad_request", text)


def slice_of(parameters: Mapping[str, Parameter], where: str) -> SharedSlice | None:
    """Return which shared memory a tensor names, if it does. Raises RefusedError."""
    if parameters.keys().isdisjoint(_SLICE):
        return None
    region, offset, num_bytes = (parameters.get(name) for name in _SLICE)
    if not isinstance(region, str):
        raise bad("bad_tensor", f"{where}: {_SLICE[0]}", region, "the name of a region")
    if offset is None:
        offset = 0
    if type(offset) is not int or offset < 0:
        raise bad("bad_tensor", f"{where}: {_SLICE[1]}", offset, "a whole number, 0 or more")
    if type(num_bytes) is not int or num_bytes < 1:
        raise bad("bad_tensor", f"{where}: {_SLICE[2]}", num_bytes, "a number of bytes, 1 or more")
    return SharedSlice(region, offset, num_bytes)


def wanted_output(
    parameters: Mapping[str, Parameter], where: str, *, is_binary: bool
) -> WantedOutput:
    """Return in which form the output is wanted; `is_binary` where it does not say.

    Raises RefusedError.
    """
    check_names(parameters, OUTPUT, where)
    count = parameters.get("classification")
    if count is not None and (type(count) is not int or count < 1):
        raise bad(
            "bad_request", f"{where}: classification", count, "a number of classes, 1 or more"
        )
    where_to = slice_of(parameters, where)
    if where_to is not None and count is not None:
        text = f"{where}: classification and shared memory exclude each other"
        raise RefusedError("bad_request", text)
    own = parameters.get("binary_data", is_binary) is True
    return WantedOutput(own, count, where_to)
