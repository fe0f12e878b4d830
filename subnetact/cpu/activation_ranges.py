"""`activation_ranges`: how far each activation of a subnet reaches, on drawn images.

The subnet's own float graph runs once over the images, with reductions beside every activation
that will be rounded: the extremes, and the mean of each channel where weights meet it. The
extremes of all are taken: quantiles of the samples' extremes, the library's percentiles and its
entropy gained nothing (docs/log.md).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper

from subnetact.cpu.graph_template import INPUT
from subnetact.cpu.ort_session import open_session
from subnetact.cpu.rounding_plan import RoundingPlan


class Activation(NamedTuple):
    """One activation's range and, where weights meet it, the mean of each of its channels."""

    low: float
    high: float
    means: tuple[float, ...] = ()


Ranges = Mapping[str, Activation]


def activation_ranges(
    model: onnx.ModelProto, batches: Iterable[np.ndarray], *, threads: int = 1
) -> dict[str, Activation]:
    """Run `model` on batches of samples and return {tensor: range} of all that is rounded.

    Raises ValueError where there is no batch.
    """
    plan = RoundingPlan(model)
    reduced = _with_reductions(model, plan)
    names = [output.name for output in reduced.graph.output]
    with TemporaryDirectory() as folder:
        path = Path(folder) / "reduced.onnx"
        onnx.save(reduced, path)
        session = open_session(path, threads=threads)
    rows: list[dict[str, np.ndarray]] = []
    counts: list[int] = []
    for batch in batches:
        rows.append(dict(zip(names, session.run(names, {INPUT: batch}), strict=True)))
        counts.append(len(batch))
    if not rows:
        raise ValueError("ranges need at least one batch of samples, got none")
    return {tensor: _joined(tensor, rows, counts) for tensor in plan.rounded}


def _joined(
    tensor: str, rows: Sequence[Mapping[str, np.ndarray]], counts: Sequence[int]
) -> Activation:
    """Join what the batches gave for one tensor."""
    low = min(float(row[f"{tensor}:low"]) for row in rows)
    high = max(float(row[f"{tensor}:high"]) for row in rows)
    if f"{tensor}:means" not in rows[0]:
        return Activation(low, high)
    means = np.average([row[f"{tensor}:means"] for row in rows], axis=0, weights=counts)
    return Activation(low, high, tuple(means.tolist()))


def _with_reductions(model: onnx.ModelProto, plan: RoundingPlan) -> onnx.ModelProto:
    """Return a copy whose outputs are extremes and channel means instead of the logits."""
    reduced = onnx.ModelProto()
    reduced.CopyFrom(model)
    graph = reduced.graph
    del graph.output[:]
    for name, values in (("planes", [0, 0, -1]), ("but channels", [0, 2])):
        graph.initializer.append(numpy_helper.from_array(np.array(values, dtype=np.int64), name))
    for tensor in plan.rounded:
        nodes = [
            helper.make_node("ReduceMin", [tensor], [f"{tensor}:low"], keepdims=0),
            helper.make_node("ReduceMax", [tensor], [f"{tensor}:high"], keepdims=0),
        ]
        if tensor in plan.weighted_inputs:  # (B, C, H, W) or (B, C)
            planes = f"{tensor}:planes"
            nodes += [
                helper.make_node("Reshape", [tensor, "planes"], [planes]),
                helper.make_node(
                    "ReduceMean", [planes, "but channels"], [f"{tensor}:means"], keepdims=0
                ),
            ]
        graph.node.extend(nodes)
        graph.output.extend(
            helper.make_tensor_value_info(name, TensorProto.FLOAT, None)
            for node in nodes
            for name in node.output
            if not name.endswith(":planes")
        )
    return reduced


def ranges_to_json(ranges: Ranges) -> dict[str, list[object]]:
    """Return plain data, which `ranges_from_json` reads."""
    return {name: [a.low, a.high, list(a.means)] for name, a in ranges.items()}


def ranges_to_tensors(ranges: Ranges) -> dict[str, torch.Tensor]:
    """Return {tensor: lowest, highest, then the means of channels}, as a checkpoint keeps them."""
    return {n: torch.tensor([a.low, a.high, *a.means]) for n, a in ranges.items()}


def ranges_from_tensors(tensors: Mapping[str, torch.Tensor]) -> dict[str, Activation]:
    """Rebuild from what a checkpoint keeps."""
    rows = {name: tensor.tolist() for name, tensor in tensors.items()}
    return {n: Activation(low, high, tuple(means)) for n, (low, high, *means) in rows.items()}
