"""`activation_ranges`: how far each activation of a subnet reaches, on drawn images.

The subnet's own float graph is run once over the images, with two reductions beside every
activation that a quantised graph rounds: the extremes of each sample, of which a quantile becomes
the range. Extremes per sample are enough (histograms of all values changed no subnet's accuracy by
more than its interval, docs/log.md) and cost a pass.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from subnetact.cpu.graph_template import INPUT
from subnetact.cpu.ort_session import open_session


class Activation(NamedTuple):
    """One activation: its range, and the mean of each channel over the images, (C,)."""

    low: float
    high: float
    means: tuple[float, ...]


def draw_calibration(images: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Return `count` of `images` (N, C, H, W), drawn at random over all without replacement.

    The generator is private, so no one else's draws change what is drawn here. All of them, where
    there are no more than `count`.
    """
    if count < 1:
        raise ValueError(f"count is {count}, allowed 1 or more")
    chosen = np.random.default_rng(seed).permutation(len(images))[:count]
    return images[np.sort(chosen)]


def activation_ranges(
    model: onnx.ModelProto,
    tensors: Sequence[str],
    batches: Iterable[np.ndarray],
    *,
    quantile: float = 1.0,
    threads: int = 1,
) -> dict[str, Activation]:
    """Run `model` on batches of samples and return {tensor: its range}.

    `quantile` of the samples' extremes bounds the range: 1 is the extreme of all. Raises
    ValueError where there is no batch, or a quantile beyond (0, 1].
    """
    if not 0 < quantile <= 1:
        raise ValueError(f"quantile is {quantile}, allowed above 0 and at most 1")
    reduced = _with_reductions(model, tensors)
    names = [output.name for output in reduced.graph.output]
    with TemporaryDirectory() as folder:
        path = Path(folder) / "reduced.onnx"
        onnx.save(reduced, path)
        session = open_session(path, threads=threads)
        found = [session.run(names, {INPUT: batch}) for batch in batches]
    if not found:
        raise ValueError("ranges need at least one batch of samples, got none")
    counts = [len(row[0]) for row in found]
    columns = dict(zip(names, zip(*found, strict=True), strict=True))
    return {
        tensor: Activation(
            low=float(np.quantile(np.concatenate(columns[f"{tensor}:low"]), 1 - quantile)),
            high=float(np.quantile(np.concatenate(columns[f"{tensor}:high"]), quantile)),
            means=tuple(np.average(columns[f"{tensor}:means"], axis=0, weights=counts).tolist()),
        )
        for tensor in tensors
    }


def _with_reductions(model: onnx.ModelProto, tensors: Sequence[str]) -> onnx.ModelProto:
    """Return a copy whose outputs are the extremes per sample and the means per channel."""
    reduced = onnx.ModelProto()
    reduced.CopyFrom(model)
    graph = reduced.graph
    del graph.output[:]
    axes = {
        "flat": numpy_helper.from_array(np.array([1], dtype=np.int64), "reduce:flat"),
        "planes": numpy_helper.from_array(np.array([0, 2], dtype=np.int64), "reduce:planes"),
        "cube": numpy_helper.from_array(np.array([0, 0, -1], dtype=np.int64), "reduce:cube"),
    }
    graph.initializer.extend(axes.values())
    for tensor in tensors:
        flat, cube = f"{tensor}:flat", f"{tensor}:cube"
        graph.node.extend(
            [
                helper.make_node("Flatten", [tensor], [flat], axis=1),
                helper.make_node("ReduceMin", [flat, "reduce:flat"], [f"{tensor}:low"], keepdims=0),
                helper.make_node(
                    "ReduceMax", [flat, "reduce:flat"], [f"{tensor}:high"], keepdims=0
                ),
                helper.make_node("Reshape", [tensor, "reduce:cube"], [cube]),
                helper.make_node(
                    "ReduceMean", [cube, "reduce:planes"], [f"{tensor}:means"], keepdims=0
                ),
            ]
        )
        for suffix in ("low", "high", "means"):
            graph.output.append(
                helper.make_tensor_value_info(f"{tensor}:{suffix}", TensorProto.FLOAT, None)
            )
    return reduced


def to_json(ranges: Mapping[str, Activation]) -> dict[str, list[object]]:
    """Return plain data, which `from_json` reads."""
    return {name: [a.low, a.high, list(a.means)] for name, a in ranges.items()}


def from_json(data: Mapping[str, Sequence[object]]) -> dict[str, Activation]:
    """Rebuild. Raises ValueError for a row of another form."""
    try:
        return {
            name: Activation(float(low), float(high), tuple(map(float, means)))  # type: ignore[arg-type, call-overload]
            for name, (low, high, means) in data.items()
        }
    except (TypeError, ValueError) as error:
        raise ValueError(f"activation ranges: {error}") from None
