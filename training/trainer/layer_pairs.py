"""Distillation from the full model's hidden layers to a subnet's, over pairs of layers.

ABKD (arXiv 2310.15938; STRIDE in its second version), reconstructed as no code is public, for a
supernet: the teacher is the full model of the same step, the student a subnet of another depth and
width in every step. Attention over the teacher's layers, for each layer of the student (as SemCKD,
AAAI 2021, normalises it), weighs how unlike the two are. Its controls: the same with uniform
weights, and the last layers alone.

A layer's features are the output of a block, averaged over pixels or tokens. Unlikeness is the mean
over samples of the squared distance between normalised projections. The teacher's projection is a
fixed random orthonormal map: were both learnt, mapping everything to one point would make any two
layers alike. What is learnt here is thrown away with the run.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from training.trainer.hidden_states import EMBEDDING, HiddenStates

PairWeights = Literal["attention", "uniform", "last"]
_ATTENTION_WIDTH, _COMMON_WIDTH = 16, 32
_PAIRS = 7  # no other purpose of a draw

Features = dict[str, torch.Tensor]


class PairReport(NamedTuple):
    """What tells of a collapse: `entropy` of the attention over its largest value, 0 to 1;
    `spread` the mean deviation of the student's projections over samples, 0 when all are one."""

    entropy: float
    spread: float


def features_of(states: HiddenStates) -> Features:
    """Block outputs (B, C, H, W) or (B, N, C) as (B, C), by block name in forward order."""
    return {
        name: state.float().mean((2, 3) if state.dim() == 4 else 1)
        for name, state in states.items()
        if name != EMBEDDING
    }


class BlockPairs:
    """The loss of pairs for all subnets of a supernet.

    Its layers are those of the largest; a subnet's narrower features are read by leading columns.
    """

    def __init__(self, widths: Mapping[str, int], weights: PairWeights, seed: int):
        """`widths` of the full model's features by block name, in forward order."""
        self._names, self._weights = list(widths), weights
        rng = np.random.default_rng((seed, _PAIRS))
        self.parameters: dict[str, nn.Parameter] = {}
        self._fixed: dict[str, torch.Tensor] = {}
        for name, width in widths.items():
            for kind, size in (("key", _ATTENTION_WIDTH), ("query", _ATTENTION_WIDTH),
                               ("project", _COMMON_WIDTH)):  # fmt: skip
                drawn = rng.standard_normal((size, width)) / math.sqrt(width)
                self.parameters[f"pairs.{kind}.{name}"] = nn.Parameter(
                    torch.from_numpy(drawn.astype(np.float32))
                )
            self._fixed[name] = _orthonormal(rng, width, _COMMON_WIDTH)

    def loss(self, teacher: Features, student: Features) -> torch.Tensor:
        """The mean over the student's layers of attention times unlikeness; a scalar, 0 to 4."""
        return (self.attention(teacher, student) * self.unlikeness(teacher, student)).sum(1).mean()

    def attention(self, teacher: Features, student: Features) -> torch.Tensor:
        """(student layers, teacher layers); each row adds up to 1, but with `last` to 0 or S."""
        rows, columns = len(student), len(teacher)
        device = next(iter(student.values())).device
        if self._weights == "uniform":
            return torch.full((rows, columns), 1.0 / columns, device=device)
        if self._weights == "last":
            weights = torch.zeros(rows, columns, device=device)
            weights[-1, -1] = rows  # the mean over rows is then the pair of the last layers
            return weights
        keys = torch.stack([self._read("key", n, h.mean(0)) for n, h in teacher.items()])
        queries = torch.stack([self._read("query", n, h.mean(0)) for n, h in student.items()])
        return (queries @ keys.T / math.sqrt(_ATTENTION_WIDTH)).softmax(1)

    def unlikeness(self, teacher: Features, student: Features) -> torch.Tensor:
        """(student layers, teacher layers): mean squared distance of unit vectors, 0 to 4."""
        theirs = torch.stack(
            [F.normalize(h @ self._fixed[n].to(h), dim=1) for n, h in teacher.items()]
        )
        mine = self._projected(student)
        return 2.0 - 2.0 * mine.flatten(1) @ theirs.flatten(1).T / mine.shape[1]

    @torch.no_grad()
    def report(self, teacher: Features, student: Features) -> PairReport:
        """Entropy of the attention and spread of the projections, to notice a collapse by."""
        attention = self.attention(teacher, student).clamp_min(1e-12)
        entropy = -(attention * attention.log()).sum(1).mean() / math.log(max(2, len(teacher)))
        return PairReport(float(entropy), float(self._projected(student).std(1).mean()))

    def _projected(self, student: Features) -> torch.Tensor:
        """(student layers, B, common) unit vectors."""
        return torch.stack(
            [F.normalize(self._read("project", n, h), dim=1) for n, h in student.items()]
        )

    def _read(self, kind: str, name: str, features: torch.Tensor) -> torch.Tensor:
        weight = self.parameters[f"pairs.{kind}.{name}"]
        return features @ weight[:, : features.shape[-1]].T


def _orthonormal(rng: np.random.Generator, width: int, common: int) -> torch.Tensor:
    """(width, common) with orthonormal rows or columns, whichever are fewer."""
    basis = np.linalg.qr(rng.standard_normal((max(width, common), min(width, common))))[0]
    return torch.from_numpy((basis if width >= common else basis.T).astype(np.float32))
