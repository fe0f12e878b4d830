"""Texts for an encoder, and the DynaBERT recipe on a tiny one."""

from __future__ import annotations

import csv
import gzip
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from supernet import define_supernet
from training.config import DataConfig, TrainConfig, config_from_json
from training.data.array_folder import DataError
from training.data.corpus import read_text
from training.data.data import load_dataset
from training.run import train
from training.strategies.make_strategy import make_strategy
from training.strategies.sampling import CyclingSampler, depth_width_grid, width_grid
from training.trainer.hidden_states import HiddenStates, hidden_loss
from training.trainer.losses import distillation_loss, soft_targets
from training.trainer.trainer import Trainer

WORDS = ("film", "plot", "actor", "scene", "good", "great", "bad", "dull")
TINY_BERT = {
    "vocab_size": 12, "num_tokens": 8, "max_positions": 8, "width": 16, "depth": 2,
    "num_heads": 2, "depth_choices": [1, 2], "heads_choices": [1, 2], "expand_choices": [1, 2],
}  # fmt: skip


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    """Reviews whose label is whether a good word is in them."""
    (tmp_path / "vocab.txt").write_text("\n".join(("[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS)))
    rng = np.random.default_rng(0)
    with (tmp_path / "reviews.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label", "source"])
        for i in range(600):
            words = [*rng.choice(WORDS[:4], 3), WORDS[4 + int(rng.integers(2)) + 2 * (i % 2)]]
            writer.writerow([" ".join(rng.permutation(words)), 1 - i % 2, "made"])
    return tmp_path


def options(folder: Path, **values) -> DataConfig:
    return DataConfig(
        name="text", path=str(folder / "reviews.csv"), vocabulary=str(folder), size=8, **values
    )


def test_texts_become_padded_token_ids(texts: Path) -> None:
    data = load_dataset(options(texts, limit=100))
    assert [len(s) for s in (data.train, data.validation, data.test)] == [100, 48, 120]
    assert data.input.kind == "tokens"
    batch = data.train.take(torch.arange(5))
    assert batch.images.shape == (5, 1, 1, 8)
    ids = data.input.normalise(batch.images, 8)
    assert ids[:, 0].eq(2).all()  # [CLS]
    assert ids[:, -1].eq(0).all()  # [PAD]
    good = ((ids == 8) | (ids == 9)).any(1).long()
    assert torch.equal(good, batch.labels)


def test_the_recipe_trains_every_width_and_depth_from_the_frozen_full_model() -> None:
    definition = define_supernet("minilm_l6")
    space = definition.space
    widths, grid = width_grid(space), depth_width_grid(space)
    assert len(widths) == 4
    assert len(grid) == 16
    assert {a.depth for a in widths} == {(6,)}
    assert {(a.depth, a.heads[0], a.expand[0]) for a in grid} == {
        ((d,), h, e) for d in (3, 4, 5, 6) for h, e in ((3, 1), (6, 2), (9, 3), (12, 4))
    }
    config = TrainConfig(supernet=config_from_json({"supernet": {"variant": "x"}}).supernet)
    strategy = make_strategy(config, definition, 30)
    config = config_from_json(
        {"supernet": {"variant": "x"}, "schedule": {"strategy": "dynabert", "epochs": 9}}
    )
    strategy = make_strategy(config, definition, 10)
    assert [len(strategy.plan(step)) for step in (29, 30, 60)] == [1, 4, 4]
    assert strategy.events(30) == ("sort_channels", "freeze_teacher", "reset_optimizer")
    assert {task.arch for task in strategy.plan(30)} == set(widths)
    assert {task.arch for step in range(60, 64) for task in strategy.plan(step)} == set(grid)
    assert {task.target for task in strategy.plan(60)} == {"teacher"}


def test_a_cycle_visits_all_in_turn() -> None:
    archs = define_supernet("resnet_tiny").space.ladder()[:3]
    sampler = CyclingSampler(archs, 2)
    drawn = [sampler.draw(step, slot) for step in range(3) for slot in range(2)]
    assert drawn == [*archs, *archs]


def test_a_tiny_encoder_learns_the_texts_and_logs_every_subnet(texts: Path, tmp_path: Path) -> None:
    config = config_from_json(
        {
            "threads": 1,
            "amp": "off",
            "supernet": {"variant": "bert_tiny", "overrides": TINY_BERT},
            "data": {
                "name": "text", "path": str(texts / "reviews.csv"), "vocabulary": str(texts),
                "size": 8, "batch_size": 16,
            },
            "schedule": {"strategy": "dynabert", "epochs": 12},
            "optimizer": {"name": "adamw", "lr": 0.003},
            "loss": {"dropout": 0.1, "distillation": "kl"},
            "evaluation": {"random_archs": 0, "search": 0},
        }
    )  # fmt: skip
    checkpoint = train(config, tmp_path / "out")
    assert checkpoint is not None
    assert checkpoint.input.kind == "tokens"
    last = json.loads((tmp_path / "out" / "log.jsonl").read_text().splitlines()[-1])
    assert len(last["accuracy"]) >= 4
    assert max(last["accuracy"].values()) > 0.95
    assert min(last["accuracy"].values()) > 0.8


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b\n1,2\n", "expected a header with text and label"),
        ("text,label\nfine,good\n", "labels must be whole numbers from 0"),
        ("text,label\nfine,-1\n", "labels must be whole numbers from 0, got -1"),
        ("text,label\nfine,0\nbad,0.7\n", "labels must be .*, got 0.7 in line 3"),
        ("text,label\nfine,inf\n", "labels must be .*, got inf in line 2"),
        ("text,label\nfine\n", "labels must be .*, got None in line 2"),
        ("text,label\nfine,0\nbad,123456789012\n", "labels reach 123456789012 in 2 rows"),
        ("label,text\n0,fine\n1\n", r"reviews.csv, line 3: the row ends before its text"),
    ],
)
def test_a_wrong_file_is_named(texts: Path, text: str, message: str) -> None:
    (texts / "reviews.csv").write_text(text)
    with pytest.raises(DataError, match=message):
        load_dataset(options(texts))


