"""What a graph network reads for a batch of nodes, and how a node gathers its neighbours.

A `Neighbourhood` is a stack of bipartite layers (the blocks of DGL; Hamilton et al., NeurIPS 2017,
algorithm 2): the nodes within k hops come first among those within k + 1, so every layer reads
more nodes than it writes, and the last writes the nodes that were asked for.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

from supernet.describe import Block

AGGREGATORS = ("mean", "attention")
_LEAK = 0.2  # slope of the attention's scores below zero (Velickovic et al., ICLR 2018)


class Hop(NamedTuple):
    """Neighbour lists of n nodes: `indices[indptr[i]:indptr[i + 1]]` are positions of those of i.

    Positions are among the nodes that the layer reads, of which the first n are these nodes.
    """

    indptr: torch.Tensor  # (n + 1,) int64
    indices: torch.Tensor  # (edges,) int64

    @property
    def num_nodes(self) -> int:
        """How many nodes have a list."""
        return len(self.indptr) - 1


class Neighbourhood(NamedTuple):
    """Features (nodes, F) of all that is read, and the hops from the asked nodes outwards."""

    features: torch.Tensor
    hops: tuple[Hop, ...]


Stream = tuple[torch.Tensor, tuple[Hop, ...]]


def mean_of(h: torch.Tensor, hop: Hop) -> torch.Tensor:
    """(nodes read, C) to (n, C): the mean over each node's neighbours, zeros where it has none."""
    return F.embedding_bag(hop.indices, h, hop.indptr, mode="mean", include_last_offset=True)


class SageLayer(Block):
    """One GraphSAGE layer: relu(own(h) + neighbours(gathered h)), beside a shortcut or not.

    Without a hop left it reads the node alone. `attention` weighs the neighbours by scores of both
    ends instead of taking their mean (GAT, with one head).
    """

    def __init__(
        self, in_width: int, width: int, aggregator: str, has_neighbours: bool, has_shortcut: bool
    ):
        super().__init__()
        self._has_shortcut = has_shortcut
        self._attends = aggregator == "attention"
        self.own = nn.Linear(in_width, width)
        if has_neighbours:
            self.neighbours = nn.Linear(in_width, width, bias=False)
            if self._attends:
                self.asking = nn.Linear(width, 1, bias=False)
                self.asked = nn.Linear(width, 1, bias=False)

    def forward(self, stream: Stream) -> Stream:
        h, hops = stream
        if not hops:
            return F.relu(self.own(h)), hops
        hop = hops[-1]
        mine = h[: hop.num_nodes]
        out = self.own(mine)
        if self._attends:
            out = F.relu(out + self._attended(h, out, hop))
        else:
            out = F.relu(out + self.neighbours(mean_of(h, hop)))
        return (mine + out if self._has_shortcut else out), hops[:-1]

    def _attended(self, h: torch.Tensor, own: torch.Tensor, hop: Hop) -> torch.Tensor:
        values = self.neighbours(h)
        counts = hop.indptr[1:] - hop.indptr[:-1]
        lists = torch.arange(hop.num_nodes, device=h.device)
        rows = torch.repeat_interleave(lists, counts, output_size=len(hop.indices))
        scores = self.asking(own)[rows, 0] + self.asked(values)[hop.indices, 0]
        scores = F.leaky_relu(scores, _LEAK)
        most = torch.full_like(own[:, 0], -torch.inf).scatter_reduce(0, rows, scores, "amax")
        weights = torch.exp(scores - most[rows].detach())
        total = torch.zeros_like(own[:, 0]).index_add(0, rows, weights)
        shares = (weights / total[rows]).unsqueeze(1)
        return torch.zeros_like(own).index_add(0, rows, shares * values[hop.indices])
