"""`OrtSession`: a graph that onnxruntime runs; one call, outside the interpreter's lock.

onnxruntime is imported by the first session, so a machine without it runs everything else. What a
server wants differs from the library's defaults:

- as many threads as the caller says, whatever OMP_NUM_THREADS is; the caller's own is one of
  them, so one thread needs no pool at all. Idle threads sleep: the library's global pool can't be
  kept from spinning in Python (docs/decisions/110-whole-graphs-on-the-cpu.md), so every session
  with more than one thread has its own.
- one arena for the activations of all sessions, as only one or two run at a time.
- models are read from files: of bytes the library's Python class keeps a copy.
"""

from __future__ import annotations

import ctypes
import sys
import threading
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from subnetact.cpu.graph_template import INPUT, OUTPUT

_PROVIDERS = ["CPUExecutionProvider"]
_FATAL_ONLY = 4
_ARENA_LOCK = threading.Lock()
_arena_is_shared: bool | None = None


class OrtMissingError(ImportError):
    """onnxruntime or onnx is not installed."""


def onnxruntime() -> Any:
    """Import onnxruntime. Raises OrtMissingError saying how to install it."""
    try:
        return import_module("onnxruntime")
    except ImportError as error:
        raise OrtMissingError(
            "graphs on a CPU need onnxruntime: pip install onnxruntime onnx, or choose packing "
            "views"
        ) from error


class OrtSession:
    """A loaded model: uint8 images (B, C, H, W) or int64 ids (B, N) in, float32 logits out."""

    engine = "onnxruntime"

    def __init__(
        self,
        model: Path,
        *,
        threads: int = 1,
        optimised: bool = False,
        save_optimised: Path | None = None,
    ):
        """Load the model file, which is not needed afterwards.

        `optimised` says that the file is what an earlier session here left at `save_optimised`.
        Raises ValueError for fewer threads than one, or a file that is no model; OrtMissingError.
        """
        self._session = open_session(
            model, threads=threads, optimised=optimised, save_optimised=save_optimised
        )
        self._outputs = [OUTPUT]

    def run(self, samples: np.ndarray) -> np.ndarray:
        """Return (B, num_classes) float32 logits of contiguous samples of the graph's type."""
        return self._session.run(self._outputs, {INPUT: samples})[0]


def open_session(
    model: Path,
    *,
    threads: int = 1,
    optimised: bool = False,
    save_optimised: Path | None = None,
) -> Any:
    """Return the library's own session with our options; see `OrtSession`."""
    if threads < 1:
        raise ValueError(f"threads is {threads}, allowed 1 or more")
    runtime = onnxruntime()
    options = _options(runtime, threads)
    levels = runtime.GraphOptimizationLevel
    options.graph_optimization_level = (
        levels.ORT_DISABLE_ALL if optimised else levels.ORT_ENABLE_ALL
    )
    if save_optimised is not None:
        options.optimized_model_filepath = str(save_optimised)
    try:
        return runtime.InferenceSession(str(model), options, providers=_PROVIDERS)
    except Exception as error:  # the library's own kinds, which share no base
        raise ValueError(f"{model}: onnxruntime can't load it ({error})") from error


def return_freed_memory() -> None:
    """Give memory that loading needed back to the system, where the C library can (glibc)."""
    # The process's own symbols: looking for a library by name may start a compiler.
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


def _options(runtime: Any, threads: int) -> Any:
    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = _FATAL_ONLY
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if _share_arena(runtime):
        options.add_session_config_entry("session.use_env_allocators", "1")
    return options


def _share_arena(runtime: Any) -> bool:
    """Register the process's one arena, once; whether there is one."""
    global _arena_is_shared
    with _ARENA_LOCK:
        if _arena_is_shared is None:
            kind, memory = runtime.OrtAllocatorType.ORT_ARENA_ALLOCATOR, runtime.OrtMemType.DEFAULT
            info = runtime.OrtMemoryInfo("Cpu", kind, 0, memory)
            try:
                runtime.create_and_register_allocator(info, runtime.OrtArenaCfg(0, -1, -1, -1))
                _arena_is_shared = True
            except Exception:  # someone else in this process registered one, which serves as well
                _arena_is_shared = True
    return _arena_is_shared
