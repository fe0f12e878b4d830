"""Elastic GraphSAGE (Hamilton et al., NeurIPS 2017) for classifying the nodes of a graph.

Elastic are depth (0: an MLP on the node's own features, to 3), width, and how many neighbours each
hop reads, which is no part of the weights: `fanout` stands in the arch as a resolution does, one
entry per hop from the asked node outwards, `all` being the plain network on the whole graph.
A sampled hop takes a fixed random part of the neighbours (supernet/graphs/sampler.py).

Differences from the paper: no normalisation of the hidden states; a shortcut beside every layer
but the first, so that one classifier reads every depth. `attention` replaces the mean of the
neighbours by GAT's weighted one (Velickovic et al., ICLR 2018).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import nn

from supernet.arch import ALL_NEIGHBOURS, Arch
from supernet.family import ChannelGroup
from supernet.layers.blocks import BlockSequence
from supernet.layers.neighbours import AGGREGATORS, Hop, Neighbourhood, SageLayer
from supernet.registry import supernet_family
from supernet.space import SearchSpace


@dataclass(frozen=True, kw_only=True)
class GraphSageConfig:
    """Which supernet; `degree` is how many neighbours `all` counts as where costs are counted."""

    num_classes: int = 7
    num_features: int = 128
    width: int = 64
    depth_choices: tuple[int, ...] = (0, 1, 2, 3)
    width_choices: tuple[float, ...] = (0.25, 0.5, 1.0)
    fanout_choices: tuple[int, ...] = (5, 10, 15, ALL_NEIGHBOURS)
    aggregator: str = "mean"
    degree: int = 16

    def __post_init__(self) -> None:
        if self.aggregator not in AGGREGATORS:
            allowed = ", ".join(AGGREGATORS)
            raise ValueError(f"aggregator is {self.aggregator!r}, allowed {allowed}")
        if self.width_choices[-1] != 1:
            raise ValueError(f"width_choices is {self.width_choices}; the last must be 1")

    @property
    def in_channels(self) -> int:
        """A query is one number, the node's id."""
        return 1

    @property
    def depth(self) -> int:
        """Layers of the supernet."""
        return self.depth_choices[-1]


def _space(config: GraphSageConfig) -> SearchSpace:
    return SearchSpace(
        family="graph_sage",
        resolution=(1,),
        depth=(config.depth_choices,),
        width=(config.width_choices,),
        fanout=config.fanout_choices,
    )


def _channel_groups(config: GraphSageConfig) -> tuple[ChannelGroup, ...]:
    """One order for the whole stream: the shortcuts tie the layers' channels together."""
    layers = ["first", *(f"blocks.{i}" for i in range(1, config.depth))]
    gathers = layers if config.depth else []
    produced = [(f"{name}.own.{vector}", 0) for name in layers for vector in ("weight", "bias")]
    produced += [(f"{name}.neighbours.weight", 0) for name in gathers]
    consumed = [(f"{name}.{part}.weight", 1) for name in layers[1:] for part in _MATRICES]
    if config.aggregator == "attention":
        consumed += [(f"{name}.{end}.weight", 1) for name in gathers for end in ("asking", "asked")]
    return (
        ChannelGroup(
            name="stream",
            produced=tuple(produced),
            consumed=(*consumed, ("head.weight", 1)),
        ),
    )


_MATRICES = ("own", "neighbours")


def _example_neighbourhood(config: GraphSageConfig, arch: Arch, batch_size: int) -> Neighbourhood:
    """A tree in which every node has as many neighbours as the fan-out, all different."""
    fanouts = [config.degree if f == ALL_NEIGHBOURS else f for f in arch.fanout]
    levels = list(accumulate(fanouts, lambda nodes, fanout: nodes * fanout, initial=batch_size))
    within = list(accumulate(levels))
    hops = tuple(
        Hop(torch.arange(n + 1) * fanout, torch.arange(n * fanout) % read)
        for n, read, fanout in zip(within, within[1:], fanouts, strict=False)
    )
    return Neighbourhood(torch.zeros(within[-1], config.num_features), hops)


@supernet_family(
    "graph_sage",
    config=GraphSageConfig,
    space=_space,
    channel_groups=_channel_groups,
    example_input=_example_neighbourhood,
    variants={
        "graph_sage": GraphSageConfig(),
        "graph_sage_attention": GraphSageConfig(aggregator="attention"),
        "graph_sage_cora": GraphSageConfig(
            num_features=1433, degree=4, fanout_choices=(2, 5, ALL_NEIGHBOURS)
        ),
        "graph_sage_citeseer": GraphSageConfig(
            num_features=3703, num_classes=6, degree=3, fanout_choices=(2, 5, ALL_NEIGHBOURS)
        ),
    },
    letters={
        "d": "layers, which are hops (0 to 3); 0 reads the node alone",
        "w": "width of the stream over the largest (0.25, 0.5, 1)",
        "f": "neighbours that each hop reads (5, 10, 15, all)",
        "r": "nodes of a query (1)",
    },
)
class GraphSage(nn.Module):
    """The network at one arch: a `Neighbourhood` of B asked nodes to (B, num_classes) logits."""

    def __init__(self, config: GraphSageConfig, arch: Arch):
        super().__init__()
        depth, width = arch.depth[0], round(config.width * arch.width[0])
        kind = config.aggregator
        self.first = SageLayer(config.num_features, width, kind, depth > 0, False)
        self.blocks = BlockSequence(
            {str(i): SageLayer(width, width, kind, True, True) for i in range(1, depth)}
        )
        self.head = nn.Linear(width, config.num_classes)

    def forward_features(self, neighbourhood: Neighbourhood) -> torch.Tensor:
        """The asked nodes' last hidden states (B, width)."""
        stream: Any = self.first((neighbourhood.features, neighbourhood.hops))
        return self.blocks(stream)[0]

    def forward(self, neighbourhood: Neighbourhood) -> torch.Tensor:
        return self.head(self.forward_features(neighbourhood))
