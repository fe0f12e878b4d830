"""Commands that measure classifiers tell a decoder's owner where its widths are measured."""

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
    "arguments", [["search"], ["calibrate", "--data", "anywhere"], ["precision"]]
)
def test_a_decoder_is_refused_in_one_sentence(decoder_folder: Path, arguments: list[str]) -> None:
    verb, *others = arguments
    before = {p: p.stat().st_mtime_ns for p in decoder_folder.iterdir()}
    result = CliRunner().invoke(
        build_app([verb]), [verb, "--checkpoint", str(decoder_folder), *others]
    )
    assert result.exit_code == 2
    assert "checkpoint 'tale' is a decoder: its widths are measured on text" in result.stderr
    assert result.stderr.count("\n") == 1
    assert {p: p.stat().st_mtime_ns for p in decoder_folder.iterdir()} == before
