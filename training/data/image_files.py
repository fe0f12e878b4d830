"""Image data that stays on disk: `train/CLASS/*.jpg` with `val/` or `test/` beside it.

The layout of ImageNet and of torchvision's ImageFolder. Files are listed once and decoded when a
batch takes them, by a few threads and one batch ahead or by worker processes, so memory does not
grow with the data set. A training image is a random resized crop, mirrored every other time, and
RandAugment's operations are done on it if asked for, all drawn by a key of batch and row; an
evaluation image is the centre square of 7/8 of the shorter side, resized bilinearly: or what the
weights that are to be trained or measured expect instead.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.data import get_worker_info

from supernet.input import InputSpec
from training.config import DataConfig
from training.data.augment import rand_augment
from training.data.class_folders import read_class_folders
from training.data.pictures import read_picture
from training.data.samples import Dataset, Split, SplitRecord, digest_of, split_rows

_CROP = 7 / 8  # 224 of 256, as is usual
_MEAN_OF = 256  # images that mean and deviation are taken from
_RATIO = (3 / 4, 4 / 3)


@dataclass(frozen=True, slots=True)
class ImageFiles:
    """Files with their labels (N,); `take` decodes to (B, 3, size, size) uint8."""

    paths: tuple[Path, ...]
    labels: torch.Tensor
    size: int
    is_cropped_randomly: bool
    crop: float = _CROP
    interpolation: str = "bilinear"
    crop_scale: float = 0.25
    randaugment: int = 0
    randaugment_magnitude: int = 9

    def read_for(self, expected: InputSpec) -> ImageFiles:
        """The same files, cropped and resized as weights expect it, where they say so."""
        return replace(
            self,
            crop=expected.crop or self.crop,
            interpolation=expected.interpolation or self.interpolation,
        )

    def __len__(self) -> int:
        return len(self.paths)

    def take(self, rows: torch.Tensor, key: Sequence[int] | None = None) -> Split:
        """Decode the rows. Raises DataError naming a file that is no readable image."""
        draws: list[np.random.Generator | None] = [None] * len(rows)
        if key is not None and self.is_cropped_randomly:
            draws = [np.random.default_rng((*key, int(row))) for row in rows]
        paths = [self.paths[int(row)] for row in rows]
        if get_worker_info() is not None:  # a process among several that read
            images = list(map(self._read, paths, draws))
        else:
            with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
                images = list(pool.map(self._read, paths, draws))
        stacked = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()
        if key is not None and self.randaugment:
            keys = [(*key, int(row)) for row in rows]
            stacked = rand_augment(stacked, self.randaugment, self.randaugment_magnitude, keys)
        return Split(stacked, self.labels[rows])

    def _read(self, path: Path, rng: np.random.Generator | None) -> np.ndarray:
        """(size, size, 3) uint8."""
        # The decoder may skip detail that will not be seen.
        wanted = 0 if rng is not None else math.ceil(self.size / self.crop)
        rgb = read_picture(path, str(path), at_least=wanted)
        box = (
            _centre_box(rgb.size, self.crop)
            if rng is None
            else _random_box(rgb.size, self.crop_scale, rng)
        )
        square, kind = (self.size, self.size), Image.Resampling[self.interpolation.upper()]
        resized = rgb.resize(square, kind, box, reducing_gap=2.0)
        pixels = np.asarray(resized)
        return pixels[:, ::-1] if rng is not None and rng.random() < 0.5 else pixels


def load_image_files(options: DataConfig, seed: int) -> Dataset:
    """List the folder at `options.path`; no image is read but a few for mean and deviation.

    Raises DataError: no such layout, an empty class, classes that differ between the splits.
    """
    root = Path(options.path)
    classes, (paths, labels), (test_paths, test_labels) = read_class_folders(root)
    random_crop = options.augmentation == "random_resized_crop" and options.augment > 0
    train_rows, held_out = split_rows(len(paths), options, seed, str(root))

    def files(rows: Sequence[int], of: list[Path], their: list[int], crop: bool) -> ImageFiles:
        known = torch.tensor([their[i] for i in rows])
        return ImageFiles(
            tuple(of[i] for i in rows), known, options.size, crop, crop_scale=options.crop_scale
        )

    train = files(train_rows.tolist(), paths, labels, random_crop)
    return Dataset(
        name=root.name,
        input=_input_of(train),
        classes=classes,
        train=replace(
            train,
            randaugment=options.randaugment,
            randaugment_magnitude=options.randaugment_magnitude,
        ),
        validation=files(held_out.tolist(), paths, labels, False),
        test=files(range(len(test_paths)), test_paths, test_labels, False),
        split=SplitRecord(
            seed=seed,
            validation=options.validation,
            digest=digest_of(
                np.array(labels), (str(p.relative_to(root / "train")).encode() for p in paths)
            ),
        ),
    )


def _input_of(train: ImageFiles) -> InputSpec:
    every = max(1, len(train) // _MEAN_OF)
    sample = train.take(torch.arange(0, len(train), every)[:_MEAN_OF]).images.double() / 255.0
    mean, std = sample.mean((0, 2, 3)), sample.std((0, 2, 3))
    return InputSpec(
        channels=3,
        height=train.size,
        width=train.size,
        mean=tuple(round(float(m), 4) for m in mean),
        std=tuple(max(0.01, round(float(s), 4)) for s in std),
    )


def _centre_box(size: tuple[int, int], crop: float) -> tuple[float, float, float, float]:
    """The centre square that a share of the shorter side spans."""
    width, height = size
    side = min(width, height) * crop
    left, top = (width - side) / 2, (height - side) / 2
    return (left, top, left + side, top + side)


def _random_box(
    size: tuple[int, int], scale: float, rng: np.random.Generator
) -> tuple[float, float, float, float]:
    """A random part of the area at a random aspect ratio; the whole image where none fits."""
    width, height = size
    for _ in range(10):
        area = rng.uniform(scale, 1.0) * width * height
        ratio = math.exp(rng.uniform(math.log(_RATIO[0]), math.log(_RATIO[1])))
        w, h = math.sqrt(area * ratio), math.sqrt(area / ratio)
        if w <= width and h <= height:
            left, top = rng.uniform(0, width - w), rng.uniform(0, height - h)
            return (left, top, left + w, top + h)
    return (0.0, 0.0, float(width), float(height))