def test_a_file_saved_by_a_spreadsheet_is_read(texts: Path) -> None:
    plain = load_dataset(options(texts)).train.labels
    path = texts / "reviews.csv"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())  # a byte order mark
    assert torch.equal(load_dataset(options(texts)).train.labels, plain)


def test_a_missing_vocabulary_or_file_is_named(texts: Path) -> None:
    with pytest.raises(DataError, match=r"data.vocabulary 'nowhere'"):
        load_dataset(DataConfig(name="text", path=str(texts / "reviews.csv"), vocabulary="nowhere"))
    with pytest.raises(DataError, match=r"none.csv: not readable"):
        load_dataset(DataConfig(name="text", path=str(texts / "none.csv"), vocabulary=str(texts)))


def test_a_step_adds_the_weighted_distance_to_the_teachers_hidden_states(
    texts: Path, tmp_path: Path
) -> None:
    config = config_from_json(
        {
            "threads": 1, "amp": "off",
            "supernet": {"variant": "bert_tiny", "overrides": TINY_BERT},
            "data": {
                "name": "text", "path": str(texts / "reviews.csv"), "vocabulary": str(texts),
                "size": 8, "batch_size": 16,
            },
            "schedule": {"strategy": "dynabert", "steps": 3},
        }
    )  # fmt: skip
    data = load_dataset(config.data)
    definition = define_supernet("bert_tiny", **TINY_BERT)
    (tmp_path / "run").mkdir()
    trainer = Trainer(config, definition, data, tmp_path / "run")
    trainer._apply("freeze_teacher")
    trainer.step = 1
    plan = trainer._strategy.plan(1)
    assert {task.hidden for task in plan} == {0.1}
    batch = data.train.take(torch.arange(16))
    ids, _ = trainer._inputs(batch)
    teacher: HiddenStates = {}
    logits = trainer.weights.forward(definition.space.largest, ids, hidden=teacher)
    targets = soft_targets(logits, 1.0)
    losses = []
    for task in plan:
        student: HiddenStates = {}
        logits = trainer.weights.forward(task.arch, ids, hidden=student)
        loss = distillation_loss(logits, targets, config.loss)
        losses.append(float((loss + 0.1 * hidden_loss(student, teacher)).detach()))
    trainer._strategy.events = lambda step: ()  # the teacher stays the one above
    report = trainer._train_step(batch)
    assert report.subnet_loss == pytest.approx(np.mean(losses), rel=1e-5)


def test_a_text_whose_archive_is_damaged_is_named(tmp_path: Path) -> None:
    packed = bytearray(gzip.compress(b"to be or not to be"))
    packed[10] = 0xFF  # no kind of block
    (tmp_path / "t.txt.gz").write_bytes(packed)
    with pytest.raises(DataError, match=r"t.txt.gz: not a readable text file"):
        read_text(str(tmp_path / "t.txt.gz"))
