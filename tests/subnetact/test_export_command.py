"""`supernet export` of an int8 entry: the graph that is served, as a file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from subnetact import load_executor
from subnetact.cpu.activation_ranges import activation_ranges, ranges_to_tensors
from subnetact.cpu.subnet_sessions import SubnetSessions
from subnetact.export_command import export
from supernet import Checkpoint, save_checkpoint
from supernet.served_form import ServedForm


@pytest.fixture
def folder(checkpoint: Checkpoint, tmp_path: Path, rng: np.random.Generator) -> Path:
    subnet = checkpoint.subnets[-1]
    graph = SubnetSessions(checkpoint).graph(ServedForm(subnet.subnet_id))
    ranges = ranges_to_tensors(activation_ranges(graph, [checkpoint.sample.noise(8, rng)]))
    rounded = replace(
        checkpoint,
        int8_subnets=(replace(subnet, precision="int8"),),
        activation_ranges={subnet.subnet_id: ranges},
    )
    save_checkpoint(rounded, tmp_path / "checkpoint")
    return tmp_path / "checkpoint"


def test_an_int8_entry_is_exported_as_it_is_served(
    folder: Path, checkpoint: Checkpoint, tmp_path: Path, rng: np.random.Generator
) -> None:
    form_id = f"{checkpoint.subnet_ids[-1]}-i8"
    export(folder, tmp_path / "subnet.onnx", arch=form_id, format="onnx")
    session = onnxruntime.InferenceSession(tmp_path / "subnet.onnx")
    samples = checkpoint.sample.noise(3, rng)
    (logits,) = session.run(None, {session.get_inputs()[0].name: samples})
    served = load_executor(folder).run(form_id, samples)
    np.testing.assert_allclose(logits, served, rtol=1e-4, atol=1e-4 * np.abs(served).max())


def test_what_can_not_be_exported_is_one_line(
    folder: Path, checkpoint: Checkpoint, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for arch, format, message in (
        (f"{checkpoint.subnet_ids[-1]}-i8", "state_dict", "int8 is an ONNX graph"),
        (f"{checkpoint.subnet_ids[0]}-i8", "onnx", "is not served by 'tiny'"),
    ):
        with pytest.raises(SystemExit) as ended:
            export(folder, tmp_path / "out", arch=arch, format=format)
        assert ended.value.code == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
