"""`Dataset`: three splits of labelled samples, in memory or read when they are taken.

How a data set was split is kept with it (`SplitRecord`) and with what was trained on it, so that a
run that goes on from those weights holds out the same samples.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch

from supernet.input import InputSpec
from supernet.text import TextSpec
from training.config import DataConfig
from training.data.array_folder import DataError

_HALVES = 9
_SHOWN = 10  # names of classes


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
    """Images (N, C, H, W) uint8 (or token ids (N, 1, 1, T) int32), and labels (N,) int64.

    Of running text each token has a label, the one that follows: (N, T).
    """

    images: torch.Tensor
    labels: torch.Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, rows: torch.Tensor, key: Sequence[int] | None = None) -> Split:
        """Return the rows; nothing is drawn."""
        return Split(self.images[rows], self.labels[rows])

    def pin_memory(self) -> Split:
        """The same in pinned memory, from where copies to a device need not be waited for."""
        return Split(self.images.pin_memory(), self.labels.pin_memory())


class Subset:
    """Some rows of other samples."""

    def __init__(self, of: Samples, rows: torch.Tensor):
        self._of, self._rows = of, rows

    @property
    def labels(self) -> torch.Tensor:
        """(N,) int64."""
        return self._of.labels[self._rows]

    def __len__(self) -> int:
        return len(self._rows)

    def take(self, rows: torch.Tensor, key: Sequence[int] | None = None) -> Split:
        """Return the rows of the subset."""
        return self._of.take(self._rows[rows], key)


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitRecord:
    """Which samples a run held out: the seed and share of the draw, and of what it was drawn.

    `digest` names all samples of a data set before they are split: two data sets with the same are
    the same, wherever they lie.
    """

    seed: int
    validation: float
    digest: str

    def to_json(self) -> dict[str, Any]:
        """Return plain data."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> SplitRecord:
        """Rebuild from plain data. Raises ValueError when a field is unknown or missing."""
        try:
            return cls(**data)
        except TypeError as error:
            raise ValueError(f"split: {error}") from None


@dataclass(frozen=True, slots=True, kw_only=True)
class Dataset:
    """Three disjoint splits; `validation` chooses, `test` is never trained or chosen on.

    Of running text there are no classes, and `text` says how it became tokens.
    """

    name: str
    input: InputSpec
    classes: tuple[str, ...]
    train: Samples
    validation: Samples
    test: Samples
    split: SplitRecord | None = None
    text: TextSpec | None = None

    def read_for(self, expected: InputSpec) -> Dataset:
        """The same as weights expect it: their mean and deviation, their crop of files."""
        splits: dict[str, Samples] = {}
        for name in ("train", "validation", "test"):
            samples = getattr(self, name)
            splits[name] = samples.read_for(expected) if hasattr(samples, "read_for") else samples
        return replace(self, input=expected, **splits)

    def choosing_on_test(self) -> Dataset:
        """The same with a drawn half of the test samples to choose on, the rest to report on.

        For weights that were trained on all training samples, none of which can choose then. Raises
        DataError for fewer than two test samples.
        """
        if len(self.test) < 2:
            raise DataError(
                f"{self.name} has {len(self.test)} test samples, half to choose on and half to "
                "report on: give 2 or more, or choose on validation"
            )
        order = np.random.default_rng(_HALVES).permutation(len(self.test))
        choose, report = (torch.from_numpy(np.sort(half)) for half in np.array_split(order, 2))
        return replace(self, validation=Subset(self.test, choose), test=Subset(self.test, report))


def untrained_classes(data: Dataset) -> str:
    """Names of the classes of which no sample is left to train on; empty where there is none."""
    if not data.classes:
        return ""
    counts = torch.bincount(data.train.labels, minlength=len(data.classes)).tolist()
    gone = [name for name, count in zip(data.classes, counts, strict=True) if not count]
    more = f" and {len(gone) - _SHOWN} more" if len(gone) > _SHOWN else ""
    return ", ".join(gone[:_SHOWN]) + more


def digest_of(labels: np.ndarray, contents: Iterable[bytes]) -> str:
    """Name samples by all their labels and some of what they hold."""
    digest = hashlib.sha256(np.ascontiguousarray(labels, dtype=np.int64).tobytes())
    for content in contents:
        digest.update(content)
    return digest.hexdigest()[:16]


def split_rows(
    num_rows: int, options: DataConfig, seed: int, where: str
) -> tuple[np.ndarray, np.ndarray]:
    """Rows to train on (at most `limit`) and to hold out, each ascending. Raises DataError.

    Which are held out does not depend on `limit`.
    """
    order = np.random.default_rng((seed, 0)).permutation(num_rows)
    cut = len(order) - round(len(order) * options.validation)
    if not 0 < cut < len(order):
        raise DataError(f"{where}: {num_rows} training samples leave none to train or validate on")
    train = order[: min(cut, options.limit or cut)]
    return np.sort(train), np.sort(order[cut:])
