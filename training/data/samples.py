"""`Dataset`: three splits of labelled samples, in memory or read when they are taken."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from supernet.input import InputSpec
from training.config import DataConfig
from training.data.array_folder import DataError


class Samples(Protocol):
    """Labelled samples: in memory (`Split`), or read when they are taken."""

    @property
    def labels(self) -> torch.Tensor: ...

    def __len__(self) -> int: ...

    def take(self, rows: torch.Tensor, key: Sequence[int] | None = None) -> Split:
        """Return the rows; `key` seeds what is drawn on reading, None is for evaluation."""
        ...


@dataclass(frozen=True, slots=True)
class Split:
    """Images (N, C, H, W) uint8 (or token ids (N, 1, 1, T) int32), and labels (N,) int64."""

    images: torch.Tensor
    labels: torch.Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, rows: torch.Tensor, key: Sequence[int] | None = None) -> Split:
        """Return the rows; nothing is drawn."""
        return Split(self.images[rows], self.labels[rows])


@dataclass(frozen=True, slots=True, kw_only=True)
class Dataset:
    """Three disjoint splits; `validation` measures, `test` is never trained or chosen on."""

    name: str
    input: InputSpec
    classes: tuple[str, ...]
    train: Samples
    validation: Samples
    test: Samples


def split_rows(
    num_rows: int, options: DataConfig, seed: int, where: str
) -> tuple[np.ndarray, np.ndarray]:
    """Rows to train on (at most `limit`) and to hold out, each ascending. Raises DataError."""
    order = np.random.default_rng((seed, 0)).permutation(num_rows)
    cut = len(order) - round(len(order) * options.validation)
    if not 0 < cut < len(order):
        raise DataError(f"{where}: {num_rows} training samples leave none to train or validate on")
    train = order[: min(cut, options.limit or cut)]
    return np.sort(train), np.sort(order[cut:])
