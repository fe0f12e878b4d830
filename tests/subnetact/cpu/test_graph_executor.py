"""Whole graphs behind the `Executor`: which form serves what, within which bytes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from slackfit.residency import Candidate, Savings
from subnetact import EagerExecutor
from subnetact.cpu import graph_executor
from subnetact.cpu.activation_ranges import activation_ranges, ranges_to_tensors
from subnetact.cpu.graph_executor import GraphExecutor
from subnetact.cpu.session_store import SessionStore
from subnetact.cpu.subnet_sessions import SubnetSessions
from subnetact.executor import CACHE_COUNTS
from supernet import Checkpoint
from supernet.served_form import ServedForm


@pytest.fixture
def rounded(checkpoint: Checkpoint) -> Checkpoint:
    """The tiny checkpoint with every subnet in int8, too."""
    sessions = SubnetSessions(checkpoint)
    images = checkpoint.sample.noise(16, np.random.default_rng(1))
    ranges = {
        i: ranges_to_tensors(activation_ranges(sessions.graph(ServedForm(i)), [images]))
        for i in checkpoint.subnet_ids
    }
    int8 = tuple(replace(s, precision="int8", accuracy=0.4) for s in checkpoint.subnets)
    return replace(checkpoint, int8_subnets=int8, activation_ranges=ranges)


def make(checkpoint: Checkpoint, **options: object) -> GraphExecutor:
    return GraphExecutor(checkpoint, lambda: EagerExecutor(checkpoint), **options)  # type: ignore[arg-type]


def test_every_form_is_served_by_its_own_graph(
    rounded: Checkpoint, rng: np.random.Generator
) -> None:
    executor, views = make(rounded), EagerExecutor(rounded)
    assert executor.subnet_ids == tuple(form.subnet_id for form in rounded.forms)
    assert executor.details == "whole graphs of onnxruntime, fp32 and int8"
    inputs = rounded.sample.noise(5, rng)
    for form_id in executor.subnet_ids:
        form = ServedForm.parse(form_id)
        launched = executor.launch(form_id, [executor.stage(inputs)])
        assert launched.form == f"graph {form.precision}"
        expected = views.run(form.subnet_id, inputs)
        tolerance = 1e-5 if form.precision == "fp32" else 0.2
        error = np.abs(executor.result(launched) - expected).max()
        assert error <= tolerance * np.abs(expected).max()
    counts = executor.counts()
    assert set(counts) >= set(CACHE_COUNTS)
    assert (counts["hits"], counts["misses"]) == (len(rounded.forms), 0)


def test_views_are_made_only_where_something_is_not_resident(rounded: Checkpoint) -> None:
    """They hold the whole supernet beside the sessions; a miss must not wait for them."""
    made: list[EagerExecutor] = []

    def views() -> EagerExecutor:
        made.append(EagerExecutor(rounded))
        return made[-1]

    executor = GraphExecutor(rounded, views)
    executor.run(rounded.subnet_ids[0], rounded.sample.zeros(1))
    assert not made
    GraphExecutor(rounded, views, budget_bytes=0)
    assert len(made) == 1


def test_what_is_not_resident_is_served_by_its_float_twin_else_by_views(
    rounded: Checkpoint, rng: np.random.Generator
) -> None:
    executor, views = make(rounded, budget_bytes=0), EagerExecutor(rounded)
    float_id = rounded.subnet_ids[-1]
    inputs = rounded.sample.noise(3, rng)
    expected = views.run(float_id, inputs)
    launched = executor.launch(f"{float_id}-i8", [inputs])
    assert launched.form == "views"
    assert np.array_equal(launched.logits, expected)
    executor.store.budget_bytes = None
    executor.store.load(float_id)
    launched = executor.launch(f"{float_id}-i8", [inputs])
    assert launched.form == "graph fp32"
    np.testing.assert_allclose(launched.logits, expected, rtol=1e-4, atol=1e-5)
    counts = executor.counts()
    assert (counts["hits"], counts["misses"], counts["int8_by_float"]) == (0, 2, 1)


def test_a_budget_is_kept_and_follows_the_mix(
    rounded: Checkpoint, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    def by_size(forms: object, open_session: object, num_bytes: dict, *_: object) -> Savings:
        return Savings(
            Candidate(i, ServedForm.parse(i).subnet_id, size, 0.0, {i: 1e-9 * size})
            for i, size in num_bytes.items()
        )

    # Times of so small a network are noise, so what sessions save is set here.
    monkeypatch.setattr(graph_executor, "measure_session_savings", by_size)
    whole = make(rounded)
    budget = whole.counts()["held_bytes"] // 3
    executor = make(rounded, budget_bytes=budget)
    assert executor.store.resident, "before any query all subnets count alike"
    inputs = rounded.sample.noise(2, rng)
    for form_id in rounded.subnet_ids:
        for _ in range(40):
            got, expected = (e.run(form_id, inputs) for e in (executor, whole))
            np.testing.assert_allclose(got, expected, rtol=0, atol=2e-4 * np.abs(expected).max())
            assert executor.counts()["held_bytes"] <= budget
    executor.close()
    counts = executor.counts()
    assert counts["hits"] + counts["misses"] == 40 * len(rounded.subnet_ids)
    assert counts["hits"] > 0
    assert counts["held_bytes"] == 0


def test_what_can_not_be_compiled_is_warned_of_once_and_served_by_views(
    checkpoint: Checkpoint, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: object, form: ServedForm) -> None:
        raise ValueError("no rule writes it")

    monkeypatch.setattr(SubnetSessions, "open", broken)
    with pytest.warns(RuntimeWarning, match="no rule writes it.* served by views") as seen:
        executor = make(checkpoint)
    assert len(seen) == 1
    inputs = checkpoint.sample.noise(2, rng)
    subnet_id = checkpoint.subnet_ids[0]
    assert executor.launch(subnet_id, [inputs]).form == "views"
    assert executor.counts()["graph_refusals"] == len(checkpoint.subnets)


def test_int8_without_ranges_and_an_unknown_subnet_are_refused(checkpoint: Checkpoint) -> None:
    with pytest.raises(ValueError, match="subnet 'd9' is not served"):
        make(checkpoint, subnet_ids=["d9"])
    with pytest.raises(KeyError, match="not registered"):
        make(checkpoint).run("d9", checkpoint.sample.zeros(1))
    with pytest.raises(ValueError, match="max_batch_size is 0, allowed 1 or more"):
        make(checkpoint, max_batch_size=0)
    with pytest.raises(ValueError, match="budget_bytes is -1, allowed 0 or more"):
        SessionStore(lambda form: None, {}, -1)  # type: ignore[arg-type,return-value]


def test_graphs_are_made_once(
    rounded: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved = replace(rounded, fingerprint="0" * 16)
    make(saved, cache_folder=tmp_path).close()
    assert len(list(tmp_path.glob("*.onnx"))) == len(saved.forms)
    monkeypatch.setattr(SubnetSessions, "graph", lambda self, form: pytest.fail("made again"))
    make(saved, cache_folder=tmp_path).close()
