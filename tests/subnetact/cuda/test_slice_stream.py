"""Slices that are streamed: one buffer is filled while another one is read."""

from __future__ import annotations

import pytest
import torch

from subnetact.cuda.slice_layout import SliceLayout
from subnetact.cuda.slice_stream import SliceStream
from tests.subnetact.cuda.lane_accelerator import LaneAccelerator


def test_a_wrong_guess_of_what_comes_next_costs_a_copy_and_no_result() -> None:
    accelerator = LaneAccelerator()
    stream = SliceStream(accelerator, torch.float32)
    sources = {
        name: FakeSource(
            name, SliceLayout((4, 4, 1, 1), False, torch.float32), torch.full((64,), n)
        )
        for n, name in enumerate("abcd", start=1)
    }
    stream.reserve(64)
    following: dict = {}
    for order in ("abcd", "abcd", "dacb", "bd", "dacb", "aab"):
        stream.begin(following)
        for name in order:
            weight, bias = stream.take(sources[name])
            assert bias is None
            assert weight.shape == (4, 4, 1, 1)
            assert (weight == float(" abcd".index(name))).all(), (order, name)
            stream.done(sources[name])
    assert 0 < stream.num_prefetched < stream.num_copies + stream.num_prefetched
    assert stream.num_copied_bytes == stream.num_copies * 64 * 4


def test_what_comes_next_never_takes_the_buffer_that_is_being_read() -> None:
    stream = SliceStream(LaneAccelerator(), torch.float32)
    a, x, y = (
        FakeSource(name, SliceLayout((4, 4, 1, 1), False, torch.float32), torch.full((64,), n))
        for n, name in enumerate("axy")
    )
    stream.reserve(64)
    learned: dict = {}
    for run, following in (((a, x), learned), ((a,), {}), ((y,), {}), ((a, x), learned)):
        stream.begin(following)
        for source in run:
            weight, _ = stream.take(source)
            assert (weight == source.flat[0]).all()
            stream.done(source)


class FakeSource:
    def __init__(self, key: str, layout: SliceLayout, flat: torch.Tensor):
        self.key, self.layout, self.flat = key, layout, flat.float()


def test_the_lanes_of_these_tests_would_notice_a_buffer_written_too_early() -> None:
    accelerator = LaneAccelerator()
    buffer, source = torch.zeros(4), torch.ones(4)
    with accelerator.copying():
        accelerator.copy(buffer, source)
        filled = accelerator.mark()
    assert (buffer == 0).all()
    accelerator.after(filled)
    assert (buffer == 1).all()
    with accelerator.copying(), pytest.raises(AssertionError, match="written over while it is"):
        accelerator.copy(buffer, source)
    read = accelerator.mark()
    with accelerator.copying():
        accelerator.after(read)
        accelerator.copy(buffer, source)
