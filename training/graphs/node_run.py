"""One whole run on a graph: teacher, supernet, accuracies, checkpoint, payloads to replay."""

from __future__ import annotations

import platform
from collections.abc import Callable
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch

from supernet import (
    Checkpoint,
    InputSpec,
    SupernetDefinition,
    define_supernet,
    save_checkpoint,
)
from supernet.checkpoint_files import HEADER
from supernet.graphs.graph_folder import GraphFolder
from supernet.graphs.graph_store import GraphStore
from supernet.spec import parse_arch
from training.config import ConfigError, TrainConfig
from training.graphs.gcnii import GcniiOptions, accuracy_of
from training.graphs.load_graph import load_graph
from training.graphs.node_evaluation import measure_nodes, served_nodes
from training.graphs.node_trainer import NodeTrainer, NodeTraining, Progress
from training.graphs.teachers import teacher_logits
from training.graphs.whole_graph import WholeGraph
from training.trainer.run_log import RunLog

EvaluationProgress = Callable[[int, int], None]
NODES = InputSpec(channels=1, height=1, width=1, mean=(0.0,), std=(1.0,), kind="nodes")


def train_nodes(
    config: TrainConfig,
    out: Path,
    *,
    resume: bool = False,
    progress: Progress | None = None,
    evaluation_progress: EvaluationProgress | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Checkpoint | None:
    """Run `config` into folder `out` and return the checkpoint, None when it was stopped.

    `graph/` in the folder holds the graph (one that is a folder already stays where it is),
    `replay/` the test nodes with their labels. Raises ConfigError, GraphDataError,
    TrainingDivergedError.
    """
    if resume or (out / HEADER).exists():
        raise ConfigError(
            f"{out}: a run on a graph takes minutes and is not resumed; choose another --out"
        )
    given = load_graph(config.data.path)
    definition = graph_supernet(config, given)
    whole = WholeGraph(given)
    if config.threads:
        torch.set_num_threads(config.threads)
    out.mkdir(parents=True, exist_ok=True)
    log = RunLog(out, tensorboard=False)
    teacher = _teacher(config, whole, definition, log)
    trainer = NodeTrainer(definition, whole, _training(config, definition), teacher)
    state = trainer.run(progress=progress, should_stop=should_stop)
    if should_stop():
        return None
    measured = measure_nodes(
        state, definition, whole, evaluation_progress or (lambda done, total: None)
    )
    log.add_line(
        {
            "accuracy": {m.arch.subnet_id: m.validation for m in measured},
            "test_accuracy": {m.arch.subnet_id: m.test for m in measured},
        }
    )
    graph = given if given.folder else given.save(out / "graph")
    _write_replay(out / "replay", graph)
    checkpoint = Checkpoint(
        name=config.name,
        definition=definition,
        input=NODES,
        classes=graph.classes,
        state=state,
        norm_statistics={},
        subnets=served_nodes(measured, whole),
        accuracy_source=f"{len(whole.rows['test'])} test nodes of {graph.name}",
        provenance={
            "config": asdict(config),
            "versions": {"torch": version("torch"), "python": platform.python_version()},
        },
        graph=_folder_of(graph),
    )
    save_checkpoint(checkpoint, out)
    return checkpoint


def graph_supernet(config: TrainConfig, graph: GraphStore) -> SupernetDefinition:
    """The supernet of a config on a graph: its features and classes are the graph's."""
    overrides = dict(config.supernet.overrides)
    of_graph = {"num_features": graph.num_features, "num_classes": len(graph.classes)}
    for name, value in of_graph.items():
        if overrides.get(name, value) != value:
            raise ConfigError(
                f"supernet.overrides.{name} is {overrides[name]}, graph {graph.name} has {value}"
            )
    degree = max(1, round(float(graph.degrees.mean())))
    definition = define_supernet(
        config.supernet.variant, **{"degree": degree, **overrides, **of_graph}
    )
    if definition.family_name != "graph_sage":
        raise ConfigError(
            f"supernet.variant is {config.supernet.variant}, of family {definition.family_name}; "
            "data.name graph takes one of graph_sage"
        )
    return definition


def _training(config: TrainConfig, definition: SupernetDefinition) -> NodeTraining:
    schedule = config.schedule
    alone = None
    if schedule.strategy == "single":
        alone = parse_arch(schedule.subnet or "largest", definition.space)
    return NodeTraining(
        steps=schedule.steps or schedule.epochs,
        lr=config.optimizer.lr,
        min_lr=config.optimizer.min_lr,
        weight_decay=config.optimizer.weight_decay,
        ema_decay=config.optimizer.ema_decay,
        dropout=config.graph.dropout,
        distillation=config.graph.distillation,
        random_subnets=schedule.random_subnets,
        each_depth=config.graph.each_depth,
        mlp_weight=config.graph.mlp_weight,
        watch_steps=config.graph.watch_steps,
        alone=alone,
        seed=config.seed,
    )


def _teacher(
    config: TrainConfig,
    whole: WholeGraph,
    definition: SupernetDefinition,
    log: RunLog,
) -> torch.Tensor | None:
    """Logits (nodes, num_classes) of a trained teacher; None where none is asked for."""
    options = config.graph
    if options.teacher == "none":
        return None
    size = GcniiOptions(
        layers=options.teacher_layers,
        width=options.teacher_width,
        dropout=options.teacher_dropout,
        epochs=options.teacher_epochs,
    )
    logits = teacher_logits(options.teacher, whole, definition, size, config.seed)
    accuracies = {split: accuracy_of(logits, whole, split) for split in ("validation", "test")}
    log.add_line({"teacher": accuracies})
    return logits


def _write_replay(folder: Path, graph: GraphStore) -> None:
    """The test nodes as payloads of a replay, with their labels."""
    assert graph.labels is not None, "a graph that was trained on has labels"
    folder.mkdir(parents=True, exist_ok=True)
    nodes = graph.splits["test"].astype(np.int64)
    np.save(folder / "images.npy", nodes[:, None])
    np.save(folder / "labels.npy", graph.labels[nodes].astype(np.int64))


def _folder_of(graph: GraphStore) -> GraphFolder:
    assert graph.folder is not None, "the graph was saved or opened"
    return GraphFolder(folder=graph.folder, num_nodes=graph.num_nodes, digest=graph.digest())
