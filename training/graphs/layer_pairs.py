"""Distillation from hidden layers of one graph network to another of other depth and width.

ABKD (arXiv 2310.15938; STRIDE in its second version), reconstructed, no code is public: attention
over all pairs of teacher and student layers weighs how unlike they are. Its controls: the same
with uniform weights, and the last layers alone. And G-CRD (Joshi et al., TNNLS 2022), the
contrastive loss between last layers.

Chosen where the descriptions leave it open: attention is normalised over the teacher's layers for
each student layer (as SemCKD, AAAI 2021, does), so every student layer learns as much. Unlikeness
is the mean over nodes of the squared distance between normalised projections. The teacher's
projection is a fixed random orthonormal map: with both trainable, mapping everything to one point
would make any two layers alike.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import nn
from torch.nn import functional as F

Weights = Literal["attention", "uniform", "last"]
_ATTENTION_WIDTH = 16
_COMMON_WIDTH = 32
_CONTRAST_WIDTH = 64
_TEMPERATURE = 0.075  # of the contrastive logits, as published


class LayerPairs(nn.Module):
    """The loss of pairs; what it learns is thrown away with it."""

    def __init__(
        self, teacher_widths: Sequence[int], student_widths: Sequence[int], weights: Weights
    ):
        """Widths of the hidden layers of both, in order."""
        super().__init__()
        self._weights = weights
        self.learns_weights = weights == "attention"
        self.keys = nn.ModuleList(nn.Linear(w, _ATTENTION_WIDTH) for w in teacher_widths)
        self.queries = nn.ModuleList(nn.Linear(w, _ATTENTION_WIDTH) for w in student_widths)
        self.projections = nn.ModuleList(nn.Linear(w, _COMMON_WIDTH) for w in student_widths)
        for number, width in enumerate(teacher_widths):
            random = torch.randn(max(width, _COMMON_WIDTH), min(width, _COMMON_WIDTH))
            basis = torch.linalg.qr(random)[0]
            fixed = basis if width >= _COMMON_WIDTH else basis.T
            self.register_buffer(f"fixed_{number}", fixed)  # (width, common)

    def forward(
        self, teacher: Sequence[torch.Tensor], student: Sequence[torch.Tensor]
    ) -> torch.Tensor:
        """Hidden states (n, width) of each layer of both; a scalar."""
        unlike = self.unlikeness(teacher, student)
        return (self.attention(teacher, student) * unlike).sum(1).mean()

    def attention(
        self, teacher: Sequence[torch.Tensor], student: Sequence[torch.Tensor]
    ) -> torch.Tensor:
        """(student layers, teacher layers): rows add up to 1, of `last` all to their number."""
        rows, columns = len(student), len(teacher)
        if self._weights == "uniform":
            return torch.full((rows, columns), 1.0 / columns)
        if self._weights == "last":
            weights = torch.zeros(rows, columns)
            weights[-1, -1] = rows  # the mean over rows is then the pair of the last layers
            return weights
        keys = torch.stack([k(h.mean(0)) for k, h in zip(self.keys, teacher, strict=True)])
        queries = torch.stack([q(h.mean(0)) for q, h in zip(self.queries, student, strict=True)])
        return (queries @ keys.T / math.sqrt(_ATTENTION_WIDTH)).softmax(1)

    def unlikeness(
        self, teacher: Sequence[torch.Tensor], student: Sequence[torch.Tensor]
    ) -> torch.Tensor:
        """(student layers, teacher layers): mean squared distance of unit vectors, 0 to 4."""
        theirs = torch.stack(
            [F.normalize(h @ self.get_buffer(f"fixed_{i}"), dim=1) for i, h in enumerate(teacher)]
        )
        mine = torch.stack(self.projected(student))
        cosines = mine.flatten(1) @ theirs.flatten(1).T / mine.shape[1]
        return 2.0 - 2.0 * cosines

    def projected(self, student: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Unit vectors (n, common) of each student layer; they must not all be one."""
        pairs = zip(self.projections, student, strict=True)
        return [F.normalize(project(h), dim=1) for project, h in pairs]


class Contrast(nn.Module):
    """G-CRD: a node's student state is to find the teacher's among those of other nodes."""

    def __init__(self, teacher_width: int, student_width: int):
        super().__init__()
        self.theirs = _projection(teacher_width)
        self.mine = _projection(student_width)

    def forward(
        self, teacher: Sequence[torch.Tensor], student: Sequence[torch.Tensor], rows: torch.Tensor
    ) -> torch.Tensor:
        """The last layers' states of the nodes `rows` (m,); a scalar."""
        mine = F.normalize(self.mine(student[-1][rows]), dim=1)
        theirs = F.normalize(self.theirs(teacher[-1][rows]), dim=1)
        return F.cross_entropy(mine @ theirs.T / _TEMPERATURE, torch.arange(len(rows)))


def _projection(width: int) -> nn.Module:
    return nn.Sequential(
        nn.Linear(width, _CONTRAST_WIDTH), nn.BatchNorm1d(_CONTRAST_WIDTH), nn.ReLU()
    )
