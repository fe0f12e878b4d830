"""Distillation over pairs of layers: the loss by hand, subnets of any depth and width, resuming."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from supernet import define_supernet
from training.config import ConfigError, config_from_json
from training.data.data import load_dataset
from training.trainer.hidden_states import EMBEDDING
from training.trainer.layer_pairs import BlockPairs, features_of
from training.trainer.trainer import Trainer

WIDTHS = {"a": 8, "b": 40, "c": 48}


def features(widths: dict[str, int], seed: int, rows: int = 6) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {n: torch.randn(rows, w, generator=generator) for n, w in widths.items()}


def test_features_are_means_over_pixels_or_tokens_of_block_outputs() -> None:
    image, tokens = torch.randn(2, 3, 4, 5), torch.randn(2, 7, 3)
    found = features_of({EMBEDDING: image, "x": image, "y": tokens})
    assert list(found) == ["x", "y"]
    torch.testing.assert_close(found["x"], image.mean((2, 3)))
    torch.testing.assert_close(found["y"], tokens.mean(1))


def test_the_loss_is_attention_times_distance_written_out() -> None:
    pairs = BlockPairs(WIDTHS, "attention", seed=0)
    teacher, student = features(WIDTHS, 1), features({"a": 8, "c": 24}, 2)
    total = 0.0
    for name, h in student.items():
        query = h.mean(0) @ pairs.parameters[f"pairs.query.{name}"][:, : h.shape[1]].T
        scores = torch.stack([
            query @ (t.mean(0) @ pairs.parameters[f"pairs.key.{n}"].T) / math.sqrt(16)
            for n, t in teacher.items()
        ])  # fmt: skip
        weights = scores.softmax(0)
        assert float(weights.sum().detach()) == pytest.approx(1.0)
        mine = F.normalize(h @ pairs.parameters[f"pairs.project.{name}"][:, : h.shape[1]].T, dim=1)
        for weight, (n, t) in zip(weights, teacher.items(), strict=True):
            theirs = F.normalize(t @ pairs._fixed[n], dim=1)
            total += weight * (mine - theirs).square().sum(1).mean()
    torch.testing.assert_close(pairs.loss(teacher, student), total / 2)


def test_controls_are_uniform_weights_and_the_last_layers_alone() -> None:
    teacher, student = features(WIDTHS, 1), features({"a": 8, "c": 24}, 2)
    uniform, last = (BlockPairs(WIDTHS, kind, seed=0) for kind in ("uniform", "last"))
    unlike = uniform.unlikeness(teacher, student)
    torch.testing.assert_close(uniform.loss(teacher, student), unlike.mean())
    torch.testing.assert_close(last.loss(teacher, student), unlike[-1, -1])


def test_what_is_not_learnt_keeps_lengths_and_the_loss_cannot_collapse() -> None:
    """The teacher's map is orthonormal; learnt projections that all point one way stay unlike."""
    pairs = BlockPairs(WIDTHS, "attention", seed=0)
    for name, width in WIDTHS.items():
        gram = pairs._fixed[name].T @ pairs._fixed[name] if width >= 32 else (
            pairs._fixed[name] @ pairs._fixed[name].T
        )  # fmt: skip
        torch.testing.assert_close(gram, torch.eye(len(gram)), atol=1e-5, rtol=0)
    teacher, student = features(WIDTHS, 1, 64), features(WIDTHS, 2, 64)
    optimizer = torch.optim.Adam(pairs.parameters.values(), 1e-2)
    for _ in range(100):
        optimizer.zero_grad()
        loss = pairs.loss(teacher, student)
        loss.backward()
        optimizer.step()
    report = pairs.report(teacher, student)
    assert report.spread > 0.05
    assert float(loss.detach()) > 0.2  # independent features: nothing makes them alike
    assert 0.0 <= report.entropy <= 1.0 + 1e-6


def test_a_run_with_pairs_resumes_to_the_same_weights(make_config, tmp_path: Path) -> None:
    changes = {
        "schedule": {"strategy": "sandwich", "steps": 6, "parts": 1},
        "loss": {"features": "layer_pairs"},
    }
    config = make_config(**changes)
    definition, data = define_supernet("resnet_tiny"), load_dataset("digits")
    (tmp_path / "whole").mkdir()
    (tmp_path / "parts").mkdir()
    whole = Trainer(config, definition, data, tmp_path / "whole")
    assert whole.run()
    first = Trainer(config, definition, data, tmp_path / "parts")
    assert not first.run(should_stop=lambda: first.step == 3)
    second = Trainer(config, definition, data, tmp_path / "parts", resume=True)
    assert second.run()
    for name, tensor in whole.state().items():
        assert torch.equal(second.state()[name], tensor), name
    assert not any(name.startswith("pairs") for name in whole.state())
    assert "pairs_entropy" in (tmp_path / "whole" / "log.jsonl").read_text()


def test_pairs_need_the_full_model_in_every_step() -> None:
    with pytest.raises(ConfigError, match="loss.features is layer_pairs with schedule.strategy"):
        config_from_json(
            {
                "supernet": {"variant": "resnet_tiny"},
                "schedule": {"strategy": "progressive"},
                "loss": {"features": "layer_pairs"},
            }
        )
