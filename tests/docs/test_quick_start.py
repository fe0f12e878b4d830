"""The README's ten lines of Python run as they are printed."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from slackfit import LatencyProfile, SubnetProfile
from subnetact import load_executor
from supernet import Checkpoint

README = Path("README.md").read_text(encoding="utf-8")
(CODE,) = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


def test_it_is_ten_lines_long():
    assert len([line for line in CODE.splitlines() if line]) == 10


def test_it_runs_the_subnet_that_the_scheduler_chose(
    checkpoint: Checkpoint,
    checkpoint_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    rng: np.random.Generator,
):
    demo = tmp_path / "runs" / "demo"
    (demo / "data").mkdir(parents=True)
    (demo / "checkpoint").symlink_to(checkpoint_folder, target_is_directory=True)
    images = rng.integers(0, 256, size=(3, *checkpoint.input.shape), dtype=np.uint8)
    np.save(demo / "data" / "images.npy", images)
    profile_of(checkpoint).save(demo / "profile.json")
    monkeypatch.chdir(tmp_path)

    exec(compile(CODE, "README.md", "exec"), {})

    subnet_id, label = capsys.readouterr().out.split()
    assert subnet_id == checkpoint.subnet_ids[1]  # the last one takes longer than the 50 ms
    assert int(label) == load_executor(checkpoint).run(subnet_id, images[:1]).argmax()


def profile_of(checkpoint: Checkpoint) -> LatencyProfile:
    """Latencies that are set: 20, 40, 60 ms."""
    return LatencyProfile(
        name="set",
        device="cpu",
        dtype="float32",
        batch_sizes=(1,),
        subnets=tuple(
            SubnetProfile(
                subnet_id=served.arch.subnet_id,
                accuracy=served.accuracy,
                macs=0,
                latency_s={"p50": (0.02 * (i + 1),)},
            )
            for i, served in enumerate(checkpoint.subnets)
        ),
    )
