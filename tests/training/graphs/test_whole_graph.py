"""The whole graph as sparse products: the numbers of the family's own module, and its gradients."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.func import functional_call

from supernet import define_supernet
from supernet.graphs.generated import heterophilous
from supernet.graphs.graph_store import GraphDataError
from supernet.layers.neighbours import Neighbourhood
from supernet.slicing import leading_slice
from supernet.spec import parse_arch
from training.graphs.sparse import SparseMatrix
from training.graphs.whole_graph import Dropout, GraphDraw, WholeGraph, node_logits


@pytest.fixture(scope="module")
def whole() -> WholeGraph:
    return WholeGraph(heterophilous(num_nodes=1800, num_features=24, seed=1))


def test_a_sparse_product_and_its_gradient_are_the_dense_ones() -> None:
    rng = np.random.default_rng(0)
    matrix = rng.standard_normal((9, 7)) * (rng.random((9, 7)) < 0.3)
    matrix[3] = 0
    dense = torch.randn(7, 4, requires_grad=True)
    made = SparseMatrix.of_dense(matrix.astype(np.float32))
    upstream = torch.randn(9, 4)
    (ours,) = torch.autograd.grad((made.product(dense) * upstream).sum(), dense)
    plain = torch.from_numpy(matrix.astype(np.float32))
    torch.testing.assert_close(made.product(dense), plain @ dense)
    torch.testing.assert_close(ours, plain.T @ upstream)
    factors = 2.0 * (torch.arange(made.num_entries) % 3 > 0)
    halved = made.scaled(factors)
    kept = halved.product(torch.eye(7))
    ratio = kept[plain != 0] / plain[plain != 0]
    assert set(ratio.round().int().tolist()) == {0, 2}
    columns = torch.eye(7, requires_grad=True)
    (back,) = torch.autograd.grad((halved.product(columns) * torch.ones(9, 7)).sum(), columns)
    torch.testing.assert_close(back, kept.T @ torch.ones(9, 7))


@pytest.mark.parametrize("kind", ["mean", "attention"])
@pytest.mark.parametrize("text", ["d=0", "d=1,f=5", "d=2,w=0.5,f=10", "d=3,f=5", "largest"])
def test_logits_are_those_of_the_module(whole: WholeGraph, kind: str, text: str) -> None:
    definition = define_supernet(
        "graph_sage", num_features=24, num_classes=5, width=12, aggregator=kind
    )
    arch = parse_arch(text, definition.space)
    torch.manual_seed(0)
    state = definition.build().state_dict()
    shapes = definition.parameter_shapes(arch)
    weights = {n: leading_slice(state[n], s).requires_grad_(True) for n, s in shapes.items()}
    draw = GraphDraw(whole, 3)
    logits = node_logits(whole, definition, arch, weights, draw)
    hops = tuple(draw.hop(f) for f in arch.fanout)
    module = functional_call(
        definition.on_meta(arch), weights, (Neighbourhood(whole.dense_features, hops),)
    )
    torch.testing.assert_close(logits, module, atol=1e-5, rtol=1e-5)
    upstream = torch.randn_like(logits)
    ours = torch.autograd.grad((logits * upstream).sum(), list(weights.values()))
    theirs = torch.autograd.grad((module * upstream).sum(), list(weights.values()))
    for name, mine, other in zip(weights, ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, atol=2e-3, rtol=1e-3, msg=lambda m, n=name: n + m)


def test_a_draw_is_keyed_and_keeps_what_is_not_drawn(whole: WholeGraph) -> None:
    definition = define_supernet("graph_sage", num_features=24, num_classes=5, width=12)
    largest = definition.space.largest.fanout[0]
    first = GraphDraw(whole, 1)
    same, other = first.anew(1), first.anew(2)
    few = [draw.hop(3).indices for draw in (first, same, other)]
    assert torch.equal(few[0], few[1])
    assert not torch.equal(few[0], few[2])
    assert first.mean(largest) is first.anew(5).mean(largest)


def test_dropout_keeps_the_mean_and_nothing_at_zero() -> None:
    ones = torch.ones(400, 50)
    assert Dropout().of(ones) is ones
    dropped = Dropout(0.4, 1).of(ones)
    assert dropped.mean() == pytest.approx(1.0, abs=0.03)
    assert (dropped == 0).float().mean() == pytest.approx(0.4, abs=0.02)


def test_a_graph_without_labels_or_split_cant_be_trained_on() -> None:
    from dataclasses import replace

    graph = heterophilous(num_nodes=1800)
    with pytest.raises(GraphDataError, match="has no labels: it can't be trained on"):
        WholeGraph(replace(graph, labels=None))
    with pytest.raises(GraphDataError, match="has no the split|has no split|the split train"):
        WholeGraph(replace(graph, splits={}))


def test_a_split_that_can_not_be_learned_from_is_named() -> None:
    """Training had ended in a traceback of torch, or in accuracies that are no number."""
    graph = heterophilous(num_nodes=1800, num_features=8)
    assert graph.labels is not None
    for name in ("train", "validation", "test"):
        node = int(graph.splits[name][2])
        for label in (-1, 5):
            labels = graph.labels.copy()
            labels[node] = label
            said = f"node {node} of the split {name} has label {label}, allowed 0 to 4"
            with pytest.raises(GraphDataError, match=said):
                WholeGraph(replace(graph, labels=labels))
        splits = {**graph.splits, name: np.empty(0, np.int32)}
        with pytest.raises(GraphDataError, match=f"no node is in the split {name}"):
            WholeGraph(replace(graph, splits=splits))
