"""The cost of an iteration: never less for more work, the same through a file, no bad numbers."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slackfit.profile import LatencyProfile, ProfileError
from slackfit.streams.iteration_cost import (
    KEY,
    CostCurve,
    IterationCost,
    IterationCosts,
    IterationWork,
    has_iterations,
)
from slackfit.streams.iteration_fill import IterationFill, prompt_alone_s

CHUNKS = st.lists(
    st.tuples(st.integers(0, 3000), st.integers(1, 400), st.booleans()), min_size=1, max_size=6
)


def a_cost() -> IterationCost:
    return IterationCost(
        subnet_id="e1",
        quality=1.0,
        linear=CostCurve((1, 8, 64), (0.03, 0.07, 0.15)),
        head=CostCurve((1, 8), (0.01, 0.025)),
        fixed_s=0.001,
        decode_s=0.0003,
        position_s=3e-6,
        chunk_s=0.0003 + 3e-6,  # a chunk of two costs no less than a decode
        pair_s=3e-6,
    )


def test_a_curve_goes_through_its_points_and_on_with_its_last_slope():
    curve = CostCurve((2, 4, 8), (1.0, 2.0, 4.0))
    assert [curve(n) for n in (0, 1, 2, 3, 4, 6, 8, 10)] == [0, 1, 1, 1.5, 2, 3, 4, 5]
    assert [CostCurve((4,), (2.0,))(n) for n in (1, 4, 6)] == [2.0, 2.0, 3.0]


@pytest.mark.parametrize(
    ("at", "seconds", "says"),
    [
        ((), (), "whole numbers from 1"),
        ((0, 1), (1.0, 2.0), "whole numbers from 1"),
        ((2, 2), (1.0, 2.0), "must rise"),
        ((1, 2), (1.0,), "give one each"),
        ((1, 2), (1.0, float("nan")), "finite"),
        ((1, 2), (2.0, 1.0), "may not be faster"),
    ],
)
def test_a_curve_that_cannot_be(at: tuple[int, ...], seconds: tuple[float, ...], says: str):
    with pytest.raises(ProfileError, match=says):
        CostCurve(at, seconds)


def test_an_iteration_is_the_sum_of_its_parts():
    work = IterationWork.of([(9, 1, True), (99, 1, True), (10, 6, False)])
    assert work == IterationWork(8, 2, 2, 110, 1, 81)
    expected = 0.001 + 0.07 + (0.01 + 0.015 / 7) + 2 * 0.0003 + 110 * 3e-6 + 0.000303 + 81 * 3e-6
    assert a_cost().seconds(work) == pytest.approx(expected)


@given(chunks=CHUNKS, more=st.tuples(st.integers(0, 3000), st.integers(1, 400), st.booleans()))
def test_more_work_is_never_faster(
    chunks: list[tuple[int, int, bool]], more: tuple[int, int, bool]
):
    cost = a_cost()
    assert cost.seconds(IterationWork.of([*chunks, more])) >= cost.seconds(IterationWork.of(chunks))


@given(chunks=CHUNKS, at=st.integers(0, 6))
def test_filling_chunk_by_chunk_predicts_the_whole(chunks: list[tuple[int, int, bool]], at: int):
    cost = a_cost()
    fill = IterationFill(cost, IterationWork.of(chunks[:at]))
    for chunk in chunks[at:]:
        foretold = fill.seconds_with(*chunk)
        fill.add(*chunk)
        assert fill.seconds == pytest.approx(foretold, rel=1e-12)
    assert fill.seconds == pytest.approx(cost.seconds(IterationWork.of(chunks)), rel=1e-12)


@given(
    start=st.integers(0, 4000),
    remaining=st.integers(1, 600),
    limit=st.integers(0, 600),
    target_s=st.floats(0.0, 2.0),
    granule=st.sampled_from([1, 8, 16]),
)
def test_the_largest_chunk_is_the_largest(
    start: int, remaining: int, limit: int, target_s: float, granule: int
):
    fill = IterationFill(a_cost(), IterationWork(4, 4, 4, 2000))
    found = fill.largest_chunk(start, remaining, limit, target_s, granule)
    most = min(remaining, limit)
    allowed = set(range(granule, most + 1, granule)) | ({most} if most else set())
    fitting = [n for n in allowed if fill.seconds_with(start, n, n == remaining) <= target_s]
    assert found == max(fitting, default=0)


@given(
    starts=st.tuples(st.integers(0, 8000), st.integers(0, 8000)).map(sorted),
    target_s=st.floats(0.08, 1.0),
)
def test_a_chunk_is_never_larger_as_the_context_grows(starts: list[int], target_s: float):
    fill = IterationFill(a_cost(), IterationWork(2, 2, 2, 100))
    early, late = (fill.largest_chunk(s, 10_000, 512, target_s, 8) for s in starts)
    assert late <= early
    for start, chunk in zip(starts, (early, late), strict=True):
        assert chunk == 0 or fill.seconds_with(start, chunk, False) <= target_s


@given(st.integers(0, 500), st.integers(1, 2000), st.integers(2, 300))
def test_the_time_of_a_prompt_alone_is_that_of_its_chunks(start: int, length: int, chunk: int):
    cost, end, total_s = a_cost(), start + length, 0.0
    for at in range(start, end, chunk):
        size = min(chunk, end - at)
        fill = IterationFill(cost)
        fill.add(at, size, at + size == end)
        single = size == 1  # counted as a decode there
        total_s += fill.seconds + single * (
            cost.chunk_s + (at + 1) * cost.pair_s - cost.decode_s - (at + 1) * cost.position_s
        )
    assert prompt_alone_s(cost, start, end, chunk) == pytest.approx(total_s)


def test_a_profile_carries_the_costs(smollm2: LatencyProfile):
    costs = IterationCosts.of(smollm2)
    assert costs.subnet_ids == smollm2.subnet_ids == ("e0.5", "e0.75", "e1")
    assert [rung.quality for rung in costs.rungs] == [s.accuracy for s in smollm2.subnets]
    assert costs.quality_kind == "perplexity_ratio"
    again = IterationCosts.of(LatencyProfile.from_json(costs.in_profile(smollm2).to_json()))
    work = IterationWork.of([(500, 1, True), (0, 100, False)])
    for subnet_id in costs.subnet_ids:
        assert again.seconds(subnet_id, work) == pytest.approx(costs.seconds(subnet_id, work))


def test_the_examples_batches_are_its_decodes(smollm2: LatencyProfile):
    costs = IterationCosts.of(smollm2)
    for subnet_id in smollm2.subnet_ids:
        for b in smollm2.batch_sizes:
            predicted = costs.seconds(subnet_id, IterationWork(b, b, b, b * 512))
            assert smollm2.latency_s(subnet_id, b) == pytest.approx(predicted, rel=1e-3)


def test_extra_keys_are_kept(smollm2: LatencyProfile):
    profile = replace(
        smollm2, extra={KEY: {**smollm2.extra[KEY], "held_out_error": 0.08}, "other": 1}
    )
    costs = IterationCosts.of(profile)
    assert costs.extra == {"held_out_error": 0.08}
    assert costs.in_profile(profile).extra[KEY]["held_out_error"] == 0.08
    assert costs.in_profile(profile).extra["other"] == 1


def test_a_profile_of_batches_says_that_it_has_none(resnet: LatencyProfile):
    assert not has_iterations(resnet)
    with pytest.raises(ProfileError, match="superserve_resnet.*has no iterations.*decoder"):
        IterationCosts.of(resnet)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda d: d.update(quality_kind=""), "quality_kind"),
        (lambda d: d["rungs"].pop("e1"), "rungs e0.5, e0.75, the profile subnets"),
        (lambda d: d["rungs"]["e1"].update(pair_ms=-1.0), "pair_s is .*at least 0"),
        (lambda d: d["rungs"]["e1"].update(fixed_ms=float("inf")), "fixed_s is inf"),
        (lambda d: d["rungs"]["e1"]["linear_ms"].pop(), "give one each"),
        (lambda d: d["rungs"]["e1"].pop("head_ms"), "malformed.*head_ms"),
        (lambda d: d.update(linear_tokens="many"), "whole numbers"),
        (lambda d: d.update(rungs=[1]), "expected a JSON object, got list"),
    ],
)
def test_a_malformed_section_names_the_profile_and_the_fault(
    smollm2: LatencyProfile, change: Any, says: str
):
    data = copy.deepcopy(smollm2.extra[KEY])
    change(data)
    with pytest.raises(ProfileError, match=f"smollm2_135m_example.*{says}"):
        IterationCosts.of(replace(smollm2, extra={KEY: data}))


def test_costs_scale_and_select(decoder_costs: IterationCosts):
    work = IterationWork.of([(500, 1, True), (0, 100, False)])
    for subnet_id in decoder_costs.subnet_ids:
        half = decoder_costs.seconds(subnet_id, work)
        assert decoder_costs.scaled(2.0).seconds(subnet_id, work) == pytest.approx(2 * half)
    assert decoder_costs.select(["e1", "e0.5"]).subnet_ids == ("e0.5", "e1")
    with pytest.raises(ProfileError, match="no rung 'e2'.*allowed e0.5, e0.75, e1"):
        decoder_costs.rung("e2")
