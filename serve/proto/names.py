"""What both sides of the Open Inference Protocol call things: tensors, headers, the service."""

from __future__ import annotations

import struct

INPUT_NAME, OUTPUT_NAME, OUTPUT_TYPE = "input", "logits", "FP32"
PIXEL_TYPE, IMAGE_TYPE = "UINT8", "BYTES"
"""Images: their pixels, or JPEG and PNG files."""
ID_TYPES = ("INT64", "INT32")
"""Texts: token ids, of either width; the first is what metadata say."""
WIRE_DTYPES = {"UINT8": "u1", "INT32": "<i4", "INT64": "<i8"}

BYTES_LENGTH = struct.Struct("<I")
"""Precedes each element of a raw BYTES tensor."""
BINARY_HEADER = "inference-header-content-length"
SLO_HEADER = "x-slo-ms"
TIMEOUT_HEADER = "x-request-timeout-seconds"
REPLICAS = "replicas"
"""What a server's metadata call the URLs of its replicas, and answers the tag of that list."""
LOWEST_PRIORITY = 10
"""Priorities go from 1, the highest, to this one, which is also what 0 stands for (Triton's)."""
SERVICE = "inference.GRPCInferenceService"

EXTENSIONS = (
    "binary_tensor_data",
    "classification",
    "schedule_policy",
    "model_configuration",
    "model_repository",
    "statistics",
    "system_shared_memory",
)
SERVER_NAME = PLATFORM = "supernet"
VERSION = "0.1.0"


def class_of(priority: int) -> int:
    """Return the class of a priority from 0 to `LOWEST_PRIORITY`: the higher the better."""
    return LOWEST_PRIORITY - (priority or LOWEST_PRIORITY)


def priority_of(query_class: int) -> int:
    """Return the priority that asks for a class; classes beyond the highest ask for that."""
    return LOWEST_PRIORITY - max(0, min(query_class, LOWEST_PRIORITY - 1))
