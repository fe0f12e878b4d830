"""The released models: small, complete, and as good as their pages say."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from subnetact import load_executor
from supernet import load_checkpoint
from supernet.subnets.agreement import TOP1_AGREEMENT
from training.config import load_config

MODELS = sorted(path.parent for path in Path("models").glob("*/supernet.json"))
DECODERS = [folder for folder in MODELS if (folder / "tokenizer.json").exists()]
CLASSIFIERS = [folder for folder in MODELS if folder not in DECODERS]
_ROW = re.compile(r"\| `(\S+)` \| ([\d.]+) \| ([\d.]+) % \|[^|]*\| (?:([\d.]+) %|not offered) \|")
_WIDTH = re.compile(r"\| `(\S+)` \| ([\d.]+) \| ([\d.]+) % \|[^|]*\| ([\d.]+) \|")


def test_there_is_one_of_each_kind() -> None:
    assert CLASSIFIERS
    assert DECODERS


@pytest.mark.parametrize("folder", DECODERS, ids=lambda folder: folder.name)
def test_a_decoders_page_says_what_its_files_hold(folder: Path) -> None:
    checkpoint = load_checkpoint(folder)
    said = {m[1]: m.groups()[1:] for m in _WIDTH.finditer((folder / "README.md").read_text())}
    perplexity = checkpoint.provenance["perplexity"]
    held = {
        s.subnet_id: (
            f"{s.params / 1e6:.1f}", f"{100 * s.accuracy:.1f}", f"{perplexity[s.subnet_id]:.1f}"
        )
        for s in checkpoint.subnets
    }  # fmt: skip
    assert said == held
    assert checkpoint.accuracy_source.startswith(TOP1_AGREEMENT)
    assert sum(f.stat().st_size for f in folder.iterdir()) <= 20e6


@pytest.mark.parametrize("folder", CLASSIFIERS, ids=lambda folder: folder.name)
def test_its_page_says_what_its_files_hold(folder: Path) -> None:
    checkpoint = load_checkpoint(folder)
    said = {m[1]: m.groups()[1:] for m in _ROW.finditer((folder / "README.md").read_text())}
    int8 = {s.arch: f"{100 * s.accuracy:.2f}" for s in checkpoint.int8_subnets}
    held = {
        s.subnet_id: (f"{s.macs / 1e6:.1f}", f"{100 * s.accuracy:.2f}", int8.get(s.arch))
        for s in checkpoint.subnets
    }
    assert said == held
    assert sum(f.stat().st_size for f in folder.iterdir()) <= 8 * 2**20


@pytest.mark.parametrize("folder", CLASSIFIERS, ids=lambda folder: folder.name)
def test_its_accuracies_chose_nothing_and_it_spans_a_factor_of_four(folder: Path) -> None:
    checkpoint = load_checkpoint(folder)
    assert "5000 test images that nothing was chosen on" in checkpoint.accuracy_source
    macs = [s.macs for s in checkpoint.subnets]
    assert 4 * min(macs) <= max(macs)
    assert all(s.ci95[0] < s.accuracy < s.ci95[1] for s in checkpoint.subnets)


@pytest.mark.parametrize("folder", MODELS, ids=lambda folder: folder.name)
def test_it_is_trained_as_its_configs_say(folder: Path) -> None:
    runs = [("config.toml", "log.jsonl"), ("finish.toml", "finish.jsonl")]
    configs = []
    for recipe, log in [run for run in runs if (folder / run[0]).exists()]:
        configs.append(load_config(folder / recipe))
        epochs = [json.loads(line)["epoch"] for line in (folder / log).read_text().splitlines()]
        assert epochs == list(range(1, configs[-1].schedule.epochs + 1))
    made_by = load_checkpoint(folder).provenance["config"]
    for name in ("epochs", "delay", "random_subnets"):
        assert made_by["schedule"][name] == getattr(configs[-1].schedule, name)
    assert made_by["supernet"]["weights"] == configs[-1].supernet.weights


@pytest.mark.parametrize("folder", CLASSIFIERS, ids=lambda folder: folder.name)
def test_every_subnet_of_it_runs_as_a_graph_as_on_views(folder: Path) -> None:
    inputs = np.random.default_rng(0).integers(0, 256, (2, 3, 32, 32), dtype=np.uint8)
    graphs, views = (load_executor(folder, packing=p) for p in ("graph", "views"))
    try:
        for subnet_id in load_checkpoint(folder).subnet_ids:
            expected = views.run(subnet_id, inputs)
            found = graphs.run(subnet_id, inputs)
            assert np.abs(found - expected).max() <= 2e-4 * np.abs(expected).max()
    finally:
        graphs.close()
        views.close()
