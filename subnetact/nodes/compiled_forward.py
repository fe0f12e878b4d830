"""A `graph_sage` subnet as one compiled call (numba, the extra `fast`), for few nodes.

Sampling, gathering and products of a small query take tens of microseconds, as much as calling a
sampler and a dozen tensor operations costs. The plain twin is `MeanForward`, which also takes what
is large enough for a library's matrix products.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch

from supernet.arch import ALL_NEIGHBOURS
from supernet.graphs.compiled_sampler import seed_key
from supernet.graphs.graph_store import GraphStore
from supernet.graphs.jit import compiled
from supernet.graphs.sampler_kernels import (
    feature_means,
    first_nodes,
    gathered,
    next_hop,
    row_means,
)

_MOST_PRODUCTS = 1 << 20  # beyond it a library's matrix products are faster than these loops


class MeanWeights(NamedTuple):
    """A subnet's weights: views of the resident ones, which are (width, C), and their biases.

    `own`, `bias` and `neighbours` are of each layer, the first reading features; a subnet of depth
    0 has the first without neighbours.
    """

    own: tuple[torch.Tensor, ...]
    bias: tuple[torch.Tensor, ...]
    neighbours: tuple[torch.Tensor, ...]
    head: torch.Tensor
    head_bias: torch.Tensor


class CompiledForward:
    """One subnet on one graph; only the matrices of the first layer are as wide as features.

    Those are the resident ones, the small ones of later layers and of the classifier are copied.
    """

    def __init__(
        self, weights: MeanWeights, fanout: tuple[int, ...], graph: GraphStore, seed: int = 0
    ):
        """`seed` is what sampled hops are drawn with."""
        self._features = graph.features
        self._lists = (graph.indptr, graph.indices)
        self._first = (_array(weights.own[0]), _array(weights.bias[0]))
        self._head = (_array(weights.head), _array(weights.head_bias))
        self._has_hops = bool(fanout)
        if fanout:
            width = weights.own[0].shape[0]
            self._draw = (np.array(fanout, dtype=np.int64), seed_key(seed))
            self._blocks = (
                _array(weights.neighbours[0]),
                _stacked(weights.own[1:], (width, width)),
                _stacked(weights.bias[1:], (width,)),
                _stacked(weights.neighbours[1:], (width, width)),
            )
        self._most_nodes = _MOST_PRODUCTS // _products_of_a_node(weights, fanout)

    def takes(self, num_nodes: int) -> bool:
        """Whether a batch is small enough to be faster here."""
        return num_nodes <= self._most_nodes

    def logits(self, nodes: np.ndarray) -> np.ndarray:
        """(n, num_classes) float32 of int64 node ids (n, 1)."""
        if not self._has_hops:
            return _logits_alone(self._features, nodes, *self._first, *self._head)
        return _logits(
            *self._lists,
            self._features,
            nodes,
            *self._draw,
            *self._first,
            *self._blocks,
            *self._head,
        )


def _products_of_a_node(weights: MeanWeights, fanout: tuple[int, ...]) -> int:
    """At most how many multiplications a node's query takes, whatever its degree."""
    written = [1]  # nodes that a layer writes, of the last layer first
    for most in fanout[:-1]:
        written.append(written[-1] * (1 + most if most < ALL_NEIGHBOURS else ALL_NEIGHBOURS))
    products = weights.head.numel()
    for layer, own in enumerate(weights.own):
        matrices = own.numel() * (2 if fanout else 1)
        products += written[len(weights.own) - 1 - layer] * matrices
    return products


