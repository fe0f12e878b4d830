"""Names that both sides of the Open Inference Protocol use: tensors, the server, extensions."""

from __future__ import annotations

INPUT_NAME, INPUT_TYPE, IMAGE_TYPE = "input", "UINT8", "BYTES"
OUTPUT_NAME, OUTPUT_TYPE = "logits", "FP32"
EXTENSIONS = (
    "binary_tensor_data",
    "schedule_policy",
    "model_configuration",
    "model_repository",
    "statistics",
)
SERVER_NAME = PLATFORM = "supernet"
VERSION = "0.1.0"
