"""One small GCNII, taught by a large one in one of several ways: what the ways are compared by.

All ways share data, start, schedule and stopping rule; a way adds terms to the loss.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import torch
from torch.nn import functional as F

from training.graphs.gcnii import Gcnii, GcniiOptions, accuracy_of
from training.graphs.layer_pairs import Contrast, LayerPairs
from training.graphs.whole_graph import Dropout, WholeGraph

Way = Literal["labels", "logits", "last", "uniform", "attention", "gcrd"]
WAYS: tuple[Way, ...] = get_args(Way)
_CONTRASTED = 512  # nodes of a contrastive batch
_SIZE = GcniiOptions(layers=4, width=6, dropout=0.3, epochs=300, patience=60)


@dataclass(frozen=True, slots=True, kw_only=True)
class StudentOptions:
    """The student's size and training; `soft` is the share of the loss that learns logits.

    `pairs` and `contrast` weigh the hidden layers' terms beside it, `look_every` is how many epochs
    lie between two looks at the validation loss, by which the weights are chosen.
    """

    size: GcniiOptions = _SIZE
    soft: float = 0.9
    pairs: float = 0.3
    contrast: float = 0.1
    look_every: int = 3


class Taught(NamedTuple):
    """A trained student's accuracies (fractions), and how its hidden layers were used.

    `spread` is the mean variance of the student's projected states, near 0 if they collapsed;
    `entropy` that of the attention's rows over the highest possible one. Both None where unused;
    fixed weights have no entropy.
    """

    validation: float
    test: float
    spread: float | None
    entropy: float | None


class Teacher(NamedTuple):
    """What a trained network shows: logits (nodes, classes), hidden states of each layer."""

    logits: torch.Tensor
    hidden: list[torch.Tensor]
    num_parameters: int

    @classmethod
    @torch.no_grad()
    def of(cls, net: Gcnii, whole: WholeGraph) -> Teacher:
        """Run a trained network once."""
        hidden: list[torch.Tensor] = []
        logits = net(whole, Dropout(), hidden)
        return cls(logits, hidden, sum(p.numel() for p in net.parameters()))


def teach(
    whole: WholeGraph, teacher: Teacher, way: Way, seed: int, options: StudentOptions
) -> Taught:
    """Train one student and return what became of it; the same start for every way of a seed."""
    num_classes = teacher.logits.shape[1]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = Gcnii(whole.graph.num_features, num_classes, options.size)
        pairs, contrast = _losses(way, teacher, options)
    optimizer = net.optimizer()
    for extra in (pairs, contrast):
        if extra is not None:
            optimizer.add_param_group({"params": list(extra.parameters())})
    dropout, soft = Dropout(options.size.dropout, seed), teacher.logits.softmax(1)
    train, validation = whole.rows["train"], whole.rows["validation"]
    best, best_loss, best_epoch = net.state_dict(), math.inf, 0
    for epoch in range(options.size.epochs):
        net.train()
        optimizer.zero_grad()
        hidden: list[torch.Tensor] = []
        logits = net(whole, dropout, hidden)
        loss = F.cross_entropy(logits[train], whole.labels[train])
        if way != "labels":
            learned = F.kl_div(logits.log_softmax(1), soft, reduction="batchmean")
            loss = (1 - options.soft) * loss + options.soft * learned
        if pairs is not None:
            loss = loss + options.pairs * pairs(teacher.hidden, hidden)
        if contrast is not None:
            drawn = torch.from_numpy(dropout.rng.permutation(whole.num_nodes)[:_CONTRASTED])
            loss = loss + options.contrast * contrast(teacher.hidden, hidden, drawn)
        loss.backward()
        optimizer.step()
        if epoch % options.look_every:
            continue
        with torch.no_grad():
            logits = net.eval()(whole, Dropout())[validation]
            held_out = float(F.cross_entropy(logits, whole.labels[validation]))
        if held_out < best_loss:
            best_loss, best_epoch = held_out, epoch
            best = {name: tensor.clone() for name, tensor in net.state_dict().items()}
        if epoch - best_epoch >= options.size.patience:
            break
    net.load_state_dict(best)
    return _judged(net.eval(), whole, teacher, pairs)


def num_parameters(whole: WholeGraph, num_classes: int, options: StudentOptions) -> int:
    """How many parameters a student has."""
    net = Gcnii(whole.graph.num_features, num_classes, options.size)
    return sum(p.numel() for p in net.parameters())


def _losses(
    way: Way, teacher: Teacher, options: StudentOptions
) -> tuple[LayerPairs | None, Contrast | None]:
    theirs = [h.shape[1] for h in teacher.hidden]
    mine = [options.size.width] * options.size.layers
    if way in ("last", "uniform", "attention"):
        return LayerPairs(theirs, mine, way), None
    return None, Contrast(theirs[-1], mine[-1]) if way == "gcrd" else None


@torch.no_grad()
def _judged(net: Gcnii, whole: WholeGraph, teacher: Teacher, pairs: LayerPairs | None) -> Taught:
    hidden: list[torch.Tensor] = []
    logits = net(whole, Dropout(), hidden)
    spread = entropy = None
    if pairs is not None:
        spread = float(torch.stack(pairs.projected(hidden)).var(1).sum(1).mean())
    if pairs is not None and pairs.learns_weights:
        rows = pairs.attention(teacher.hidden, hidden)
        entropy = float(torch.special.entr(rows).sum(1).mean()) / math.log(rows.shape[1])
    validation, test = (accuracy_of(logits, whole, split) for split in ("validation", "test"))
    return Taught(validation, test, spread, entropy)
