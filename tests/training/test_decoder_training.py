"""Decoders train on running text: windows, sandwich steps, sorting by activations, measuring."""

from __future__ import annotations

import gzip
import json
import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from supernet import load_checkpoint
from supernet.tokenizer import Tokenizer
from training.config import DataConfig, TrainConfig, config_from_json
from training.data.data import load_dataset
from training.run import train

pytest.importorskip("tokenizers")


@pytest.fixture(scope="module")
def text_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40,000 characters of a small language."""
    draw = random.Random(0)
    nouns, verbs = ("the king", "a fool", "my lord", "this day"), ("sees", "leaves", "wants")
    words = (
        f"{draw.choice(nouns)} {draw.choice(verbs)} {draw.choice(nouns)}.\n" for _ in range(1600)
    )
    path = tmp_path_factory.mktemp("text") / "small.txt.gz"
    path.write_bytes(gzip.compress("".join(words).encode()))
    return path


def config_of(text_file: Path, **data: object) -> TrainConfig:
    return config_from_json(
        {
            "name": "small",
            "supernet": {"variant": "decoder_tiny", "overrides": {"vocab_size": 280}},
            "data": {
                "name": "corpus",
                "path": str(text_file),
                "vocabulary": "bpe:280",
                "size": 16,
                "batch_size": 16,
                **data,
            },
            "schedule": {
                "strategy": "deps",
                "steps": 45,
                "delay": 0.4,
                "ramp_epochs": 0.1,
                "random_subnets": 1,
                "parts": 2,
            },
            "optimizer": {"name": "adamw", "lr": 0.01, "weight_decay": 0.0},
            "loss": {"label_smoothing": 0.0, "distillation": "kl"},
        }
    )


def test_windows_are_labelled_with_what_follows_and_splits_follow_the_text(
    text_file: Path,
) -> None:
    data = load_dataset(config_of(text_file).data)
    assert data.text is not None
    tokenizer = Tokenizer(data.text)
    whole = gzip.decompress(text_file.read_bytes()).decode()
    at = 0
    for split in (data.train, data.validation, data.test):
        taken = split.take(torch.arange(len(split)))
        ids = taken.images.flatten(1)
        assert torch.equal(ids[:, 1:].long(), taken.labels[:, :-1])
        assert torch.equal(ids[1:, 0].long(), taken.labels[:-1, -1])
        read = tokenizer.decode(ids.flatten().tolist())
        assert whole.index(read) >= at
        at = whole.index(read) + len(read)


def test_a_decoder_learns_is_sorted_by_activations_and_measured(
    text_file: Path, tmp_path: Path
) -> None:
    config = config_of(text_file)
    config = replace(config, evaluation=replace(config.evaluation, every_epochs=1))
    made = train(config, tmp_path)
    assert made is not None
    read = load_checkpoint(tmp_path)
    assert read.text is not None
    assert [subnet.arch.expand[0] for subnet in read.subnets] == [0.25, 0.5, 0.75, 1.0]
    assert read.permutation is not None
    assert read.permutation["blocks.0.hidden"] != list(range(64))
    assert [s.accuracy for s in read.subnets][-1] == 1.0
    assert read.subnets[0].accuracy > 0.5  # of the tokens that the full width says
    perplexities = list(read.provenance["perplexity"].values())
    assert max(perplexities) < 20  # 280 tokens; a fifth of them are used
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert any("perplexity/d2-e0.25-r16" in line for line in lines)


def test_a_run_goes_on_where_it_was_stopped(text_file: Path, tmp_path: Path) -> None:
    config = config_of(text_file)
    whole = train(config, tmp_path / "whole")
    steps = iter(range(1000))
    assert train(config, tmp_path / "cut", should_stop=lambda: next(steps) >= 25) is None
    resumed = train(config, tmp_path / "cut", resume=True)
    assert whole is not None
    assert resumed is not None
    for name, tensor in whole.state.items():
        torch.testing.assert_close(resumed.state[name], tensor, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"vocabulary": "bpe:300"}, "set supernet.overrides.vocab_size="),
        ({"vocabulary": "bpe:100"}, "allowed 258 tokens or more"),
        ({"vocabulary": "words"}, "allowed bpe:N such as bpe:1024, or the folder"),
        ({"size": 8}, "data.size is 8, expected the supernet's num_tokens 16"),
        ({"size": 4000}, "are too few for windows of 4000 tokens"),
        ({"path": "absent.txt"}, "absent.txt: not a readable text file"),
        ({"mixup": 0.2}, "are not for decoders; leave out"),
    ],
)
def test_text_and_decoder_must_fit(
    text_file: Path, tmp_path: Path, changed: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        train(config_of(text_file, **changed), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_running_text_is_for_decoders_alone(text_file: Path, tmp_path: Path) -> None:
    config = config_of(text_file)
    other = replace(config, supernet=replace(config.supernet, variant="resnet_tiny", overrides={}))
    digits = replace(config, data=DataConfig())
    for wrong in (other, digits):
        with pytest.raises(ValueError, match="decoders train on running text alone"):
            train(wrong, tmp_path / "out")
