"""A search that is stopped goes on from what it measured, and finds the same."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from supernet import Checkpoint
from training.data.checkpoint_data import dataset_of
from training.evaluation.journal import SearchJournal
from training.evaluation.judge import SampleJudge
from training.evaluation.search import Search, SearchOptions

OPTIONS = SearchOptions(num_samples=4, num_final=2, calibration_images=64, generations=2)


def test_a_stopped_search_goes_on_and_finds_the_same(
    trained: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, file = dataset_of(trained), tmp_path / "measured.jsonl"
    whole = Search(trained, data, OPTIONS, journal=SearchJournal(file)).run()
    lines = file.read_text().splitlines(keepends=True)
    assert len(lines) == 1 + len(whole.measured) + len(whole.subnets)
    file.write_text("".join(lines[:7]) + lines[7][:40])  # killed in the middle of a line
    measured: list[str] = []
    measure = SampleJudge._measured

    def counting(self: SampleJudge, arch, samples):
        measured.append(arch.subnet_id)
        return measure(self, arch, samples)

    monkeypatch.setattr(SampleJudge, "_measured", counting)
    again = Search(trained, data, OPTIONS, journal=SearchJournal(file)).run()
    assert again.subnets == whole.subnets
    assert again.measured == whole.measured
    assert again.statistics.keys() == whole.statistics.keys()
    for subnet_id, statistics in whole.statistics.items():
        for name, tensor in statistics.items():
            assert torch.equal(again.statistics[subnet_id][name], tensor)
    on_validation = {json.loads(line)["subnet"] for line in lines[1:7]}
    assert len(measured) < 2 * len(whole.measured)
    measured.clear()
    Search(trained, data, OPTIONS, journal=SearchJournal(file)).run()
    assert set(measured) <= {s.arch.subnet_id for s in whole.subnets}, "statistics alone"
    assert on_validation <= {a.subnet_id for a in whole.measured}


def test_a_file_about_something_else_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "measured.jsonl"
    SearchJournal(file, {"checkpoint": "a"}).add("d1", "test", np.array([True, False, True]))
    again = SearchJournal(file, {"checkpoint": "a"})
    known = again.get("d1", "test")
    assert known is not None
    assert known.tolist() == [True, False, True]
    assert again.get("d1", "validation") is None
    with pytest.raises(ValueError, match=r"holds measurements of \{'checkpoint': 'a'\}, not of"):
        SearchJournal(file, {"checkpoint": "b"})
    file.write_text('{"about": {}}\nnonsense\n{"subnet": "d1"}\n')
    with pytest.raises(ValueError, match="line 2 is not JSON"):
        SearchJournal(file, {})


def test_what_was_measured_is_whole_however_it_was_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once in a line that had all but its end, once while half a line was being taken away."""
    file, right = tmp_path / "measured.jsonl", np.array([True, False, True])
    SearchJournal(file).add("d1", "test", right)
    file.write_text(file.read_text().rstrip("\n"))
    SearchJournal(file).add("d2", "test", right)
    again = SearchJournal(file)
    assert [again.get(name, "test") is not None for name in ("d1", "d2")] == [True, True]

    before = file.read_text() + '{"subnet": "d3", '
    file.write_text(before)

    def full(path: Path, text: str, **_: object) -> None:
        with path.open("w") as out:
            out.write(text[:10])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="No space left"):
        SearchJournal(file)
    assert file.read_text() == before
