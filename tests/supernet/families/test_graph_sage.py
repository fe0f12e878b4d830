"""GraphSAGE as a family: on all neighbours it is the plain network on the whole graph."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from supernet import Arch, cost, define_supernet, extract
from supernet.arch import ALL_NEIGHBOURS
from supernet.graphs import sampler
from supernet.graphs.edges import neighbour_lists
from supernet.layers.neighbours import Hop, Neighbourhood
from supernet.spec import parse_arch


def _graph(num_nodes: int = 60) -> tuple[Any, torch.Tensor]:
    from supernet.graphs.graph_store import GraphStore

    rng = np.random.default_rng(0)
    ends = rng.integers(0, num_nodes - 2, (300, 2))
    indptr, indices = neighbour_lists(ends[:, 0], ends[:, 1], num_nodes, undirected=False)
    features = rng.standard_normal((num_nodes, 12)).astype(np.float32)
    graph = GraphStore(name="drawn", indptr=indptr, indices=indices, features=features)
    adjacency = torch.zeros(num_nodes, num_nodes)
    for node in range(num_nodes):
        adjacency[node, indices[indptr[node] : indptr[node + 1]].astype(int)] = 1.0
    return graph, adjacency


def _plain(net: Any, x: torch.Tensor, adjacency: torch.Tensor, kind: str) -> torch.Tensor:
    """The whole graph at once, with a dense adjacency matrix (nodes, nodes)."""
    layers = [net.first, *net.blocks.values()]
    h = x
    for number, layer in enumerate(layers):
        own = layer.own(h)
        if hasattr(layer, "neighbours"):
            if kind == "mean":
                counts = adjacency.sum(1, keepdim=True).clamp(min=1)
                own = own + layer.neighbours(adjacency / counts @ h)
            else:
                values = layer.neighbours(h)
                scores = layer.asking(own) + layer.asked(values).T  # (nodes, nodes)
                scores = torch.nn.functional.leaky_relu(scores, 0.2)
                shares = scores.masked_fill(adjacency == 0, -torch.inf).softmax(1).nan_to_num(0.0)
                own = own + shares @ values
        out = torch.relu(own)
        h = h + out if number else out
    return net.head(h)


@pytest.mark.parametrize("kind", ["mean", "attention"])
@pytest.mark.parametrize("depth", [0, 1, 2, 3])
@torch.inference_mode()
def test_all_neighbours_are_the_plain_network_on_the_whole_graph(kind: str, depth: int) -> None:
    graph, adjacency = _graph()
    definition = define_supernet("graph_sage", num_features=12, width=8, aggregator=kind)
    torch.manual_seed(1)
    state = definition.build().state_dict()
    for width in definition.config.width_choices:  # type: ignore[attr-defined]
        arch = definition.space.uniform(depth=depth, width=width)
        net = extract(state, definition, arch)
        asked = np.array([5, 59, 0, 5, 17])
        sampled = sampler.sample(graph, asked, arch.fanout)
        hops = tuple(Hop(*map(torch.from_numpy, hop)) for hop in sampled.hops)
        x = torch.from_numpy(graph.features[sampled.nodes])
        out = net(Neighbourhood(x, hops))[torch.from_numpy(sampled.asked)]
        whole = _plain(net, torch.from_numpy(graph.features), adjacency, kind)
        torch.testing.assert_close(out, whole[torch.from_numpy(asked)], atol=1e-5, rtol=1e-5)


def test_fanout_stands_in_the_arch_and_in_its_names() -> None:
    definition = define_supernet("graph_sage")
    space = definition.space
    arch = Arch(resolution=1, depth=(2,), width=(0.5,), fanout=(15, ALL_NEIGHBOURS))
    assert arch in space
    assert arch.subnet_id == "d2-w0.5-f15_all-r1"
    assert arch.to_json()["fanout"] == [15, "all"]
    assert Arch.from_json(arch.to_json()) == arch
    assert parse_arch("d=2,w=0.5,f=all", space).fanout == (ALL_NEIGHBOURS, ALL_NEIGHBOURS)
    assert parse_arch("d=1,f=10", space).fanout == (10,)
    assert space.smallest.fanout == ()
    with pytest.raises(ValueError, match=r"fanout\[1\] is 7, allowed 5, 10, 15"):
        space.validate(Arch(resolution=1, depth=(2,), width=(1.0,), fanout=(15, 7)))
    with pytest.raises(ValueError, match="fanout is 'all', expected a list"):
        Arch.from_json({"resolution": 1, "depth": [1], "fanout": "all"})


def test_fanout_changes_the_cost_and_not_the_weights() -> None:
    definition = define_supernet("graph_sage")
    few, many = (parse_arch(f"d=2,f={f}", definition.space) for f in (5, 15))
    assert definition.parameter_shapes(few) == definition.parameter_shapes(many)
    assert cost(definition, few).macs < cost(definition, many).macs
