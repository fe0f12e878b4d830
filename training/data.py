"""Images to train on: splits held in memory as uint8, batches in an order keyed by the epoch.

Every draw comes from a generator keyed by (seed, purpose, epoch or step), never from a global
one, so a resumed run sees the same batches as one that was not interrupted.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from supernet.input import InputSpec
from training.array_folder import DataError, read_array_folder

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


def load_dataset(name: str, seed: int = 0, path: str = "", validation: float = 0.1) -> Dataset:
    """Load a data set by name, split by `seed`.

    `digits` needs nothing; `folder` reads the array folder at `path` and holds the `validation`
    share of its training images out. Raises DataError, or ValueError listing the known names.
    """
    if name == "digits":
        return _load_digits(seed)
    if name == "folder":
        return _load_folder(path, seed, validation)
    raise ValueError(f"unknown data set {name!r}; known: digits, folder")


def _load_folder(path: str, seed: int, validation: float) -> Dataset:
    folder = read_array_folder(path)
    images, labels = folder.train
    order = np.random.default_rng((seed, 0)).permutation(len(labels))
    cut = len(order) - round(len(order) * validation)
    if not 0 < cut < len(order):
        raise DataError(f"{path}: {len(order)} training images leave none to train or validate on")
    train, held_out = (np.sort(part) for part in np.split(order, [cut]))
    sample = images[train[:: max(1, len(train) // 5000)]] / 255.0
    spec = InputSpec(
        channels=images.shape[1],
        height=images.shape[2],
        width=images.shape[3],
        mean=tuple(round(float(m), 4) for m in sample.mean((0, 2, 3))),
        std=tuple(round(float(d), 4) for d in sample.std((0, 2, 3))),
    )
    splits = [
        Split(torch.from_numpy(images[i]), torch.from_numpy(labels[i])) for i in (train, held_out)
    ]
    test = Split(
        torch.from_numpy(np.array(folder.test.images)),
        torch.from_numpy(np.array(folder.test.labels)),
    )
    return Dataset(
        name=Path(path).name,
        input=spec,
        classes=folder.classes,
        train=splits[0],
        validation=splits[1],
        test=test,
    )


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
    kind: str,
    strength: float,
    seed: int,
    step: int,
    rank: int = 0,
) -> torch.Tensor:
    """Turn (B, C, H, W) uint8 into augmented network inputs (B, C, resolution, resolution).

    `affine`: a random small rotation, scaling and shift per image, in one resampling together
    with the resize; strength 1 means up to 12 degrees, 10 % and 8 % of the image.
    `crop_flip`: reflect-pad by an eighth of the side times strength, crop, mirror every other
    image on average (the standard for CIFAR). Strength 0: the plain input.
    """
    if strength == 0.0:
        return spec.normalise(samples, resolution)
    rng = np.random.default_rng((seed, _AUGMENT, step, rank))
    if kind == "crop_flip":
        return _crop_flip(spec.normalise(samples, resolution), strength, rng)
    return _affine(spec.normalise(samples, samples.shape[-1]), resolution, strength, rng)


def _affine(
    x: torch.Tensor, resolution: int, strength: float, rng: np.random.Generator
) -> torch.Tensor:
    draw = rng.uniform(-strength, strength, (4, len(x)))
    angle, scale = draw[0] * math.radians(12.0), 1.0 + 0.1 * draw[1]
    cosine, sine = scale * np.cos(angle), scale * np.sin(angle)
    shift = 0.16 * draw[2:]  # the image spans -1 to 1
    theta = np.stack(
        [np.stack([cosine, -sine, shift[0]], 1), np.stack([sine, cosine, shift[1]], 1)], 1
    )
    size = [len(x), x.shape[1], resolution, resolution]
    grid = F.affine_grid(torch.from_numpy(theta).to(x), size, align_corners=False)
    return F.grid_sample(x, grid, padding_mode="border", align_corners=False)


def _crop_flip(x: torch.Tensor, strength: float, rng: np.random.Generator) -> torch.Tensor:
    side = x.shape[-1]
    pad = max(1, round(side / 8 * strength))
    padded = F.pad(x, (pad,) * 4, mode="reflect")  # (B, C, side + 2 pad, side + 2 pad)
    top, left = (torch.from_numpy(rng.integers(0, 2 * pad + 1, len(x))) for _ in range(2))
    columns = left[:, None] + torch.arange(side)  # (B, side)
    mirrored = torch.from_numpy(rng.random(len(x)) < 0.5)
    columns = torch.where(mirrored[:, None], columns.flip(1), columns)
    rows = top[:, None] + torch.arange(side)
    image = torch.arange(len(x))[:, None, None]
    # Advanced indices around a slice put their axes first: (B, side, side, C).
    cropped = padded[image, :, rows[:, :, None], columns[:, None, :]]
    return cropped.permute(0, 3, 1, 2)
