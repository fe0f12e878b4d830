"""`RoundingPlan`: which nodes of a float graph compute on bytes, and which tensors are rounded.

Convolutions and linear layers always do; sums, products and pooling where all they read is rounded
anyway. What an activation cuts off is a matter of the range behind it, so `Relu` and `Clip` vanish
into the rounding; hard swish becomes a sum and a product (`quantise.py`). The gates of
squeeze-excite are computed in float between two roundings: they are tiny.
"""

from __future__ import annotations

import onnx

from subnetact.cpu.graph_template import OUTPUT

WEIGHTED = ("Conv", "Gemm")
_ON_BYTES = ("Add", "Mul", "MaxPool", "AveragePool", "GlobalAveragePool")
_CHEAP = ("Flatten", "HardSigmoid", "Relu", "Clip")  # in float, between nodes on bytes
_ABSORBED = ("Relu", "Clip")


class RoundingPlan:
    """Made of a model that `subnet_graph` wrote.

    `rounded` are the activations to round, in order; `weighted_inputs` those of them that meet
    weights; `multiplied` the names of linear layers over tokens (`MatMul`), whose inputs are
    rounded and whose outputs are not; `absorbed` maps an output to that of the activation after it,
    which rounding by the activation's range does by itself.
    """

    def __init__(self, model: onnx.ModelProto):
        self._fixed = {tensor.name for tensor in model.graph.initializer}
        self._users: dict[str, list[onnx.NodeProto]] = {}
        for node in model.graph.node:
            for name in node.input:
                self._users.setdefault(name, []).append(node)
        self.rounded: dict[str, None] = {}  # ordered
        self.weighted_inputs: dict[str, None] = {}
        self.multiplied: set[str] = set()
        self.absorbed: dict[str, str] = {}
        self._of_bytes: set[str] = set()  # tensors that come from nodes on bytes, or nearly
        for node in model.graph.node:
            self._add(node)

    def _add(self, node: onnx.NodeProto) -> None:
        (output,) = node.output
        if node.op_type in WEIGHTED:
            self.weighted_inputs[node.input[0]] = None
            self._add_on_bytes(node)
        elif node.op_type == "MatMul" and node.input[1] in self._fixed:
            self.multiplied.add(node.name)
            self.rounded[node.input[0]] = None
        elif node.op_type in _ON_BYTES and self._of_bytes.issuperset(node.input):
            self._add_on_bytes(node)
        elif node.op_type == "HardSwish" and node.input[0] in self.rounded:
            self.rounded[output] = None
            self._of_bytes.add(output)
        elif node.op_type in _CHEAP and node.input[0] in self._of_bytes:
            self._of_bytes.add(output)

    def _add_on_bytes(self, node: onnx.NodeProto) -> None:
        inputs = [name for name in node.input if name and name not in self._fixed]
        self.rounded.update(dict.fromkeys(inputs))
        (output,) = node.output
        result = self._result(output)
        if result != OUTPUT:
            self.rounded[result] = None
            self._of_bytes.update((result, output))
            if result != output:
                self.absorbed[output] = result

    def _result(self, output: str) -> str:
        """Return what is rounded behind a node: its output, or that of an activation after it."""
        users = self._users.get(output, [])
        if len(users) == 1 and users[0].op_type in _ABSORBED:
            return users[0].output[0]
        return output
