"""Augmentation: from uint8 samples and labels to what the network and the loss take.

Every draw comes from a generator keyed by (seed, purpose, step, rank). RandAugment, mixup and
cutmix are torchvision's, which draw from torch's global generator: they run inside a fork of it.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from typing import NamedTuple

import numpy as np
import torch
from torch.nn import functional as F

from supernet.input import InputSpec
from training.config import DataConfig

_AUGMENT, _MIX = 1, 5
_generator = threading.RLock()


class DrawKey(NamedTuple):
    """What a step's draws depend on."""

    seed: int
    step: int
    rank: int = 0


def augment(
    samples: torch.Tensor, spec: InputSpec, resolution: int, options: DataConfig, key: DrawKey
) -> torch.Tensor:
    """Turn (B, C, H, W) uint8 into augmented network inputs (B, C, resolution, resolution).

    `affine`: a random small rotation, scaling and shift per image, in one resampling together
    with the resize; strength 1 means up to 12 degrees, 10 % and 8 % of the image.
    `crop_flip`: reflect-pad by an eighth of the side times strength, crop, mirror every other
    image on average (the standard for CIFAR). `crop_alternating_flip`: the crop alone, of images
    that come mirrored in every other epoch (`epoch_batches`). `cutout` then blanks a square.
    Strength 0: the plain input, as are token ids.
    """
    if spec.kind == "tokens":
        return spec.normalise(samples, resolution)
    if options.randaugment and options.name != "images":  # of which they are done on reading
        keys = [(*key, _AUGMENT)] * len(samples)
        samples = rand_augment(samples, options.randaugment, options.randaugment_magnitude, keys)
    if options.augment == 0.0 or options.augmentation == "random_resized_crop":  # done on reading
        return spec.normalise(samples, resolution)
    rng = np.random.default_rng((key.seed, _AUGMENT, key.step, key.rank))
    if options.augmentation != "affine":
        mirrors = options.augmentation == "crop_flip"
        cropped = _crop(spec.normalise(samples, resolution), options.augment, mirrors, rng)
        return _cut_out(cropped, options.cutout, rng)
    return _affine(spec.normalise(samples, samples.shape[-1]), resolution, options.augment, rng)


def mix(
    x: torch.Tensor, labels: torch.Tensor, num_classes: int, options: DataConfig, key: DrawKey
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mix images of a batch and their labels; (B,) labels become (B, num_classes) shares.

    Where neither mixup nor cutmix is on, both are returned as they are.
    """
    kinds = [name for name in ("mixup", "cutmix") if getattr(options, name) > 0]
    if not kinds:
        return x, labels
    from torchvision.transforms import v2

    kind = kinds[int(np.random.default_rng((*key, _MIX)).integers(len(kinds)))]
    mixer = v2.MixUp if kind == "mixup" else v2.CutMix
    with _keyed((*key, _AUGMENT)):
        return mixer(alpha=float(getattr(options, kind)), num_classes=num_classes)(x, labels)


def rand_augment(
    samples: torch.Tensor, count: int, magnitude: int, keys: Sequence[Sequence[int]]
) -> torch.Tensor:
    """Do `count` of RandAugment's operations on each of (B, C, H, W) uint8 images.

    Each image draws by its key; images that follow each other with the same key share a stream.
    """
    from torchvision.transforms import v2

    transform = v2.RandAugment(count, magnitude)
    done: list[torch.Tensor] = []
    for key, images in groupby(zip(keys, samples, strict=True), key=lambda pair: tuple(pair[0])):
        with _keyed(key):
            done += [transform(image) for _, image in images]
    return torch.stack(done)


@contextmanager
def _keyed(key: Sequence[int]) -> Iterator[None]:
    """Seed torch's global generator for a while; it is as before afterwards.

    One thread at a time: batches are read on another one than they are mixed on.
    """
    with _generator, torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(np.random.default_rng(key).integers(2**62)))
        yield


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


def _crop(
    x: torch.Tensor, strength: float, mirrors: bool, rng: np.random.Generator
) -> torch.Tensor:
    side = x.shape[-1]
    pad = min(max(1, round(side / 8 * strength)), side - 1)  # a mirror shows no more than there is
    padded = F.pad(x, (pad,) * 4, mode="reflect")  # (B, C, side + 2 pad, side + 2 pad)
    top, left = (torch.from_numpy(rng.integers(0, 2 * pad + 1, len(x))) for _ in range(2))
    columns = left[:, None] + torch.arange(side)  # (B, side)
    if mirrors:
        mirrored = torch.from_numpy(rng.random(len(x)) < 0.5)
        columns = torch.where(mirrored[:, None], columns.flip(1), columns)
    rows = top[:, None] + torch.arange(side)
    image = torch.arange(len(x))[:, None, None]
    # Advanced indices around a slice put their axes first: (B, side, side, C).
    cropped = padded[image, :, rows[:, :, None], columns[:, None, :]]
    return cropped.permute(0, 3, 1, 2)


def _cut_out(x: torch.Tensor, size: int, rng: np.random.Generator) -> torch.Tensor:
    """Blank a square of `size` pixels a side, whose centre lies anywhere (DeVries, 2017)."""
    if size == 0:
        return x
    side = x.shape[-1]
    first = rng.integers(0, side, (2, len(x), 1)) - size // 2
    inside = (np.arange(side) >= first) & (np.arange(side) < first + size)  # (2, B, side)
    blank = torch.from_numpy(inside[0][:, :, None] & inside[1][:, None, :])  # (B, side, side)
    return x.masked_fill(blank[:, None].to(x.device), 0.0)
