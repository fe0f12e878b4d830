"""Layer-pair distillation: gradients, attention, and that nothing collapses."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from supernet.graphs.generated import heterophilous
from training.graphs.gcnii import GcniiOptions, train_gcnii
from training.graphs.layer_pairs import Contrast, LayerPairs
from training.graphs.student import WAYS, StudentOptions, Teacher, Way, num_parameters, teach
from training.graphs.whole_graph import WholeGraph


def states(*widths: int, nodes: int = 40, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(nodes, width, generator=generator) for width in widths]


@pytest.mark.parametrize("weights", ["attention", "uniform", "last"])
def test_the_gradient_of_the_loss_is_its_slope(weights: Any) -> None:
    torch.manual_seed(0)
    loss = LayerPairs([40, 48], [6, 8, 5], weights).double()
    teacher = [h.double() for h in states(40, 48)]
    student = [h.double().requires_grad_(True) for h in states(6, 8, 5, seed=1)]
    assert torch.autograd.gradcheck(lambda *mine: loss(teacher, mine), student, atol=1e-6)


def test_attention_rows_add_up_and_learn_where_uniform_ones_do_not() -> None:
    torch.manual_seed(0)
    teacher, student = states(40, 48, 64), states(6, 8, seed=1)
    for weights in ("attention", "uniform"):
        rows = LayerPairs([40, 48, 64], [6, 8], weights).attention(teacher, student)  # type: ignore[arg-type]
        torch.testing.assert_close(rows.sum(1), torch.ones(2))
    loss = LayerPairs([40, 48, 64], [6, 8], "attention")
    loss(teacher, student).backward()
    assert loss.queries[0].weight.grad is not None
    assert loss.queries[0].weight.grad.abs().sum() > 0
    assert not any(name.startswith("fixed") for name, _ in loss.named_parameters())


def test_the_last_pair_alone_is_the_last_pairs_unlikeness() -> None:
    torch.manual_seed(0)
    teacher, student = states(40, 48), states(6, 8, seed=1)
    loss = LayerPairs([40, 48], [6, 8], "last")
    expected = loss.unlikeness(teacher, student)[-1, -1]
    torch.testing.assert_close(loss(teacher, student), expected)


def test_a_student_that_is_the_teacher_is_alike_and_one_point_is_not() -> None:
    torch.manual_seed(0)
    teacher = states(32)
    loss = LayerPairs([32], [32], "uniform")
    with torch.no_grad():
        loss.projections[0].weight.copy_(loss.get_buffer("fixed_0").T)
        loss.projections[0].bias.zero_()
        assert loss(teacher, teacher) < 1e-5
        loss.projections[0].weight.zero_()
        loss.projections[0].bias.fill_(1.0)
        assert loss(teacher, teacher) > 1.5  # all nodes at one point are no minimum


def test_a_contrast_is_least_where_each_node_finds_its_own() -> None:
    torch.manual_seed(0)
    teacher, loss = states(16), Contrast(16, 16)
    loss.mine.load_state_dict(loss.theirs.state_dict())
    rows = torch.arange(40)
    own = loss(teacher, teacher, rows)
    other = loss(teacher, [teacher[0].roll(1, 0)], rows)
    assert own < other


@pytest.fixture(scope="module")
def taught() -> tuple[WholeGraph, Teacher]:
    whole = WholeGraph(heterophilous(num_nodes=1800, num_features=24, homophily=0.9, signal=3.0))
    net = train_gcnii(whole, 5, GcniiOptions(layers=3, width=32, dropout=0.3, epochs=60), 0)
    return whole, Teacher.of(net, whole)


@pytest.mark.parametrize("way", WAYS)
def test_every_way_teaches_and_none_collapses(taught: tuple[WholeGraph, Teacher], way: Way) -> None:
    whole, teacher = taught
    size = GcniiOptions(layers=2, width=6, dropout=0.1, epochs=60, patience=60)
    options = replace(StudentOptions(), size=size)
    made = teach(whole, teacher, way, 0, options)
    assert made.test > 0.5  # five classes
    assert teach(whole, teacher, way, 0, options) == made
    assert num_parameters(whole, 5, options) < teacher.num_parameters / 5
    if way in ("last", "uniform", "attention"):
        assert made.spread is not None
        assert made.spread > 0.05
    else:
        assert made.spread is None
