"""Steps of a graph supernet: the rate, the average that is kept, whose turn it is; who teaches."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from supernet import SupernetDefinition, define_supernet
from supernet.graphs.generated import heterophilous
from training.graphs.gcnii import GcniiOptions, accuracy_of
from training.graphs.node_trainer import NodeTrainer, NodeTraining
from training.graphs.teachers import teacher_logits
from training.graphs.whole_graph import WholeGraph, node_logits
from training.trainer.run_log import StepReport
from training.trainer.trainer import TrainingDivergedError


@pytest.fixture(scope="module")
def whole() -> WholeGraph:
    return WholeGraph(heterophilous(num_nodes=1900, num_features=16, signal=3.0))


@pytest.fixture(scope="module")
def definition() -> SupernetDefinition:
    return define_supernet(
        "graph_sage", num_features=16, num_classes=5, width=16, fanout_choices=(3, 2**31 - 1)
    )


def test_the_rate_falls_by_a_cosine(definition: SupernetDefinition, whole: WholeGraph) -> None:
    reports: list[StepReport] = []
    options = NodeTraining(steps=4, lr=0.02, min_lr=0.01, random_subnets=0)
    trainer = NodeTrainer(definition, whole, options)
    rates: list[float] = []
    trainer._optimizer.register_step_post_hook(
        lambda optimizer, *_: rates.append(optimizer.param_groups[0]["lr"])
    )
    trainer.run(progress=reports.append)
    expected = [0.02, 0.01 + 0.005 * (1 + 0.5**0.5), 0.015, 0.01 + 0.005 * (1 - 0.5**0.5)]
    assert rates == pytest.approx(expected)
    assert [report.lr for report in reports] == rates


def test_what_is_kept_is_the_moving_average(
    definition: SupernetDefinition, whole: WholeGraph
) -> None:
    # The rate is constant and only the end is watched: a run of n steps returns the n-th weights.
    last = NodeTraining(steps=2, min_lr=0.01, random_subnets=0, watch_steps=9, dropout=0.0)
    start = NodeTrainer(definition, whole, last).run(should_stop=lambda: True)
    first = NodeTrainer(definition, whole, replace(last, steps=1)).run()
    second = NodeTrainer(definition, whole, last).run()
    kept = NodeTrainer(definition, whole, replace(last, ema_decay=0.15)).run()
    for name, tensor in kept.items():
        average = 0.1 * start[name] + 0.9 * first[name]  # (1 + n) / (10 + n) at n = 0
        expected = 0.15 * average + 0.85 * second[name]  # 2 / 11 is above the decay
        torch.testing.assert_close(tensor, expected)
        assert not torch.equal(tensor, second[name])


def test_drawn_subnets_take_turns_through_the_depths(
    definition: SupernetDefinition, whole: WholeGraph, monkeypatch: pytest.MonkeyPatch
) -> None:
    depths: list[int] = []

    def recorded(*given: Any) -> torch.Tensor:
        if given[-1] is not None:  # a pass with dropout is of a step, the others watch
            depths.append(given[2].depth[0])
        return node_logits(*given)

    monkeypatch.setattr("training.graphs.node_trainer.node_logits", recorded)
    options = NodeTraining(steps=2, random_subnets=3, each_depth=True)
    NodeTrainer(definition, whole, options).run()
    assert depths == [3, 0, 0, 1, 2, 1, 3, 0, 0, 2, 1, 2]


def test_subnets_without_neighbours_weigh_what_they_are_told(
    definition: SupernetDefinition, whole: WholeGraph
) -> None:
    def gradient(**changes: Any) -> torch.Tensor:
        options = NodeTraining(random_subnets=0, dropout=0.0, **changes)
        trainer = NodeTrainer(definition, whole, options)
        trainer._step(0, 0.01)
        found = trainer._weights.parameters["first.own.weight"].grad
        assert found is not None
        return found

    alone = gradient(alone=definition.space.largest) / 3  # of three passes
    mlp = gradient() - alone
    torch.testing.assert_close(gradient(mlp_weight=0.0), alone, rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(gradient(mlp_weight=4.0), alone + 4 * mlp, rtol=1e-4, atol=1e-7)
    assert mlp.abs().max() > 1e-4


def test_the_largest_subnet_teaches_more_where_neighbours_are_of_other_classes(
    definition: SupernetDefinition, whole: WholeGraph
) -> None:
    options = GcniiOptions(layers=4, width=16, dropout=0.3, epochs=60)
    smooth, largest = (
        accuracy_of(teacher_logits(kind, whole, definition, options, 0), whole, "validation")
        for kind in ("gcnii", "largest")
    )
    assert largest > smooth + 0.05


def test_a_run_that_diverges_says_so(definition: SupernetDefinition, whole: WholeGraph) -> None:
    """Its weights of NaN had been measured and saved without a word."""
    trainer = NodeTrainer(definition, whole, NodeTraining(steps=5, lr=1e30, min_lr=1e30))
    with pytest.raises(TrainingDivergedError, match=r"the loss of subnet .* lower optimizer.lr"):
        trainer.run()