def _array(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().contiguous().numpy()


def _stacked(tensors: tuple[torch.Tensor, ...], shape: tuple[int, ...]) -> np.ndarray:
    """(layers, ...) of as many layers as there are, none too."""
    return (
        np.stack([t.detach().numpy() for t in tensors]) if tensors else np.empty((0, *shape), "f4")
    )


_compiled: Any = partial(compiled, fastmath=True)


@_compiled
def _add_products(rows: Any, weights: Any, out: Any) -> None:
    """Add rows (n, C) times weights (m, C) transposed to out (n, m).

    Two rows and four columns at a time: what is read once is multiplied several times.
    """
    num_rows, num_columns, zero = len(rows), len(weights), np.float32(0.0)
    paired, whole = num_rows - num_rows % 2, num_columns - num_columns % 4
    for j in range(0, whole, 4):
        a, b, c, d = weights[j], weights[j + 1], weights[j + 2], weights[j + 3]
        for i in range(0, paired, 2):
            x, y = rows[i], rows[i + 1]
            xa = xb = xc = xd = ya = yb = yc = yd = zero
            for k in range(len(x)):
                xa += x[k] * a[k]
                xb += x[k] * b[k]
                xc += x[k] * c[k]
                xd += x[k] * d[k]
                ya += y[k] * a[k]
                yb += y[k] * b[k]
                yc += y[k] * c[k]
                yd += y[k] * d[k]
            out[i, j] += xa
            out[i, j + 1] += xb
            out[i, j + 2] += xc
            out[i, j + 3] += xd
            out[i + 1, j] += ya
            out[i + 1, j + 1] += yb
            out[i + 1, j + 2] += yc
            out[i + 1, j + 3] += yd
        for i in range(paired, num_rows):
            x = rows[i]
            xa = xb = xc = xd = zero
            for k in range(len(x)):
                xa += x[k] * a[k]
                xb += x[k] * b[k]
                xc += x[k] * c[k]
                xd += x[k] * d[k]
            out[i, j] += xa
            out[i, j + 1] += xb
            out[i, j + 2] += xc
            out[i, j + 3] += xd
    for j in range(whole, num_columns):
        a = weights[j]
        for i in range(num_rows):
            x, total = rows[i], zero
            for k in range(len(x)):
                total += x[k] * a[k]
            out[i, j] += total


@_compiled
def _repeated(row: Any, count: Any) -> Any:
    out = np.empty((count, len(row)), dtype=np.float32)
    for i in range(count):
        for j in range(len(row)):
            out[i, j] = row[j]
    return out


@_compiled
def _rectify(rows: Any) -> None:
    for i in range(len(rows)):
        for j in range(rows.shape[1]):
            rows[i, j] = max(rows[i, j], np.float32(0.0))


@_compiled
def _logits_alone(features: Any, nodes: Any, own: Any, bias: Any, head: Any, head_bias: Any) -> Any:
    h = _repeated(bias, len(nodes))
    _add_products(gathered(features, nodes.ravel()), own, h)
    _rectify(h)
    out = _repeated(head_bias, len(nodes))
    _add_products(h, head, out)
    return out


@_compiled
def _logits(
    indptr: Any,
    indices: Any,
    features: Any,
    asked: Any,
    fanout: Any,
    seed_key: Any,
    own: Any,
    bias: Any,
    neighbours: Any,
    block_own: Any,
    block_bias: Any,
    block_neighbours: Any,
    head: Any,
    head_bias: Any,
) -> Any:
    nodes, positions = first_nodes(asked.ravel())
    hops = [(positions, positions)]  # replaced by the first hop: says what the list holds
    for number in range(len(fanout)):
        nodes, lists, places = next_hop(indptr, indices, nodes, fanout[number], seed_key)
        if number == 0:
            hops[0] = (lists, places)
        else:
            hops.append((lists, places))
    lists, places = hops[-1]
    written = len(lists) - 1
    h = _repeated(bias, written)
    _add_products(gathered(features, nodes[:written]), own, h)
    _add_products(feature_means(features, nodes, lists, places), neighbours, h)
    _rectify(h)
    for layer in range(len(block_bias)):
        lists, places = hops[len(hops) - 2 - layer]
        mine = h[: len(lists) - 1]
        added = _repeated(block_bias[layer], len(mine))
        _add_products(mine, block_own[layer], added)
        _add_products(row_means(h, lists, places), block_neighbours[layer], added)
        _rectify(added)
        for i in range(len(added)):
            for j in range(added.shape[1]):
                added[i, j] += mine[i, j]
        h = added
    distinct = _repeated(head_bias, len(h))
    _add_products(h, head, distinct)
    return gathered(distinct, positions)
