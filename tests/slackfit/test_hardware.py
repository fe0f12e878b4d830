"""Hardware profiles: read and refused, and costs by the roofline on grids of workers."""

from __future__ import annotations

from pathlib import Path

import pytest

from slackfit.profile import ProfileError
from slackfit.streams.hardware import DecoderShape, HardwareProfile, hardware_profiles
from slackfit.streams.iteration_cost import IterationWork

FOLDER = Path("profiles/hardware")
SHAPE = DecoderShape(
    name="8 B",
    layers=32,
    width=4096,
    hidden=14_336,
    heads=32,
    kv_heads=8,
    head_dim=128,
    vocab=128_256,
    number_bytes=2,
    widths={"e0.5": (0.5, 0.5), "e1": (1.0, 1.0)},
)


@pytest.fixture(scope="module")
def h100() -> HardwareProfile:
    return HardwareProfile.load(FOLDER / "h100_sxm.toml")


def test_profiles_are_dated_and_name_their_source():
    found = hardware_profiles(FOLDER)
    assert len(found) == 3
    for profile in found:
        assert profile.dated
        assert profile.source


def test_a_decode_reads_weights_and_context(h100: HardwareProfile):
    assert SHAPE.token_bytes == 131_072
    assert SHAPE.weights() == pytest.approx(6.98e9, rel=0.01)  # Llama 3 8B without its tables
    seconds = h100.costs(SHAPE).seconds("e1", IterationWork(1, 0, 1, 1_000_000))
    expected = (SHAPE.weights() * 2 + 1e6 * 131_072) / (3.35e12 * 0.8) + 0.0005
    assert seconds == pytest.approx(expected)


def test_a_million_tokens_of_a_70b_take_most_of_an_hour_on_one_device(h100: HardwareProfile):
    """2.8 exaFLOP, 48 minutes of an H100 at its peak (Medha, arXiv 2409.17264)."""
    shape = DecoderShape(
        name="70 B", layers=80, width=8192, hidden=28_672, heads=64, kv_heads=8, head_dim=128,
        vocab=128_256, number_bytes=2, widths={"e1": (1.0, 1.0)},
    )  # fmt: skip
    cost = h100.costs(shape).rung("e1")
    linear, attention = (
        seconds * h100.flops_per_s
        for seconds in (cost.linear(1_000_000), cost.attention_s(0, 1_000_000))
    )
    assert linear + 2 * attention == pytest.approx(2.8e18, rel=0.05)  # it counts unseen pairs too


def test_shards_divide_reads_and_stages_hold_fewer_weights(h100: HardwareProfile):
    one = h100.costs(SHAPE)
    eight = h100.costs(SHAPE, shards=8)
    assert eight.parallel is not None
    even = eight.parallel.break_even_tokens
    assert 1000 < even < 50_000
    for context, faster in ((even // 2, False), (even * 20, True)):
        alone, spread = (
            costs.seconds("e1", costs.decode_work([context])) for costs in (one, eight)
        )
        assert (spread < alone) == faster
        assert spread <= alone * 1.001
    whole = h100.capacity_tokens(SHAPE)
    assert h100.capacity_tokens(SHAPE, shards=8) == 8 * whole
    assert h100.capacity_tokens(SHAPE, stages=8) > 8 * whole
    assert h100.between(8) is h100.link
    assert h100.between(9) is h100.network


def test_a_profile_that_cannot_be_is_refused(tmp_path: Path):
    text = (FOLDER / "h100_sxm.toml").read_text(encoding="utf-8")
    for old, new, says in (
        ("flops_per_s", "flop_per_s", "lacks 'flops_per_s'"),
        ("flops_per_s = 989e12", 'flops_per_s = "fast"', "is malformed"),
        ("memory_bytes = 80e9", "memory_bytes = 0", "allowed > 0"),
    ):
        (tmp_path / "bad.toml").write_text(text.replace(old, new, 1), encoding="utf-8")
        with pytest.raises(ProfileError, match=says):
            HardwareProfile.load(tmp_path / "bad.toml")
