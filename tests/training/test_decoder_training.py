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
from training.config import ConfigError, DataConfig, TrainConfig, config_from_json
from training.data.data import load_dataset
from training.run import train
from training.trainer.resume import load_resume_state

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


def test_of_a_long_text_no_more_is_encoded_than_the_limit_asks_for(
    text_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = config_of(text_file).data
    whole = load_dataset(options)
    encoded: list[int] = []
    encode = Tokenizer.encode

    def counting(self: Tokenizer, text: str) -> list[int]:
        encoded.append(len(text))
        return encode(self, text)

    monkeypatch.setattr(Tokenizer, "encode", counting)
    limited = load_dataset(replace(options, limit=7))
    assert len(limited.train) == 7
    first, same = (d.train.take(torch.arange(7)) for d in (whole, limited))
    assert torch.equal(first.images, same.images)
    assert torch.equal(first.labels, same.labels)
    assert encoded[0] == 7 * 16 * 8
    assert len(limited.test) == len(whole.test)


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


def test_each_text_is_split_by_itself_and_gives_its_share_of_windows(
    text_file: Path, tmp_path: Path
) -> None:
    numbers = tmp_path / "numbers.txt"
    numbers.write_text(" ".join(str(i) for i in range(1500)))
    paths = f"{numbers},{text_file}"
    whole, some = (
        load_dataset(config_of(text_file, path=paths, limit=limit).data) for limit in (0, 24)
    )
    assert whole.text is not None
    tokenizer = Tokenizer(whole.text)
    for split in (whole.train, whole.validation, whole.test):
        read = tokenizer.decode(split.take(torch.arange(len(split))).images.flatten().tolist())
        assert "1" in read
        assert "fool" in read
    assert len(some.train) == 24
    halves = some.train.take(torch.arange(24)).images.flatten(1).split(12)
    first, second = (tokenizer.decode(half.flatten().tolist()) for half in halves)
    assert first.startswith("0 1 2 ")
    assert "king" in second
    short = load_dataset(config_of(text_file, path=paths, limit=10_000).data)
    assert len(short.train) == len(whole.train)  # a text that has fewer gives what it has


def test_a_killed_run_goes_on_from_the_last_save_between_epochs(
    text_file: Path, tmp_path: Path
) -> None:
    config = config_of(text_file)
    saving = replace(config, log=replace(config.log, save_every_steps=10))
    whole = train(config, tmp_path / "whole")
    steps = iter(range(1000))

    def killed() -> bool:
        if next(steps) == 27:
            raise KeyboardInterrupt
        return False

    with pytest.raises(KeyboardInterrupt):
        train(saving, tmp_path / "cut", should_stop=killed)
    assert load_resume_state(tmp_path / "cut", config).step == 20
    resumed = train(saving, tmp_path / "cut", resume=True)
    assert whole is not None
    assert resumed is not None
    for name, tensor in whole.state.items():
        torch.testing.assert_close(resumed.state[name], tensor, atol=1e-6, rtol=1e-5)


def test_healing_holds_the_full_width_and_betters_the_narrow_ones(
    text_file: Path, tmp_path: Path
) -> None:
    """Full width alone first; then all widths learn from it as it was, itself among them."""
    config = config_of(text_file)
    schedule = replace(config.schedule, strategy="single", steps=40)
    first = train(replace(config, schedule=schedule), tmp_path / "first")
    assert first is not None
    healing = replace(
        config,
        supernet=replace(config.supernet, weights=str(tmp_path / "first"), origin="supernet"),
        data=replace(config.data, vocabulary=str(tmp_path / "first")),
        schedule=replace(
            config.schedule, strategy="sandwich", steps=40, parts=1, sort_channels=False
        ),
        optimizer=replace(config.optimizer, lr=0.002),
        loss=replace(config.loss, teacher="frozen", full_model="teacher"),
    )
    healed = train(healing, tmp_path / "healed")
    assert healed is not None
    before, after = (list(c.provenance["perplexity"].values()) for c in (first, healed))
    assert after[0] < 0.8 * before[0]
    assert after[-1] < 1.05 * before[-1]


def test_a_full_model_learns_from_a_teacher_in_a_sandwich_only(text_file: Path) -> None:
    config = config_of(text_file)
    with pytest.raises(ConfigError, match="set loss.teacher to frozen, schedule.strategy to sand"):
        replace(config, loss=replace(config.loss, full_model="teacher"))
