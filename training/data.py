"""Images to train on: splits held in memory as uint8, batches in an order keyed by the epoch.

Every draw comes from a generator keyed by (seed, purpose, epoch or step), never from a global
one, so a resumed run sees the same batches as one that was not interrupted.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from supernet.input import InputSpec

_ORDER, _AUGMENT = 0, 1


@dataclass(frozen=True, slots=True)
class Split:
    """Images (N, C, H, W) uint8 with their labels (N,) int64."""

    images: torch.Tensor
    labels: torch.Tensor

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True, slots=True, kw_only=True)
class Dataset:
    """Three disjoint splits; `validation` measures, `test` is never trained or chosen on."""

    name: str
    input: InputSpec
    classes: tuple[str, ...]
    train: Split
    validation: Split
    test: Split


def load_dataset(name: str, seed: int = 0) -> Dataset:
    """Load a data set by name, split by `seed`. Raises ValueError listing the known names."""
    if name not in _LOADERS:
        raise ValueError(f"unknown data set {name!r}; known: {', '.join(_LOADERS)}")
    return _LOADERS[name](seed)


def _load_digits(seed: int) -> Dataset:
    """scikit-learn's digits: 1,797 real 8x8 scans of hand-written digits (UCI, test part)."""
    from sklearn.datasets import load_digits

    bunch: Any = load_digits()
    images = np.rint(bunch.images * (255.0 / 16.0)).astype(np.uint8)[:, None]
    labels = bunch.target.astype(np.int64)
    order = np.random.default_rng((seed, 0)).permutation(len(labels))
    cuts = [round(len(labels) * 0.6), round(len(labels) * 0.8)]
    train, validation, test = (
        Split(torch.from_numpy(images[part]), torch.from_numpy(labels[part]))
        for part in np.split(order, cuts)
    )
    pixels = train.images.numpy() / 255.0
    spec = InputSpec(
        channels=1,
        height=8,
        width=8,
        mean=(round(float(pixels.mean()), 4),),
        std=(round(float(pixels.std()), 4),),
    )
    return Dataset(
        name="digits",
        input=spec,
        classes=tuple(map(str, range(10))),
        train=train,
        validation=validation,
        test=test,
    )


_LOADERS: dict[str, Callable[[int], Dataset]] = {"digits": _load_digits}


def steps_per_epoch(split: Split, batch_size: int) -> int:
    """Number of whole batches; a last, smaller batch is left out (its norms are noisier)."""
    return max(1, len(split) // batch_size)


def epoch_batches(split: Split, batch_size: int, seed: int, epoch: int) -> Iterator[Split]:
    """Yield the shuffled whole batches of one epoch."""
    order = np.random.default_rng((seed, _ORDER, epoch)).permutation(len(split))
    for step in range(steps_per_epoch(split, batch_size)):
        rows = torch.from_numpy(order[step * batch_size : (step + 1) * batch_size])
        yield Split(split.images[rows], split.labels[rows])


def augment(
    samples: torch.Tensor,
    spec: InputSpec,
    resolution: int,
    *,
    strength: float,
    seed: int,
    step: int,
) -> torch.Tensor:
    """Turn (B, C, H, W) uint8 into augmented network inputs (B, C, resolution, resolution).

    A random small rotation, scaling and shift per image, done in one resampling together with
    the resize; `strength` 1 means up to 12 degrees, 10 % and 8 % of the image.
    """
    if strength == 0.0:
        return spec.normalise(samples, resolution)
    x = spec.normalise(samples, samples.shape[-1])
    draw = np.random.default_rng((seed, _AUGMENT, step)).uniform(-strength, strength, (4, len(x)))
    angle, scale = draw[0] * math.radians(12.0), 1.0 + 0.1 * draw[1]
    cosine, sine = scale * np.cos(angle), scale * np.sin(angle)
    shift = 0.16 * draw[2:]  # the image spans -1 to 1
    theta = np.stack(
        [np.stack([cosine, -sine, shift[0]], 1), np.stack([sine, cosine, shift[1]], 1)], 1
    )
    size = [len(x), x.shape[1], resolution, resolution]
    grid = F.affine_grid(torch.from_numpy(theta).to(x), size, align_corners=False)
    return F.grid_sample(x, grid, padding_mode="border", align_corners=False)
