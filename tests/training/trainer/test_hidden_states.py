"""Hidden states of a pass, and DynaBERT's distance to the teacher's."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from supernet import SupernetDefinition, define_supernet, extract
from training.config import config_from_json
from training.strategies.make_strategy import make_strategy
from training.trainer.hidden_states import EMBEDDING, HiddenStates, hidden_loss
from training.trainer.shared_weights import SharedWeights

IDS = torch.tensor([[2, 5, 6, 7, 3, 0, 0, 0], [2, 9, 8, 3, 0, 0, 0, 0]])


@pytest.fixture(scope="module")
def definition() -> SupernetDefinition:
    return define_supernet(
        "bert_tiny", vocab_size=12, num_tokens=8, max_positions=8, width=16, depth=4,
        num_heads=2, depth_choices=[2, 4], heads_choices=[1, 2], expand_choices=[1, 2],
    )  # fmt: skip


def test_states_are_what_the_extracted_network_computes_block_by_block(
    definition: SupernetDefinition,
) -> None:
    weights = SharedWeights(definition, device="cpu", seed=0)
    arch = definition.space.smallest
    recorded: HiddenStates = {}
    logits = weights.forward(arch, IDS, hidden=recorded)

    net = extract(weights.state(), definition, arch)
    stream = (net.embeddings(IDS, torch.zeros_like(IDS)), IDS.ne(0)[:, None, None, :])
    expected = {EMBEDDING: stream[0]}
    for name, block in net.blocks.items():
        stream = block(stream)
        expected[f"blocks.{name}"] = stream[0]
    assert list(recorded) == list(expected)
    assert len(expected) == 3  # two blocks of four
    for name, state in expected.items():
        torch.testing.assert_close(recorded[name], state)
    assert torch.equal(logits, weights.forward(arch, IDS))  # and the hooks are gone
    assert all(not m._forward_hooks for m in weights._skeleton(arch).modules())


def test_the_loss_sums_the_errors_of_blocks_with_one_name(definition: SupernetDefinition) -> None:
    weights = SharedWeights(definition, device="cpu", seed=0)
    teacher: HiddenStates = {}
    student: HiddenStates = {}
    weights.forward(definition.space.largest, IDS, hidden=teacher)
    weights.forward(definition.space.smallest, IDS, hidden=student)
    assert len(student) < len(teacher)
    expected = sum(float(F.mse_loss(student[name], teacher[name]).detach()) for name in student)
    assert float(hidden_loss(student, teacher).detach()) == pytest.approx(expected)
    assert float(hidden_loss(teacher, teacher).detach()) == 0.0


def test_the_recipe_weighs_hidden_states_as_published(definition: SupernetDefinition) -> None:
    config = config_from_json(
        {"supernet": {"variant": "x"}, "schedule": {"strategy": "dynabert", "epochs": 9}}
    )
    strategy = make_strategy(config, definition, 10)
    weights = [{task.hidden for task in strategy.plan(step)} for step in (0, 30, 60)]
    assert weights == [{0.0}, {0.1}, {1.0}]
    elastic_stream = make_strategy(config, define_supernet("resnet_tiny"), 10)
    assert {task.hidden for step in range(90) for task in elastic_stream.plan(step)} == {0.0}
