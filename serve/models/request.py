"""An inference request, whichever door it came through: its tensor, id and parameters.

One input tensor `input`. Images are UINT8 [B, C, H, W], or BYTES [B], one JPEG or PNG file per
sample, which the server decodes (`images.py`); texts are token ids, INT64 or INT32 [B, N], nodes of
a graph theirs, [B] or [B, 1]. One output tensor `logits`, FP32 [B, num_classes]. Nothing is
allocated before sizes and shapes are checked. Pure: no I/O, no clock.
"""

from __future__ import annotations

import math
import reprlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from serve.models.limits import RefusedError
from serve.proto.names import (
    BYTES_LENGTH,
    ID_TYPES,
    IMAGE_TYPE,
    INPUT_NAME,
    LOWEST_PRIORITY,
    OUTPUT_NAME,
    PIXEL_TYPE,
    WIRE_DTYPES,
)
from supernet.sample import SampleSpec

Parameter = str | int | float | bool
Samples = np.ndarray | tuple[bytes, ...]
"""Samples as their `SampleSpec` has them, (B, ...), or the B image files to decode them from."""


class ModelSpec(NamedTuple):
    """What a door must know of a model to judge a request.

    `num_classes` are the numbers of its output per sample, `output_kind` what they are: `logits` of
    classes, or an `embedding`.
    """

    name: str
    sample: SampleSpec
    num_classes: int
    max_batch_size: int
    subnet_ids: tuple[str, ...]
    profile: str = ""
    device: str = ""
    output_kind: str = "logits"

    @property
    def datatypes(self) -> tuple[str, ...]:
        """The protocol's types that the input may have; metadata say the first."""
        is_ids = self.sample.is_text or self.sample.is_node
        return ID_TYPES if is_ids else (PIXEL_TYPE, IMAGE_TYPE)

    @property
    def wire_shape(self) -> list[int]:
        """The input's shape without the batch; -1 is any size."""
        return [-1] if self.sample.is_text else list(self.sample.shape)

    def about(self, policy: str) -> dict[str, str]:
        """Return what serves the model, and what it gives, as both doors name it."""
        return {
            "policy": policy,
            "profile": self.profile,
            "device": self.device,
            "output_kind": self.output_kind,
        }

    def input_limits(self) -> dict[str, Any]:
        """Return which numbers the input may hold, and of a text how many."""
        limits: dict[str, Any] = {"input_range": [0, self.sample.highest]}
        if self.sample.is_text:
            limits |= {"max_tokens": self.sample.shape[0], "pad_id": self.sample.pad}
        return limits


class SharedSlice(NamedTuple):
    """Which bytes of which region of shared memory a tensor names."""

    region: str
    offset: int
    num_bytes: int


class WantedOutput(NamedTuple):
    """In which form the output is wanted: as bytes or not, and of which kind.

    `class_count`: not the logits but that many classes, the most likely first, where there are
    classes. `slice`: where in shared memory the logits are to be written.
    """

    is_binary: bool = False
    class_count: int | None = None
    slice: SharedSlice | None = None


class InferRequest(NamedTuple):
    """A parsed request."""

    samples: Samples
    request_id: str | None
    parameters: dict[str, Parameter]
    output: WantedOutput = WantedOutput()

    def min_accuracy(self) -> float:
        """Return the accuracy floor, a fraction. Raises RefusedError."""
        floor = self.parameters.get("min_accuracy", 0.0)
        if isinstance(floor, bool) or not isinstance(floor, int | float) or not 0 <= floor <= 1:
            raise bad("bad_request", "parameter min_accuracy", floor, "a fraction 0 to 1")
        return float(floor)

    def priority(self) -> int:
        """Return the priority as Triton has it: 1 is the highest, 0 none. Raises RefusedError."""
        priority = self.parameters.get("priority", 0)
        if type(priority) is not int or not 0 <= priority <= LOWEST_PRIORITY:
            allowed = f"1 (highest) to {LOWEST_PRIORITY} (lowest), or 0 for the lowest"
            raise bad("bad_request", "parameter priority", priority, allowed)
        return priority

    def subnet_id(self) -> str | None:
        """Return the pinned subnet, if any. Raises RefusedError."""
        subnet_id = self.parameters.get("subnet")
        if subnet_id is not None and not isinstance(subnet_id, str):
            raise bad("bad_request", "parameter subnet", subnet_id, "a subnet id")
        return subnet_id


