from __future__ import annotations

import pytest
import torch

from training.data import augment, epoch_batches, load_dataset
from training.evaluate import wilson_interval


def test_digits_are_split_without_overlap() -> None:
    data = load_dataset("digits", seed=1)
    sizes = [len(split) for split in (data.train, data.validation, data.test)]
    assert sizes == [1078, 360, 359]
    assert data.train.images.shape == (1078, 1, 8, 8)
    assert data.train.images.dtype == torch.uint8
    assert int(data.train.images.max()) == 255
    assert all(len(split.labels.unique()) == 10 for split in (data.train, data.test))


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
        augment(images, data.input, 32, kind="affine", strength=0.0, seed=0, step=0), plain
    )
    tiny = augment(images, data.input, 32, kind="affine", strength=1e-9, seed=0, step=0)
    torch.testing.assert_close(tiny, plain, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(
        augment(images, data.input, 32, kind="affine", strength=1, seed=0, step=0), plain
    )


def test_an_unknown_data_set_lists_the_known() -> None:
    with pytest.raises(ValueError, match="unknown data set 'cifar'; known: digits, folder"):
        load_dataset("cifar")


def test_the_interval_of_a_proportion_is_wilsons() -> None:
    low, high = wilson_interval(95, 100)
    assert (round(low, 4), round(high, 4)) == (0.8882, 0.9785)
    assert wilson_interval(10, 10)[1] == pytest.approx(1.0)
