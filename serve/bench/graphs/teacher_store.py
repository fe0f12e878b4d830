"""`TeacherStore`: logits of trained teachers in files, which parts and runs share."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch

from serve.bench.graphs.cases import NodeCase
from training.graphs.teachers import TeacherKind, teacher_logits


class TeacherStore:
    """Teachers by graph, kind, size and seed; trained when they are first asked for."""

    def __init__(self, folder: Path):
        self._folder = folder

    def logits(self, case: NodeCase, kind: TeacherKind, seed: int) -> torch.Tensor:
        """(nodes, num_classes) logits of one teacher."""
        size = case.teacher
        named = f"{case.name}-{kind}-{size.layers}x{size.width}-{size.dropout}-{size.epochs}-{seed}"
        path = self._folder / f"{named}.npy"
        if not path.exists():
            made = teacher_logits(kind, case.whole, case.definition, size, seed)
            self._folder.mkdir(parents=True, exist_ok=True)
            part = path.with_name(f".{named}.{os.getpid()}.npy")
            np.save(part, made.numpy())
            part.replace(path)  # whole or not there
        return torch.from_numpy(np.load(path, allow_pickle=False))
