"""Accuracies of the compared shapes: as subnets of one supernet, and each trained alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch

from serve.bench.graphs.cases import NodeCase
from supernet import Arch
from supernet.spec import parse_arch
from training.graphs.gcnii import accuracy_of
from training.graphs.node_trainer import WATCH_SEED, NodeTrainer, NodeTraining, subnet_logits
from training.graphs.whole_graph import GraphDraw

SHAPES = ("d=0", "d=1,w=0.5", "d=2,w=0.5,f={few}", "d=2", "d=3")
"""Subnets that are compared; `few` is the graph's second fan-out."""


def shared_accuracies(
    case: NodeCase, training: NodeTraining, teacher: torch.Tensor, seed: int, split: str
) -> dict[str, float]:
    """Train one supernet; accuracies (fractions) of its subnets by id."""
    state = NodeTrainer(case.definition, case.whole, replace(training, seed=seed), teacher).run()
    return {arch.subnet_id: _accuracy(case, state, arch, split) for arch in compared_archs(case)}


def alone_accuracies(
    case: NodeCase, training: NodeTraining, teacher: torch.Tensor, seed: int, split: str
) -> dict[str, float]:
    """Train every shape by itself, in as many steps; accuracies (fractions) by id."""
    found: dict[str, float] = {}
    for arch in compared_archs(case):
        single = replace(training, seed=seed, alone=arch)
        state = NodeTrainer(case.definition, case.whole, single, teacher).run()
        found[arch.subnet_id] = _accuracy(case, state, arch, split)
    return found


def compared_archs(case: NodeCase) -> list[Arch]:
    """The compared shapes on a graph, the one without neighbours first."""
    space = case.definition.space
    return [parse_arch(text.format(few=space.fanout[1]), space) for text in SHAPES]


def _accuracy(case: NodeCase, state: Mapping[str, torch.Tensor], arch: Arch, split: str) -> float:
    draw = GraphDraw(case.whole, WATCH_SEED)
    logits = subnet_logits(state, case.definition, arch, case.whole, draw)
    return accuracy_of(logits, case.whole, split)
