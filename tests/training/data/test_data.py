from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from training.config import DataConfig
from training.data.augment import DrawKey, augment, mix
from training.data.data import epoch_batches, load_dataset
from training.evaluation.evaluate import wilson_interval


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
    assert wilson_interval(10, 10)[1] == pytest.approx(1.0)
