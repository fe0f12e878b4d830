"""A subnet exported by the book, and the engines that run it: the peers of the graph part.

Both sides get the bytes that arrive, so normalisation stands in front. fp32 is what torch's
exporter writes; int8 what onnxruntime's pre-processing and static quantisation make of it, per
channel, on the same images. Engines run with their defaults, but for the number of threads
and what is said below.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from serve.bench.actuation.graph_case import GraphCase
from subnetact.cpu.ort_session import onnxruntime
from supernet.input import InputSpec
from supernet.subnets.extract import extract

Call = Callable[[np.ndarray], np.ndarray]
_MAX_BATCH = 1024


def static_export(case: GraphCase, precision: str, folder: Path) -> Path:
    """Write the subnet as one exports it by the book, in fp32 or int8."""
    path = folder / "static.onnx"
    net = extract(case.state, case.definition, case.arch, case.norm_statistics)
    whole = _WithInput(net, case.input, case.arch.resolution).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter's own dependencies
        torch.onnx.export(
            whole,
            (torch.from_numpy(case.images[:2]),),
            str(path),
            dynamo=True,
            dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=_MAX_BATCH)},),
            input_names=["input"],
            output_names=["logits"],
            external_data=False,
            verbose=False,
        )
    return path if precision == "fp32" else _by_the_library(path, case.images, folder)


def in_onnxruntime(path: Path, threads: int = 1) -> Call:
    """Return a call of a model file in a session with the library's defaults."""
    runtime = onnxruntime()
    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads
    session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda samples: session.run(None, {"input": samples})[0]


def in_openvino(path: Path, threads: int = 1) -> Call:
    """Return a call of a model file in OpenVINO, set to answer soon and to keep float in 32 bit.

    By default it computes in bfloat16 where the processor can, three digits off.
    """
    core = import_module("openvino").Core()
    options = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": threads,
        "INFERENCE_PRECISION_HINT": "f32",
    }
    request: Any = core.compile_model(str(path), "CPU", options).create_infer_request()
    return lambda samples: next(iter(request.infer([samples]).values()))


def installed_engines() -> dict[str, Callable[[Path, int], Call]]:
    """Return the engines that there are here, by name: onnxruntime, and OpenVINO if installed."""
    engines: dict[str, Callable[[Path, int], Call]] = {"onnxruntime": in_onnxruntime}
    if find_spec("openvino") is not None:
        engines["openvino"] = in_openvino
    return engines


class _WithInput(nn.Module):
    """A network behind what `InputSpec.normalise` does; nothing in place, so it can be exported."""

    def __init__(self, net: nn.Module, spec: InputSpec, resolution: int):
        super().__init__()
        self._net = net
        self._size = (resolution, resolution)
        mean, std = spec.constants("cpu")
        self._mean = nn.Buffer(mean)
        self._std = nn.Buffer(std)

    def forward(self, samples: torch.Tensor) -> torch.Tensor:  # (B, C, H, W) uint8
        x = (samples.to(torch.float32) / 255.0 - self._mean) / self._std
        if x.shape[-2:] != self._size:
            x = F.interpolate(x, size=self._size, mode="bilinear")
        return self._net(x)


def _by_the_library(path: Path, images: np.ndarray, folder: Path) -> Path:
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(quantization.CalibrationDataReader):
        def __init__(self) -> None:
            self._batches: Iterator[dict[str, np.ndarray]] = iter([{"input": images}])

        def get_next(self) -> dict[str, np.ndarray]:
            return next(self._batches, None)  # type: ignore[return-value]  # None ends them

    prepared, done = folder / "prepared.onnx", folder / "static-int8.onnx"
    quant_pre_process(str(path), str(prepared), skip_symbolic_shape=True)
    quantization.quantize_static(
        str(prepared),
        str(done),
        Reader(),
        quant_format=quantization.QuantFormat.QDQ,
        per_channel=True,
        activation_type=quantization.QuantType.QUInt8,
        weight_type=quantization.QuantType.QInt8,
    )
    return done
