from __future__ import annotations

import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from training.config import DataConfig
from training.data.array_folder import ArraySplit, DataError, write_array_folder
from training.data.augment import DrawKey, augment, mix
from training.data.data import epoch_batches, load_dataset
from training.data.samples import Subset
from training.evaluation.evaluate import wilson_interval


def test_digits_are_split_without_overlap() -> None:
    data = load_dataset("digits", seed=1)
    sizes = [len(split) for split in (data.train, data.validation, data.test)]
    assert sizes == [1078, 360, 359]
    assert data.train.images.shape == (1078, 1, 8, 8)
    assert data.train.images.dtype == torch.uint8
    assert int(data.train.images.max()) == 255
    assert all(len(split.labels.unique()) == 10 for split in (data.train, data.test))


@pytest.mark.parametrize("count", [0, 1, 2])
def test_half_of_too_few_test_samples_cant_choose(count: int) -> None:
    data = load_dataset(DataConfig())
    data = replace(data, test=Subset(data.test, torch.arange(count)))
    if count < 2:
        with pytest.raises(DataError, match=f"digits has {count} test samples, .*: give 2 or more"):
            data.choosing_on_test()
    else:
        halves = data.choosing_on_test()
        assert (len(halves.validation), len(halves.test)) == (1, 1)


def test_an_epoch_visits_each_image_at_most_once_in_an_order_of_its_own() -> None:
    split = load_dataset("digits").train
    orders = [
        torch.cat([batch.labels for batch in epoch_batches(split, 50, seed=0, epoch=epoch)])
        for epoch in (0, 0, 1)
    ]
    assert len(orders[0]) == 1050
    assert torch.equal(orders[0], orders[1])
    assert not torch.equal(orders[0], orders[2])


