"""A whole run on a graph: what it writes is what is served, to the last answer."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from subnetact import load_executor
from supernet import define_supernet, load_checkpoint
from supernet.graphs.generated import heterophilous
from supernet.graphs.graph_store import GraphDataError
from training.config import ConfigError, TrainConfig, config_from_json, load_config
from training.graphs.node_trainer import NodeTrainer, NodeTraining
from training.graphs.whole_graph import WholeGraph, node_logits
from training.run import train


def config_for(graph: Path, **graph_keys: object) -> TrainConfig:
    return config_from_json(
        {
            "name": "nodes",
            "supernet": {"variant": "graph_sage", "overrides": {"width": 16}},
            "data": {"name": "graph", "path": str(graph)},
            "schedule": {"strategy": "sandwich", "steps": 60, "random_subnets": 1},
            "optimizer": {"lr": 0.02},
            "graph": {"teacher": "none", "dropout": 0.2, "watch_steps": 20, **graph_keys},
        }
    )


def test_what_was_measured_is_what_is_served(tmp_path: Path) -> None:
    graph = heterophilous(num_nodes=2000, seed=2, signal=3.0).save(tmp_path / "graph")
    made = train(config_for(tmp_path / "graph"), tmp_path / "run")
    assert made is not None
    loaded = load_checkpoint(tmp_path / "run")
    rows = json.loads((tmp_path / "run" / "accuracy.json").read_text())["subnets"]
    assert rows[-1]["accuracy"] > rows[0]["accuracy"] > 0.25  # five classes; neighbours tell
    assert rows[0]["arch"]["depth"] == [0]
    assert rows[-1]["id"] == loaded.definition.space.largest.subnet_id
    executor = load_executor(loaded, max_batch_size=1000)
    nodes = np.load(tmp_path / "run" / "replay" / "images.npy")
    labels = np.load(tmp_path / "run" / "replay" / "labels.npy")
    assert graph.labels is not None
    np.testing.assert_array_equal(labels, graph.labels[nodes[:, 0]])
    for row in rows:
        logits = executor.run(row["id"], nodes)
        right = float((logits.argmax(1) == labels).mean())
        assert right == pytest.approx(row["accuracy"], abs=0.0011)  # a tie may fall either way
    lines = (tmp_path / "run" / "log.jsonl").read_text().splitlines()
    assert set(json.loads(lines[-1])["test_accuracy"]) >= {row["id"] for row in rows}


def test_every_step_trains_the_rung_without_neighbours_at_full_width(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    definition = define_supernet("graph_sage", num_features=8, num_classes=5, width=16)
    whole = WholeGraph(heterophilous(num_nodes=1900, num_features=8))
    trained: list[str] = []

    def recorded(*given: Any) -> torch.Tensor:
        if given[-1] is not None:  # a pass with dropout is of a step, the others watch
            trained.append(given[2].subnet_id)
        return node_logits(*given)

    monkeypatch.setattr("training.graphs.node_trainer.node_logits", recorded)
    NodeTrainer(definition, whole, NodeTraining(steps=3, random_subnets=1)).run()
    largest, smallest = definition.space.largest.subnet_id, definition.space.smallest.subnet_id
    assert len(trained) == 12
    for step in (trained[:4], trained[4:8], trained[8:]):
        assert step[:3] == [largest, smallest, "d0-w1-r1"]


def test_one_subnet_trains_alone(tmp_path: Path) -> None:
    heterophilous(num_nodes=1900, seed=2).save(tmp_path / "graph")
    config = config_for(tmp_path / "graph", teacher="gcnii", teacher_layers=2, teacher_epochs=5)
    single = replace(config.schedule, strategy="single", subnet="d=1,w=1", steps=5)
    made = train(replace(config, schedule=single), tmp_path / "run")
    assert made is not None
    first = json.loads((tmp_path / "run" / "log.jsonl").read_text().splitlines()[0])
    assert 0 < first["teacher"]["test"] < 1


def test_what_does_not_fit_is_refused_before_it_trains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SUPERNET_DATA_DIR", raising=False)
    with pytest.raises(
        GraphDataError, match="data.path is cora: set SUPERNET_DATA_DIR to the folder"
    ):
        train(load_config("configs/train_cora.toml"), tmp_path / "run")
    heterophilous(num_nodes=1900).save(tmp_path / "graph")
    config = config_for(tmp_path / "graph")
    wrong = replace(config.supernet, overrides={"num_features": 7})
    with pytest.raises(ConfigError, match="num_features is 7, graph heterophilous has 64"):
        train(replace(config, supernet=wrong), tmp_path / "run")
    other = replace(config.supernet, variant="resnet_tiny", overrides={})
    with pytest.raises((ConfigError, ValueError), match="known are|graph takes one of graph_sage"):
        train(replace(config, supernet=other), tmp_path / "run")
    with pytest.raises(ConfigError, match="not resumed; choose another --out"):
        train(config, tmp_path / "run", resume=True)
    with pytest.raises(ConfigError, match="give data.path, a graph folder"):
        config_from_json({"supernet": {"variant": "graph_sage"}, "data": {"name": "graph"}})
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_cora_within_minutes(tmp_path: Path) -> None:
    if not os.environ.get("SUPERNET_DATA_DIR"):
        pytest.skip("needs planetoid/cora.npz under SUPERNET_DATA_DIR")
    made = train(load_config("configs/train_cora.toml"), tmp_path / "run")
    assert made is not None
    assert made.subnets[-1].accuracy > 0.82
    assert made.subnets[0].arch.depth == (0,)
