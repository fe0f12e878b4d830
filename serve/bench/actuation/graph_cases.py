"""Cases of the graph and int8 parts of `supernet bench actuation`: ours against static exports.

The static peers are made by the book from the same extracted subnet, with normalisation in front,
since both get the bytes that arrive: torch's exporter and a session with its defaults; for int8 the
library's pre-processing and static quantisation, per channel, on the same images. Rounds are
interleaved; the order within one rotates, and every other round runs backwards, so that what ran
before is shared out. A second session of the same static file stands in every round: its ratio to
the first says what the machine allows to be seen, where a session's memory came to lie included.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
import onnx
import torch
from torch import nn
from torch.nn import functional as F

from subnetact.cpu.activation_ranges import activation_ranges
from subnetact.cpu.graph_template import write_template
from subnetact.cpu.ort_session import OrtSession, onnxruntime
from subnetact.cpu.quantise import quantise
from subnetact.cpu.subnet_graph import subnet_graph
from subnetact.number_format import best_format
from supernet.arch import Arch
from supernet.definition import SupernetDefinition
from supernet.input import InputSpec
from supernet.subnets.extract import extract

Row = dict[str, Any]
Call = Callable[[np.ndarray], np.ndarray]
_MAX_BATCH = 1024


class GraphCase(NamedTuple):
    """One network at one size; `images` (N, C, H, W) uint8 calibrate, and are what is run on."""

    net: str
    size: str
    definition: SupernetDefinition
    arch: Arch
    state: Mapping[str, torch.Tensor]
    norm_statistics: Mapping[str, torch.Tensor]
    input: InputSpec
    images: np.ndarray


def graph_rows(
    cases: Iterable[GraphCase],
    *,
    precisions: Iterable[str] = ("fp32", "int8"),
    batch_sizes: Iterable[int] = (1, 8),
    at_least_s: float = 3.0,
    tell: Callable[[str], None] = print,
) -> list[Row]:
    """Measure every case on one thread; a row per precision and batch size, and an A/A row."""
    rows: list[Row] = []
    sizes = tuple(batch_sizes)
    for case in cases:
        for precision in precisions:
            with TemporaryDirectory() as folder:
                path = static_export(case, precision, Path(folder))
                engines = {
                    "ours": our_session(case, precision, Path(folder)),
                    "static": static_session(path),
                    "static again": static_session(path),
                }
            for batch_size in sizes:
                rows += _rows_of(case, precision, batch_size, engines, at_least_s)
                tell(
                    f"  {rows[-2]['figure']}: {rows[-2]['value']:.3f} (A/A {rows[-1]['value']:.3f})"
                )
    return rows


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


def static_session(path: Path) -> Call:
    """Return a call of a model file in a session with the library's defaults, one thread."""
    runtime = onnxruntime()
    options = runtime.SessionOptions()
    options.intra_op_num_threads = 1
    session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda samples: session.run(None, {"input": samples})[0]


def our_session(case: GraphCase, precision: str, folder: Path) -> Call:
    """Return a call of our graph of the subnet."""
    template = write_template(case.definition, case.input, case.arch)
    model = subnet_graph(template, case.definition, case.arch, case.state, case.norm_statistics)
    if precision == "int8":
        ranges = activation_ranges(model, [case.images])
        model = quantise(model, ranges, best_format())
    path = folder / "ours.onnx"
    onnx.save(model, path)
    return OrtSession(path).run


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


def _rows_of(
    case: GraphCase,
    precision: str,
    batch_size: int,
    engines: Mapping[str, Call],
    at_least_s: float,
) -> list[Row]:
    repeated = np.resize(case.images, (batch_size, *case.images.shape[1:]))
    samples_s = rotated({name: _on(call, repeated) for name, call in engines.items()}, at_least_s)
    figure = f"actuation/{case.net}/{case.size}/b{batch_size}/t1"
    times = ", ".join(f"{name} {median(s) * 1e3:.3f} ms" for name, s in samples_s.items())
    detail = f"medians {times}; {len(samples_s['ours'])} rounds; {case.arch.subnet_id}"
    return [
        {
            "figure": f"{figure}/{name}",
            "value": round(_paired(samples_s, *pair), 6),
            "unit": "ratio",
            "detail": detail,
        }
        for name, pair in (
            (f"ours_{precision}_over_best_static_{precision}", ("ours", "static")),
            (f"best_static_{precision}_over_itself", ("static again", "static")),
        )
    ]


def _on(call: Call, samples: np.ndarray) -> Callable[[], object]:
    return lambda: call(samples)


def rotated(
    calls: Mapping[str, Callable[[], object]],
    at_least_s: float = 3.0,
    rounds: tuple[int, int] = (9, 600),
) -> dict[str, list[float]]:
    """Return the seconds of each call in each round, after two rounds that do not count.

    There are `rounds[0]` at least and `rounds[1]` at most, and as many as fit `at_least_s`.
    """
    samples_s: dict[str, list[float]] = {name: [] for name in calls}
    names = list(calls)
    start_s = time.perf_counter()
    for number in range(-2, rounds[1]):
        first = number % len(names)
        order = names[first:] + names[:first]
        for name in order if number // len(names) % 2 == 0 else reversed(order):
            before_s = time.perf_counter()
            calls[name]()
            if number >= 0:
                samples_s[name].append(time.perf_counter() - before_s)
        if number + 1 >= rounds[0] and time.perf_counter() - start_s >= at_least_s:
            break
    return samples_s


def _paired(samples_s: Mapping[str, list[float]], name: str, over: str) -> float:
    pairs = zip(samples_s[name], samples_s[over], strict=True)
    return median(a / b for a, b in pairs)
