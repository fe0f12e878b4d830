"""Sessions of a checkpoint's subnets: threads, cache, precision, and the executor over them."""

import multiprocessing
import os
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from subnetact.cpu.activation_ranges import activation_ranges
from subnetact.cpu.graph_cache import GraphCache
from subnetact.cpu.ort_session import OrtSession
from subnetact.cpu.subnet_sessions import SubnetSessions
from supernet.checkpoint import Checkpoint, ServedSubnet
from supernet.definition import define_supernet
from supernet.input import InputSpec
from supernet.served_form import ServedForm
from supernet.subnets.calibrate import calibrate
from supernet.subnets.extract import extract

_SPEC = InputSpec(channels=1, height=8, width=8, mean=(0.4,), std=(0.2,))


@pytest.fixture(scope="module")
def samples() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (8, 1, 8, 8), dtype=np.uint8)


@pytest.fixture(scope="module")
def checkpoint(samples) -> Checkpoint:
    torch.manual_seed(0)
    definition = define_supernet("resnet_tiny")
    state = definition.build().state_dict()
    archs = [definition.space.smallest, definition.space.largest]
    x = _SPEC.normalise(torch.from_numpy(samples), 8)
    return Checkpoint(
        name="tiny",
        definition=definition,
        input=_SPEC,
        state=state,
        norm_statistics={
            arch.subnet_id: calibrate(extract(state, definition, arch), [x]) for arch in archs
        },
        subnets=tuple(
            ServedSubnet(arch=arch, accuracy=0.5, ci95=(0.4, 0.6), macs=i, params=i)
            for i, arch in enumerate(archs)
        ),
        fingerprint="0123456789abcdef",
    )


@pytest.fixture(scope="module")
def ranges(checkpoint, samples):
    sessions = SubnetSessions(checkpoint)
    return {
        subnet_id: activation_ranges(sessions.graph(ServedForm(subnet_id)), [samples])
        for subnet_id in checkpoint.subnet_ids
    }


def test_a_second_start_reads_what_the_first_one_kept(
    checkpoint, samples, ranges, tmp_path, monkeypatch
):
    forms = [ServedForm(checkpoint.subnet_ids[0], p) for p in ("fp32", "int8")]
    cache = GraphCache(tmp_path)
    first = SubnetSessions(checkpoint, ranges=ranges, cache=cache)
    expected = [first.open(form).run(samples) for form in forms]
    assert len(list(tmp_path.glob("*.onnx"))) == 2
    monkeypatch.setattr(SubnetSessions, "graph", None)  # nothing may be made again
    second = SubnetSessions(checkpoint, ranges=ranges, cache=cache)
    for form, logits in zip(forms, expected, strict=True):
        np.testing.assert_array_equal(second.open(form).run(samples), logits)


def test_another_checkpoint_input_or_range_has_graphs_of_its_own(
    checkpoint, samples, ranges, tmp_path
):
    subnet_id = checkpoint.subnet_ids[0]
    cache = GraphCache(tmp_path)
    widened = {i: {t: a._replace(high=a.high + 1) for t, a in r.items()} for i, r in ranges.items()}
    others = [
        SubnetSessions(checkpoint, ranges=ranges, cache=cache),
        SubnetSessions(checkpoint, ranges=widened, cache=cache),
        SubnetSessions(replace(checkpoint, fingerprint="f" * 16), ranges=ranges, cache=cache),
        SubnetSessions(
            replace(checkpoint, input=replace(_SPEC, mean=(0.1,))), ranges=ranges, cache=cache
        ),
    ]
    for count, sessions in enumerate(others, start=1):
        sessions.open(ServedForm(subnet_id, "int8"))
        assert len(list(tmp_path.glob("*.onnx"))) == count
    unsaved = SubnetSessions(replace(checkpoint, fingerprint=""), cache=GraphCache(tmp_path / "no"))
    unsaved.open(ServedForm(subnet_id))
    assert not (tmp_path / "no").exists()


