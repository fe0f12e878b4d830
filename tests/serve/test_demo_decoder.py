"""The demo of decoders, on a tiny one: three widths, a switch, a checkpoint that is taken again."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import typer
from typer.testing import CliRunner

from serve.demo_decoder import continuations, demo
from supernet import Checkpoint, define_supernet, save_checkpoint
from supernet.text import TextSpec
from supernet.weights.import_decoder import decoder_checkpoint

tokenizers = pytest.importorskip("tokenizers")


@pytest.fixture(scope="module")
def decoder() -> Checkpoint:
    letters = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    encoder = tokenizers.Tokenizer(
        tokenizers.models.BPE(vocab={t: i for i, t in enumerate(letters)}, merges=[])
    )
    encoder.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    encoder.decoder = tokenizers.decoders.ByteLevel()
    definition = define_supernet("decoder_tiny", vocab_size=256)
    state = {name: tensor.detach() for name, tensor in definition.build().state_dict().items()}
    ids = [torch.arange(20)[None]]
    return decoder_checkpoint(
        definition, state, ids, name="tiny", text=TextSpec(tokenizer=encoder.to_str())
    )


def test_each_width_continues_the_prompt(decoder: Checkpoint) -> None:
    made = continuations(decoder, "Once", 6)
    assert [each.name for each in made] == [
        "d2-e1-r16", "d2-e0.75-r16", "d2-e0.25-r16", "d2-e0.25-r16, full from 3"
    ]  # fmt: skip
    assert made[0].quality == 1.0
    assert all(each.tokens_per_s > 0 and each.text for each in made)


def test_a_checkpoint_of_before_is_taken_and_a_table_printed(
    decoder: Checkpoint, tmp_path: Path
) -> None:
    app = typer.Typer()
    app.command()(demo)
    absent = CliRunner().invoke(app, ["--out", str(tmp_path), "--gguf", str(tmp_path / "no.gguf")])
    assert absent.exit_code == 2
    assert "no such file" in absent.stderr
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("mine")
    arguments = ["--out", str(tmp_path / "file"), "--gguf", str(tmp_path / "no.gguf")]
    assert "can't be written" in CliRunner().invoke(app, arguments).stderr
    save_checkpoint(decoder, tmp_path / "checkpoint")
    result = CliRunner().invoke(app, ["--out", str(tmp_path), "--tokens", "4"])
    assert result.exit_code == 0, result.output
    assert "tokens/s" in result.stdout
    assert "checkpoint" in result.stdout
