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

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from subnetact.cpu.activation_ranges import Activation
from subnetact.cpu.graph_template import INPUT, OUTPUT

_WEIGHTED = ("Conv", "Gemm")
_ON_BYTES = ("Add", "Mul", "MaxPool", "AveragePool", "GlobalAveragePool")
_ABSORBED = ("Relu", "Clip")  # by the rounding that follows: a range says what they cut off


class NumberFormat(NamedTuple):
    """Which integers: activations unsigned or signed, weights up to `weight_limit` in size."""

    name: str
    unsigned: bool
    weight_limit: int


U8S8 = NumberFormat("u8s8", unsigned=True, weight_limit=127)
# Without VNNI, AVX2 and AVX-512 add two products in 16 bit, which saturates: 7-bit weights don't.
U8S7 = NumberFormat("u8s7", unsigned=True, weight_limit=63)
S8S8 = NumberFormat("s8s8", unsigned=False, weight_limit=127)


def rounded_tensors(model: onnx.ModelProto) -> tuple[str, ...]:
    """Return the activations that `quantise` rounds: those whose ranges it needs, in order."""
    return tuple(_Plan(model).rounded)


def quantise(
    model: onnx.ModelProto,
    ranges: Mapping[str, Activation],
    number_format: NumberFormat = U8S8,
) -> onnx.ModelProto:
    """Return the int8 form of a float model that `subnet_graph` made.

    Raises KeyError when `ranges` lacks a tensor of `rounded_tensors`.
    """
    plan = _Plan(model)
    writer = _QdqWriter(model, plan, number_format, {t: ranges[t] for t in plan.rounded})
    return writer.write()


class _Plan:
    """Which nodes compute on bytes, and which activations are rounded for that."""

    def __init__(self, model: onnx.ModelProto):
        self._fixed = {tensor.name for tensor in model.graph.initializer}
        self._users: dict[str, list[onnx.NodeProto]] = {}
        for node in model.graph.node:
            for name in node.input:
                self._users.setdefault(name, []).append(node)
        self.on_bytes: set[str] = set()
        self.rounded: dict[str, None] = {}  # ordered
        computed: set[str] = set()
        for node in model.graph.node:
            if node.op_type in _WEIGHTED or (
                node.op_type in _ON_BYTES and all(name in computed for name in node.input)
            ):
                self.on_bytes.add(node.name)
                self.rounded.update(dict.fromkeys(self.activations(node)))
                result = self._result(node)
                if result != OUTPUT:
                    self.rounded[result] = None
                    computed.update((result, node.output[0]))
            elif node.op_type in ("Flatten", "Reshape", "HardSwish", "HardSigmoid", *_ABSORBED):
                computed.update(node.output)  # cheap beside what is around it

    def activations(self, node: onnx.NodeProto) -> list[str]:
        """Return the inputs of a node on bytes that are activations."""
        return [name for name in node.input if name and name not in self._fixed]

    def _result(self, node: onnx.NodeProto) -> str:
        """Return what is rounded behind a node: its output, or that of an activation after it."""
        (output,) = node.output
        users = self._users.get(output, [])
        if len(users) == 1 and users[0].op_type in _ABSORBED:
            return users[0].output[0]
        return output