@pytest.mark.parametrize("damage", [lambda b: b[:-9], lambda b: b[:99] + b"\x07" + b[100:]])
def test_a_spoilt_file_is_made_again(damage, checkpoint, samples, tmp_path):
    form = ServedForm(checkpoint.subnet_ids[0])
    sessions = SubnetSessions(checkpoint, cache=GraphCache(tmp_path))
    expected = sessions.open(form).run(samples)
    (path,) = tmp_path.glob("*.onnx")
    whole = path.read_bytes()
    path.write_bytes(damage(whole))
    np.testing.assert_array_equal(sessions.open(form).run(samples), expected)
    assert [p.read_bytes() == whole or p.name != path.name for p in tmp_path.glob("*.onnx")] == [
        True
    ]


def _keep(folder: str, text: str, times: int) -> None:
    for _ in range(times):
        GraphCache(Path(folder)).keep("key", lambda path: path.write_text(text))
        assert GraphCache(Path(folder)).find("key") is not None


def test_processes_that_write_at_once_leave_whole_files(tmp_path):
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=_keep, args=(str(tmp_path), t, 20)) for t in "ab"]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
        assert writer.exitcode == 0
    found = GraphCache(tmp_path).find("key")
    assert found is not None
    assert found.read_text() in ("a", "b")
    assert not list(tmp_path.glob(".writing-*"))


def test_the_cache_stays_below_its_limit_and_forgets_the_longest_unused(tmp_path):
    cache = GraphCache(tmp_path, limit_bytes=25)
    for number, key in enumerate("abc"):
        path = cache.keep(key, lambda path: path.write_bytes(b"0123456789"))
        if path is not None:
            os.utime(path, (number, number))
        if key == "b":
            cache.find("a")  # used now, so b goes
    assert [key for key in "abc" if cache.find(key)] == ["a", "c"]
    assert cache.keep("huge", lambda path: path.write_bytes(bytes(26))) is None
    with pytest.raises(ValueError, match="limit_bytes is -1"):
        GraphCache(tmp_path, limit_bytes=-1)


_COUNT_THREADS = """
    import os, sys, tempfile
    import numpy as np
    from subnetact.cpu.ort_session import OrtSession
    from pathlib import Path
    model, threads = Path(sys.argv[1]), int(sys.argv[2])
    OrtSession(model)
    before = len(os.listdir("/proc/self/task"))
    sessions = [OrtSession(model, threads=threads) for _ in range(6)]
    samples = np.zeros((8, 1, 8, 8), dtype=np.uint8)
    for session in sessions:
        session.run(samples)
    print(len(os.listdir("/proc/self/task")) - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="counts threads in /proc")
@pytest.mark.parametrize(("threads", "more"), [(1, 0), (2, 6)])
def test_sessions_have_the_threads_that_were_asked_for(threads, more, checkpoint, tmp_path):
    """One thread is the caller's, so no pool; OMP_NUM_THREADS is no limit and no licence."""
    import onnx

    model = tmp_path / "m.onnx"
    onnx.save(SubnetSessions(checkpoint).graph(ServedForm(checkpoint.subnet_ids[0])), model)
    script = textwrap.dedent(_COUNT_THREADS)
    ran = subprocess.run(
        [sys.executable, "-c", script, str(model), str(threads)],
        env={**os.environ, "OMP_NUM_THREADS": "3" if threads == 1 else "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert int(ran.stdout) == more


def test_faulty_arguments_are_named(checkpoint, tmp_path):
    with pytest.raises(ValueError, match="threads is 0"):
        SubnetSessions(checkpoint, threads=0)
    with pytest.raises(ValueError, match="needs the ranges"):
        SubnetSessions(checkpoint).open(ServedForm(checkpoint.subnet_ids[0], "int8"))
    (tmp_path / "no.onnx").write_bytes(b"none")
    with pytest.raises(ValueError, match="can't load it"):
        OrtSession(tmp_path / "no.onnx")
    with pytest.raises(ValueError, match="precision is 'int4'"):
        _ = ServedForm("d1-r8", "int4").form_id


def test_the_runtime_is_imported_by_the_first_session():
    """A machine without onnxruntime runs all else: nothing of ours imports it beforehand."""
    script = (
        "import sys; import subnetact.load, serve.app; "
        "assert 'onnxruntime' not in sys.modules, 'imported'"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
