"""Subgraph algebra held equal to brute-force sets of indices."""

from __future__ import annotations

import itertools

import numpy as np
import torch

from supernet import Subgraph, SupernetDefinition, extract


def indices(subgraph: Subgraph) -> set[tuple[str, tuple[int, ...]]]:
    return {
        (name, index)
        for name, boxes in subgraph.boxes.items()
        for box in boxes
        for index in itertools.product(*map(range, box))
    }


def test_bytes_of_a_subnet_are_those_of_its_extracted_parameters(
    tiny: SupernetDefinition, tiny_state: dict[str, torch.Tensor], rng: np.random.Generator
) -> None:
    for _ in range(5):
        arch = tiny.space.sample(rng)
        extracted = extract(tiny_state, tiny, arch)
        stored = sum(p.numel() * p.element_size() for p in extracted.parameters())
        assert Subgraph.of(tiny, arch).num_bytes() == stored


def test_intersection_and_union_equal_sets_of_indices(
    tiny: SupernetDefinition, rng: np.random.Generator
) -> None:
    for _ in range(5):
        a, b, c = (Subgraph.of(tiny, tiny.space.sample(rng)) for _ in range(3))
        assert indices(a & b) == indices(a) & indices(b)
        union = (a | b) | c
        assert indices(union) == indices(a) | indices(b) | indices(c)
        assert union.num_elements == len(indices(union))
        assert indices(union & a) == indices(a)
        assert a in union


def test_the_supernet_contains_every_subnet(
    tiny: SupernetDefinition, rng: np.random.Generator
) -> None:
    whole = Subgraph.of(tiny, tiny.space.largest)
    smallest = Subgraph.of(tiny, tiny.space.smallest)
    assert Subgraph.of(tiny, tiny.space.sample(rng)) in whole
    assert whole not in smallest
