"""The rules by which `GraphWriter` writes the operators of our families as ONNX nodes.

Importing this module registers them. In comments `B, C, H, W` are batch, channels and size.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt
from typing import Any, cast

import numpy as np
import torch
from torch import fx

from subnetact.cpu.graph_writer import (
    GraphError,
    GraphWriter,
    arguments,
    normed_by,
    rule,
    shape_of,
)


@rule("aten.conv2d.default")
def _conv2d(graph: GraphWriter, node: fx.Node) -> str:
    weight, bias, stride, padding, dilation, groups = arguments(node, None, None, 1, 0, 1, 1)
    tensor, own_bias = graph.tensor_name(weight), graph.tensor_name(bias)
    norm, eps = "", 0.0
    follower = normed_by(node)
    if follower is not None:
        norm = graph.tensor_name(follower.args[1]).removesuffix(".weight")
        eps = cast(float, follower.args[7])
    inputs = [graph.value(node.args[0]), graph.fill("weight", tensor, norm, eps)]
    if norm or own_bias:
        inputs.append(graph.fill("bias", own_bias, norm, eps))
    y = graph.emit(
        "Conv",
        *inputs,
        kernel_shape=list(shape_of(weight)[2:]),
        strides=_pair(stride),
        pads=_pair(padding) * 2,
        dilations=_pair(dilation),
        group=groups,  # of depthwise convolutions the width's, see `SubnetGraph`
    )
    if follower is not None:
        graph.alias(follower, y)
    return y


@rule("aten.batch_norm.default")
def _batch_norm(graph: GraphWriter, node: fx.Node) -> str:
    tensors = [graph.fill("plain", graph.tensor_name(tensor)) for tensor in node.args[1:5]]
    return graph.emit(
        "BatchNormalization", graph.value(node.args[0]), *tensors, epsilon=node.args[7]
    )


@rule("aten.linear.default")
def _linear(graph: GraphWriter, node: fx.Node) -> str:
    weight, bias = (graph.tensor_name(tensor) for tensor in arguments(node, None, None))
    x = graph.value(node.args[0])
    bias_inputs = [graph.fill("plain", bias)] if bias else []
    if len(shape_of(node.args[0])) == 2:
        return graph.emit("Gemm", x, graph.fill("plain", weight), *bias_inputs, transB=1)
    y = graph.emit("MatMul", x, graph.fill("transposed", weight))
    return graph.emit("Add", y, *bias_inputs) if bias else y


@rule("aten.layer_norm.default")
def _layer_norm(graph: GraphWriter, node: fx.Node) -> str:
    shape, weight, bias, eps = arguments(node, None, None, None, 1e-5)[:4]
    affine = [graph.fill("plain", graph.tensor_name(tensor)) for tensor in (weight, bias)]
    return graph.emit(
        "LayerNormalization", graph.value(node.args[0]), *affine, axis=-len(shape), epsilon=eps
    )


@rule("aten.embedding.default")
def _embedding(graph: GraphWriter, node: fx.Node) -> str:
    table = graph.fill("plain", graph.tensor_name(node.args[0]))
    return graph.emit("Gather", table, graph.value(node.args[1]))


@rule("aten.scaled_dot_product_attention.default")
def _attention(graph: GraphWriter, node: fx.Node) -> str:
    q, k, v = (graph.value(argument) for argument in node.args[:3])  # (B, heads, N, D)
    mask = dict(enumerate(node.args)).get(3, node.kwargs.get("attn_mask"))
    scale = graph.constant(1 / sqrt(shape_of(node.args[0])[-1]), np.float32)
    k = graph.emit("Transpose", k, perm=[0, 1, 3, 2])
    scores = graph.emit("MatMul", graph.emit("Mul", q, scale), k)
    if mask is not None:  # True where a token may be read
        lowest = graph.constant(np.finfo(np.float32).min, np.float32)
        nothing = graph.constant(0, np.float32)
        hidden = graph.emit("Where", graph.value(mask), nothing, lowest)
        scores = graph.emit("Add", scores, hidden)
    return graph.emit("MatMul", graph.emit("Softmax", scores, axis=-1), v)


@rule("aten.relu.default", "aten.relu_.default")
def _relu(graph: GraphWriter, node: fx.Node) -> str:
    return graph.emit("Relu", graph.value(node.args[0]))


@rule("aten.relu6.default", "aten.hardtanh.default")
def _relu6(graph: GraphWriter, node: fx.Node) -> str:
    low, high = arguments(node, -1.0, 1.0) if "hardtanh" in str(node.target) else (0.0, 6.0)
    limits = (graph.constant(limit, np.float32) for limit in (low, high))
    return graph.emit("Clip", graph.value(node.args[0]), *limits)


@rule("aten.hardswish.default")
def _hard_swish(graph: GraphWriter, node: fx.Node) -> str:
    return graph.emit("HardSwish", graph.value(node.args[0]))


@rule("aten.hardsigmoid.default")
def _hard_sigmoid(graph: GraphWriter, node: fx.Node) -> str:
    return graph.emit("HardSigmoid", graph.value(node.args[0]), alpha=1 / 6, beta=0.5)


@rule("aten.gelu.default")
def _gelu(graph: GraphWriter, node: fx.Node) -> str:
    return graph.emit(
        "Gelu", graph.value(node.args[0]), approximate=node.kwargs.get("approximate", "none")
    )


@rule("aten.tanh.default")
def _tanh(graph: GraphWriter, node: fx.Node) -> str:
    return graph.emit("Tanh", graph.value(node.args[0]))


@rule("aten.sigmoid.default")
def _sigmoid(graph: GraphWriter, node: fx.Node) -> str:
    return graph.emit("Sigmoid", graph.value(node.args[0]))


@rule("aten.add.Tensor", "aten.mul.Tensor", "aten.__or__.Tensor")
def _binary(graph: GraphWriter, node: fx.Node) -> str:
    if node.kwargs.get("alpha", 1) != 1:
        raise GraphError(f"{node.target} with alpha {node.kwargs['alpha']} has no rule")
    op_type = {"add": "Add", "mul": "Mul", "__or__": "Or"}[str(node.target).split(".")[1]]
    return graph.emit(op_type, *(graph.operand(argument, like=node) for argument in node.args))


@rule("aten.eq.Scalar", "aten.ne.Scalar")
def _compare(graph: GraphWriter, node: fx.Node) -> str:
    x, number = node.args
    assert isinstance(x, fx.Node)
    equal = graph.emit("Equal", graph.value(x), graph.operand(number, like=x))
    return equal if "eq" in str(node.target) else graph.emit("Not", equal)


@rule("aten.mean.dim")
def _mean(graph: GraphWriter, node: fx.Node) -> str:
    axes, keeps = arguments(node, None, False)[:2]
    x = graph.value(node.args[0])
    if len(shape_of(node.args[0])) != 4 or sorted(axis % 4 for axis in axes) != [2, 3]:
        return graph.emit("ReduceMean", x, graph.constant(axes, np.int64), keepdims=int(keeps))
    pooled = graph.emit("GlobalAveragePool", x)
    return pooled if keeps else graph.emit("Flatten", pooled, axis=1)


@rule("aten.amax.default")
def _largest(graph: GraphWriter, node: fx.Node) -> str:
    axes, keeps = arguments(node, [], False)[:2]
    x = graph.value(node.args[0])
    if len(shape_of(node.args[0])) != 4 or sorted(axis % 4 for axis in axes) != [2, 3]:
        return graph.emit("ReduceMax", x, graph.constant(axes, np.int64), keepdims=int(keeps))
    pooled = graph.emit("GlobalMaxPool", x)
    return pooled if keeps else graph.emit("Flatten", pooled, axis=1)


@rule("aten.max_pool2d.default")
def _max_pool2d(graph: GraphWriter, node: fx.Node) -> str:
    kernel, stride, padding, dilation, ceil_mode = arguments(node, None, [], 0, 1, False)
    if ceil_mode:
        raise GraphError("max_pool2d with ceil_mode has no rule")
    return graph.emit(
        "MaxPool",
        graph.value(node.args[0]),
        kernel_shape=_pair(kernel),
        strides=_pair(stride or kernel),
        pads=_pair(padding) * 2,
        dilations=_pair(dilation),
    )


@rule("aten.avg_pool2d.default")
def _avg_pool2d(graph: GraphWriter, node: fx.Node) -> str:
    kernel, stride, padding, ceil_mode, *rest = arguments(node, None, [], 0, False, True, None)
    kernel, stride = _pair(kernel), _pair(stride or kernel)
    if any(_pair(padding)) or rest[1] is not None:
        raise GraphError("avg_pool2d with padding or a divisor has no rule")
    # Values beyond the edge do not count, so padding that is not counted is what ceil_mode does.
    ends = [0, 0]
    if ceil_mode:
        sizes = shape_of(node.args[0])[2:]
        ends = [max(0, (-(n - k) % s)) for n, k, s in zip(sizes, kernel, stride, strict=True)]
    return graph.emit(
        "AveragePool",
        graph.value(node.args[0]),
        kernel_shape=kernel,
        strides=stride,
        pads=[0, 0, *ends],
        count_include_pad=0,
    )


@rule("aten.pad.default", "aten.constant_pad_nd.default")
def _pad(graph: GraphWriter, node: fx.Node) -> str:
    pads = list(cast(Sequence[int], node.args[1]))
    mode, value = arguments(node, None, "constant", None)[1:]
    if "constant_pad_nd" in str(node.target):
        mode, value = "constant", arguments(node, None, 0)[1]
    if mode != "constant" or value:
        raise GraphError(f"padding by {mode} {value} has no rule: only zeros are padded")
    if not any(pads):
        return graph.value(node.args[0])
    rank = len(shape_of(node.args[0]))
    pads += [0] * (2 * rank - len(pads))
    starts, ends = pads[::2][::-1], pads[1::2][::-1]  # torch counts from the last dimension
    return graph.emit("Pad", graph.value(node.args[0]), graph.constant(starts + ends, np.int64))


@rule("aten.slice.Tensor")
def _slice(graph: GraphWriter, node: fx.Node) -> str:
    axis, start, end, step = arguments(node, 0, None, None, 1)
    x = graph.value(node.args[0])
    largest = np.iinfo(np.int64).max
    if start in (None, 0) and (end is None or end >= largest) and step == 1:
        return x
    bounds = ([start or 0], [largest if end is None else end], [axis], [step])
    return graph.emit("Slice", x, *(graph.constant(bound, np.int64) for bound in bounds))


@rule("aten.view.default", "aten.reshape.default")
def _view(graph: GraphWriter, node: fx.Node) -> str:
    sizes: Any = node.args[1]
    return graph.emit(
        "Reshape", graph.value(node.args[0]), graph.sizes(sizes, shape_of(node.args[0]))
    )


@rule("aten.flatten.using_ints")
def _flatten(graph: GraphWriter, node: fx.Node) -> str:
    start, end = arguments(node, 0, -1)
    rank = len(shape_of(node.args[0]))
    if end % rank != rank - 1:
        raise GraphError(f"flatten of dimensions {start} to {end} of {rank} has no rule")
    if start == 1:
        return graph.emit("Flatten", graph.value(node.args[0]), axis=1)
    kept = graph.constant([0] * start + [-1], np.int64)
    return graph.emit("Reshape", graph.value(node.args[0]), kept)


@rule("aten.permute.default")
def _permute(graph: GraphWriter, node: fx.Node) -> str:
    order = list(cast(Sequence[int], node.args[1]))
    return graph.emit("Transpose", graph.value(node.args[0]), perm=order)


@rule("aten.transpose.int")
def _transpose(graph: GraphWriter, node: fx.Node) -> str:
    order = list(range(len(shape_of(node.args[0]))))
    first, second = cast(int, node.args[1]), cast(int, node.args[2])
    order[first], order[second] = order[second], order[first]
    return graph.emit("Transpose", graph.value(node.args[0]), perm=order)


@rule("aten.unbind.int")
def _unbind(graph: GraphWriter, node: fx.Node) -> list[str]:
    (axis,) = arguments(node, 0)
    count = int(shape_of(node.args[0])[axis])
    x = graph.value(node.args[0])
    return [graph.emit("Gather", x, graph.constant(i, np.int64), axis=axis) for i in range(count)]


@rule("aten.select.int")
def _select(graph: GraphWriter, node: fx.Node) -> str:
    axis, index = node.args[1:]
    return graph.emit(
        "Gather", graph.value(node.args[0]), graph.constant(index, np.int64), axis=axis
    )


@rule("aten.unsqueeze.default")
def _unsqueeze(graph: GraphWriter, node: fx.Node) -> str:
    return graph.emit(
        "Unsqueeze", graph.value(node.args[0]), graph.constant([node.args[1]], np.int64)
    )


@rule("aten.cat.default")
def _cat(graph: GraphWriter, node: fx.Node) -> str:
    parts: Any = node.args[0]
    (axis,) = arguments(node, 0)
    return graph.emit("Concat", *(graph.value(part) for part in parts), axis=axis)


@rule("aten.sym_size.int")
def _sym_size(graph: GraphWriter, node: fx.Node) -> str:
    axis: Any = node.args[1]
    size = graph.emit("Shape", graph.value(node.args[0]), start=axis, end=axis + 1)
    return graph.emit("Squeeze", size, graph.constant([0], np.int64))


@rule("aten.arange.default")
def _arange(graph: GraphWriter, node: fx.Node) -> str:
    end = node.args[0]
    if isinstance(end, int):
        return graph.constant(np.arange(end), np.int64)
    zero, one = (graph.constant(i, np.int64) for i in (0, 1))
    return graph.emit("Range", zero, graph.value(end), one)


@rule("aten.zeros.default")
def _zeros(graph: GraphWriter, node: fx.Node) -> str:
    sizes: Any = node.args[0]
    return _filled_with_zeros(graph, graph.sizes(sizes), node)


@rule("aten.zeros_like.default")
def _zeros_like(graph: GraphWriter, node: fx.Node) -> str:
    return _filled_with_zeros(graph, graph.emit("Shape", graph.value(node.args[0])), node)


def _filled_with_zeros(graph: GraphWriter, sizes: str, node: fx.Node) -> str:
    if node.meta["val"].dtype != torch.int64:
        raise GraphError(f"zeros of {node.meta['val'].dtype} have no rule")
    return graph.emit("Expand", graph.constant(0, np.int64), sizes)


@rule("aten.contiguous.default", "aten.dropout.default")
def _same(graph: GraphWriter, node: fx.Node) -> str:
    return graph.value(node.args[0])


def _pair(value: Any) -> list[int]:
    values = list(value) if isinstance(value, list | tuple) else [value]
    return values * 2 if len(values) == 1 else values
