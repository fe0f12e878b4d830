"""The graph part measures the same function on both sides, in a fair order."""

import numpy as np
import pytest
import torch

from serve.bench.actuation.graph_cases import (
    GraphCase,
    graph_rows,
    our_session,
    rotated,
    static_export,
    static_session,
)
from serve.bench.actuation.random_supernet import random_state
from supernet.definition import define_supernet
from supernet.input import InputSpec
from supernet.subnets.calibrate import calibrate
from supernet.subnets.extract import extract


@pytest.fixture(scope="module")
def case() -> GraphCase:
    torch.manual_seed(0)
    definition = define_supernet("resnet_tiny")
    arch = definition.space.smallest
    state = random_state(definition)
    spec = InputSpec(channels=1, height=8, width=8, mean=(0.4,), std=(0.2,))
    images = np.random.default_rng(0).integers(0, 256, (16, 1, 8, 8), dtype=np.uint8)
    x = spec.normalise(torch.from_numpy(images), 8)
    statistics = calibrate(extract(state, definition, arch), [x])
    return GraphCase("tiny", "min", definition, arch, state, statistics, spec, images)


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-4), ("int8", 0.15)])
def test_both_sides_compute_the_same(case, precision, tolerance, tmp_path):
    ours = our_session(case, precision, tmp_path)(case.images)
    static = static_session(static_export(case, precision, tmp_path))(case.images)
    assert ours.shape == (16, case.definition.config.num_classes)
    assert np.abs(ours - static).max() < tolerance * np.abs(static).max()


def test_rows_stand_beside_their_a_a(case):
    rows = graph_rows(
        [case], precisions=["fp32"], batch_sizes=[1, 2], at_least_s=0.0, tell=lambda line: None
    )
    assert [row["figure"] for row in rows] == [
        f"actuation/tiny/min/b{batch}/t1/{name}"
        for batch in (1, 2)
        for name in ("ours_fp32_over_best_static_fp32", "best_static_fp32_over_itself")
    ]
    assert all(row["value"] > 0 and case.arch.subnet_id in row["detail"] for row in rows)


def test_each_call_stands_at_each_place_equally_often():
    order: list[str] = []
    calls = {name: lambda name=name: order.append(name) for name in "abc"}
    samples_s = rotated(calls, at_least_s=0.0, rounds=(18, 18))
    assert [len(samples_s[name]) for name in "abc"] == [18, 18, 18]
    measured = order[2 * 3 :]
    for place in range(3):
        at_place = measured[place::3]
        assert {at_place.count(name) for name in "abc"} == {6}