class _QdqWriter:
    """Writes the rounded graph node by node."""

    def __init__(
        self,
        model: onnx.ModelProto,
        plan: _Plan,
        number_format: NumberFormat,
        ranges: Mapping[str, Activation],
    ):
        self._model = model
        self._plan = plan
        self._format = number_format
        self._ranges = ranges
        self._scales = {name: _scale(activation, number_format) for name, activation in ranges.items()}
        self._floats = {tensor.name: tensor for tensor in model.graph.initializer}
        self._constants: dict[str, onnx.TensorProto] = {}
        self._nodes: list[onnx.NodeProto] = []

    def write(self) -> onnx.ModelProto:
        for node in self._model.graph.node:
            copy = onnx.NodeProto()
            copy.CopyFrom(node)
            if node.name in self._plan.on_bytes:
                self._read_rounded(copy)
            self._nodes.append(copy)
            for name in node.output:
                if name in self._scales:
                    self._round(name)
        graph = self._model.graph
        used = {name for node in self._nodes for name in node.input}
        kept = [t for t in [*self._floats.values(), *self._constants.values()] if t.name in used]
        whole = helper.make_graph(self._nodes, graph.name, graph.input, graph.output, kept)
        return helper.make_model(
            whole, opset_imports=self._model.opset_import, ir_version=self._model.ir_version
        )

    def _read_rounded(self, node: onnx.NodeProto) -> None:
        """Have a node read what was rounded, and its weights and bias as integers."""
        activations = self._plan.activations(node)
        for i, name in enumerate(node.input):
            if name in activations:
                node.input[i] = f"{name}:dq"
        if node.op_type in _WEIGHTED:
            self._round_weights(node, activations[0])

    def _round(self, name: str) -> None:
        scale, zero = self._scales[name]
        dtype = np.uint8 if self._format.unsigned else np.int8
        limits = [
            self._constant(f"{name}:scale", np.float32(scale)),
            self._constant(f"{name}:zero", dtype(zero)),
        ]
        self._nodes += [
            helper.make_node("QuantizeLinear", [name, *limits], [f"{name}:q"], name=f"{name}:q"),
            helper.make_node(
                "DequantizeLinear", [f"{name}:q", *limits], [f"{name}:dq"], name=f"{name}:dq"
            ),
        ]

    def _round_weights(self, node: onnx.NodeProto, activation: str) -> None:
        name = node.input[1]
        weight = numpy_helper.to_array(self._floats[name])  # (out, in, ...)
        rows = weight.reshape(len(weight), -1)
        limit = self._format.weight_limit
        scales = np.maximum(np.abs(rows).max(axis=1), 1e-12).astype(np.float32) / np.float32(limit)
        shape = (-1,) + (1,) * (weight.ndim - 1)
        rounded = np.rint(weight / scales.reshape(shape)).clip(-limit, limit).astype(np.int8)
        node.input[1] = self._dequantised(name, rounded, scales)
        lost = weight - rounded * scales.reshape(shape)
        bias = (
            numpy_helper.to_array(self._floats[node.input[2]])
            if len(node.input) > 2
            else np.zeros(len(weight), dtype=np.float32)
        )
        bias = bias + _mean_effect(lost, np.asarray(self._ranges[activation].means))
        bias_scales = scales * np.float32(self._scales[activation][0])
        integers = np.rint(bias / bias_scales).clip(-(2**31), 2**31 - 1).astype(np.int32)
        bias_name = self._dequantised(f"bias of {name}", integers, bias_scales)
        if len(node.input) > 2:
            node.input[2] = bias_name
        else:
            node.input.append(bias_name)

    def _dequantised(self, name: str, integers: np.ndarray, scales: np.ndarray) -> str:
        zeros = np.zeros(len(scales), dtype=integers.dtype)
        inputs = [
            self._constant(f"{name}:q", integers),
            self._constant(f"{name}:scale", scales),
            self._constant(f"{name}:zero", zeros),
        ]
        output = f"{name}:dq"
        self._nodes.append(
            helper.make_node("DequantizeLinear", inputs, [output], name=output, axis=0)
        )
        return output

    def _constant(self, name: str, values: np.ndarray | np.generic) -> str:
        self._constants[name] = numpy_helper.from_array(np.asarray(values), name)
        return name


def _scale(activation: Activation, number_format: NumberFormat) -> tuple[float, int]:
    """Return scale and zero point; zero is represented exactly, as padding needs."""
    low, high = min(activation.low, 0.0), max(activation.high, 0.0)
    if number_format.unsigned:
        scale = max((high - low) / 255, 1e-12)
        return scale, round(-low / scale)
    scale = max((high - low) / 255, 1e-12)
    return scale, round(-low / scale) - 128


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


__all__ = ["INPUT", "S8S8", "U8S7", "U8S8", "NumberFormat", "quantise", "rounded_tensors"]
