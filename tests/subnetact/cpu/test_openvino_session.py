"""A second engine: the same numbers, chosen where it is faster, absent without a trace."""

from __future__ import annotations

import time
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnx
import pytest

from subnetact import load_executor
from subnetact.cpu import subnet_sessions
from subnetact.cpu.activation_ranges import activation_ranges
from subnetact.cpu.compiled_session import is_faster
from subnetact.cpu.graph_cache import GraphCache
from subnetact.cpu.openvino_session import OpenVinoSession
from subnetact.cpu.subnet_sessions import SubnetSessions
from supernet import Checkpoint, load_checkpoint
from supernet.served_form import ServedForm

needs_openvino = pytest.mark.skipif(
    find_spec("openvino") is None, reason="pip install 'supernet-serving[openvino]'"
)


class Sleeper:
    """A session that takes `seconds` for each sample, and more for the first batch."""

    def __init__(self, engine: str, seconds: float) -> None:
        self.engine = engine
        self._seconds = seconds
        self._is_warm = False

    def run(self, samples: np.ndarray) -> np.ndarray:
        time.sleep(self._seconds * len(samples) + 0.02 * (not self._is_warm))
        self._is_warm = True
        return samples


@pytest.mark.alone
@pytest.mark.parametrize(("other_s", "expected"), [(0.002, True), (0.004, False), (0.008, False)])
def test_faster_is_by_more_than_a_twentieth(other_s: float, expected: bool) -> None:
    batches = [np.zeros((size, 1)) for size in (1, 2)]
    ours = Sleeper("onnxruntime", 0.004)
    assert is_faster(Sleeper("openvino", other_s), ours, batches) is expected


@pytest.fixture(scope="module")
def checkpoint(checkpoint_folder: Path) -> Checkpoint:
    return load_checkpoint(checkpoint_folder)


def sessions_of(checkpoint: Checkpoint, cache: Path | None = None) -> SubnetSessions:
    floats = SubnetSessions(checkpoint)
    images = checkpoint.sample.noise(8, np.random.default_rng(1))
    ranges = {
        i: activation_ranges(floats.graph(ServedForm(i)), [images]) for i in checkpoint.subnet_ids
    }
    kept = None if cache is None else GraphCache(cache)
    return SubnetSessions(checkpoint, ranges=ranges, cache=kept)


@needs_openvino
@pytest.mark.parametrize(("precision", "within"), [("fp32", 1e-4), ("int8", 0.05)])
def test_both_engines_have_the_same_numbers(
    precision: str, within: float, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    form = ServedForm(checkpoint.subnet_ids[-1], precision)
    sessions = sessions_of(checkpoint)
    samples = checkpoint.sample.noise(8, np.random.default_rng(0))
    expected = sessions.open(form).run(samples)
    plain, compiled = tmp_path / "plain.onnx", tmp_path / "compiled"
    onnx.save(sessions.graph(form), plain)
    session = OpenVinoSession(plain)
    session.save(compiled)
    for each in (session, OpenVinoSession(compiled, compiled=True)):
        found = each.run(samples)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected, atol=within * np.abs(expected).max())
        one = each.run(samples[:1])
        np.testing.assert_allclose(one, found[:1], atol=1e-5 * np.abs(expected).max())


@needs_openvino
def test_what_was_found_faster_is_opened_by_later_starts(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    form = ServedForm(checkpoint.subnet_ids[0])
    batches = [checkpoint.sample.zeros(1)]
    first = sessions_of(checkpoint, tmp_path)
    assert first.open(form).engine == "onnxruntime", "nobody has measured yet"
    monkeypatch.setattr(subnet_sessions, "is_faster", lambda other, ours, batches: True)
    expected = first.choose(form, batches).run(batches[0])
    second = sessions_of(checkpoint, tmp_path)
    monkeypatch.setattr(SubnetSessions, "graph", None)  # nothing may be made again
    session = second.open(form)
    assert session.engine == "openvino"
    np.testing.assert_array_equal(session.run(batches[0]), expected)
    monkeypatch.undo()
    monkeypatch.setattr(subnet_sessions, "is_faster", lambda other, ours, batches: False)
    assert second.choose(form, batches).engine == "onnxruntime"
    assert sessions_of(checkpoint, tmp_path).open(form).engine == "onnxruntime"
    monkeypatch.setattr(subnet_sessions, "openvino_version", lambda: None)
    assert second.choose(form, batches).engine == "onnxruntime"


@needs_openvino
def test_an_executor_counts_what_runs_on_which(
    checkpoint_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SUPERNET_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(subnet_sessions, "is_faster", lambda other, ours, batches: True)
    plain = load_executor(checkpoint_folder)
    assert plain.counts()["graphs_openvino"] == 0
    assert "OpenVINO" not in plain.details
    count = len(plain.subnet_ids)
    load_executor(checkpoint_folder, choose_engines=True).close()
    later = load_executor(checkpoint_folder)
    assert later.counts()["graphs_openvino"] == later.counts()["graphs_resident"] == count
    assert f"({count} by OpenVINO)" in later.details


@needs_openvino
def test_a_file_that_is_no_model_is_named(tmp_path: Path) -> None:
    (tmp_path / "no.onnx").write_bytes(b"none")
    for compiled in (False, True):
        with pytest.raises(ValueError, match=r"no\.onnx: OpenVINO can't load it"):
            OpenVinoSession(tmp_path / "no.onnx", compiled=compiled)


def test_without_it_choosing_is_opening(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subnet_sessions, "openvino_version", lambda: None)
    sessions = sessions_of(checkpoint, tmp_path)
    form = ServedForm(checkpoint.subnet_ids[0])
    assert sessions.choose(form, [checkpoint.sample.zeros(1)]).engine == "onnxruntime"
    assert len(list(tmp_path.glob("*.onnx"))) == 1
