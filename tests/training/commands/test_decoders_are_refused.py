"""Commands that measure subnets tell the owner of a decoder without a tokenizer what it lacks."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from serve.cli import build_app
from supernet import Checkpoint, InputSpec, ServedSubnet, cost, define_supernet, save_checkpoint


@pytest.fixture(scope="module")
def decoder_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    definition = define_supernet("decoder_tiny")
    largest = definition.space.largest
    folder = tmp_path_factory.mktemp("decoder") / "checkpoint"
    save_checkpoint(
        Checkpoint(
            name="tale",
            definition=definition,
            input=InputSpec(channels=1, height=1, width=16, mean=(0.0,), std=(1.0,), kind="tokens"),
            state={n: t.detach() for n, t in definition.build().state_dict().items()},
            norm_statistics={largest.subnet_id: {}},
            subnets=(
                ServedSubnet(
                    arch=largest,
                    accuracy=1.0,
                    ci95=(1.0, 1.0),
                    **cost(definition, largest)._asdict(),
                ),
            ),
        ),
        folder,
    )
    return folder


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["search"], "has no tokenizer, so it can't be measured on text; import a decoder"),
        (["calibrate", "--data", "anywhere"], "has no tokenizer, so it can't be measured"),
        (["precision"], "is a decoder, whose int8 is a packing of all its widths"),
        (["precision", "--to", "signed_binary"], "has no tokenizer, so it can't be measured"),
    ],
)
def test_a_decoder_is_refused_in_one_sentence(
    decoder_folder: Path, arguments: list[str], said: str
) -> None:
    verb, *others = arguments
    before = {p: p.stat().st_mtime_ns for p in decoder_folder.iterdir()}
    result = CliRunner().invoke(
        build_app([verb]), [verb, "--checkpoint", str(decoder_folder), *others]
    )
    assert result.exit_code == 2
    assert f"checkpoint 'tale' {said}" in result.stderr
    assert result.stderr.count("\n") == 1
    assert {p: p.stat().st_mtime_ns for p in decoder_folder.iterdir()} == before
