"""`quantise`: a subnet's float graph as an int8 graph, after training, from activation ranges.

The written form is QDQ (a pair of QuantizeLinear and DequantizeLinear beside every rounded
tensor), which onnxruntime fuses into integer kernels: convolutions and linear layers with int8
weights, one scale per output channel, sums, products and pooling on bytes. An activation has one
scale and zero point; a bias is rounded in the product of both scales, where nothing is lost, and
takes in what rounding the weights does to the mean of each output (bias correction; Nagel et al.,
ICCV 2019, section 4.2).

What is rounded, and to which bytes, is `NumberFormat`'s: what the processor multiplies fastest
without saturating.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper, numpy_helper

from subnetact.cpu.activation_ranges import Activation, Ranges
from subnetact.cpu.rounding_plan import WEIGHTED, RoundingPlan
from subnetact.number_format import U8S8, NumberFormat

_SMALLEST_SCALE = 1e-12  # of what is zero throughout


def quantise(
    model: onnx.ModelProto, ranges: Ranges, number_format: NumberFormat = U8S8
) -> onnx.ModelProto:
    """Return the int8 form of a float model that `subnet_graph` made.

    `ranges` are those that `activation_ranges` gave for this very model. Raises ValueError naming
    the tensors of which there is none.
    """
    plan = RoundingPlan(model)
    missing = [tensor for tensor in plan.rounded if tensor not in ranges]
    if missing:
        raise ValueError(f"there is no range of {', '.join(missing)}; calibrate this subnet first")
    return _QdqWriter(model, plan, number_format, ranges).write()


class _QdqWriter:
    """Writes the rounded graph node by node."""

    def __init__(
        self,
        model: onnx.ModelProto,
        plan: RoundingPlan,
        number_format: NumberFormat,
        ranges: Ranges,
    ):
        self._model = model
        self._plan = plan
        self._format = number_format
        self._ranges = ranges
        self._scales = {name: _scale(ranges[name], number_format) for name in plan.rounded}
        self._floats = {tensor.name: tensor for tensor in model.graph.initializer}
        self._constants: dict[str, onnx.TensorProto] = {}
        self._nodes: list[onnx.NodeProto] = []

    def write(self) -> onnx.ModelProto:
        vanished = set(self._plan.absorbed.values())
        for node in self._model.graph.node:
            if node.output[0] in vanished:
                continue
            if node.op_type == "HardSwish" and node.output[0] in self._scales:
                self._hard_swish(node)
                self._round(node.output[0])
                continue
            copy = onnx.NodeProto()
            copy.CopyFrom(node)
            copy.output[0] = self._plan.absorbed.get(node.output[0], node.output[0])
            self._read_rounded(copy)
            self._nodes.append(copy)
            if copy.output[0] in self._scales:
                self._round(copy.output[0])
        graph = self._model.graph
        used = {name for node in self._nodes for name in node.input}
        kept = [t for t in [*self._floats.values(), *self._constants.values()] if t.name in used]
        whole = helper.make_graph(self._nodes, graph.name, graph.input, graph.output, kept)
        return helper.make_model(
            whole, opset_imports=self._model.opset_import, ir_version=self._model.ir_version
        )

    def _read_rounded(self, node: onnx.NodeProto) -> None:
        """Have a node read what was rounded, and its weights and bias as integers."""
        activation = node.input[0]
        for i, name in enumerate(node.input):
            if name in self._scales:
                node.input[i] = f"{name}:dq"
        if node.op_type in WEIGHTED:
            self._round_weights(node, activation)
        elif node.name in self._plan.multiplied:
            node.input[1], _ = self._rounded_weight(node.input[1], axis=1)

    def _hard_swish(self, node: onnx.NodeProto) -> None:
        """Write x clip(x + 3, 0, 6) / 6 as a sum and a product of bytes.

        The sum is rounded in steps of 6 / 255 from zero: saturation is the clip. Read back in
        steps of 1 / 255, it is divided by six.
        """
        x, y = f"{node.input[0]}:dq", node.output[0]
        three, gate = f"{y}:three", f"{y}:gate"
        self._constants[three] = numpy_helper.from_array(np.array(3.0, dtype=np.float32), three)
        self._scales[three] = _scale(Activation(0.0, 3.0, ()), self._format)
        self._round(three)
        self._nodes.append(helper.make_node("Add", [x, f"{three}:dq"], [gate], name=gate))
        self._scales[gate] = _scale(Activation(0.0, 6.0, ()), self._format)
        self._round(gate, read_scale=_scale(Activation(0.0, 1.0, ()), self._format)[0])
        self._nodes.append(helper.make_node("Mul", [x, f"{gate}:dq"], [y], name=f"{y}:product"))

    def _round(self, name: str, read_scale: float | None = None) -> None:
        """Round a tensor, and read it back, by another scale where one is given."""
        scale, zero = self._scales[name]
        dtype = np.uint8 if self._format.unsigned else np.int8
        zero_name = self._constant(f"{name}:zero", dtype(zero))
        written = read = self._constant(f"{name}:scale", np.float32(scale))
        if read_scale is not None:
            read = self._constant(f"{name}:read_scale", np.float32(read_scale))
        q, dq = f"{name}:q", f"{name}:dq"
        self._nodes += [
            helper.make_node("QuantizeLinear", [name, written, zero_name], [q], name=q),
            helper.make_node("DequantizeLinear", [q, read, zero_name], [dq], name=dq),
        ]

    def _round_weights(self, node: onnx.NodeProto, activation: str) -> None:
        """Have a convolution or linear layer read its weights and bias as integers."""
        name = node.input[1]
        node.input[1], (lost, scales) = self._rounded_weight(name, axis=0)
        bias = np.zeros(len(lost), dtype=np.float32)
        if len(node.input) > 2:
            bias = numpy_helper.to_array(self._floats[node.input.pop()])
        bias = bias + _mean_effect(lost, np.asarray(self._ranges[activation].means))
        bias_scales = scales * np.float32(self._scales[activation][0])
        limit = np.iinfo(np.int32).max
        integers = np.rint(bias / bias_scales).clip(-limit, limit).astype(np.int32)
        node.input.append(self._dequantised(f"bias of {name}", integers, bias_scales, axis=0))

    def _rounded_weight(self, name: str, axis: int) -> tuple[str, tuple[np.ndarray, np.ndarray]]:
        """Round a weight, one scale per slice along `axis`.

        Returns the name of its read-back values, what was lost of it, and the scales.
        """
        weight = numpy_helper.to_array(self._floats[name])
        limit = self._format.weight_limit
        others = tuple(i for i in range(weight.ndim) if i != axis)
        largest = np.abs(weight).max(axis=others, keepdims=True)
        scales = np.maximum(largest / np.float32(limit), np.float32(_SMALLEST_SCALE))
        rounded = np.rint(weight / scales)
        lost = weight - rounded * scales
        name = self._dequantised(name, rounded.astype(np.int8), scales.ravel(), axis)
        return name, (lost, scales.ravel())

    def _dequantised(self, name: str, integers: np.ndarray, scales: np.ndarray, axis: int) -> str:
        zeros = np.zeros(len(scales), dtype=integers.dtype)
        inputs = [
            self._constant(f"{name}:q", integers),
            self._constant(f"{name}:scale", scales),
            self._constant(f"{name}:zero", zeros),
        ]
        output = f"{name}:dq"
        self._nodes.append(
            helper.make_node("DequantizeLinear", inputs, [output], name=output, axis=axis)
        )
        return output

    def _constant(self, name: str, values: np.ndarray | np.generic) -> str:
        self._constants[name] = numpy_helper.from_array(np.asarray(values), name)
        return name


def _scale(activation: Activation, number_format: NumberFormat) -> tuple[float, int]:
    """Return scale and zero point; zero is represented exactly, as padding needs."""
    low, high = min(activation.low, 0.0), max(activation.high, 0.0)
    scale = max((high - low) / 255, _SMALLEST_SCALE)
    return scale, round(-low / scale) - (0 if number_format.unsigned else 128)


def _mean_effect(lost: np.ndarray, means: np.ndarray) -> np.ndarray:
    """Return what `lost` weights (out, in per group, ...) would have added to each output's mean.

    `means` are those of the inputs' channels; edges, which see padding, are not told apart.
    """
    per_input = lost.reshape(len(lost), lost.shape[1], -1).sum(axis=2)  # (out, in per group)
    groups = len(means) // lost.shape[1]
    if groups == 1:
        return per_input @ means
    own = means.reshape(groups, -1).repeat(len(lost) // groups, axis=0)  # (out, in per group)
    return (per_input * own).sum(axis=1)
