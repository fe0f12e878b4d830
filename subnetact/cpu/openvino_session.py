"""`OpenVinoSession`: a graph that OpenVINO runs; an extra, used for subnets that it runs faster.

It is set to answer soon, on as many threads as the caller says, and to keep float in 32 bit: by
default it computes in bfloat16 where the processor can, three digits off. Its threads, one of which
runs what the caller waits for, are not pinned to cores: a door uses the same ones.
"""

from __future__ import annotations

import threading
from functools import cache
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

_DEVICE = "CPU"


def openvino_version() -> str | None:
    """Return the installed version of OpenVINO, None where there is none; imports nothing."""
    return None if find_spec("openvino") is None else version("openvino")


class OpenVinoSession:
    """A compiled model: uint8 images (B, C, H, W) or int64 ids (B, N) in, float32 logits out."""

    engine = "openvino"

    def __init__(self, model: Path, *, threads: int = 1, compiled: bool = False):
        """Load an ONNX file, or, where `compiled`, what `save` wrote; neither is needed afterwards.

        Raises ValueError for a file that OpenVINO doesn't take.
        """
        options = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": threads,
            "INFERENCE_PRECISION_HINT": "f32",
            "ENABLE_CPU_PINNING": False,
        }
        try:
            if compiled:
                self._model = _core().import_model(model.read_bytes(), _DEVICE, options)
            else:
                self._model = _core().compile_model(str(model), _DEVICE, options)
        except RuntimeError as error:
            raise ValueError(f"{model}: OpenVINO can't load it ({error})") from error
        self._request: Any = self._model.create_infer_request()
        self._lock = threading.Lock()  # one request, one batch at a time

    def run(self, samples: np.ndarray) -> np.ndarray:
        """See `CompiledSession`."""
        with self._lock:
            return self._request.infer([samples])[0]

    def save(self, path: Path) -> None:
        """Write the compiled model, for this version of OpenVINO and this processor."""
        path.write_bytes(self._model.export_model().getvalue())


@cache
def _core() -> Any:
    return import_module("openvino").Core()
