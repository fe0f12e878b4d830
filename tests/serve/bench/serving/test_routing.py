"""Part `routing` of the serving benchmark: its cells in virtual time, its live replicas."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from serve.bench.journal import Journal
from serve.bench.serving import routing
from serve.bench.serving.routing import RoutedScore, RoutingBench, RoutingScale
from serve.bench.serving.routing_live import InTurn
from serve.cli import build_app

SHORT = RoutingScale(num_seeds=1, simulated_s=0.5, live_s=8.0, live_seeds=1)


def test_rows_say_what_every_routing_costs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(
        RoutingBench, "_live", lambda self, chooser: RoutedScore(100, 80 + 15 * (not chooser), 70.0)
    )
    told: list[str] = []
    bench = RoutingBench(Journal(tmp_path / "r.jsonl", {}), scale=SHORT, tell=told.append)
    assert bench.rows() == []
    bench.run()
    rows = {row["figure"].removeprefix("serving/routing/"): row for row in bench.rows()}
    for name in ("client", "one_queue", "sticky32", "slowed/client", "slowed/round_robin"):
        assert 0 < rows[f"{name}/attainment"]["value"] <= 1
        assert 0.7 < rows[f"{name}/accuracy"]["value"] < 0.81
    assert rows["client/points_below_one_queue"]["value"] == pytest.approx(
        100 * (rows["one_queue/accuracy"]["value"] - rows["client/accuracy"]["value"]), abs=1e-3
    )
    assert "--routing client:4" in rows["client/attainment"]["detail"]
    assert "slower than profiled" in rows["slowed/client/attainment"]["detail"]
    ratio = rows["live/spreading_misses_over_round_robin"]
    assert ratio["value"] == pytest.approx(0.05 / 0.2)
    again = RoutingBench(Journal(tmp_path / "r.jsonl", {}), scale=SHORT, tell=told.append)
    assert again.rows() == bench.rows(), "what the journal has is not measured again"


def test_it_needs_no_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(routing, "QUICK", SHORT)
    monkeypatch.setattr(RoutingBench, "_live", lambda self, chooser: RoutedScore(10, 9, 7.0))
    words = ["bench", "serving", "--part", "routing", "--json", "rows.json"]
    result = CliRunner().invoke(build_app(words), words)
    assert result.exit_code == 0, result.output
    figures = [row["figure"] for row in json.loads(Path("rows.json").read_text())]
    assert "serving/routing/client/attainment" in figures
    assert all(figure.startswith("serving/routing/") for figure in figures)


def test_taking_turns_does_not_listen():
    turns = InTurn()
    turns.use("ab")
    turns.failed("a", 0.0)
    assert [turns.choose(0.0) for _ in range(4)] == list("abab")


@pytest.mark.slow
@pytest.mark.alone
def test_clients_that_listen_miss_less_than_half_before_a_slow_replica(tmp_path: Path):
    bench = RoutingBench(Journal(tmp_path / "r.jsonl", {}), scale=SHORT, tell=print)
    spreading, turns = bench._live(None), bench._live(InTurn)
    assert 1 - spreading.attainment <= (1 - turns.attainment) / 2
