"""Tensors in shared memory: read as inputs, written as outputs, the same at both doors."""

from __future__ import annotations

import math

import numpy as np

from serve.doors.shared_memory import RegionAccess
from serve.models.limits import RefusedError
from serve.models.request import (
    ModelSpec,
    Samples,
    SharedSlice,
    WantedOutput,
    read_raw,
)
from serve.proto.names import IMAGE_TYPE, WIRE_DTYPES

_OUTPUT_ITEM_BYTES = 4  # FP32


def read_shared(
    datatype: str,
    shape: tuple[int, ...],
    part: SharedSlice,
    spec: ModelSpec,
    regions: RegionAccess,
) -> Samples:
    """Return the samples of a tensor in shared memory. Raises RefusedError, `bad_tensor`.

    Its size is checked before anything is read.
    """
    if datatype != IMAGE_TYPE:
        size = math.prod(shape) * np.dtype(WIRE_DTYPES[datatype]).itemsize
        if part.num_bytes != size:
            text = f"shared_memory_byte_size is {part.num_bytes}"
            raise RefusedError("bad_tensor", f"{text}, shape {list(shape)} needs {size}")
    return read_raw(datatype, shape, memoryview(regions.read(part)), spec)


def check_output(
    wanted: WantedOutput, num_samples: int, spec: ModelSpec, regions: RegionAccess
) -> None:
    """Raise RefusedError unless the output can be had so: it has classes, there is room for it."""
    if wanted.class_count is not None and spec.output_kind != "logits":
        given = f"{spec.output_kind}s of {spec.num_classes} numbers"
        raise RefusedError(
            "bad_request", f"classification: {spec.name} has no classes, it gives {given}"
        )
    if wanted.slice is not None:
        num_bytes = num_samples * spec.num_classes * _OUTPUT_ITEM_BYTES
        regions.check_room(wanted.slice, num_bytes)


def write_output(
    part: SharedSlice, logits: np.ndarray, regions: RegionAccess
) -> dict[str, str | int]:
    """Write logits, return the parameters that say where they are. Raises RefusedError."""
    regions.write(part, logits.data.cast("B"))
    told: dict[str, str | int] = {
        "shared_memory_region": part.region,
        "shared_memory_byte_size": logits.nbytes,
    }
    return told | ({"shared_memory_offset": part.offset} if part.offset else {})