def check_tensor(name: object, datatype: object, shape: object, spec: ModelSpec) -> tuple[int, ...]:
    """Return the shape of the input tensor. Raises RefusedError unless the model takes it."""
    if name != INPUT_NAME:
        raise bad("bad_tensor", "the input's name", name, repr(INPUT_NAME))
    if datatype not in spec.datatypes:
        raise bad("bad_tensor", "datatype", datatype, " or ".join(map(repr, spec.datatypes)))
    given = _sizes(shape)
    if datatype == IMAGE_TYPE:
        is_right, allowed, sizes = given[1:] in ((), (1,)), "[B]", ""
    elif spec.sample.is_text:
        longest = spec.sample.shape[0]
        is_right, allowed, sizes = spec.sample.fits(given[1:]), "[B, N]", f", N from 1 to {longest}"
    elif spec.sample.is_node:
        is_right, allowed, sizes = spec.sample.fits(given[1:]), "[B] or [B, 1]", ""
    else:
        names = ", ".join(map(str, spec.sample.shape))
        is_right, allowed, sizes = spec.sample.fits(given[1:]), f"[B, {names}]", ""
    if not given or not is_right or not 1 <= given[0] <= spec.max_batch_size:
        sizes = f"B from 1 to {spec.max_batch_size}{sizes}"
        raise bad("bad_tensor", "shape", shape, f"{allowed} with {sizes}")
    return given


def check_output_name(name: object) -> None:
    """Raise RefusedError unless `name` is that of the one output."""
    if name != OUTPUT_NAME:
        raise bad("bad_tensor", "the output's name", name, repr(OUTPUT_NAME))


def read_raw(
    datatype: str, shape: tuple[int, ...], data: bytes | memoryview, spec: ModelSpec
) -> Samples:
    """Return the samples of a raw tensor; type and shape are checked. Raises RefusedError."""
    if datatype == IMAGE_TYPE:
        return _split(memoryview(data), shape[0])
    dtype = np.dtype(WIRE_DTYPES[datatype])
    size = math.prod(shape) * dtype.itemsize
    if len(data) != size:
        text = f"shape {list(shape)} needs {size} bytes, {len(data)} were given"
        raise RefusedError("bad_tensor", text)
    return check_values(np.frombuffer(data, dtype=dtype).reshape(shape), spec)


def check_values(samples: np.ndarray, spec: ModelSpec) -> np.ndarray:
    """Return samples as they are staged. Raises RefusedError for a number out of range."""
    try:
        return spec.sample.checked(samples)
    except ValueError as error:
        raise RefusedError("bad_tensor", f"input: {error}") from None


def check_images(files: Sequence[bytes], shape: tuple[int, ...]) -> tuple[bytes, ...]:
    """Return the image files of a tensor that lists them. Raises RefusedError for their count."""
    if len(files) != shape[0]:
        raise bad("bad_tensor", "the number of images", len(files), f"{shape[0]} as in the shape")
    return tuple(files)


def bad(reason: str, what: str, given: object, allowed: str) -> RefusedError:
    """Return the refusal that says what was given and what is allowed."""
    return RefusedError(reason, f"{what} is {reprlib.repr(given)}, allowed {allowed}")


def _sizes(shape: object) -> tuple[int, ...]:
    if isinstance(shape, list | tuple) and all(type(size) is int for size in shape):
        return tuple(shape)
    return ()


def _split(data: memoryview, count: int) -> tuple[bytes, ...]:
    """Split a raw BYTES tensor into its `count` elements, each behind its length."""
    files: list[bytes] = []
    start = 0
    while start < len(data) and len(files) < count:
        if start + BYTES_LENGTH.size > len(data):
            break
        (length,) = BYTES_LENGTH.unpack_from(data, start)
        end = start + BYTES_LENGTH.size + length
        if end > len(data):
            break
        files.append(bytes(data[start + BYTES_LENGTH.size : end]))
        start = end
    if len(files) != count or start != len(data):
        text = f"the {len(data)} bytes are not {count} images, each behind its length (4 bytes, LE)"
        raise RefusedError("bad_tensor", text)
    return tuple(files)
