"""`GraphWriter`: writes the ONNX nodes of a network that `torch.export` recorded.

One rule per ATen operator, for what the families consist of. The rules prefer what an engine keeps
fast: pooling instead of a mean over two axes, explicit padding instead of `ceil_mode`, a norm
folded into its convolution. Weights are not written: a `Fill` per initialiser says from which of
the supernet's tensors it is cut, so that one recording serves every width.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper
from torch import fx

OPSET = 20
Rule = Callable[["GraphWriter", fx.Node], Any]
_RULES: dict[str, Rule] = {}
_BATCH_NORM = "aten.batch_norm.default"


class GraphError(ValueError):
    """A network uses an operator, or a form of one, that no rule writes."""


class Fill(NamedTuple):
    """How an initialiser is made of a subnet's tensors.

    `kind` is `plain`, `transposed`, `weight` (a convolution's, times its norm's scale) or `bias`
    (the norm's shift with it); `tensor` may be empty for a bias that the layer does not have.
    """

    name: str
    kind: str
    tensor: str
    norm: str = ""
    eps: float = 0.0


class GraphWriter:
    """Nodes, constants and fills so far; values are ONNX names, Python values stay themselves."""

    def __init__(self, tensors: Mapping[str, str]):
        """`tensors` maps the recording's placeholders to the network's parameters and buffers."""
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, onnx.TensorProto] = {}
        self.fills: dict[str, Fill] = {}
        self._tensors = tensors
        self._values: dict[fx.Node, Any] = {}

    def write(self, graph: fx.Graph, inputs: Mapping[str, str]) -> str:
        """Write all of `graph` and return the name of its first output.

        `inputs` maps the placeholders that are no tensors of the network to ONNX names. Raises
        GraphError naming an operator that has no rule.
        """
        for node in graph.nodes:
            if node.op == "placeholder":
                if node.name in inputs:
                    self._values[node] = inputs[node.name]
            elif node.op == "output":
                return self.value(node.args[0][0])
            elif node not in self._values:
                self._values[node] = self._apply(node)
        raise GraphError("the recording has no output")

    def _apply(self, node: fx.Node) -> Any:
        if node.target is operator.getitem:
            return self.value(node.args[0])[node.args[1]]
        rule = _RULES.get(str(node.target))
        if rule is None:
            raise GraphError(
                f"operator {node.target} has no rule; known are {', '.join(sorted(_RULES))}"
            )
        return rule(self, node)

    def emit(self, op_type: str, *inputs: str, outputs: int = 1, **attributes: Any) -> Any:
        """Append a node and return the name of its output (a list, where there are several)."""
        name = f"{op_type}_{len(self.nodes)}"
        names = [name] if outputs == 1 else [f"{name}_{i}" for i in range(outputs)]
        self.nodes.append(helper.make_node(op_type, inputs, names, name=name, **attributes))
        return names[0] if outputs == 1 else names

    def value(self, argument: Any) -> Any:
        """Return what an argument of a recorded call is here: a name, or a Python value."""
        return self._values[argument] if isinstance(argument, fx.Node) else argument

    def alias(self, node: fx.Node, value: Any) -> None:
        """Note that `node` has been written already, as `value`."""
        self._values[node] = value

    def constant(self, values: Any, dtype: Any) -> str:
        """Return the name of a constant; equal ones are kept once."""
        array = np.asarray(values, dtype=dtype)
        name = f"const_{array.dtype}_{'x'.join(map(str, array.shape))}_{array.tobytes().hex()}"
        if len(name) > 120:
            name = f"const_{len(self.constants)}"
        self.constants.setdefault(name, numpy_helper.from_array(array, name))
        return name

    def fill(self, kind: str, tensor: str, norm: str = "", eps: float = 0.0) -> str:
        """Return the name of an initialiser that is cut out later."""
        name = f"{kind}:{tensor or norm}"
        self.fills[name] = Fill(name, kind, tensor, norm, eps)
        return name

    def tensor_name(self, argument: Any) -> str:
        """Return which tensor of the network an argument is; empty for None."""
        if argument is None:
            return ""
        if not isinstance(argument, fx.Node) or argument.name not in self._tensors:
            raise GraphError(f"{argument} is no parameter of the network")
        return self._tensors[argument.name]

    def operand(self, argument: Any, like: fx.Node) -> str:
        """Return a name for a tensor, a number (of `like`'s type) or a parameter."""
        if isinstance(argument, fx.Node):
            if argument.name in self._tensors:
                return self.fill("plain", self._tensors[argument.name])
            return self.value(argument)
        return self.constant(argument, _numpy_dtype(like.meta["val"].dtype))

    def sizes(self, sizes: Sequence[Any], before: Sequence[Any] = ()) -> str:
        """Return a vector of sizes, of which some are known only at run time.

        A size that the input `before` has at the same place is written as zero: "as it was".
        """
        known = [not isinstance(size, fx.Node) for size in sizes]
        if all(known):
            return self.constant(sizes, np.int64)
        same = [
            k or (i < len(before) and size.meta["val"] == before[i])
            for i, (k, size) in enumerate(zip(known, sizes, strict=True))
        ]
        if all(same):
            return self.constant(
                [s if k else 0 for k, s in zip(known, sizes, strict=True)], np.int64
            )
        axis = self.constant([0], np.int64)
        parts = [
            self.constant([s], np.int64) if k else self.emit("Unsqueeze", self.value(s), axis)
            for k, s in zip(known, sizes, strict=True)
        ]
        return self.emit("Concat", *parts, axis=0)


def rule(*operators: str) -> Callable[[Rule], Rule]:
    """Register how the named ATen operators are written."""

    def register(function: Rule) -> Rule:
        _RULES.update(dict.fromkeys(operators, function))
        return function

    return register


def arguments(node: fx.Node, *defaults: Any) -> list[Any]:
    """Return a call's arguments after the first, with defaults for those that were left out."""
    given = list(node.args[1:])
    return given + list(defaults[len(given) :])


def shape_of(argument: Any) -> Sequence[Any]:
    """Return the recorded shape of an argument; sizes may be symbols."""
    return argument.meta["val"].shape


def normed_by(node: fx.Node) -> fx.Node | None:
    """Return the BatchNorm that is all that reads `node`, which can then be folded into it."""
    users = list(node.users)
    is_norm = len(users) == 1 and str(users[0].target) == _BATCH_NORM
    return users[0] if is_norm else None


def _numpy_dtype(dtype: torch.dtype) -> Any:
    return {torch.float32: np.float32, torch.int64: np.int64, torch.bool: np.bool_}[dtype]
