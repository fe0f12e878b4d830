"""The graph part measures the same function on both sides, in a fair order, against the best."""

import re

import numpy as np
import pytest

from serve.bench.actuation import graph_rows as module
from serve.bench.actuation.graph_rows import graph_rows, our_graph
from serve.bench.actuation.rounds import paired_ratio, rotated
from serve.bench.actuation.static_export import installed_engines, static_export
from subnetact.cpu.ort_session import OrtSession


@pytest.fixture(scope="module")
def case(tiny_net):
    return tiny_net.case("min")


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-4), ("int8", 0.15)])
@pytest.mark.parametrize("engine", installed_engines())
def test_both_sides_compute_the_same(case, precision, tolerance, engine, tmp_path):
    ours = OrtSession(our_graph(case, precision, tmp_path)).run(case.images)
    exported = static_export(case, precision, tmp_path)
    static = installed_engines()[engine](exported, 1)(case.images)
    assert ours.shape == (len(case.images), case.definition.config.num_classes)
    assert np.abs(ours - static).max() < tolerance * np.abs(static).max()


def test_rows_stand_beside_their_a_a_and_sum_up(case):
    rows = graph_rows(
        [case],
        precisions=["fp32"],
        batch_sizes=[1, 2],
        threads=[1, 2],
        at_least_s=0.0,
        tell=lambda line: None,
    )
    ours, itself = "ours_fp32_over_best_static_fp32", "best_static_fp32_over_itself"
    value = {row["figure"]: row["value"] for row in rows}
    assert list(value) == [
        *(
            f"actuation/tiny/min/b{batch}/t{threads}/{name}"
            for threads in (1, 2)
            for batch in (1, 2)
            for name in (ours, itself)
        ),
        *(
            f"actuation/all/t{threads}/{name}"
            for threads in (1, 2)
            for name in (f"median/{ours}", f"worst/{ours}", f"worst/{itself}")
        ),
    ]
    one, two = (value[f"actuation/tiny/min/b{batch}/t1/{ours}"] for batch in (1, 2))
    assert value[f"actuation/all/t1/worst/{ours}"] == max(one, two)
    assert value[f"actuation/all/t1/median/{ours}"] == pytest.approx((one + two) / 2, abs=1e-6)
    assert value[f"actuation/all/t2/worst/{itself}"] >= 1.0


def test_ours_is_held_against_the_engine_whose_median_is_best(case, monkeypatch):
    """An engine that takes a thousand times as long changes nothing; a faster one does."""
    order = []

    def engine(name, work):
        def make(path, threads):
            def call(samples):
                order.append(name)
                return np.linalg.matrix_power(np.ones((work, work)), 3)

            return call

        return make

    engines = {"slow": engine("slow", 300), "fast": engine("fast", 2)}
    monkeypatch.setattr(module, "installed_engines", lambda: engines)
    rows = graph_rows(
        [case], precisions=["fp32"], batch_sizes=[1], at_least_s=0.0, tell=lambda line: None
    )
    assert "best static engine fast" in rows[0]["detail"]
    medians = dict(re.findall(r"(\w+(?: again)?) ([\d.]+) ms", rows[0]["detail"]))
    assert set(medians) >= {"ours", "slow", "slow again", "fast", "fast again"}
    assert float(medians["slow"]) > float(medians["fast"])


def test_each_call_stands_at_each_place_equally_often():
    order: list[str] = []
    prepared: list[str] = []
    calls = {name: lambda name=name: order.append(name) for name in "abc"}
    samples_s = rotated(calls, at_least_s=0.0, rounds=(18, 18), prepare=prepared.append)
    assert [len(samples_s[name]) for name in "abc"] == [18, 18, 18]
    assert prepared == order
    measured = order[2 * 3 :]
    for place in range(3):
        at_place = measured[place::3]
        assert {at_place.count(name) for name in "abc"} == {6}


def test_a_ratio_is_the_median_of_rounds_not_of_medians():
    samples_s = {"a": [1.0, 20.0, 3.0], "b": [1.0, 10.0, 1.0]}
    assert paired_ratio(samples_s, "a", "b") == 2.0
