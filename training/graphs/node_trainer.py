"""Trains a graph supernet on the whole graph: one pass and one backward per subnet, then a step.

The sandwich of BigNAS on shared leading slices, as for images (training/trainer/trainer.py), with
one batch, all nodes. What is random is keyed by (seed, step). The weights kept, averaged over the
last steps if asked for, are those of the best mean validation accuracy of the watched subnets.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch.nn import functional as F

from supernet import Arch, SupernetDefinition
from supernet.slicing import leading_slice
from training.graphs.gcnii import accuracy_of
from training.graphs.whole_graph import Dropout, GraphDraw, WholeGraph, node_logits
from training.strategies.schedule import RateSchedule
from training.trainer.run_log import StepReport
from training.trainer.shared_weights import SharedWeights
from training.trainer.trainer import TrainingDivergedError

_ARCHS, _DRAWS, _DROPOUT = 0, 1, 2
WATCH_SEED = 0  # accuracies are measured on the draw that a server has by default
Progress = Callable[[StepReport], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeTraining:
    """How long and how: steps, rate, decay, dropout, and what is learned from whom.

    `alone` trains that subnet and no other. `distillation` is the share of the loss that learns
    the soft labels; without a teacher the largest subnet learns labels alone. Decay and dropout
    are best weak (5e-5, 0.2) where the teacher is good at every node: there is little to overfit
    to, and what many subnets share has to hold more than one of them would. The rate falls from
    `lr` to `min_lr` by a cosine. `ema_decay` above 0 keeps an exponential moving average of the
    weights, which is what is watched and returned. `each_depth` has the drawn subnets take turns
    through the depths between the smallest and the largest. `mlp_weight` weighs the losses of
    subnets without neighbours.
    """

    steps: int = 300
    lr: float = 0.01
    min_lr: float = 0.0
    weight_decay: float = 5e-4
    ema_decay: float = 0.0
    dropout: float = 0.5
    distillation: float = 0.9
    random_subnets: int = 2
    each_depth: bool = False
    mlp_weight: float = 1.0
    watch_steps: int = 10
    alone: Arch | None = None
    seed: int = 0


class NodeTrainer:
    """One run; `run` returns the state_dict of the best weights."""

    def __init__(
        self,
        definition: SupernetDefinition,
        whole: WholeGraph,
        options: NodeTraining,
        teacher: torch.Tensor | None = None,
    ):
        """`teacher` are (nodes, num_classes) logits of another network to learn from."""
        self._definition, self._whole, self._options = definition, whole, options
        self._weights = SharedWeights(definition, device="cpu", seed=options.seed)
        self._soft = None if teacher is None else teacher.softmax(1)
        parameters = self._weights.parameters
        self._optimizer = torch.optim.Adam(
            parameters.values(), lr=options.lr, weight_decay=options.weight_decay
        )
        self._rate = RateSchedule(lr=options.lr, min_lr=options.min_lr, total_steps=options.steps)
        self._average: dict[str, torch.Tensor] = {}
        if options.ema_decay:
            self._average = {name: p.detach().clone() for name, p in parameters.items()}
        self._draw = GraphDraw(whole, WATCH_SEED)

    def run(
        self, *, progress: Progress | None = None, should_stop: Callable[[], bool] = lambda: False
    ) -> dict[str, torch.Tensor]:
        """Train to the end, or until `should_stop`.

        Raises TrainingDivergedError on a loss that is not finite.
        """
        options, best, best_accuracy = self._options, self._state(), -1.0
        for step in range(options.steps):
            if should_stop():
                break
            rate = self._rate.at(step)
            full, others = self._step(step, rate)
            if (step + 1) % options.watch_steps == 0 or step + 1 == options.steps:
                accuracy = self._watched()
                if accuracy >= best_accuracy:
                    best, best_accuracy = self._state(), accuracy
            if progress is not None:
                progress(StepReport(step + 1, options.steps, rate, full, others, 1))
        return best

    def _step(self, step: int, rate: float) -> tuple[float | None, float | None]:
        """One step of all its passes; the loss of the largest subnet and of the others."""
        options = self._options
        rng = np.random.default_rng((options.seed, _ARCHS, step))
        draw = self._draw.anew(_key(options.seed, _DRAWS, step))
        dropout = Dropout(options.dropout, _key(options.seed, _DROPOUT, step))
        self._optimizer.zero_grad()
        losses: list[float] = []
        soft = self._soft
        for arch in self._archs(rng, step):
            logits = self._logits(self._weights.parameters, arch, draw, dropout)
            loss = self._loss(logits, soft)
            losses.append(_finite(loss.item(), arch, step))
            (loss if arch.depth[0] else options.mlp_weight * loss).backward()
            if soft is None:
                soft = logits.detach().softmax(1)  # in place: the largest comes first
        # All passes together weigh as one, so that the rate means the same for one subnet alone.
        for parameter in self._weights.parameters.values():
            if parameter.grad is not None:
                parameter.grad /= len(losses)
        self._optimizer.param_groups[0]["lr"] = rate
        self._optimizer.step()
        self._update_average(step)
        if options.alone is not None:
            return losses[0], None
        return losses[0], float(np.mean(losses[1:]))

    @torch.no_grad()
    def _update_average(self, step: int) -> None:
        decay = min(self._options.ema_decay, (1 + step) / (10 + step))  # forgets its start quickly
        for name, average in self._average.items():
            average.lerp_(self._weights.parameters[name], 1.0 - decay)

    def _archs(self, rng: np.random.Generator, step: int) -> Sequence[Arch]:
        if self._options.alone is not None:
            return (self._options.alone,)
        space = self._definition.space
        between = space.depth[0][1:-1] if self._options.each_depth else ()
        drawn: list[Arch] = []
        for number in range(self._options.random_subnets):
            arch = space.sample(rng)
            if between:
                turn = step * self._options.random_subnets + number
                while arch.depth[0] != between[turn % len(between)]:
                    arch = space.sample(rng)
            drawn.append(arch)
        # At full width too: without neighbours a network has to know the nodes by heart, which
        # takes all its capacity and many steps; the pass is by far the cheapest.
        by_heart = replace(space.smallest, width=space.largest.width)
        return (space.largest, space.smallest, by_heart, *drawn)

    def _loss(self, logits: torch.Tensor, soft: torch.Tensor | None) -> torch.Tensor:
        train = self._whole.rows["train"]
        labels = F.cross_entropy(logits[train], self._whole.labels[train])
        if soft is None:
            return labels
        share = self._options.distillation
        learned = F.kl_div(logits.log_softmax(1), soft, reduction="batchmean")
        return (1.0 - share) * labels + share * learned

    def _logits(
        self,
        source: Mapping[str, torch.Tensor],
        arch: Arch,
        draw: GraphDraw,
        dropout: Dropout | None,
    ) -> torch.Tensor:
        shapes = self._definition.parameter_shapes(arch)
        weights = {name: leading_slice(source[name], shape) for name, shape in shapes.items()}
        return node_logits(self._whole, self._definition, arch, weights, draw, dropout)

    @torch.no_grad()
    def _watched(self) -> float:
        alone, source = self._options.alone, self._average or self._weights.parameters
        watched = watched_nodes(self._definition) if alone is None else [alone]
        accuracies = [
            accuracy_of(self._logits(source, arch, self._draw, None), self._whole, "validation")
            for arch in watched
        ]
        return float(np.mean(accuracies))

    def _state(self) -> dict[str, torch.Tensor]:
        state = {**self._weights.state(), **self._average}
        return {name: tensor.clone() for name, tensor in state.items()}


def _finite(loss: float, arch: Arch, step: int) -> float:
    if not math.isfinite(loss):
        raise TrainingDivergedError(
            f"the loss of subnet {arch.subnet_id} is {loss} at step {step}; lower optimizer.lr or "
            "look at the data"
        )
    return loss


def watched_nodes(definition: SupernetDefinition) -> list[Arch]:
    """One subnet of each depth, at full width: the smallest fan-out, and all neighbours."""
    space = definition.space
    found: list[Arch] = []
    for depth in space.depth[0]:
        choices = space.block_choices("fanout", 0)
        fanouts = (choices[0], choices[-1]) if depth else (choices[-1],)
        found += [space.uniform(depth=depth, fanout=f) for f in fanouts]
    return list(dict.fromkeys(found))


@torch.no_grad()
def subnet_logits(
    state: Mapping[str, torch.Tensor],
    definition: SupernetDefinition,
    arch: Arch,
    whole: WholeGraph,
    draw: GraphDraw,
) -> torch.Tensor:
    """(nodes, num_classes) logits of one subnet of a trained supernet at every node."""
    shapes = definition.parameter_shapes(arch)
    weights = {name: leading_slice(state[name], shape) for name, shape in shapes.items()}
    return node_logits(whole, definition, arch, weights, draw)


def _key(*parts: int) -> int:
    return int(np.random.default_rng(parts).integers(2**62))
