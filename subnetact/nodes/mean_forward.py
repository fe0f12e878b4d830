"""A `graph_sage` subnet with mean aggregation, straight from the graph's file to logits.

The plain twin is the family's module on a `Neighbourhood`. This one never copies the features of
the outermost hop, most of what a query reads: their means are taken where they lie.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch.nn import functional as F

from supernet.arch import Arch
from supernet.graphs.find_sampler import NeighbourSampler
from supernet.graphs.graph_store import GraphStore
from supernet.graphs.sampler import SampledNodes
from supernet.slicing import leading_slice

if TYPE_CHECKING:
    from subnetact.nodes.compiled_forward import CompiledForward


class _MeanLayer(NamedTuple):
    own: torch.Tensor
    bias: torch.Tensor
    neighbours: torch.Tensor | None


class MeanForward:
    """One subnet as views of the resident weights."""

    def __init__(
        self,
        arch: Arch,
        state: Mapping[str, torch.Tensor],
        shapes: Mapping[str, tuple[int, ...]],
    ):
        views = {name: leading_slice(state[name], shape) for name, shape in shapes.items()}
        names = ["first", *(f"blocks.{i}" for i in range(1, arch.depth[0]))]
        self._layers = [
            _MeanLayer(
                views[f"{name}.own.weight"].T,
                views[f"{name}.own.bias"],
                views[f"{name}.neighbours.weight"].T if arch.depth[0] else None,
            )
            for name in names
        ]
        self._head = (views["head.weight"].T, views["head.bias"])
        self.fanout = arch.fanout

    def compiled(self, graph: GraphStore, seed: int) -> CompiledForward:
        """Return the same subnet as compiled code, its hops drawn with `seed`; needs numba."""
        from subnetact.nodes.compiled_forward import CompiledForward, MeanWeights

        head, head_bias = self._head
        weights = MeanWeights(
            own=tuple(layer.own.T for layer in self._layers),
            bias=tuple(layer.bias for layer in self._layers),
            neighbours=tuple(
                layer.neighbours.T for layer in self._layers if layer.neighbours is not None
            ),
            head=head.T,
            head_bias=head_bias,
        )
        return CompiledForward(weights, self.fanout, graph, seed)

    def logits(
        self, graph: GraphStore, sampled: SampledNodes, sampler: NeighbourSampler
    ) -> torch.Tensor:
        """(nodes that were asked, each once; num_classes) logits."""
        hops = sampled.hops
        first = self._layers[0]
        written = len(hops[-1].indptr) - 1 if hops else len(sampled.nodes)
        own = torch.from_numpy(sampler.gathered(graph.features, sampled.nodes[:written]))
        h = torch.addmm(first.bias, own, first.own)
        if hops:
            assert first.neighbours is not None, "a subnet with hops has neighbours to read"
            means = sampler.mean_features(graph.features, sampled.nodes, hops[-1])
            h = h.addmm_(torch.from_numpy(means), first.neighbours)
        h = F.relu_(h)
        for layer, hop in zip(self._layers[1:], reversed(hops[:-1]), strict=True):
            assert layer.neighbours is not None, "blocks beyond the first read neighbours"
            mine = h[: len(hop.indptr) - 1]
            means = torch.from_numpy(sampler.mean_rows(h.numpy(), hop))
            out = torch.addmm(layer.bias, mine, layer.own).addmm_(means, layer.neighbours)
            h = mine + F.relu_(out)
        return torch.addmm(self._head[1], h, self._head[0])
