"""Networks trained from labels first, whose soft outputs at all nodes a supernet then learns.

A GCNII where neighbours are mostly of a node's own class. Its layers smooth, so where they are of
other classes it knows less than what it should teach: there the supernet's largest subnet, trained
alone, teaches.
"""

from __future__ import annotations

from typing import Literal

import torch

from supernet import SupernetDefinition
from training.graphs.gcnii import GcniiOptions, train_gcnii
from training.graphs.node_trainer import WATCH_SEED, NodeTrainer, NodeTraining, subnet_logits
from training.graphs.whole_graph import Dropout, GraphDraw, WholeGraph

TeacherKind = Literal["gcnii", "largest"]


def teacher_logits(
    kind: TeacherKind,
    whole: WholeGraph,
    definition: SupernetDefinition,
    options: GcniiOptions,
    seed: int,
) -> torch.Tensor:
    """Train one and return its (nodes, num_classes) logits.

    Of `options` the largest subnet takes dropout and epochs; the rest are of a GCNII.
    """
    if kind == "gcnii":
        net = train_gcnii(whole, definition.config.num_classes, options, seed)
        with torch.no_grad():
            return net(whole, Dropout())
    largest = definition.space.largest
    training = NodeTraining(steps=options.epochs, dropout=options.dropout, alone=largest, seed=seed)
    state = NodeTrainer(definition, whole, training).run()
    return subnet_logits(state, definition, largest, whole, GraphDraw(whole, WATCH_SEED))
