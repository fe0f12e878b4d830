"""`GraphTemplate`: what the graphs of all subnets of one topology have in common.

A topology is what decides which nodes there are: depths, kernel sizes, resolution. Widths, expand
ratios and heads only change how much of each tensor is read, so a network is recorded and written
once per topology, and a subnet's graph is the template with its own slices for initialisers
(`subnet_graph.py`). Recording is `torch.export` on the meta device: no weights are touched.

A template is a small file's worth: `to_bytes` and `from_bytes` keep it between runs.
"""

from __future__ import annotations

import json
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper
from torch import nn

from subnetact.cpu import graph_rules as _rules  # noqa: F401  registers them
from subnetact.cpu.graph_writer import OPSET, Fill, GraphWriter
from supernet.arch import Arch
from supernet.definition import SupernetDefinition
from supernet.input import InputSpec

INPUT, OUTPUT = "samples", "logits"
_IR_VERSION = 10
_MAX_BATCH = 4096
_SENTINEL = 9973  # a prime: no width, size or product of them is a multiple
_FILLS = "fills"


@dataclass(frozen=True, slots=True)
class GraphTemplate:
    """Nodes without weights, and how each initialiser is cut out of a subnet's tensors."""

    model: onnx.ModelProto
    fills: tuple[Fill, ...]

    def to_bytes(self) -> bytes:
        """Return what `from_bytes` reads: an ONNX model with the fills in its metadata."""
        kept = onnx.ModelProto()
        kept.CopyFrom(self.model)
        helper.set_model_props(kept, {_FILLS: json.dumps(self.fills)})
        return kept.SerializeToString()

    @classmethod
    def from_bytes(cls, data: bytes) -> GraphTemplate:
        """Rebuild. Raises ValueError when the bytes are no template."""
        try:
            model = onnx.load_from_string(data)
            (prop,) = model.metadata_props
            fills = tuple(Fill(*row) for row in json.loads(prop.value))
        except Exception as error:  # protobuf's own, JSON's, a wrong count: all mean the same
            raise ValueError(f"not a graph template ({error})") from None
        del model.metadata_props[:]
        return cls(model, fills)


def topology(arch: Arch) -> str:
    """Return a short name that archs share whose graphs have the same nodes.

    >>> topology(Arch(resolution=32, depth=(1, 2), width=(0.5, 1.0), expand=(1.0, 0.5, 0.5)))
    'd1_2-r32'
    """
    return Arch(resolution=arch.resolution, depth=arch.depth, kernel=arch.kernel).subnet_id


def write_template(
    definition: SupernetDefinition, input_spec: InputSpec, arch: Arch
) -> GraphTemplate:
    """Record and write the topology of `arch`, normalisation in front.

    The graph takes `samples`, uint8 (B, C, H, W) or token ids int64 (B, N), and gives `logits`,
    float32 (B, num_classes); B is free. Raises ValueError when `arch` is outside the space,
    GraphError when the network uses an operator that has no rule.
    """
    net = definition.on_meta(arch).eval().requires_grad_(False)
    with torch.device("meta"):
        program = record(net, definition, arch)
    signature = program.graph_signature
    tensors = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    writer = GraphWriter(tensors)
    is_image = input_spec.kind == "image"
    x = _normalised(writer, input_spec, arch.resolution) if is_image else INPUT
    program.graph.eliminate_dead_code()
    logits = writer.write(program.graph, {signature.user_inputs[0]: x})
    sample = input_spec.shape if is_image else ("tokens",)
    graph = helper.make_graph(
        writer.nodes,
        definition.family_name,
        [
            helper.make_tensor_value_info(
                INPUT, TensorProto.UINT8 if is_image else TensorProto.INT64, ["batch", *sample]
            )
        ],
        [
            helper.make_tensor_value_info(
                OUTPUT, TensorProto.FLOAT, ["batch", definition.output.size]
            )
        ],
        list(writer.constants.values()),
    )
    _rename(graph, logits, OUTPUT)
    opsets = [helper.make_opsetid("", OPSET)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=_IR_VERSION)
    return GraphTemplate(model, tuple(writer.fills.values()))


def record(net: nn.Module, definition: SupernetDefinition, arch: Arch) -> Any:
    """Return what `torch.export` records of a network, with a free batch (and number of tokens).

    Recording with symbols takes twice as long as with numbers. So images are recorded at a batch
    size that nothing else is a multiple of: where no argument is one, the batch is free already.
    """
    device = next(net.parameters()).device
    if definition.example_input(arch).is_floating_point():
        program = _exported(net, definition.example_input(arch, _SENTINEL).to(device), None)
        if not any(_mentions(node.args) for node in program.graph.nodes):
            return program
    example = definition.example_input(arch, 2).to(device)
    free: dict[int, Any] = {0: torch.export.Dim("batch", min=1, max=_MAX_BATCH)}
    if not example.is_floating_point():
        free[1] = torch.export.Dim("tokens", min=2, max=example.shape[1])
    return _exported(net, example, (free,))


def _exported(net: nn.Module, example: torch.Tensor, dynamic_shapes: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the recorder's own dependencies
        return torch.export.export(net, (example,), dynamic_shapes=dynamic_shapes, strict=False)


def _mentions(arguments: Any) -> bool:
    """Whether a multiple of the sentinel is among a recorded call's arguments."""
    if isinstance(arguments, list | tuple):
        return any(_mentions(argument) for argument in arguments)
    is_number = isinstance(arguments, int) and not isinstance(arguments, bool)
    return is_number and arguments > 0 and arguments % _SENTINEL == 0


def _normalised(writer: GraphWriter, spec: InputSpec, resolution: int) -> str:
    """Write what `InputSpec.normalise` computes, as one multiplication and one addition."""
    mean, std = (
        np.asarray(v, dtype=np.float64).reshape(1, -1, 1, 1) for v in (spec.mean, spec.std)
    )
    x = writer.emit("Cast", INPUT, to=TensorProto.FLOAT)
    resizes = (spec.height, spec.width) != (resolution, resolution)
    shrinks = resizes and resolution**2 <= spec.height * spec.width
    if shrinks:  # interpolation and normalisation commute: first what leaves less to do
        x = _resized(writer, x, resolution)
    x = writer.emit("Mul", x, writer.constant(1 / (255 * std), np.float32))
    x = writer.emit("Add", x, writer.constant(-mean / std, np.float32))
    return _resized(writer, x, resolution) if resizes and not shrinks else x


def _resized(writer: GraphWriter, x: str, resolution: int) -> str:
    sizes = writer.constant([resolution, resolution], np.int64)
    return writer.emit(
        "Resize",
        *(x, "", "", sizes),
        axes=[2, 3],
        mode="linear",
        coordinate_transformation_mode="half_pixel",
    )


def _rename(graph: onnx.GraphProto, value: str, name: str) -> None:
    """Call the value `name` where it is made."""
    for node in graph.node:
        for i, output in enumerate(node.output):
            if output == value:
                node.output[i] = name
