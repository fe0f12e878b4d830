"""The part of a training step that is about layer pairs: features, their loss, their own update."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import nn

from supernet.definition import SupernetDefinition
from training.config import TrainConfig
from training.strategies.strategy import SubnetTask
from training.trainer.hidden_states import HiddenStates, recorded
from training.trainer.layer_pairs import BlockPairs, Features, PairReport, features_of
from training.trainer.optimization import Optimization, OptimizationState, Tensors
from training.trainer.resume import ResumeState

_EVERY = 50  # steps between two reports


class PairsTraining:
    """Layer pairs of one run. What it learns is no part of the supernet."""

    def __init__(self, config: TrainConfig, definition: SupernetDefinition):
        """Prepare the pairs of the largest subnet's blocks."""
        self._weight = config.loss.features_weight
        self._pairs = BlockPairs(_widths(definition), config.loss.pairs, config.seed)
        for name, parameter in self.parameters.items():
            self.parameters[name] = nn.Parameter(parameter.detach().to(config.device))
        options = replace(config.optimizer, ema_decay=0.0, weight_decay=0.0, clip_norm=0.0)
        self._optimization = Optimization(self.parameters, options)
        self._teacher: Features = {}
        self._reports: list[PairReport] = []
        self._steps = 0

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """What is learnt beside the supernet, by name."""
        return self._pairs.parameters

    def loss(self, states: HiddenStates, task: SubnetTask, rows: slice) -> torch.Tensor:
        """The weighted loss of a pass over some rows of the batch.

        Zero for the full model's, which teaches; its passes come first and go through all rows.
        """
        features = features_of(states)
        if task.target == "labels":
            self._teach(features, is_new=rows.start == 0)
            return torch.zeros((), device=next(iter(features.values())).device)
        teacher = {name: h[rows] for name, h in self._teacher.items()}
        if self._steps % _EVERY == 0:
            self._reports.append(self._pairs.report(teacher, features))
        return self._weight * self._pairs.loss(teacher, features)

    def _teach(self, features: Features, *, is_new: bool) -> None:
        before = {} if is_new else self._teacher
        self._teacher = {
            name: torch.cat([before[name], h.detach()]) if name in before else h.detach()
            for name, h in features.items()
        }

    def step(self, lr: float) -> None:
        """Update what is learnt, and forget its gradients; nothing where there are none."""
        self._steps += 1
        if any(parameter.grad is not None for parameter in self.parameters.values()):
            self._optimization.step(lr)
        self._optimization.zero_gradients()

    def figures(self) -> dict[str, float]:
        """Mean entropy and spread since the last call, for the log; none before shrinking."""
        reports, self._reports = self._reports, []
        if not reports:
            return {}
        return {
            "pairs_entropy": sum(r.entropy for r in reports) / len(reports),
            "pairs_spread": sum(r.spread for r in reports) / len(reports),
        }

    def detached(self) -> Tensors:
        """What is learnt, without gradients."""
        return {name: p.detach() for name, p in self.parameters.items()}

    def state(self) -> OptimizationState:
        """The moments."""
        return self._optimization.state()

    @torch.no_grad()
    def restored(self, state: ResumeState) -> ResumeState:
        """Take back what is this object's of a saved state, and return the rest."""
        for name, parameter in self.parameters.items():
            parameter.copy_(state.parameters[name])
        saved = state.optimization
        mine = saved._replace(
            momentum=_of(saved.momentum, self.parameters, True),
            square=_of(saved.square, self.parameters, True),
            average={},
        )
        self._optimization.restore(mine)
        self._steps = state.step
        rest = saved._replace(
            momentum=_of(saved.momentum, self.parameters, False),
            square=_of(saved.square, self.parameters, False),
        )
        return state._replace(optimization=rest)


def _of(tensors: Tensors, names: Mapping[str, object], is_mine: bool) -> Tensors:
    return {name: t for name, t in tensors.items() if (name in names) == is_mine}


def _widths(definition: SupernetDefinition) -> dict[str, int]:
    """Widths of the largest subnet's block outputs, by name in forward order."""
    largest = definition.space.largest
    net = definition.on_meta(largest).eval()
    with torch.device("meta"), recorded(net) as states:
        net(definition.example_input(largest))
    return {name: h.shape[1] for name, h in features_of(states).items()}
