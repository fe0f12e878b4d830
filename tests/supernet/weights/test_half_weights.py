"""Weights in float16 are half the size and make nearly the same network."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from serve.cli import build_app
from supernet import (
    Checkpoint,
    InputSpec,
    ServedSubnet,
    cost,
    define_supernet,
    extract,
    load_checkpoint,
    save_checkpoint,
)
from supernet.weights.half_weights import halved
from supernet.weights.weight_files import WeightsError


@pytest.fixture
def decoder() -> Checkpoint:
    definition = define_supernet("decoder_tiny")
    archs = definition.space.ladder()
    torch.manual_seed(0)
    return Checkpoint(
        name="tale",
        definition=definition,
        input=InputSpec(channels=1, height=1, width=16, mean=(0.0,), std=(1.0,), kind="tokens"),
        state={n: t.detach() for n, t in definition.build().state_dict().items()},
        norm_statistics={arch.subnet_id: {} for arch in archs},
        subnets=tuple(
            ServedSubnet(arch=a, accuracy=1.0, ci95=(1.0, 1.0), **cost(definition, a)._asdict())
            for a in archs
        ),
    )


def test_a_checkpoint_in_half_the_size_says_nearly_the_same(
    decoder: Checkpoint, tmp_path: Path
) -> None:
    save_checkpoint(decoder, tmp_path / "whole")
    arguments = ["import", str(tmp_path / "whole"), "--from", "supernet", "--half"]
    result = CliRunner().invoke(
        build_app(["import"]), [*arguments, "--out", str(tmp_path / "half")]
    )
    assert result.exit_code == 0, result.output
    sizes = [(tmp_path / n / "supernet.safetensors").stat().st_size for n in ("half", "whole")]
    assert sizes[0] < 0.6 * sizes[1]
    read = load_checkpoint(tmp_path / "half")
    ids = torch.arange(12)[None]
    for subnet in read.subnets:
        nets = [extract(c.state, c.definition, subnet.arch) for c in (decoder, read)]
        assert all(p.dtype == torch.float32 for p in nets[1].parameters())
        whole, half = (net(ids) for net in nets)
        assert 0 < (half - whole).abs().max() < 2e-3 * whole.abs().max()


def test_weights_beyond_float16_are_refused(decoder: Checkpoint) -> None:
    state = dict(decoder.state)
    state["norm.weight"] = state["norm.weight"] * 1e6
    with pytest.raises(WeightsError, match="tale in float16"):
        halved(replace(decoder, state=state))
