"""A folder with a folder per class, read while it trains."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from training.config import DataConfig, config_from_json
from training.data.array_folder import DataError
from training.data.augment import DrawKey, augment
from training.data.data import epoch_batches, load_dataset
from training.data.image_files import ImageFiles
from training.run import train


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two classes that differ in colour, pictures of differing sizes and formats."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 20), ("val", 6)):
        for label, name in enumerate(("blue", "red")):
            (tmp_path / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 60, (24 + i, 40, 3), dtype=np.uint8)
                pixels[..., 0 if label else 2] += 180
                suffix = ("png", "jpg")[i % 2]
                Image.fromarray(pixels).save(tmp_path / split / name / f"{i:02}.{suffix}")
    return tmp_path


def options(folder: Path, **values) -> DataConfig:
    return DataConfig(name="images", path=str(folder), size=16, validation=0.25, **values)


def test_images_are_read_when_they_are_taken(folder: Path) -> None:
    data = load_dataset(options(folder))
    assert isinstance(data.train, ImageFiles)
    assert [len(s) for s in (data.train, data.validation, data.test)] == [30, 10, 12]
    assert data.classes == ("blue", "red")
    assert data.input.shape == (3, 16, 16)
    batch = data.test.take(torch.arange(12))
    assert batch.images.shape == (12, 3, 16, 16)
    assert batch.images.dtype == torch.uint8
    is_red = batch.images[:, 0].float().mean((1, 2)) > batch.images[:, 2].float().mean((1, 2))
    assert torch.equal(is_red.long(), batch.labels)
    assert not set(data.train.paths) & set(data.validation.paths)  # type: ignore[union-attr]


def test_random_crops_are_keyed_and_evaluation_has_none(folder: Path) -> None:
    data = load_dataset(options(folder, augmentation="random_resized_crop"))
    rows = torch.arange(4)
    first, again, other = (data.train.take(rows, key).images for key in ((0, 1), (0, 1), (0, 2)))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(data.train.take(rows).images, data.train.take(rows).images)


def test_batches_read_ahead_are_those_that_were_asked_for(folder: Path) -> None:
    train_split = load_dataset(options(folder)).train
    batches = list(epoch_batches(train_split, 8, seed=0, epoch=0))
    assert [len(b) for b in batches] == [8, 8, 8]
    from_second = list(epoch_batches(train_split, 8, seed=0, epoch=0, first=1))
    assert all(
        torch.equal(a.images, b.images) for a, b in zip(batches[1:], from_second, strict=True)
    )
    half = next(epoch_batches(train_split, 8, seed=0, epoch=0, part=slice(1, None, 2)))
    assert torch.equal(half.labels, batches[0].labels[1::2])


@pytest.mark.parametrize("randaugment", [0, 2])
def test_worker_processes_read_what_threads_read(folder: Path, randaugment: int) -> None:
    split = load_dataset(
        options(folder, augmentation="random_resized_crop", randaugment=randaugment)
    ).train
    plain, workers = (
        list(epoch_batches(split, 8, seed=3, epoch=2, first=1, part=slice(1, None, 2), workers=n))
        for n in (0, 2)
    )
    assert len(plain) == len(workers) == 2
    for a, b in zip(plain, workers, strict=True):
        assert torch.equal(a.images, b.images)
        assert torch.equal(a.labels, b.labels)


def test_randaugment_is_drawn_by_row_and_only_in_training(folder: Path) -> None:
    plain = load_dataset(options(folder, augment=0.0))
    data = load_dataset(options(folder, augment=0.0, randaugment=2))
    rows = torch.arange(8)
    augmented = data.train.take(rows, (0, 1)).images
    assert not torch.equal(augmented, plain.train.take(rows, (0, 1)).images)
    assert torch.equal(augmented, data.train.take(rows, (0, 1)).images)
    alone = torch.cat([data.train.take(rows[i : i + 1], (0, 1)).images for i in range(8)])
    assert torch.equal(augmented, alone), "whichever batch a row is in"
    for name in ("validation", "test"):
        taken = [getattr(d, name).take(rows, (0, 1)).images for d in (plain, data)]
        assert torch.equal(*taken)
    assert torch.equal(data.train.take(rows).images, plain.train.take(rows).images), "calibration"
    # Not once more by what augments a batch.
    whole = DataConfig(name="images", path=str(folder), size=16, augment=0.0, randaugment=2)
    normal = augment(augmented, data.input, 16, whole, DrawKey(0, 0))
    assert torch.equal(normal, data.input.normalise(augmented, 16))


def test_a_run_read_by_workers_ends_and_resumes_as_one_read_by_threads(
    folder: Path, tmp_path: Path
) -> None:
    def run(out: Path, workers: list[int]) -> dict[str, torch.Tensor]:
        for i, count in enumerate(workers):
            steps = iter(range(5) if i < len(workers) - 1 else range(10**6))
            config = config_from_json(
                {
                    "threads": 1, "amp": "off",
                    "supernet": {"variant": "resnet_tiny", "overrides": {
                        "in_channels": 3, "num_classes": 2, "resolution": 16}},
                    "data": {"name": "images", "path": str(folder), "size": 16, "batch_size": 8,
                             "augmentation": "random_resized_crop", "validation": 0.25,
                             "randaugment": 1, "mixup": 0.2, "workers": count},
                    "schedule": {"epochs": 3, "delay": 0.3, "ramp_epochs": 0.5},
                    "evaluation": {"calibration_images": 24, "random_archs": 0, "search": 0},
                }
            )  # fmt: skip
            checkpoint = train(config, out, resume=i > 0,
                               should_stop=lambda s=steps: next(s, None) is None)  # fmt: skip
        assert checkpoint is not None
        return dict(checkpoint.state)

    by_threads, by_both = run(tmp_path / "a", [0]), run(tmp_path / "b", [2, 0])
    for name, tensor in by_threads.items():
        assert torch.equal(tensor, by_both[name]), name


def test_a_supernet_trains_from_files(folder: Path, tmp_path: Path) -> None:
    config = config_from_json(
        {
            "threads": 1,
            "amp": "off",
            "supernet": {
                "variant": "resnet_tiny",
                "overrides": {"in_channels": 3, "num_classes": 2, "resolution": 16},
            },
            "data": {
                "name": "images", "path": str(folder), "size": 16, "batch_size": 8,
                "augmentation": "random_resized_crop", "validation": 0.25,
            },
            "schedule": {"epochs": 6, "delay": 0.3, "ramp_epochs": 0.5},
            "evaluation": {"calibration_images": 24},
        }
    )  # fmt: skip
    checkpoint = train(config, tmp_path / "out")
    assert checkpoint is not None
    assert checkpoint.subnets[-1].accuracy > 0.8


def test_a_broken_picture_is_named(folder: Path) -> None:
    broken = folder / "train" / "red" / "03.jpg"
    broken.write_bytes(broken.read_bytes()[:40])
    with pytest.raises(DataError, match=r"red/03.jpg: not a readable image"):
        list(epoch_batches(load_dataset(options(folder)).train, 5, seed=0, epoch=0))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: [p.unlink() for p in (f / "train/red").iterdir()], "train/red: no image in it"),
        (lambda f: (f / "val/red").rename(f / "val/green"), "must have the same class folders"),
        (lambda f: (f / "train").rename(f / "training"), "train: no such folder; expected train/"),
    ],
)
def test_a_wrong_layout_is_named(folder: Path, spoil, message: str) -> None:
    spoil(folder)
    with pytest.raises(DataError, match=message):
        load_dataset(options(folder))
