"""A decoder's layers that are cut into pieces: together they are the whole, in every form."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from subnetact.decoding.decoder_weights import CutLayer, DecoderWeights, Layer, cut_evenly
from subnetact.decoding.linear_forms import FORMS, has_form
from supernet import Checkpoint
from supernet.families.decoder import DecoderConfig

WITHIN = {"views": 1e-6, "packed": 1e-6, "half": 1e-3, "int8": 0.02}


@pytest.mark.parametrize("form", FORMS)
def test_pieces_are_the_whole_layer(decoder: Checkpoint, form: str) -> None:
    if not has_form(form):
        pytest.skip(f"no {form} layers in this build of torch, or on this processor")
    whole = DecoderWeights(decoder, form=form)
    cut = DecoderWeights(decoder, form=form, pieces=3)
    generator = torch.Generator().manual_seed(0)
    config = decoder.definition.config
    assert isinstance(config, DecoderConfig)
    x = torch.randn(5, config.width, generator=generator)
    with torch.inference_mode():
        assert isinstance(cut.head, CutLayer)
        side_by_side = torch.cat([piece(x) for piece in cut.head.pieces], -1)
        for found in (cut.head(x), side_by_side):
            close(found, whole.head(x), form)
        for subnet_id, layers in whole.subnets.items():
            for plain, pieced in zip(layers, cut.subnets[subnet_id], strict=True):
                assert isinstance(plain, Layer)
                assert isinstance(pieced, Layer)
                form_of = pieced.feed_forward
                assert isinstance(form_of, CutLayer)
                assert len(form_of.pieces) == 3
                added = torch.stack([piece(x) for piece in form_of.pieces]).sum(0)
                for found in (form_of(x), added):
                    close(found, plain.feed_forward(x), form)


def close(found: torch.Tensor, expected: torch.Tensor, form: str) -> None:
    assert found.shape == expected.shape
    assert (found - expected).norm() <= WITHIN[form] * expected.norm()


def test_one_worker_has_nothing_cut(decoder: Checkpoint) -> None:
    weights = DecoderWeights(decoder)
    assert not isinstance(weights.head, CutLayer)


@pytest.mark.parametrize(("size", "count"), [(1536, 2), (1000, 3), (64, 2), (31, 4), (3, 3)])
def test_pieces_are_about_equal_and_none_is_empty(size: int, count: int) -> None:
    bounds = cut_evenly(size, count)
    sizes = [b - a for a, b in pairwise(bounds)]
    assert len(sizes) == count
    assert sum(sizes) == size
    assert min(sizes) > 0
    assert max(sizes) - min(sizes) < 16 * count
    assert cut_evenly(2, 3) == [0, 2]
