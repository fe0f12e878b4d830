from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from supernet import Arch, SearchSpace, SupernetDefinition, define_supernet

SPACE = define_supernet("resnet20_cifar").space


def test_every_arch_of_a_tiny_space_is_legal_distinct_and_counted(tiny: SupernetDefinition) -> None:
    archs = list(tiny.space)
    assert len(archs) == len(tiny.space) == len(set(archs))
    assert len({arch.subnet_id for arch in archs}) == len(archs)
    assert all(arch in tiny.space for arch in archs)


@given(seed=st.integers(0, 2**32 - 1))
def test_a_sampled_arch_is_legal_and_round_trips_through_json(seed: int) -> None:
    arch = SPACE.sample(np.random.default_rng(seed))
    assert arch in SPACE
    assert Arch.from_json(arch.to_json()) == arch


def test_smallest_and_largest_bound_every_entry() -> None:
    assert SPACE.smallest.depth == (1, 1, 1)
    assert SPACE.largest.depth == (3, 3, 3)
    assert set(SPACE.smallest.expand) == {0.5}
    assert set(SPACE.largest.expand) == {1.0}


def test_every_uniform_shape_is_listed_once() -> None:
    space = define_supernet("resnet20_cifar").space
    uniforms = space.uniforms()
    assert len(uniforms) == 27
    assert set(uniforms) == {
        space.uniform(depth=d, width=w, expand=e)
        for d in (1, 2, 3)
        for w in (0.5, 0.75, 1.0)
        for e in (0.5, 0.75, 1.0)
    }
    elastic = define_supernet("ofa_mobilenet_v3_w1.0").space.uniforms()
    assert len(elastic) == 27, "depth, expand and kernel; one resolution"
    assert {arch.resolution for arch in elastic} == {224}


def test_a_ladder_climbs_one_dimension_at_a_time() -> None:
    ladder = SPACE.ladder()
    assert len(ladder) == 7
    assert ladder[0] == SPACE.smallest
    assert ladder[-1] == SPACE.largest
    for a, b in itertools.pairwise(ladder):
        assert all(x <= y for x, y in zip(a.depth, b.depth, strict=True))
        assert all(x <= y for x, y in zip(a.width, b.width, strict=True))


def test_neighbours_differ_in_one_place_and_are_legal() -> None:
    arch = SPACE.uniform(depth=2, expand=0.75)
    neighbours = list(SPACE.neighbours(arch))
    assert len(neighbours) == len(set(neighbours))
    assert arch not in neighbours
    assert all(n in SPACE for n in neighbours)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"resolution": 28}, "resolution is 28, allowed 32"),
        ({"depth": (1, 2, 4)}, "depth[2] is 4, allowed 1, 2, 3"),
        ({"width": (1.0, 1.0, 0.6)}, "width[2] is 0.6, allowed 0.5, 0.75, 1"),
        ({"expand": (1.0,) * 8}, "expand has 8 entries, expected 9 (blocks)"),
        ({"kernel": (3,) * 9}, "kernel has 9 entries, expected 0 (blocks)"),
    ],
)
def test_an_illegal_arch_is_refused_with_field_value_and_allowed(
    change: dict[str, object], message: str
) -> None:
    arch = replace(SPACE.largest, **change)  # type: ignore[arg-type]
    assert arch not in SPACE
    with pytest.raises(ValueError) as error:
        SPACE.validate(arch)
    assert message in str(error.value)


def test_a_uniform_arch_names_what_it_does_not_know() -> None:
    with pytest.raises(ValueError, match="resnet is not elastic in kernel"):
        SPACE.uniform(kernel=5)
    with pytest.raises(ValueError, match="unknown stride"):
        SPACE.uniform(stride=2)


def test_choices_must_increase() -> None:
    with pytest.raises(ValueError, match="expand choices are"):
        SearchSpace(family="x", resolution=(8,), depth=((1,),), expand=(1.0, 0.5))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"resolution": 8}, "lacks depth"),
        ({"resolution": 8, "depth": [1], "stride": 2}, "unknown stride"),
        ({"resolution": "8", "depth": [1]}, "resolution is '8'"),
        ({"resolution": 8, "depth": [1.5]}, "expected a list of whole numbers"),
        ({"resolution": 8, "depth": 2}, "expected a list of numbers"),
    ],
)
def test_malformed_arch_json_is_refused(data: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError) as error:
        Arch.from_json(data)
    assert message in str(error.value)
