"""`GraphConfig`: the keys of a run on the nodes of a graph (section `graph`)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphConfig:
    """How a graph network is trained; data.name `graph` makes a run of this kind.

    data.path is a graph folder (`supernet graph convert`), a planetoid .npz, or `cora` or
    `citeseer`, which are looked for under SUPERNET_DATA_DIR. The whole graph is one batch, so
    `schedule.steps` are its epochs. Every step trains the largest subnet, the smallest, the
    smallest at full width, and `schedule.random_subnets` drawn ones, with `each_depth` of the
    depths between in turns; `mlp_weight` weighs the losses of those without neighbours. The
    optimizer is Adam, with `lr`, falling to `min_lr` by a cosine, `weight_decay` and `ema_decay`
    of its section. `teacher` `gcnii` trains one of that many layers first, whose soft outputs on
    all nodes all subnets learn with a share `distillation` of the loss; `largest` trains the
    largest subnet alone first, which knows more where neighbours are of other classes; with `none`
    the largest subnet learns labels, and the others its soft outputs.
    `dropout` acts on features and hidden states. Accuracy on the validation nodes is looked at
    every `watch_steps`; the weights of the best are kept.
    """

    teacher: Literal["gcnii", "largest", "none"] = "gcnii"
    teacher_layers: int = 8
    teacher_width: int = 64
    teacher_dropout: float = 0.6
    teacher_epochs: int = 600
    distillation: float = 0.9
    dropout: float = 0.5
    each_depth: bool = False
    mlp_weight: float = 1.0
    watch_steps: int = 10