def test_augmentation_without_strength_is_the_plain_input() -> None:
    data = load_dataset("digits")
    images = data.train.images[:4]
    plain = data.input.normalise(images, 32)
    assert torch.equal(
        augment(
            images, data.input, 32, DataConfig(augmentation="affine", augment=0.0), DrawKey(0, 0)
        ),
        plain,
    )
    tiny = augment(
        images, data.input, 32, DataConfig(augmentation="affine", augment=1e-9), DrawKey(0, 0)
    )
    torch.testing.assert_close(tiny, plain, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(
        augment(
            images, data.input, 32, DataConfig(augmentation="affine", augment=1), DrawKey(0, 0)
        ),
        plain,
    )


def test_randaugment_moves_pixels_and_leaves_the_global_generator_alone() -> None:
    data = load_dataset("digits")
    images = data.train.take(torch.arange(8)).images.repeat(1, 3, 4, 4)
    spec = replace(data.input, channels=3, mean=(0.5,) * 3, std=(0.25,) * 3)
    options = DataConfig(augment=0.0, randaugment=2)
    before = torch.get_rng_state()
    once, again, later = (
        augment(images, spec, 32, options, DrawKey(0, step)) for step in (5, 5, 6)
    )
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(once, again)
    assert not torch.equal(once, later)
    assert not torch.equal(once, spec.normalise(images, 32))


@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_mixing_gives_shares_of_labels_that_add_up(kind: str) -> None:
    x, labels = torch.arange(6.0).reshape(6, 1, 1, 1).expand(6, 1, 8, 8), torch.arange(6) % 3
    options = DataConfig(**{kind: 1.0})
    mixed, shares = mix(x.clone(), labels, 3, options, DrawKey(0, 0))
    assert shares.shape == (6, 3)
    torch.testing.assert_close(shares.sum(1), torch.ones(6))
    assert not torch.equal(mixed, x)
    assert torch.equal(mix(x.clone(), labels, 3, options, DrawKey(0, 0))[0], mixed)
    plain = mix(x, labels, 3, DataConfig(), DrawKey(0, 0))
    assert plain[0] is x
    assert plain[1] is labels


def test_an_unknown_data_set_lists_the_known() -> None:
    with pytest.raises(
        ValueError, match="unknown data set 'cifar'; known by its name alone: digits"
    ):
        load_dataset("cifar")


def test_the_interval_of_a_proportion_is_wilsons() -> None:
    low, high = wilson_interval(95, 100)
    assert (round(low, 4), round(high, 4)) == (0.8882, 0.9785)
    for count in range(1, 80):  # of 10, 13 and others rounding fell below 1, of 3 and 6 above 0
        assert wilson_interval(count, count)[1] == 1.0
        assert wilson_interval(0, count)[0] == 0.0


def test_every_image_is_mirrored_in_every_other_epoch() -> None:
    split = load_dataset("digits").train
    plain, *epochs = (
        list(epoch_batches(split, 50, seed=0, epoch=epoch, alternating_flip=flip))
        for epoch, flip in ((0, False), (0, True), (1, True), (2, True))
    )
    sides = torch.cat([a.images for a in plain]), torch.cat([b.images for b in epochs[0]])
    is_mirrored = (sides[0] != sides[1]).flatten(1).any(1)
    assert torch.equal(sides[1][is_mirrored], sides[0][is_mirrored].flip(-1))
    assert 0.4 < float(is_mirrored.float().mean()) < 0.6
    by_row = [sorted(bytes(i.numpy().tobytes()) for b in e for i in b.images) for e in epochs]
    assert by_row[0] != by_row[1]
    # What was shown from one side is shown from the other in the next epoch.
    shown = {bytes(i.flip(-1).numpy().tobytes()) for b in epochs[1] for i in b.images}
    both = sum(image in shown for image in by_row[0])
    assert both > 0.9 * len(by_row[0])  # an epoch leaves out what fills no batch


def test_cutout_blanks_one_square_and_nothing_else() -> None:
    data = load_dataset("digits")
    images = torch.full_like(data.train.images[:200], 255)
    options = DataConfig(augmentation="crop_alternating_flip", cutout=3)
    x = augment(images, data.input, 8, options, DrawKey(0, 0))
    white = float(data.input.normalise(images[:1], 8).max())
    blank = (x == 0.0)[:, 0]
    assert bool(((x == 0.0) | (x == white)).all())
    areas = blank.flatten(1).sum(1)
    assert int(areas.max()) == 9
    assert int(areas.min()) >= 1
    for image in blank:
        rows, columns = image.any(1).nonzero().flatten(), image.any(0).nonzero().flatten()
        assert int(image.sum()) == len(rows) * len(columns)
        assert int(rows.max() - rows.min()) < 3
        assert int(columns.max() - columns.min()) < 3


@pytest.mark.parametrize("augmentation", ["crop_flip", "crop_alternating_flip"])
def test_a_strong_crop_of_small_images_is_no_error(augmentation: Any) -> None:
    """It had asked for a mirrored border as wide as the image, which torch does not make."""
    data = load_dataset("digits")
    options = DataConfig(augmentation=augmentation, augment=9.0)
    cropped = augment(data.train.images[:16], data.input, 8, options, DrawKey(0, 0))
    assert cropped.shape == (16, 1, 8, 8)
    assert not torch.equal(cropped, data.input.normalise(data.train.images[:16], 8))


def test_mean_and_deviation_take_little_memory(tmp_path: Path) -> None:
    """As floating-point numbers 10,000 pictures of 224 pixels a side had taken 12 GB."""
    images = np.random.default_rng(0).integers(0, 200, (600, 3, 40, 40), dtype=np.uint8)
    split = ArraySplit(images, np.arange(600) % 3)
    write_array_folder(tmp_path / "a", split, split, ("a", "b", "c"))
    options = DataConfig(name="folder", path=str(tmp_path / "a"), validation=0.5)
    tracemalloc.start()
    try:
        data = load_dataset(options)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < 5 * images.nbytes
    pixels = data.train.take(torch.arange(300)).images.double() / 255.0
    assert data.input.mean == tuple(round(float(m), 4) for m in pixels.mean((0, 2, 3)))
    std = pixels.std((0, 2, 3), correction=0)
    assert data.input.std == tuple(round(float(s), 4) for s in std)
