"""The benchmark of decoders compares things that compute the same, and makes its figures."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from serve.bench.decoder import bench
from serve.bench.decoder.pages import GatheredPages
from serve.cli import build_app
from subnetact.decoding.attention import attend, plan_slabs
from subnetact.decoding.extents import Run
from supernet.definition import define_supernet


def test_pages_give_what_slabs_give() -> None:
    generator = torch.Generator().manual_seed(0)
    keys, values = (torch.randn(2, 3 * 32, 8, generator=generator) for _ in range(2))
    query = torch.randn(3, 2, 2, 8, generator=generator)
    paged = GatheredPages(keys, values, context=32, seed=1).attend(query)
    for i in range(3):
        run = Run(i * 32, 32)
        views = [(keys.narrow(1, *run), values.narrow(1, *run))]
        slab = attend(query[i : i + 1], plan_slabs([run], 31, 1, 2), views)
        torch.testing.assert_close(paged[i : i + 1], slab, atol=1e-5, rtol=1e-5)


def test_every_part_makes_its_figures(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """With small shapes and no time: which figures there are, not what they say."""
    small = define_supernet("decoder_tiny", num_heads=4, max_positions=512)
    monkeypatch.setattr(bench, "define_supernet", lambda *_args, **_named: small)
    monkeypatch.setattr(
        bench.DecoderBench,
        "_linear",
        lambda _: bench.linear_rows(width=32, hidden=64, at_least_s=0),
    )
    monkeypatch.setattr(
        bench.DecoderBench, "_attention", lambda _: bench.attention_rows(context=32, at_least_s=0)
    )
    out = tmp_path / "rows.json"
    arguments = ["bench", "decoder", "--json", str(out), "--seconds", "0"]
    result = CliRunner().invoke(build_app(["bench"]), arguments)
    assert result.exit_code == 0, result.output
    rows = {each["figure"]: each["value"] for each in json.loads(out.read_text())}
    assert {name.rpartition("/")[2] for name in rows} >= {
        "iteration_half_over_full",
        "one_extent",
        "two_extents",
    }
    assert "decoder/smollm2_135m/views/iteration_half_over_full" in rows
    assert all(value > 0 for value in rows.values())


def test_an_unknown_part_is_told() -> None:
    result = CliRunner().invoke(build_app(["bench"]), ["bench", "decoder", "--part", "speed"])
    assert result.exit_code == 2
    assert "unknown part speed; allowed iteration, linear, attention" in result.stderr
